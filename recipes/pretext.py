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

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.curriculum import FollowCurriculum
from mmrl.data.pretext.prompts import (
    Curriculum,
    above_chance_reward,
    pretext_correct,
    pretext_reward,
    solution_key,
)
from mmrl.losses.advantages import group_centered
from mmrl.objectives.puzzlecraft import PuzzleCraft
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import (
    LevelSettings,
    MixtureSettings,
    Puzzles,
    miniature_pretext,
    open_pretext,
)
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

PRESETS = {
    EMBEDDED: miniature_pretext("miniature"),
    "7b": Preset("Qwen2.5-VL-7B, all tasks that the media allow", 7.0),
    "qwen3-8b": Preset(
        "Qwen3-VL-8B, all tasks that the media allow", 8.0, model="Qwen/Qwen3-VL-8B-Instruct"
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("mmrl-mix-v1"),
    levels: LevelSettings = LevelSettings(),
    mixture: MixtureSettings = MixtureSettings(),
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
        dataset: Folder of images or videos, hub name, parquet file, webdataset shards, or "drawn".
    """
    # Two controllers: the data only reads the first level, the curriculum moves its own.
    data = open_pretext(dataset, puzzles, run, levels.controller())
    curriculum = Curriculum(data.stream, levels.controller(), mixture.bandit())
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
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
    fit(trainer, watch=("reward/puzzle", "puzzlecraft/weight"))


if __name__ == "__main__":
    launch(main, PRESETS)
