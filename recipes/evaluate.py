"""Accuracy and pass@k of a finished run, a checkpointed run or any model folder; tables for temporal grounding.

    python -m recipes.evaluate                                        the run that `recipes.papo` left behind
    python -m recipes.evaluate --model runs/papo                      any run
    python -m recipes.evaluate --model my/folder --dataset test.jsonl --data.style box --samples 8 --ks 1 4 8

    python -m recipes.evaluate --model runs/timelens --dataset drawn:clips?frames=12
    python -m recipes.evaluate --model my/folder --dataset charades-timelens.json --video-root videos/

Rows about spans of clips are recognised by their format: R1@0.3, 0.5, 0.7 and mIoU are printed for each data set, with
95 % bootstrap intervals over videos. Ask as the model was trained: `--asking.time interleaved_times` for TimeLens-7B.

pass@k is the unbiased estimate from `samples` answers at the sampling temperature; accuracy is greedy.

    python -m recipes.evaluate real --dataset benchmark:mathvista --output mathvista.json
    python -m recipes.evaluate papo-avg8 --model my/folder --dataset benchmark:mathverse-vision-only

Published benchmarks have names (docs/evaluation.md). With --output the answers are kept beside the report: a stopped
evaluation goes on where it was.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrl import Rewards, Sampling
from mmrl.ground.outputs import refuse_report, write_report
from mmrl.ground.printable import show, tell
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.clip_data import ClipQuestions, Clips, about_spans
from mmrl.recipes.shared.clip_report import blocks, grounding_report
from mmrl.recipes.shared.launch import Preset, launch
from mmrl.recipes.shared.machines import ONE_LARGE
from mmrl.recipes.shared.measuring import (
    graded_as_published,
    keeping,
    published_numbers,
    sampled_numbers,
)
from mmrl.recipes.shared.opening import (
    DRAWN,
    EMBEDDED,
    Data,
    Load,
    open_data,
    open_policy,
    style_of,
)
from mmrl.rollouts.engine import HFEngine, check_rows
from mmrl.rollouts.kept_answers import KeptAnswers
from mmrl.training.evaluate import answers_to, evaluate, heldout_prompts, pass_rates
from mmrl.training.left_out import LeftOut
from mmrl.training.tracking import chat_as_line
from mmrl.types import Now, Rollout

REPORT = "evaluation"
PRESETS = {
    EMBEDDED: Preset(
        "the embedded PAPO run on held-out drawn pictures",
        model="runs/papo",
        dataset=DRAWN,
        data={"style": "tag"},
        sampling={"max_tokens": 12},
        load={"min_pixels": None, "max_pixels": None},
    ),
    "real": Preset("a real model on your own rows", 7.0, machine=ONE_LARGE),
    "papo-avg8": Preset(
        "PAPO's protocol: the mean of 8 answers at temperature 1 (mean@8)",
        7.0,
        machine=ONE_LARGE,
        samples=8,
        ks=(1, 8),
        sampling={"temperature": 1.0},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "PAPOGalaxy/PAPO_MMK12_test",
    data: Data = Data(),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    samples: int = 8,
    ks: tuple[int, ...] = (1, 4, 8),
    prompts: int = 512,
    rows_at_once: int = 256,
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
        sampling: How answers are sampled for pass@k.
        samples: Answers per prompt for pass@k; 0 measures greedy accuracy only.
        ks: The k of pass@k.
        prompts: Most prompts to use.
        rows_at_once: Most answers that are sampled side by side; fewer take less memory and more time.
        seed: Seeds the answers.
        output: Also write the numbers to this JSON file; an earlier report is replaced, no other file.
        clips: Frames, sizes and decoder (grounding only).
        asking: How times are told and questions put (grounding only).
    """
    refuse_report(output, REPORT)
    check_rows(rows_at_once)
    # Nothing is trained, so no row has to be kept for it.
    data = replace(data, heldout_rows=0)
    found: dict[str, Any] = {"model": model, "dataset": dataset}
    if about_spans(dataset, clips):
        questions = ClipQuestions(dataset, video_root, data, clips, asking)
        found["tables"] = _span_tables(questions, model, load, prompts, sampling, rows_at_once)
    else:
        policy, style = open_policy(model, load), style_of(data.style)
        train, heldout = open_data(dataset, data, seed)
        # Drawn pictures have a side of their own that training never shows; of other data all rows count.
        asked = heldout if dataset.startswith("drawn:") else train
        left_out = LeftOut(asked)
        rows = heldout_prompts(asked, prompts, policy.encode, left_out.add)
        style = graded_as_published(style, dataset)
        greedy: list[Rollout] = []
        engine, now = HFEngine(policy, rows_at_once=rows_at_once), Now(0, 0.0, seed)
        with Rewards(accuracy=(0.9, style.accuracy), format=(0.1, style.format)) as rewards:
            example = "".join(chat_as_line(row.messages) for row in rows[:1])
            for note in policy.processing.tags.notes(example, rewards.needs_tags):
                tell(note)
            engine = keeping(engine, output, model, load)
            rates = evaluate(
                engine, rows, rewards, sampling, now, told=lambda all_, _: greedy.extend(all_)
            )
            rates |= published_numbers(greedy)
            if samples:
                several = replace(sampling, group_size=samples)
                answers = answers_to(engine, rows, rewards, several, now)
                rates |= pass_rates(answers, [k for k in ks if k <= samples])
                rates |= sampled_numbers(answers, ks)
        show(f"{model} on {len(rows)} prompts of {dataset}")
        if isinstance(engine, KeptAnswers) and engine.reused:
            show(f"  answers to {engine.reused} questions are those of {engine.file}")
        for name, value in rates.items():
            show(f"  {name:<16} {value:.4f}")
        bad = left_out.reasons()
        if bad:
            show(f"  {len(bad)} rows cannot be used, the first: {bad[0]}")
        found |= {"prompts": len(rows), "skipped": bad, **rates}
    if output is not None:
        write_report(output, REPORT, found)
        tell(f"written to {output}")


def _span_tables(
    questions: ClipQuestions,
    model: str,
    load: Load,
    prompts: int,
    sampling: Sampling,
    rows_at_once: int,
) -> dict[str, dict[str, float]]:
    """Greedy answers to questions about spans, and their table, printed."""
    policy = questions.open_policy(model, load)
    _, heldout = questions.open_prompts(policy, seed=0)
    engine = HFEngine(policy, rows_at_once=rows_at_once)
    greedy = replace(sampling, group_size=1, temperature=0.0)
    answers: list[Rollout] = []
    for rows in blocks(heldout, prompts, policy.encode):
        # Leaving the block forgets the clips of these rows, and so do their answers:
        # the clips of a whole benchmark do not fit in memory.
        with policy.vision.no_update():
            for rollout in engine.generate(rows, greedy, Now(0, 0.0)):
                without_pixels = replace(rollout.prompt, media=())
                answers.append(replace(rollout, prompt=without_pixels))
    show(f"{model} on {len(answers)} questions of {questions.dataset}")
    text, tables = grounding_report(answers, span_style_of(questions.asking))
    show(text)
    return tables


if __name__ == "__main__":
    launch(main, PRESETS)
