"""VideoSSR (arXiv 2511.06281): when is the video odd, how many shapes are on it, in which order do its clips play.

on a laptop CPU, minutes:             python -m recipes.videossr
Qwen3-VL-8B, VideoSSR-30K's mix:      python -m recipes.videossr 8b --dataset ~/videos
with shortcuts closed (ours):         python -m recipes.videossr defended-8b --dataset ~/videos
anomaly grounding alone:              python -m recipes.videossr 8b --dataset ~/videos --puzzles.mix anomaly-grounding

Answers are direct, without reasoning, and paid smoothly: overlap of intervals, relative error of counts, footrule of
orders. Departures: each sample is a function of (medium, seed, index); zoom is drawn once per segment, the jigsaw is
never in order, and media on which the question has no unique answer are refused (data/pretext). Frames have at most 256
pixels on their longer side (paper: 128² to 256² pixels in all). The sampling temperature is not published; 1.0 here. An
epoch of the paper is 30,000 questions: 469 steps.
The embedded preset grounds a stretch that is shown smaller.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_reward
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles, miniature_pretext, open_pretext
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

PRESETS = {
    EMBEDDED: miniature_pretext("miniature-clips"),
    "8b": Preset("Qwen3-VL-8B, VideoSSR-30K's mix as published", 8.0),
    "defended-8b": Preset(
        "VideoSSR-30K's mix, shortcuts closed (ours)", puzzles={"mix": "videossr-30k"}
    ),
}


def main(
    model: str = "Qwen/Qwen3-VL-8B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("videossr-30k-paper"),
    grpo: GRPO = GRPO(kl=1e-3),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="videossr", prompts_per_step=64, steps=469),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a video-language model on questions that raw videos answer themselves.

    Args:
        dataset: Folder of videos, hub name, parquet file, webdataset shards, or "drawn".
    """
    data = open_pretext(dataset, puzzles, run)
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
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
    fit(trainer, watch=("reward/puzzle",))


if __name__ == "__main__":
    launch(main, PRESETS)
