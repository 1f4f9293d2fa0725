"""TimeLens (arXiv 2512.14698) and its relatives: when does this happen in the video?

on a laptop CPU, minutes:               python -m recipes.timelens
your own spans, nearest preset:         python -m recipes.timelens --dataset my_spans.jsonl --video-root clips/ \\
                                            --model Qwen/Qwen2.5-VL-7B-Instruct
TimeLens-7B, filter, then RL:           python -m recipes.timelens timelens-7b --dataset timelens-100k.jsonl …
TimeLens-8B, SFT, filter, then RL:      python -m recipes.timelens timelens-8b --dataset timelens-100k.jsonl …
Time-R1 (arXiv 2503.13377):             python -m recipes.timelens time-r1 --dataset train_2k5.json --video-root …
VideoChat-R1 (arXiv 2504.06958):        python -m recipes.timelens videochat-r1 --dataset charades_sta_train.txt …
TimeLens2 (arXiv 2607.17423):           python -m recipes.timelens timelens2 --dataset sets.jsonl --video-root …
Video-R1 (arXiv 2503.21776):            python -m recipes.timelens video-r1 …       (recipes/video_r1.py)
TempSamp-R1 (arXiv 2509.18056):         python -m recipes.timelens tempsamp-r1 …    (recipes/tempsamp_r1.py)

A line of your own file is {"video": "a.mp4", "query": "a dog jumps", "span": [2.0, 4.5]}. The answer is given without
thinking and paid by its IoU; advantages are reward minus group mean; the vision tower is frozen; there is no reference.
The run ends when mean reward and deviation within groups have both come to rest.

Departures
1. TimeLens-7B's script scales advantages by the deviation, against its paper and its own comment; here only with
   `--scale-rewards`.
2. When to stop early the paper does not say; `early` holds our numbers. The cap of 100 steps (8B) is the script's.
3. The characters round TimeLens-7B's interleaved times are ours (data/video/time_text.py), as are the words of all
   prompts.
4. Time-R1 filters again before each of five epochs: here that is five runs, the later ones from the model of the one
   before with `--select.rule time-r1-epoch`. Devices are not told: 16 prompts per step are our guess for 8 of them.
5. TimeLens2 draws prompts anew at each step with weights (1 - mean IoU of stored answers)²; here the rows are drawn
   once, by the IoU of one greedy answer. Learning rates of Time-R1 and VideoChat-R1 are not told: 1e-6 is ours.
"""

import importlib
import sys
from functools import partial
from pathlib import Path

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.clip_data import DRAWN_CLIPS, ClipQuestions, Clips
from mmrl.recipes.shared.clip_stages import Selection, Tuning, selected, stage_run, tuned
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load
from mmrl.training.early_stop import EarlyStop

