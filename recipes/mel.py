"""MEL (arXiv 2602.10224): the policy writes down what its mistakes teach, and learns what proved of use.

on a laptop CPU, minutes:           python -m recipes.mel
8 answers, a pair of each group:    python -m recipes.mel 7b --dataset my.jsonl
the same with Qwen3-VL:             python -m recipes.mel 4b --dataset my.jsonl     (or 8b)
four pairs of each group:           python -m recipes.mel pairs-7b --dataset my.jsonl

The published models read text (Qwen3 of 4B, 8B and 14B on DAPO-Math-17k); here it is a vision-language model on your
rows, and pictures stay in all contexts. The tiny model of the embedded preset writes ten tokens about a pair, which
teach nothing: it shows the way of the texts, not their worth.
"""

from typing import Any

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.mel import MEL
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.mel import MELRollout

SHORT: dict[str, Any] = {"analyst": "\n{wrong}\n{right}", "remember": "\n{}"}
PRESETS = {
    # A likelihood as strong as the published one would drown the tiny model's few tokens.
    EMBEDDED: miniature(
        mel={"weight": 0.1, "pairs": 4}, sampling={"group_size": 4, "max_tokens": 16}
    ),
    "7b": Preset("8 answers, one pair of each mixed group", 7.0),
    "4b": Preset("Qwen3-VL-4B in place of Qwen3-4B", 4.0, model="Qwen/Qwen3-VL-4B-Instruct"),
    "8b": Preset("Qwen3-VL-8B in place of Qwen3-8B", 8.0, model="Qwen/Qwen3-VL-8B-Instruct"),
    "pairs-7b": Preset("four pairs of each mixed group", mel={"pairs": 4}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    mel: MEL = MEL(weight=1.0, pairs=1),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, reduction="sequence"),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="mel", prompts_per_step=128, updates_per_step=1, steps=140, epochs=10),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=20_480),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on its answers and on what it wrote about its mistakes."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    # The embedded model has learned to answer, not to read instructions.
    words = SHORT if dataset.startswith("drawn:") else {}
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=MELRollout(mel=mel, check=policy.encode, **words),
        estimator=group_normalized,
        grpo=grpo,
        objectives=[mel],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "mel/pairs", "mel/validated"))


if __name__ == "__main__":
    launch(main, PRESETS)
