"""SELF (arXiv 2510.02230): only prompts that the policy does not answer right by itself.

on a laptop CPU, minutes:            python -m recipes.self_boundary
8 answers to what greedy fails on:   python -m recipes.self_boundary 7b --dataset my.jsonl
without the probe (plain GRPO):      python -m recipes.self_boundary 7b --dataset my.jsonl --boundary.no-probe

The published models read text (Qwen2.5-Math-1.5B and others on DeepScaleR); here it is a vision-language model on your
rows. A step costs one greedy answer to each prompt more, and groups of as many prompts less as it solved.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.self_boundary import SELF, SELFRollout

SMALL = "Qwen/Qwen3-VL-2B-Instruct"
PRESETS = {
    EMBEDDED: miniature(reward=OURS),
    "7b": Preset("8 answers to prompts whose greedy answer is wrong", 7.0),
    "2b": Preset("the same, Qwen3-VL-2B: nearest to the published 1.5B", 2.0, model=SMALL),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    boundary: SELF = SELF(probe=True),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="self_boundary", prompts_per_step=128, updates_per_step=2, steps=500),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=1024),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on prompts that it does not solve greedily."""
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=SELFRollout(boundary=boundary),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(
        trainer,
        watch=("reward/accuracy", "self_boundary/solved", "self_boundary/skipped_steps"),
    )


if __name__ == "__main__":
    launch(main, PRESETS)
