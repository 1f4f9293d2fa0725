"""Visual Jigsaw (arXiv 2509.25190): put shuffled tiles, clips or depths in order, paid without labels.

on a laptop CPU, minutes:            python -m recipes.visual_jigsaw
images, as published:                python -m recipes.visual_jigsaw 7b --dataset ~/photos
videos, six clips, as published:     python -m recipes.visual_jigsaw video-7b --dataset ~/videos
RGB-D, six depths, as published:     python -m recipes.visual_jigsaw depth-7b --dataset ~/scans
images, tiles with gaps (ours):      python -m recipes.visual_jigsaw gaps-7b --dataset ~/photos

Departures: only true permutations earn partial credit (official code: any distinct numbers); no penalty for repeated
lines. In `gaps-7b` tiles have a gap and a change of brightness of their own, because touching borders solve the puzzle.
Clips show two frames a second, two to twelve of them.
Format pays 0.2 besides, as in the paper; here only with a readable answer.
The embedded preset asks for the order of two tiles.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_form, pretext_reward
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.opening import EMBEDDED, Load, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles, miniature_pretext, open_pretext
from mmrl.recipes.shared.pretext_warmup import warmed_up_for

FEWER = {"prompts_per_step": 128}
PRESETS = {
    EMBEDDED: miniature_pretext("miniature-jigsaw"),
    "7b": Preset("Qwen2.5-VL-7B on images, 3×3 tiles that touch, as published", 7.0),
    "gaps-7b": Preset("images, tiles with gaps (ours)", puzzles={"mix": "visual-jigsaw-image"}),
    "video-7b": Preset(
        "Qwen2.5-VL-7B, six clips", puzzles={"mix": "visual-jigsaw-video"}, run=FEWER
    ),
    "depth-7b": Preset(
        "Qwen2.5-VL-7B, six depths",
        puzzles={"mix": "visual-jigsaw-depth"},
        run={**FEWER, "steps": 800},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "drawn",
    puzzles: Puzzles = Puzzles("visual-jigsaw-image-paper"),
    form_weight: float = 0.2,
    grpo: GRPO = GRPO(kl=0.0),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="visual_jigsaw", prompts_per_step=256, steps=1000),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=8192),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to order the shuffled pieces of pictures, videos or scenes.

    Args:
        dataset: Folder of images or videos, hub name, parquet file, webdataset shards, or "drawn".
        form_weight: Pay for the asked-for form, besides 1 for the right order.
    """
    data = open_pretext(dataset, puzzles, run)
    policy = open_policy(warmed_up_for(model, puzzles.mix), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=data.train,
        heldout=data.heldout,
        rewards=Rewards(
            puzzle=pretext_reward,
            form=(form_weight, pretext_form),
            accuracy=(
                0.0,
                pretext_correct,
            ),  # unpaid; the part of this name is what evaluations report
        ),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"puzzles": puzzles, "dataset": dataset},
    )
    fit(trainer, watch=("reward/puzzle", "reward/form"))


if __name__ == "__main__":
    launch(main, PRESETS)
