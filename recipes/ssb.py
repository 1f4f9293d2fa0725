"""SSB (arXiv 2512.05105): the policy learns from itself what it writes when it is shown a right and a wrong answer.

on a laptop CPU, minutes:                    python -m recipes.ssb
4 answers to find hints, LoRA of rank 32:    python -m recipes.ssb 3b --dataset my.jsonl
the same at another size:                    python -m recipes.ssb 7b --dataset my.jsonl
a fresh solution at each visit:              python -m recipes.ssb anew-7b --dataset my.jsonl

No rewards are learned from, but they say which answers are right. The published model reads text (Qwen2.5-3B-Instruct
on GSM8K); here it is a vision-language model on your rows, and pictures stay with the hints.
"""

from typing import Any

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.ssb import SSB
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.ssb import SSBRollout, Teacher

SHORT: dict[str, Any] = {"hints": "\n{wrong}\n{right}", "brief": True}
SMALL = "Qwen/Qwen2.5-VL-3B-Instruct"
PRESETS = {
    # Hints help the tiny model little, so that it is given many tries.
    EMBEDDED: miniature(
        data={"limit": 256},
        ssb={"top": 16, "rewrite": 1.0, "solutions": 32},
        sampling={"group_size": 8},
        grpo=None,
        lora={"rank": 0, "alpha": 0},
    ),
    "7b": Preset("4 answers, hints, 64 tokens of the teacher", 7.0),
    "3b": Preset("Qwen2.5-VL-3B in place of Qwen2.5-3B", 3.0, model=SMALL),
    "anew-7b": Preset("sample and write anew at each visit", ssb={"reuse": False}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="box"),
    ssb: SSB = SSB(weight=1.0, temperature=2.0, top=64, rewrite=0.4),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    sampling: Sampling = Sampling(group_size=4, temperature=0.8, top_k=50, max_tokens=8192),
    optim: Optim = Optim(lr=2e-4),
    run: Run = Run(name="ssb", prompts_per_step=4, updates_per_step=1, epochs=3),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=20_480),
    lora: LoRA = LoRA(rank=32, alpha=32),
) -> None:
    """Train a vision-language model on its own solutions, which it wrote with hints.

    Args:
        sampling: How the answers are sampled among which the hints are found.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    style = style_of(data.style)
    # The embedded model has learned to answer, not to read instructions.
    words = SHORT if dataset.startswith("drawn:") else {}
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style),
        rollout=SSBRollout(
            teach=Teacher(policy, ssb, run.tokens_per_pass),
            prompt_ids=lambda prompt: policy.encode(prompt).ids,
            read=style.read,
            ssb=ssb,
            check=policy.encode,
            **words,
        ),
        # It owns the loss: there is no advantage in it, and nothing of GRPO's.
        estimator=group_centered,
        grpo=GRPO(),
        objectives=[ssb],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("loss/distillation", "ssb/written", "ssb/reused"))


if __name__ == "__main__":
    launch(main, PRESETS)
