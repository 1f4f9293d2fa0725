"""SvS (arXiv 2508.14029): the policy writes variants of problems that it half solves, and solves them too.

on a laptop CPU, minutes:                   python -m recipes.svs
8 answers, 8 variants of each right one:    python -m recipes.svs 7b --dataset my.jsonl
half the steps, for 12 thousand problems:   python -m recipes.svs math-7b --dataset my.jsonl
4 variants of 2 right answers:              python -m recipes.svs short-7b --dataset my.jsonl

The published models read text (Qwen2.5 of 3B and 32B, Llama of 8B, on mathematics); here it is a vision-language model
on your rows, whose pictures stay with the variants. On drawn look-ups the whole response is taken for a problem, since
the tiny model writes no blocks.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.svs import SvS, SvSRollout

PRESETS = {
    # One right answer and two variants of it: enough to see all three kinds of groups.
    EMBEDDED: miniature(
        svs={"form": "whole", "variants": 2, "answers": 1, "margin": 0.0},
        sampling={"group_size": 4},
    ),
    "7b": Preset("8 answers, 8 variants of each right one, 600 steps", 7.0),
    "math-7b": Preset("300 steps", run={"steps": 300}),
    "short-7b": Preset("4 variants of 2 right answers", svs={"answers": 2, "variants": 4}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    svs: SvS = SvS(),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=8192),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="svs", prompts_per_step=256, updates_per_step=1, steps=600, epochs=30),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on problems and on its own variants of them."""
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=SvSRollout(svs=svs, put=data.template().fill, check=policy.encode),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "svs/varied_problems", "svs/accepted"))


if __name__ == "__main__":
    launch(main, PRESETS)