OTHERS = {"video-r1": "mmrl.recipes.video_r1", "tempsamp-r1": "mmrl.recipes.tempsamp_r1"}
"""Presets of other recipes that are started from here too."""
EARLY = {"window": 40, "reward": 0.005, "deviation": 0.005, "patience": 10}
THINKING = {"scale_rewards": True, "early": {"window": 0}, "optim": {"schedule": "constant"}}
NATIVE = {"time": "native", "snap": False}
SMALL_CLIPS = {
    "min_tokens": 16,
    "total_tokens": 3584,
    "max_frames": 768,
    "sound": True,
    "seconds": (0.0, 1e9),
}
SET_CLIPS = {
    "min_tokens": 1,
    "total_tokens": 16_384,
    "max_frames": 512,
    "seconds": (3.0, 3600.0),
}
PRESETS = {
    EMBEDDED: miniature(
        "tiny model, drawn clips of six seconds, CPU, minutes",
        dataset=DRAWN_CLIPS,
        data={},
        asking=NATIVE,
        clips={"cache_gb": 0.0},
        select={"target": 0},
        early={"window": 0},
        optim={"schedule": "constant"},
        run={"steps": 60, "eval_every": 20},
    ),
    "timelens-7b": Preset(
        "Qwen2.5-VL-7B: difficulty filter, then RL; times as text before each pair", 7.0
    ),
    "timelens-8b": Preset(
        "Qwen3-VL-8B: SFT, difficulty filter with that model, then RL",
        8.0,
        model="Qwen/Qwen3-VL-8B-Instruct",
        asking=NATIVE,
        tuning={"rows": 30_000},
        optim={"schedule": "constant"},
        run={"steps": 100},
    ),
    "time-r1": Preset(
        "Qwen2.5-VL-7B thinks first; IoU times nearness of both ends, and format",
        asking={"style": "time-r1", **NATIVE},
        clips=SMALL_CLIPS,
        select={"rule": "time-r1"},
        grpo={"kl": 0.04},
        sampling={"max_tokens": 200},
        run={"prompts_per_step": 16},
        **THINKING,
    ),
    "videochat-r1": Preset(
        "Qwen2.5-VL-7B thinks first; IoU and format",
        asking={"style": "videochat-r1", **NATIVE},
        clips=SMALL_CLIPS,
        select={"target": 0},
        grpo={"kl": 0.04, "reduction": "sequence"},
        sampling={"max_tokens": 1024},
        load={"freeze": ()},
        **THINKING,
    ),
    "timelens2": Preset(
        "Qwen3-VL-4B: any number of spans as JSON, W1 reward and set IoU",
        4.0,
        model="Qwen/Qwen3-VL-4B-Instruct",
        asking={"style": "timelens2", **NATIVE},
        clips=SET_CLIPS,
        select={"rule": "timelens2"},
        grpo={"kl": 0.04},
        optim={"schedule": "constant"},
        run={"steps": 200},
        early={"window": 0},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "timelens-100k.jsonl",
    video_root: Path | None = None,
    data: Data = Data(),
    clips: Clips = Clips(seconds=(5.0, 500.0), max_words=200, sound=False),
    asking: Asking = Asking(style="timelens", time="interleaved_times", snap=True),
    tuning: Tuning = Tuning(rows=0),
    select: Selection = Selection(target=2500),
    scale_rewards: bool = False,
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2, kl=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, top_p=1.0, max_tokens=512),
    optim: Optim = Optim(lr=1e-6, schedule="linear", weight_decay=0.0),
    run: Run = Run(name="timelens", prompts_per_step=8, seed=42),
    early: EarlyStop = EarlyStop(**EARLY),  # type: ignore[arg-type]
    monitor: Monitor = Monitor(),
    load: Load = Load(freeze=("vision",)),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model to say when something happens in a video.

    Args:
        dataset: Annotations of spans (TimeLens, Charades-STA, ActivityNet, QVHighlights, your own, …), or drawn:clips.
        video_root: Where relative paths of videos start; the annotation file's folder by default.
        data: Which rows; style and columns are not used here.
        scale_rewards: Divide advantages by the group's deviation.
    """
    # Old output goes now: the stages below write into the folder before the trainer looks at it.
    run, style = stage_run(run), span_style_of(asking)
    questions = ClipQuestions(dataset, video_root, data, clips, asking)
    policy = questions.open_policy(model, load, lora, run)
    prompts, heldout = questions.open_prompts(policy, run.seed, run.folder)
    if tuning.rows:
        tuned_model = tuned(policy, prompts, style, tuning, run)
        # Read again from its folder, so that a resumed run and one that just tuned go on from the same bytes.
        policy = questions.open_policy(str(tuned_model), load, lora, run)
    if select.target:
        # Difficulty is that for the model RL will train, the tuned one if there is one.
        prompts = selected(policy, prompts, select, sampling, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=Rewards(**style.parts),  # type: ignore[arg-type]
        estimator=partial(group_normalized, eps=1e-4) if scale_rewards else group_centered,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        early=early,
        settings={**questions.settings(), "select": select},
    )
    evaluation = f"python -m recipes.evaluate --model {run.folder} --dataset {dataset}"
    fit(trainer, watch=("reward/group_std", "reward/even_groups"), advice=evaluation)


def start(argv: list[str]) -> None:
    """Run this recipe, or another one of the family by its preset's name."""
    other = OTHERS.get(argv[0]) if argv else None
    module = importlib.import_module(other) if other else sys.modules[__name__]
    launch(module.main, module.PRESETS, argv)


if __name__ == "__main__":
    start(sys.argv[1:])
