"""Accuracy and pass@k of a finished run, a checkpointed run or any model folder; tables for temporal grounding.

    python -m recipes.evaluate                                        the run that `recipes.papo` left behind
    python -m recipes.evaluate --model runs/papo                      any run
    python -m recipes.evaluate --model my/folder --dataset test.jsonl --data.style box --samples 8 --ks 1 4 8

    python -m recipes.evaluate --model runs/timelens --dataset drawn:clips?frames=12
    python -m recipes.evaluate --model my/folder --dataset charades-timelens.json --video-root videos/

Rows about spans of clips are recognised by their format: R1@0.3, 0.5, 0.7 and mIoU are printed for each data set, with
95 % bootstrap intervals over videos. Ask as the model was trained: `--asking.time interleaved_times` for TimeLens-7B.

pass@k is the unbiased estimate from `samples` answers at the sampling temperature; accuracy is greedy.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from mmrl.recipes.shared.clip_data import (
    Asking,
    Clips,
    about_spans,
    blocks,
    grounding_report,
    open_clip_policy,
    open_clips,
)
from mmrl.recipes.shared.clip_data import style_of as span_style_of
from mmrl.recipes.shared.launch import (
    DRAWN,
    EMBEDDED,
    Data,
    Load,
    Preset,
    launch,
    open_data,
    open_policy,
    style_of,
)
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import HFEngine
from mmrl.training.evaluate import answers_to, evaluate, heldout_prompts, pass_rates
from mmrl.types import Now, Rollout, Sampling

PRESETS = {
    EMBEDDED: Preset(
        "the embedded PAPO run on held-out drawn pictures",
        model="runs/papo",
        dataset=DRAWN,
        data={"style": "tag"},
        sampling={"max_tokens": 12},
        load={"min_pixels": None, "max_pixels": None},
    ),
    "real": Preset("a real model on your own rows", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_MMK12_test",
    data: Data = Data(),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    samples: int = 8,
    ks: tuple[int, ...] = (1, 4, 8),
    prompts: int = 512,
    seed: int = 0,
    output: Path | None = None,
    video_root: Path | None = None,
    clips: Clips = Clips(cache_gb=0.0),
    asking: Asking = Asking(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520),
) -> None:
    """Measure a model.

    Args:
        model: A run's folder, a model folder, a hub name, or "embedded".
        dataset: What to answer; all its rows count as held out, except those of drawn tasks.
        data: Which rows, and how questions are put.
        sampling: How answers are sampled for pass@k.
        samples: Answers per prompt for pass@k; 0 measures greedy accuracy only.
        ks: The k of pass@k.
        prompts: Most prompts to use.
        seed: Seeds the answers.
        output: Also write the numbers to this JSON file.
        video_root: Where relative paths of videos start (grounding only).
        clips: Frames, sizes and decoder (grounding only).
        asking: How times are told and questions put (grounding only).
        load: Device, precision, pixel budget.
    """
    if about_spans(dataset, clips):
        found = _spans(
            model,
            dataset,
            video_root,
            data,
            clips,
            asking,
            prompts=prompts,
            sampling=sampling,
            load=load,
        )
        if output is not None:
            output.write_text(
                json.dumps({"model": model, "dataset": dataset, "tables": found}, indent=1)
            )
        return
    policy = open_policy(model, load)
    train, heldout = open_data(dataset, replace(data, heldout_rows=0), seed)
    rows = heldout_prompts(heldout if dataset.startswith("drawn:") else train, prompts)
    style = style_of(data.style)
    with Rewards(accuracy=(0.9, style.accuracy), format=(0.1, style.format)) as rewards:
        engine, now = HFEngine(policy), Now(0, 0.0, seed)
        found = evaluate(engine, rows, rewards, sampling, now)
        if samples:
            several = answers_to(
                engine, rows, rewards, replace(sampling, group_size=samples), now
            )
            found |= pass_rates(several, [k for k in ks if k <= samples])
    print(f"{model} on {len(rows)} prompts of {dataset}")
    for name, value in found.items():
        print(f"  {name:<16} {value:.4f}")
    if output is not None:
        output.write_text(
            json.dumps(
                {"model": model, "dataset": dataset, "prompts": len(rows), **found}, indent=1
            )
        )
        print(f"written to {output}", file=sys.stderr)


def _spans(
    model: str,
    dataset: str,
    video_root: Path | None,
    data: Data,
    clips: Clips,
    asking: Asking,
    *,
    prompts: int,
    sampling: Sampling,
    load: Load,
) -> dict[str, dict[str, float]]:
    """Greedy answers to questions about spans, and their table."""
    policy = open_clip_policy(model, dataset, asking, load)
    whole, factor = replace(data, heldout_rows=0), policy.processing.videos.factor
    _, heldout = open_clips(
        dataset, video_root, whole, clips, asking, seed=0, factor=factor, folder=None
    )
    engine, greedy = HFEngine(policy), replace(sampling, group_size=1, temperature=0.0)
    answers: list[Rollout] = []
    for rows in blocks(heldout, prompts, policy.encode):
        # Without their pixels: the clips of a whole benchmark do not fit in memory.
        with policy.vision.no_update():
            answers += [
                replace(r, prompt=replace(r.prompt, media=()))
                for r in engine.generate(rows, greedy, Now(0, 0.0))
            ]
    print(f"{model} on {len(answers)} questions of {dataset}")
    text, table = grounding_report(answers, span_style_of(asking))
    print(text)
    return table


if __name__ == "__main__":
    launch(main, PRESETS)
