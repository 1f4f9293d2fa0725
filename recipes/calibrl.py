"""CalibRL (arXiv 2602.20197): an expert's likelihood is the baseline, not the target.

on a laptop CPU, minutes:           python -m recipes.calibrl
Qwen2.5-VL-7B:                      python -m recipes.calibrl 7b --dataset my.jsonl
compared by whole answers:          python -m recipes.calibrl 7b --dataset my.jsonl --calibrl.alignment mean

Rows need an expert answer in the column `solution` (the paper: chains of a stronger model for geometry problems,
checked for correctness). It is scored once per step and never trained.
"""

from __future__ import annotations

from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.model.load import LoRA
from mmrl.objectives.calibrl import CalibRL
from mmrl.recipes.shared.launch import (
    EMBEDDED,
    Data,
    Load,
    Preset,
    launch,
    open_data,
    open_policy,
    style_of,
    summarise,
)
from mmrl.recipes.shared.miniature import NOTE, miniature
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.experts import WithExpert
from mmrl.training.monitor import Monitor
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

LARGE = "Qwen/Qwen2.5-VL-7B-Instruct"
PRESETS = {
    EMBEDDED: Preset(miniature(expert="target"), note=NOTE),
    "7b": Preset({}, 7.0, "Qwen2.5-VL-7B: 10 answers and 1 expert, alpha 0.5, weight 0.1"),
    "7b-mean": Preset(
        {"calibrl": {"alignment": "mean"}},
        note="compared by mean log-probs of whole answers (ours)",
    ),
    "7b-printed": Preset(
        {"calibrl": {"alignment": "sum"}},
        note="compared by log-probs of whole answers, as printed",
    ),
}


def main(
    model: str = LARGE,
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer"),
    calibrl: CalibRL = CalibRL(weight=0.1, alpha=0.5, alignment="position"),
    expert: str = "solution",
    expert_share: float = 1.0,
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=10, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="calibrl", prompts_per_step=480, updates_per_step=4, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=20480),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with controllable exploration around expert answers.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: JSONL, JSON, parquet or CSV file, folder, hub name, or drawn:lookup.
        data: Which rows, and how questions are put.
        calibrl: The paper's numbers.
        expert: Column that holds the expert's answer.
        expert_share: Probability that a prompt keeps its expert answer.
        grpo: The GRPO core.
        sampling: How answers are sampled.
        optim: The optimizer.
        run: Length, output, seed.
        monitor: Blind probe, alarms, gradient norms.
        load: Device, precision, frozen parts, pixel budget.
        lora: Adapters instead of full fine-tuning.
    """
    policy = open_policy(model, load, lora, run)
    prompts, heldout = open_data(dataset, data, run.seed)
    style = style_of(data.style)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(accuracy=(1.0, style.accuracy), format=(0.1, style.format)),
        rollout=WithExpert(
            policy.processing.encode_answer, column=expert, probability=expert_share
        ),
        estimator=group_centered,
        grpo=grpo,
        objectives=[calibrl],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    trainer.fit()
    summarise(
        run,
        trainer.steps,
        watch=("calibrl/lead", "calibrl/behind", "calibrl/logp_wrong", "policy/surprise"),
    )


if __name__ == "__main__":
    launch(main, PRESETS)
