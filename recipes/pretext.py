"""Our mix of pretext tasks: each at the level where half of the answers succeed, more of what is being learned.

on a laptop CPU, minutes:             python -m recipes.pretext
the same on drawn clips:              python -m recipes.pretext embedded --puzzles.mix miniature-clips
your photos and videos:               python -m recipes.pretext 7b --dataset ~/pictures
one task:                             python -m recipes.pretext 7b --dataset ~/pictures --puzzles.mix rotation

No paper; ours. It takes from VideoSSR (arXiv 2511.06281) smooth pay, from PuzzleCraft (2512.14944) the group weight,
and adds two controllers: a level per task (knobs from easy to hard, moved by success above chance) and a mixture that
follows |Δ success|. Both ride in the checkpoint, so a killed run goes on with the same questions. Pay is the reward
above chance, so that tasks with different guessing levels have one scale. The evaluation keeps the first levels and
weights, on media that training never sees.
"""

from __future__ import annotations

from mmrl.data.pretext.curriculum import FollowCurriculum
from mmrl.data.pretext.prompts import (
    Curriculum,
    above_chance_reward,
    pretext_correct,
    pretext_reward,
    solution_key,
)
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_centered
from mmrl.model.load import LoRA
from mmrl.objectives.puzzlecraft import PuzzleCraft
from mmrl.recipes.shared.launch import EMBEDDED, Load, Preset, launch, open_policy, summarise
from mmrl.recipes.shared.pretext_data import (
    MINIATURE_NOTE,
    Levels,
    Mixture,
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

PRESETS = {
    EMBEDDED: Preset(miniature_puzzles("miniature"), note=MINIATURE_NOTE),
    "7b": Preset({}, 7.0, "Qwen2.5-VL-7B, all tasks that the media allow"),
    "qwen3-8b": Preset(
        {"model": "Qwen/Qwen3-VL-8B-Instruct"},
        8.0,
        "Qwen3-VL-8B, all tasks that the media allow",
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("mmrl-mix-v1"),
    levels: Levels = Levels(),
    mixture: Mixture = Mixture(),
    puzzlecraft: PuzzleCraft = PuzzleCraft(influence=0.5),
    grpo: GRPO = GRPO(kl=0.0, clip_high=0.28, reduction="sequence"),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="pretext", prompts_per_step=64, steps=600),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=802_816, max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on puzzles made of raw media, with a curriculum.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: Folder of images or videos, hub name, parquet file, webdataset shards, or "drawn".
        puzzles: Which questions are made of the media.
        levels: How the difficulty of each task moves.
        mixture: How the shares of the tasks move.
        puzzlecraft: The group weight.
        grpo: The GRPO core.
        sampling: How answers are sampled.
        optim: The optimizer.
        run: Length, output, seed.
        monitor: Blind probe, alarms, gradient norms.
        load: Device, precision, frozen parts, pixel budget.
        lora: Adapters instead of full fine-tuning.
    """
    policy = open_policy(embedded_or(model, puzzles.mix), load, lora, run)
    data = open_puzzles(dataset, puzzles, run, levels.controller())
    curriculum = Curriculum(data.stream, levels.controller(), mixture.bandit())
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            puzzle=above_chance_reward,
            plain=(0.0, pretext_reward),
            accuracy=(0.0, pretext_correct),
        ),
        estimator=group_centered,
        grpo=grpo,
        objectives=[puzzlecraft.reading(solution_key), FollowCurriculum(curriculum)],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset, "levels": levels, "mixture": mixture},
    )
    trainer.fit()
    summarise(run, trainer.steps, watch=("reward/puzzle", "puzzlecraft/weight"))


if __name__ == "__main__":
    launch(main, PRESETS)
