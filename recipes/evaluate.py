"""Accuracy and pass@k of a finished run, a checkpointed run or any model folder; tables for temporal grounding.

    python -m recipes.evaluate                                        the run that was started last, runs/latest
    python -m recipes.evaluate --model runs/mine                      any run, on its own held-out rows, as it asks
    python -m recipes.evaluate --model my/folder --dataset test.jsonl --data.style box --samples 8 --ks 1 4 8

    python -m recipes.evaluate --model runs/latest --dataset drawn:clips?frames=12
    python -m recipes.evaluate --model my/folder --dataset charades-timelens.json --video-root videos/

Rows about spans of clips are recognised by their format: R1@0.3, 0.5, 0.7 and mIoU are printed for each data set, with
95 % bootstrap intervals over videos. Ask as the model was trained: `--asking.time interleaved_times` for TimeLens-7B.

A run (also `mmrl eval RUN`) brings its data, style, rewards, lengths and limits; flags go before, and with another
`--dataset` only what does not belong to the old rows stays.

pass@k is the unbiased estimate from `samples` answers at the sampling temperature; accuracy is greedy.

    python -m recipes.evaluate real --dataset benchmark:mathvista --output mathvista.json
    python -m recipes.evaluate papo-avg8 --model my/folder --dataset benchmark:mathverse-vision-only

Published benchmarks have names (docs/evaluation.md). With --output the answers are kept beside the report: a stopped
evaluation goes on where it was.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmrl import Rewards, Sampling
from mmrl.ground.outputs import refuse_report, write_report
from mmrl.ground.printable import printable, show, tell
from mmrl.model.policy import Policy
from mmrl.recipes.shared.clip_asking import Asking, span_style_of
from mmrl.recipes.shared.clip_data import ClipQuestions, Clips, about_clips, about_spans
from mmrl.recipes.shared.clip_report import blocks, grounding_report
from mmrl.recipes.shared.domains import (
    Mix,
    heldout_of_each,
    is_several,
    read_domains,
    rewards_of,
)
from mmrl.recipes.shared.launch import Preset, flag, launch, take_flag
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
from mmrl.recipes.shared.paying import RewardWeights
from mmrl.recipes.shared.run_settings import OF_RUN, values_of_run
from mmrl.recipes.shared.run_tools import tools_of_run, with_tools
from mmrl.rollouts.choosing import opened
from mmrl.rollouts.engine import check_rows
from mmrl.rollouts.kept_answers import KeptAnswers
from mmrl.training.evaluate import (
    answers_to,
    domain_pass_rates,
    evaluate,
    heldout_prompts,
    pass_rates,
)
from mmrl.training.left_out import LeftOut
from mmrl.training.run import LATEST, RUNS
from mmrl.training.tracking import chat_as_line
from mmrl.types import Now, Prompt, Prompts, Rollout

REPORT = "evaluation"
LAST = f"{RUNS}/{LATEST}"
"""The run that was started last."""
NAMING = ("--model", "--dataset", "--config", "-h", "--help", "--help-all", "--print-config")
"""Flags with which it is not meant."""
PRESETS = {
    EMBEDDED: Preset(
        "the run that was started last on held-out drawn pictures",
        model=LAST,
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
    reward: RewardWeights = RewardWeights(accuracy=0.9, format=0.1),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    samples: int = 8,
    ks: tuple[int, ...] = (1, 4, 8),
    prompts: int = 512,
    rows_at_once: int = 256,
    seed: int = 0,
    tools: bool = True,
    heldout_of: int | None = None,
    mix: Mix = Mix(),
    output: Path | None = None,
    video_root: Path | None = None,
    clips: Clips = Clips(cache_gb=0.0),
    asking: Asking = Asking(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520),
) -> None:
    """Measure a model.

    Args:
        model: A run's folder, a model folder, a hub name, or "embedded".
        dataset: What to answer; all its rows count as held out, except those of drawn tasks and of a run.
        sampling: How answers are sampled for pass@k.
        samples: Answers per prompt for pass@k; 0 measures greedy accuracy only.
        ks: The k of pass@k.
        prompts: Most prompts to use.
        rows_at_once: Most answers that are sampled side by side; fewer take less memory and more time.
        seed: Seeds the answers.
        tools: Answer a run whose answers call tools with these tools.
        heldout_of: Ask only rows that a run with this seed sets aside (--data.heldout, --data.heldout-rows).
        mix: Of several data sets: does an answer without the asked-for form count?
        output: Also write the numbers to this JSON file; an earlier report is replaced, no other file.
        clips: Frames, sizes and decoder (annotations of spans, and Video-R1's rows with --asking.style video-r1).
        asking: How times are told and questions put (the same).
    """
    refuse_report(output, REPORT)
    check_rows(rows_at_once)
    if heldout_of is None:
        # Nothing is trained, so no row has to be kept for it.
        data = replace(data, heldout_rows=0)
    found: dict[str, Any] = {"model": model, "dataset": dataset}
    questions = ClipQuestions(dataset, video_root, data, clips, asking)
    if about_spans(dataset, clips):
        found["tables"] = _span_tables(
            questions, model, load, prompts, sampling, rows_at_once, heldout_of or 0
        )
    else:
        split = seed if heldout_of is None else heldout_of
        if about_clips(dataset, clips, asking):
            policy = questions.open_policy(model, load)
            train, heldout = questions.open_prompts(policy, split)
            paid = Rewards(**span_style_of(asking).parts, correct="accuracy")  # type: ignore[arg-type]
        else:
            train, heldout, paid = _rows(dataset, data, reward, mix, split)
            policy = open_policy(model, load)
        # Drawn pictures have a side of their own that training never shows; of other data all rows count.
        apart = heldout_of is not None or dataset.startswith("drawn:")
        asked = heldout if apart else train
        left_out = LeftOut(asked)
        rows = heldout_prompts(asked, prompts, policy.encode, left_out.add)
        greedy: list[Rollout] = []
        engine, now = opened(policy, rows_at_once, sampling), Now(0, 0.0, seed)
        with paid as rewards:
            _tell_of_tags(policy, rows, rewards)
            run = tools_of_run(Path(model), policy, asked) if tools else None
            engine, rows = with_tools(run, engine, policy, rows)
            engine = keeping(engine, output, model, load, run.mark if run else "")
            rates = evaluate(
                engine, rows, rewards, sampling, now, told=lambda all_, _: greedy.extend(all_)
            )
            rates |= published_numbers(greedy)
            if samples:
                several = replace(sampling, group_size=samples)
                answers = answers_to(engine, rows, rewards, several, now)
                rates |= _sampled_rates(answers, [k for k in ks if k <= samples])
                rates |= sampled_numbers(answers, ks)
        show(f"{model} on {len(rows)} prompts of {'; '.join(dataset.splitlines())}")
        if isinstance(engine, KeptAnswers) and engine.reused:
            show(f"  answers to {engine.reused} questions are those of {engine.file}")
        for name, value in rates.items():
            show(f"  {name:<16} {value:.4f}")
        if bad := left_out.reasons():
            show(f"  {len(bad)} rows cannot be used, the first: {bad[0]}")
        found |= {"prompts": len(rows), "skipped": bad, **rates}
    if output is not None:
        write_report(output, REPORT, found)
        tell(f"written to {output}")


def _tell_of_tags(policy: Policy, rows: Sequence[Prompt], rewards: Rewards) -> None:
    """What is to be said of the tags that rewards ask for."""
    example = "".join(chat_as_line(row.messages) for row in rows[:1])
    for note in policy.processing.tags.notes(example, rewards.needs_tags):
        tell(note)


def _rows(
    dataset: str, data: Data, reward: RewardWeights, mix: Mix, split: int
) -> tuple[Prompts, Prompts, Rewards]:
    """All rows, held-out ones, and what answers are paid; of several data sets the held-out ones in turn."""
    if is_several(dataset):
        several = read_domains(dataset, data, reward)
        heldout = heldout_of_each(several, split)
        return heldout, heldout, rewards_of(several, mix)
    style = graded_as_published(style_of(data.style), dataset)
    return *open_data(dataset, data, split), reward.rewards(style)


def _sampled_rates(answers: Sequence[Rollout], ks: Sequence[int]) -> dict[str, float]:
    """pass@k of all rows, and of each data set of a mixture."""
    return pass_rates(answers, ks) | domain_pass_rates(answers, ks)


def _span_tables(
    questions: ClipQuestions,
    model: str,
    load: Load,
    prompts: int,
    sampling: Sampling,
    rows_at_once: int,
    split: int,
) -> dict[str, dict[str, float]]:
    """Greedy answers to questions about spans, and their table, printed."""
    policy = questions.open_policy(model, load)
    _, heldout = questions.open_prompts(policy, seed=split)
    engine = opened(policy, rows_at_once, sampling)
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


def start(args: Sequence[str]) -> None:
    """The command line; the run that --model names stands for a preset, unless there is one."""
    presets, given = dict(PRESETS), list(args)
    if (other := take_flag(given, "with")) is not None:
        # Only here: an evaluation of ours needs nothing of it.
        from mmrl.recipes.shared.lmms_eval import evaluate_with

        run = take_flag(given, "model")
        evaluate_with(other, given if run is None else [run, *given])
        return
    model = flag(given, "model")
    named = bool(given) and not given[0].startswith("-")
    bare = not any(arg.split("=")[0] in NAMING for arg in given)
    if bare and not named:
        model = LAST
        given += ["--model", LAST]
    if model is not None and not named and flag(given, "config") is None:
        try:
            values = values_of_run(Path(model), main, flag(given, "dataset"))
        except ValueError as error:
            sys.exit(printable(f"mmrl evaluate: {error}"))
        if values is not None:
            presets[OF_RUN] = Preset("as the run trained", machine=ONE_LARGE, **values)
            given.insert(0, OF_RUN)
    launch(main, presets, given)


if __name__ == "__main__":
    start(sys.argv[1:])
