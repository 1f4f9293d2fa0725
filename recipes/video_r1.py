"""Video-R1 (arXiv 2503.21776): T-GRPO, which pays for using the order of the frames.

on a laptop CPU, minutes:          python -m recipes.video_r1
Qwen2.5-VL-7B, the released code:  python -m recipes.video_r1 video-r1 --dataset Video-R1-260k.json --video-root …
from the family's recipe:          python -m recipes.timelens video-r1 …

Each clip is answered a second time with its frames in random order, by half as many answers, which are compared and
never trained. If the ordered clip is answered at least 0.8 times as well, right answers are paid 0.3 on top; right
answers of 320 to 512 tokens another 0.2.

One prompt on each of four devices is a step; the run was stopped after 1,200 steps of its epoch.

Departures: the supervised stage (165,000 rows of reasoning) is recipes.sft; the embedded preset pays the IoU of spans
in drawn clips.
"""

from functools import partial
from pathlib import Path
from typing import Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer, VisualBranch
from mmrl.data.grounding.video_r1 import t_grpo_bonus
from mmrl.losses.advantages import group_normalized
from mmrl.perception.timing import FrameShuffle, Reverse
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.clip_data import DRAWN_CLIPS, ClipQuestions, Clips
from mmrl.recipes.shared.clip_stages import started
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load
from mmrl.rollouts.contrast import ContrastRollout

PRESETS = {
    EMBEDDED: miniature(
        "tiny model, drawn clips, CPU, minutes",
        dataset=DRAWN_CLIPS,
        data={},
        asking={"style": "timelens"},
        clips={"cache_gb": 0.0},
        optim={"schedule": "constant", "max_grad_norm": 1.0},
    ),
    "video-r1": Preset("Qwen2.5-VL-7B, released code", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "Video-R1-260k.json",
    video_root: Path | None = None,
    data: Data = Data(),
    clips: Clips = Clips(
        fps=None, num_frames=16, min_tokens=None, max_frame_tokens=128, total_tokens=None
    ),
    asking: Asking = Asking(style="video-r1"),
    order: Literal["shuffled", "reversed"] = "shuffled",
    grpo: GRPO = GRPO(kl=0.04, reduction="sequence"),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, top_p=0.95, max_tokens=768),
    # The cosine is that of a whole epoch of 260,000 rows, which was stopped early: an almost constant rate.
    optim: Optim = Optim(
        lr=1e-6,
        schedule="cosine",
        schedule_steps=65_000,
        weight_decay=0.01,
        max_grad_norm=5.0,
    ),
    run: Run = Run(name="video_r1", prompts_per_step=4, steps=1200),
    monitor: Monitor = Monitor(),
    # Of pictures; frames have their own limit in `clips`, 128 tokens or 100,352 pixels.
    load: Load = Load(max_pixels=200_704, max_prompt_tokens=16_384),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with temporal GRPO.

    Args:
        dataset: Video-R1's JSON, any annotations of spans, or drawn:clips.
        data: Which rows; style and columns are not used here.
        order: How the frames of the second group are shown.
    """
    run, style = started(run), span_style_of(asking)
    questions = ClipQuestions(dataset, video_root, data, clips, asking)
    policy = questions.open_policy(model, load, lora, run)
    prompts, heldout = questions.open_prompts(policy, run.seed, run.folder)
    view = VisualBranch(FrameShuffle() if order == "shuffled" else Reverse())
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(**style.parts),  # type: ignore[arg-type]
        rollout=ContrastRollout(policy, view, t_grpo_bonus, branch=order),
        estimator=partial(
            group_normalized, eps=1e-4
        ),  # as in TRL, on which the released code stands
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings=questions.settings(),
    )
    fit(trainer, watch=("contrast/better", "contrast/paid", "reward/contrast_bonus"))


if __name__ == "__main__":
    launch(main, PRESETS)
