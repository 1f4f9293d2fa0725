"""PuzzleCraft (arXiv 2512.14944): jigsaw, rotation and PatchFit; undecided groups of middling difficulty count most.

on a laptop CPU, minutes:                 python -m recipes.puzzlecraft
Qwen2.5-VL-7B, jigsaw (the main run):     python -m recipes.puzzlecraft 7b --dataset ~/photos
the mix 15 : 15 : 10:                     python -m recipes.puzzlecraft mix-7b --dataset ~/photos
plain GRPO on the same puzzles:           python -m recipes.puzzlecraft 7b --dataset ~/photos --puzzlecraft.influence 0

Advantages are r - mean(r), each answer is a mean over its tokens, no KL. RAC, whether the reasoning supports the
answer, is logged and never paid: `rac/judge` with --judge.url, else `rac/rule_standin`, which is not the paper's judge.
Departures: tiles have gaps (`touching-7b`: as published); ε is 0.2 (the text prints 0 beside CARE); GRPO-CARE is not
offered; an epoch is 40,000 prompts for the mix (2,500 steps of 16), 82,783 for a single puzzle (5,174 steps).
The embedded preset solves two-tile jigsaws and rotations of drawn pictures, answering without reasoning.
"""

from __future__ import annotations

from mmrl.data.pretext.prompts import pretext_correct, pretext_reward, solution_key
from mmrl.data.pretext.rac import JudgeRAC, RuleRAC
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.model.load import LoRA
from mmrl.objectives.puzzlecraft import PuzzleCraft
from mmrl.recipes.perception_r1 import JudgeServer
from mmrl.recipes.shared.launch import EMBEDDED, Load, Preset, launch, open_policy, summarise
from mmrl.recipes.shared.pretext_data import (
    MINIATURE_NOTE,
    Puzzles,
    miniature_puzzles,
    open_puzzles,
)
from mmrl.recipes.shared.pretext_warmup import embedded_or
from mmrl.rewards.pay import Rewards
from mmrl.training.monitor import Monitor
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

LARGE = "Qwen/Qwen2.5-VL-7B-Instruct"
MIX = {"puzzles": {"mix": "puzzlecraft-mix"}, "run": {"steps": 2500}}
PRESETS = {
    EMBEDDED: Preset(miniature_puzzles("miniature-puzzles"), note=MINIATURE_NOTE),
    "7b": Preset({}, 7.0, "Qwen2.5-VL-7B, jigsaw"),
    "3b": Preset({"model": "Qwen/Qwen2.5-VL-3B-Instruct"}, 3.0, "Qwen2.5-VL-3B, jigsaw"),
    "qwen3-2b": Preset({"model": "Qwen/Qwen3-VL-2B-Instruct"}, 2.0, "Qwen3-VL-2B, jigsaw"),
    "qwen3-4b": Preset({"model": "Qwen/Qwen3-VL-4B-Instruct"}, 4.0, "Qwen3-VL-4B, jigsaw"),
    "qwen3-8b": Preset({"model": "Qwen/Qwen3-VL-8B-Instruct"}, 8.0, "Qwen3-VL-8B, jigsaw"),
    "touching-7b": Preset(
        {"puzzles": {"mix": "puzzlecraft-jigsaw-paper"}}, note="jigsaw with touching tiles"
    ),
    "rotation-7b": Preset(
        {"puzzles": {"mix": "puzzlecraft-rotation"}}, note="Qwen2.5-VL-7B, rotation"
    ),
    "patchfit-7b": Preset(
        {"puzzles": {"mix": "puzzlecraft-patchfit"}}, note="Qwen2.5-VL-7B, PatchFit"
    ),
    "mix-7b": Preset(MIX, note="Qwen2.5-VL-7B, 15 jigsaws : 15 PatchFits : 10 rotations"),
}


def main(
    model: str = LARGE,
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("puzzlecraft-jigsaw"),
    puzzlecraft: PuzzleCraft = PuzzleCraft(scale=4.0, gamma=0.5),
    judge: JudgeServer = JudgeServer(url="", model="Qwen/Qwen2.5-VL-72B-Instruct"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, kl=0.0, reduction="sequence"),
    sampling: Sampling = Sampling(group_size=8, temperature=0.9, top_p=0.95, max_tokens=2048),
    optim: Optim = Optim(lr=5e-7),
    run: Run = Run(name="puzzlecraft", prompts_per_step=16, steps=5174),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=802_816),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on puzzles, weighting groups by difficulty and dispersion.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: Folder of images, hub name, parquet file, webdataset shards, or "drawn".
        puzzles: Which questions are made of the pictures.
        puzzlecraft: The paper's numbers.
        judge: Who judges whether the reasoning supports the answer; without an address a rule stands in.
        grpo: The GRPO core.
        sampling: How answers are sampled.
        optim: The optimizer.
        run: Length, output, seed.
        monitor: Blind probe, alarms, gradient norms.
        load: Device, precision, frozen parts, pixel budget.
        lora: Adapters instead of full fine-tuning.
    """
    policy = open_policy(embedded_or(model, puzzles.mix), load, lora, run)
    data = open_puzzles(dataset, puzzles, run)
    consistency = JudgeRAC(judge.judge()) if judge.url else RuleRAC()
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            puzzle=pretext_reward, accuracy=(0.0, pretext_correct), rac=(0.0, consistency)
        ),
        estimator=group_centered,
        grpo=grpo,
        objectives=[puzzlecraft.reading(solution_key)],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset},
    )
    trainer.fit()
    summarise(
        run, trainer.steps, watch=("reward/puzzle", "puzzlecraft/weight", "puzzlecraft/silent")
    )


if __name__ == "__main__":
    launch(main, PRESETS)
