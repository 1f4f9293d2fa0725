"""SPAE (arXiv 2601.03823): steps are paid for how much nearer they bring the answer.

on a laptop CPU, minutes:               python -m recipes.spae
five probes behind each step:           python -m recipes.spae 7b --dataset my.jsonl

After each step the policy is asked for its result, which costs a read of the answer and its probes. Rows need a short
answer in text. The published models read text (DeepSeek-R1-Distill-Qwen-7B on mathematics); here it is a
vision-language model on your rows. Needs an engine that lets answers fork, which the one in this process does.
"""

from typing import Any

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.spae import SPAE
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.groups import DynamicSampling
from mmrl.rollouts.spae import SPAERollout

# The tiny model writes tags and no sentences: a step ends with each of them.
SHORT: dict[str, Any] = {"probe": "<answer>", "ends": (">",)}
PRESETS = {
    EMBEDDED: miniature(spae={"probes": 2, "tokens": 4}),
    "7b": Preset("five probes behind each step", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    spae: SPAE = SPAE(weight=0.5, fade=0.5, probes=5, tokens=10, temperature=0.6),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="spae", prompts_per_step=80, updates_per_step=20, epochs=5),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on answers whose steps are asked for their result."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    words = SHORT if dataset.startswith("drawn:") else {}
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=SPAERollout(policy.processing, spae, inner=DynamicSampling(), **words),
        estimator=group_centered,
        grpo=grpo,
        objectives=[spae],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "spae/steps", "spae/potential"))


if __name__ == "__main__":
    launch(main, PRESETS)
