"""VideoSSR (arXiv 2511.06281): when is the video odd, how many shapes are on it, in which order do its clips play.

on a laptop CPU, minutes:             python -m recipes.videossr
Qwen3-VL-8B, VideoSSR-30K's mix:      python -m recipes.videossr 8b --dataset ~/videos
anomaly grounding alone:              python -m recipes.videossr 8b --dataset ~/videos --puzzles.mix anomaly-grounding

Answers are direct, without reasoning, and paid smoothly: overlap of intervals, relative error of counts, footrule of
orders. Departures: each sample is a function of (medium, seed, index); zoom is drawn once per segment, counts uniformly
up to 8, and media on which the question has no unique answer are refused (data/pretext). Frames have at most 256 pixels
on their longer side (paper: 128² to 256² pixels in all). The sampling temperature is not published; 1.0 here. An epoch
of the paper is 30,000 questions: 469 steps.
The embedded preset grounds a stretch that is shown smaller.
"""

from __future__ import annotations

from mmrl.data.pretext.prompts import pretext_correct, pretext_reward
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

PRESETS = {
    EMBEDDED: Preset(miniature_puzzles("miniature-clips"), note=MINIATURE_NOTE),
    "8b": Preset({}, 8.0, "Qwen3-VL-8B, VideoSSR-30K's mix"),
}


def main(
    model: str = "Qwen/Qwen3-VL-8B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("videossr-30k"),
    grpo: GRPO = GRPO(kl=1e-3),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="videossr", prompts_per_step=64, steps=469),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a video-language model on questions that raw videos answer themselves.

    Args:
        model: Folder or hub name of a Qwen2.5-VL or Qwen3-VL model, or "embedded".
        dataset: Folder of videos, hub name, parquet file, webdataset shards, or "drawn".
        puzzles: Which questions are made of the videos.
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
        rewards=Rewards(puzzle=pretext_reward, accuracy=(0.0, pretext_correct)),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset},
    )
    trainer.fit()
    summarise(run, trainer.steps, watch=("reward/puzzle",))


if __name__ == "__main__":
    launch(main, PRESETS)
