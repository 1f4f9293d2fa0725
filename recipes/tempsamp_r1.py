"""TempSamp-R1 (arXiv 2509.18056): the true span joins the group, and a soft shaping of the IoU keeps it from ruling.

on a laptop CPU, minutes:          python -m recipes.tempsamp_r1
the implementation's numbers:      python -m recipes.tempsamp_r1 tempsamp-r1 --dataset spans.jsonl --video-root …
from the family's recipe:          python -m recipes.timelens tempsamp-r1 …

Of a group of 8 seven answers are sampled, the eighth is the true span in answer tags. It counts in the group's mean and
deviation and is trained, its log-probs being those of the training weights; the logged reward is that of the samples.

Departures
1. The paper's equations were not available: shaping and numbers are those of a published implementation by one of its
   authors. Of its two forms (with and without thoughts in one model) this asks for thoughts and the label has none.
2. The implementation samples all 8 and overwrites the last one; here seven are sampled.
3. Its model (Qwen3.5) is of a family that is not read here; Qwen3-VL-4B stands in.
"""

from pathlib import Path

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.clip_data import DRAWN_CLIPS, ClipQuestions, Clips
from mmrl.recipes.shared.clip_stages import stage_run
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load
from mmrl.rollouts.experts import WithLabel

PRESETS = {
    EMBEDDED: miniature(
        "tiny model, drawn clips, CPU, minutes",
        dataset=DRAWN_CLIPS,
        data={},
        clips={"cache_gb": 0.0},
        sampling={"group_size": 7},
    ),
    "tempsamp-r1": Preset("Qwen3-VL-4B, numbers of the published implementation", 4.0),
}


def main(
    model: str = "Qwen/Qwen3-VL-4B-Instruct",
    dataset: str = "timelens-100k.jsonl",
    video_root: Path | None = None,
    data: Data = Data(limit=2000),
    clips: Clips = Clips(max_frames=768),
    asking: Asking = Asking(style="tempsamp-r1"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.28),
    # Seven are sampled; the label makes the group of eight.
    sampling: Sampling = Sampling(group_size=7, temperature=1.0, top_p=0.85, max_tokens=256),
    optim: Optim = Optim(lr=1e-6, warmup=6, weight_decay=0.01),
    run: Run = Run(name="tempsamp_r1", prompts_per_step=16),
    monitor: Monitor = Monitor(),
    load: Load = Load(freeze=("vision",)),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to ground spans, with the true span as a member of the group.

    Args:
        dataset: Annotations of spans, or drawn:clips.
        data: Which rows; style and columns are not used here.
        sampling: How answers are sampled; the label is one more.
    """
    run, style = stage_run(run), span_style_of(asking)
    questions = ClipQuestions(dataset, video_root, data, clips, asking)
    policy = questions.open_policy(model, load, lora, run)
    prompts, heldout = questions.open_prompts(policy, run.seed, run.folder)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(**style.parts),  # type: ignore[arg-type]
        rollout=WithLabel(policy.processing.encode_answer, column="target"),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings=questions.settings(),
    )
    fit(trainer, watch=("reward/iou", "label/reward"))


if __name__ == "__main__":
    launch(main, PRESETS)
