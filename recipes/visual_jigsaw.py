"""Visual Jigsaw (arXiv 2509.25190): put shuffled tiles, clips or depths in order, paid without labels.

on a laptop CPU, minutes:            python -m recipes.visual_jigsaw
images, Qwen2.5-VL-7B:               python -m recipes.visual_jigsaw 7b --dataset ~/photos
videos, six clips:                   python -m recipes.visual_jigsaw video-7b --dataset ~/videos
RGB-D, six depths:                   python -m recipes.visual_jigsaw depth-7b --dataset ~/scans
tiles that touch, as published:      python -m recipes.visual_jigsaw touching-7b --dataset ~/photos

Departures: our tiles have a gap and a change of brightness of their own, because touching borders solve the puzzle
(`touching-7b` is the paper's); only true permutations earn partial credit (official code: any distinct numbers); no
penalty for repeated lines. Format pays 0.2 besides, as in the paper; here only with a readable answer.
The embedded preset asks for the order of two tiles.
"""

from __future__ import annotations

from mmrl.data.pretext.prompts import pretext_correct, pretext_form, pretext_reward
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.model.load import LoRA
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
FEWER = {"prompts_per_step": 128}
PRESETS = {
    EMBEDDED: Preset(miniature_puzzles("miniature-jigsaw"), note=MINIATURE_NOTE),
    "7b": Preset({}, 7.0, "Qwen2.5-VL-7B on images, 3×3 tiles"),
    "touching-7b": Preset(
        {"puzzles": {"mix": "visual-jigsaw-image-paper"}}, note="tiles touch, as published"
    ),
    "video-7b": Preset(
        {"puzzles": {"mix": "visual-jigsaw-video"}, "run": FEWER},
        note="Qwen2.5-VL-7B, six clips",
    ),
    "depth-7b": Preset(
        {"puzzles": {"mix": "visual-jigsaw-depth"}, "run": {**FEWER, "steps": 800}},
        note="Qwen2.5-VL-7B, six depths",
    ),
}


def main(
    model: str = LARGE,
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("visual-jigsaw-image"),
    form_weight: float = 0.2,
    grpo: GRPO = GRPO(kl=0.0),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="visual_jigsaw", prompts_per_step=256, steps=1000),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to order the shuffled pieces of pictures, videos or scenes.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: Folder of images or videos, hub name, parquet file, webdataset shards, or "drawn".
        puzzles: Which questions are made of the media.
        form_weight: Pay for the asked-for form, besides 1 for the right order.
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
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            puzzle=pretext_reward,
            form=(form_weight, pretext_form),
            accuracy=(0.0, pretext_correct),
        ),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset},
    )
    trainer.fit()
    summarise(run, trainer.steps, watch=("reward/puzzle", "reward/form"))


if __name__ == "__main__":
    launch(main, PRESETS)
