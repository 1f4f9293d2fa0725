"""What each method does to the embedded model, against GRPO with its own numbers, over seeds and exam questions.

    python benchmarks/effects.py --output runs/effects                  what is missing of 5 seeds: hours on one core
    python benchmarks/effects.py --output runs/effects --methods papo   one method and its references
    python benchmarks/effects.py --suite rlvr --output runs/rlvr        the twenty RLVR systems: an hour on one core
    python benchmarks/effects.py --suite trees --output runs/trees      trees, hints, experience
    python benchmarks/effects.py --suite tools --output runs/tools      answers that call tools
    python benchmarks/effects.py --output runs/effects --no-train --document docs/effects.md     tables of what is there

A method is its recipe's embedded preset for as many steps, on the tasks in which its claims can show
(`effect_tasks.py`); its reference is GRPO with the same prompts, answers and rewards (`effect_methods.py`). Every run
leaves one file, OUTPUT/TASK/NAME-SEED.json, with one value per number and exam question; it is written when the run is
measured, in one move, so a stopped benchmark goes on where it was. Two processes may share the work by `--seeds`. Files
are used as long as steps, questions and the run's settings are the same; after a change of the code start a new folder.

RLVR systems are run shorter and with a smaller exam (`effect_rlvr.py`, `effect_answers.py`); recipes that are not there
yet are left out, their claims count as not measured.

A claim is a difference in one number that the paper leads to expect, paired by seed and question. Its interval is over
both, and all claims are corrected together (`effect_statistics.py`): "shown" and "opposite" hold after the correction.
`needs` is the true difference that would be shown in four of five benchmarks like this one, before and after the
correction of a whole table; `room` is how far the reference is from a model that sees everything and never guesses. A
claim with more room than it needs could have been shown.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from documents import write_section
from effect_answers import AnswerExam, of_training
from effect_methods import SUITES, Trained
from effect_readme import write_column
from effect_results import START, Plan, each_once, keep, stored
from effect_tables import checked, compared, report
from effect_tasks import TASKS, Exam, Marks, mean_of

from mmrl.rewards.functions import answer_format, tagged_accuracy, words_accuracy
from mmrl.rewards.parts import in_process

FOLDER = Path("runs/effects")
SuiteName = Literal["visual", "rlvr", "trees", "tools"]


def main(
    suite: SuiteName = "visual",
    methods: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    steps: int | None = None,
    questions: int | None = None,
    output: Path = FOLDER,
    train: bool = True,
    document: Path | None = None,
    readme: Path | None = None,
) -> None:
    """Train what is missing, compare what is there; the last line is one JSON object.

    Args:
        suite: visual, the methods that look at pictures; rlvr, twenty systems for any verifiable rewards; trees,
            systems of branching answers, hints and experience; tools, answers that call tools.
        methods: Methods to compare, all of the suite by default; their references are run, too.
        steps: Of each run; the suite's by default.
        questions: Questions of each exam; the suite's by default.
        output: Results, one file per run.
        train: Run what is missing; off: compare what is there.
        document: A file that the tables are written into.
        readme: The recipes' README, whose column of effects is filled in.
    """
    asked = SUITES[suite]
    if unknown := sorted(set(methods) - asked.methods.keys()):
        raise SystemExit(f"--methods names {unknown}; there are {sorted(asked.methods)}.")
    torch.set_num_threads(1)
    numbers = (steps or asked.steps, questions or asked.questions)
    plan = Plan(methods or tuple(asked.methods), seeds, *numbers, output, asked)
    # These are ours and end by themselves; a worker takes longer to start for them than several steps.
    for paid in (tagged_accuracy, words_accuracy, answer_format):
        in_process(paid)
    failed = worked(plan) if train else []
    rows = compared(plan)
    text = report(rows, checked(plan), plan)
    print(text)
    if document is not None:
        write_section(document, plan.suite.section, text)
    if readme is not None:
        write_column(readme, rows)
    shown = sum(row.verdict == "shown" for row in rows)
    row = {"name": "effects", "value": shown, "goal": 0}
    verdicts = {f"{r.method}: {r.claim.text}": r.verdict for r in rows}
    told = {"unit": f"claims shown, of {len(rows)}", "ok": not failed, "failed": failed}
    print(json.dumps({**row, **told, "verdicts": verdicts}, ensure_ascii=False))


def worked(plan: Plan) -> list[str]:
    """Run and measure what is missing, seed by seed, so that a stopped benchmark has few seeds of all; what failed."""
    pairs = {task: found for task in TASKS if (found := plan.pairs(task))}
    exams = {task: exam_of(task, plan) for task in pairs}
    for task in pairs:
        if stored(plan.file(task, START), plan.settings(None)) is None:
            marks = exams[task].marked(start_of(task, plan))
            keep(plan.file(task, START), plan.settings(None), marks)
    failed = []
    for seed in plan.seeds:
        for task, found in pairs.items():
            for trained in each_once(found):
                file, wanted = plan.file(task, trained.name, seed), plan.settings(trained)
                if stored(file, wanted) is not None:
                    continue
                # A method that fails costs its own rows, not a night of runs.
                try:
                    marks = trained_marks(placed(trained, task, plan), seed, exams[task])
                except Exception:
                    traceback.print_exc()
                    failed.append(str(file))
                    continue
                keep(file, wanted, marks)
                accuracy = mean_of(marks, "accuracy")
                print(f"{file}: accuracy {accuracy:.3f}", file=sys.stderr, flush=True)
    return failed


def exam_of(task: str, plan: Plan) -> Exam | AnswerExam:
    """The suite's exam of a task."""
    if plan.suite is not SUITES["visual"]:
        return AnswerExam.of(TASKS[task], plan.questions)
    return Exam.of(start_of(task, plan), plan.questions)


def start_of(task: str, plan: Plan) -> Path:
    """The warm start of a task."""
    return TASKS[task].start(plan.place / "data")


def placed(trained: Trained, task: str, plan: Plan) -> Trained:
    """The run on a task: from its warm start, on its rows."""
    rows = TASKS[task].dataset(plan.place / "data")
    return trained.on(str(start_of(task, plan)), rows)


def trained_marks(trained: Trained, seed: int, exam: Exam | AnswerExam) -> Marks:
    """Train in a folder of its own, measure, forget the model."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        run = replace(trained.arguments["run"], seed=seed, output=Path(scratch) / "run")
        trained.main(**{**trained.arguments, "run": run})
        marks = exam.marked(run.folder / "model")
        told = of_training(run.folder / "metrics.jsonl") if isinstance(exam, AnswerExam) else {}
        return {**marks, **told}


@contextmanager
def quiet() -> Iterator[None]:
    """What recipes print is not the benchmark's output."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    tyro.cli(main)
