"""What each method does to the embedded model, against GRPO with its own numbers, over seeds and exam questions.

    python benchmarks/effects.py --output runs/effects                  what is missing of 5 seeds: hours on one core
    python benchmarks/effects.py --output runs/effects --methods papo   one method and its references
    python benchmarks/effects.py --output runs/effects --no-train --document docs/effects.md     tables of what is there

A method is its recipe's embedded preset for as many steps, on the tasks in which its claims can show
(`effect_tasks.py`); its reference is GRPO with the same prompts, answers and rewards (`effect_methods.py`). Every run
leaves one file, OUTPUT/TASK/NAME-SEED.json, with one value per number and exam question; it is written when the run is
measured, in one move, so a stopped benchmark goes on where it was. Two processes may share the work by `--seeds`. Files
are used as long as steps, questions and the run's settings are the same; after a change of the code start a new folder.

A claim is a difference in one number that the paper leads to expect, paired by seed and question. Its interval is over
both, and all claims are corrected together (`effect_statistics.py`): "shown" and "opposite" hold after the correction.
`needs` is the true difference that would be shown in four of five benchmarks like this one, before and after the
correction of a whole table; `room` is how far the reference is from a model that sees everything and never guesses. A
claim with more room than it needs could have been shown.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from documents import write_section
from effect_methods import METHODS, Claim, Trained, method_run, reference_run
from effect_statistics import LEVEL, Estimate, estimate, holm, verdict
from effect_tasks import IDEAL, TASKS, Exam, Marks, contrast, mean_of

FOLDER = Path("runs/effects")
START = "start"
"""Name of the result file of a task's warm start."""
CHECKS = (
    ("cells", "GRPO learns", "accuracy", True),
    ("cells", "GRPO gains on black pictures, too", "blank", True),
    ("noise", "noise takes accuracy away from GRPO's model", "accuracy-noisy", False),
    ("usual", "GRPO's model names what is usual where it is wrong", "lean", False),
    ("usual", "and does so more than the warm start", "lean", True),
    ("usual", "on black pictures it names what is usual", "blind", False),
    ("failing", "GRPO learns where all answers fail", "accuracy", True),
)
"""Task, text, number, whether the difference is that from the start or the number itself."""


@dataclass(frozen=True)
class Plan:
    """What is run, and how it is measured."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    questions: int
    place: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Of every run."""
        steps = ("--run.steps", str(self.steps))
        return (*steps, "--run.eval-prompts", "0", "--run.save-every", "0")

    def pairs(self, task: str) -> dict[str, tuple[Trained, Trained]]:
        """Method -> its run on this task and its reference."""
        asked = [n for n in self.methods if any(c.task == task for c in METHODS[n].claims)]
        runs = {name: method_run(name, self.options) for name in asked}
        return {name: (run, reference_run(run)) for name, run in runs.items()}

    def file(self, task: str, name: str, seed: int | None = None) -> Path:
        """Where a result lies."""
        return self.place / task / (f"{name}.json" if seed is None else f"{name}-{seed}.json")

    def settings(self, trained: Trained | None) -> dict[str, object]:
        """What a result must have been made with to be used."""
        made = {"steps": self.steps, "questions": self.questions}
        return {**made, "key": trained.key if trained else START}


def main(
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    steps: int = 100,
    questions: int = 384,
    output: Path = FOLDER,
    train: bool = True,
    document: Path | None = None,
) -> None:
    """Train what is missing, compare what is there; the last line is one JSON object.

    Args:
        methods: Methods to compare; their references are run, too.
        questions: Questions of each exam.
        output: Results, one file per run.
        train: Run what is missing; off: compare what is there.
        document: A file that the tables are written into.
    """
    if unknown := sorted(set(methods) - METHODS.keys()):
        raise SystemExit(f"--methods names {unknown}; there are {sorted(METHODS)}.")
    torch.set_num_threads(1)
    plan = Plan(methods, seeds, steps, questions, output)
    failed = worked(plan) if train else []
    rows = compared(plan)
    text = report(rows, checked(plan), plan)
    print(text)
    if document is not None:
        write_section(document, "effects", text)
    shown = sum(row.verdict == "shown" for row in rows)
    row = {"name": "effects", "value": shown, "goal": 0}
    verdicts = {f"{r.method}: {r.claim.text}": r.verdict for r in rows}
    told = {"unit": f"claims shown, of {len(rows)}", "ok": not failed, "failed": failed}
    print(json.dumps({**row, **told, "verdicts": verdicts}, ensure_ascii=False))


def worked(plan: Plan) -> list[str]:
    """Run and measure what is missing, seed by seed, so that a stopped benchmark has few seeds of all; what failed."""
    pairs = {task: found for task in TASKS if (found := plan.pairs(task))}
    exams = {task: Exam.of(start_of(task, plan), plan.questions) for task in pairs}
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


def start_of(task: str, plan: Plan) -> Path:
    """The warm start of a task."""
    return TASKS[task].start(plan.place / "data")


def placed(trained: Trained, task: str, plan: Plan) -> Trained:
    """The run on a task: from its warm start, on its rows."""
    rows = TASKS[task].dataset(plan.place / "data")
    return trained.on(str(start_of(task, plan)), rows)


def each_once(pairs: Mapping[str, tuple[Trained, Trained]]) -> Iterator[Trained]:
    """References and methods; a shared reference once."""
    seen = set()
    for run, reference in pairs.values():
        for trained in (reference, run):
            if trained.name not in seen:
                seen.add(trained.name)
                yield trained


def trained_marks(trained: Trained, seed: int, exam: Exam) -> Marks:
    """Train in a folder of its own, measure, forget the model."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        run = replace(trained.arguments["run"], seed=seed, output=Path(scratch) / "run")
        trained.main(**{**trained.arguments, "run": run})
        return exam.marked(run.folder / "model")


@contextmanager
def quiet() -> Iterator[None]:
    """What recipes print is not the benchmark's output."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def keep(file: Path, settings: Mapping[str, object], marks: Marks) -> None:
    """Write a result in one move: a file that exists is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: [round(value, 5) for value in values] for name, values in marks.items()}
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps({"settings": dict(settings), "marks": rounded}))
    part.replace(file)


def stored(file: Path, settings: Mapping[str, object]) -> Marks | None:
    """A finished result; None if there is none. Ends the benchmark at one that was made with other settings."""
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    if found["settings"] != settings:
        raise SystemExit(
            f"{file} was made with {found['settings']}, now {dict(settings)} is asked for; "
            "give another --output, or delete the file."
        )
    return found["marks"]


@dataclass(frozen=True)
class Row:
    """A claim and what was found."""

    method: str
    claim: Claim
    numbers: str
    """Prompts × answers and rewards of the reference."""
    value: float
    reference: float
    found: Estimate
    corrected: float
    """Probability after the correction."""
    room: float
    """How far the reference is from the ideal; NaN where there is none."""

    @property
    def verdict(self) -> str:
        """See `effect_statistics.verdict`."""
        return verdict(self.found, self.corrected, self.claim.larger)


def compared(plan: Plan) -> list[Row]:
    """All claims of which at least one seed is there, corrected together."""
    rows = []
    for task in TASKS:
        for name, (run, reference) in plan.pairs(task).items():
            claims = [claim for claim in METHODS[name].claims if claim.task == task]
            rows += [row for claim in claims if (row := judged(plan, run, reference, claim))]
    corrected = holm([row.found.p for row in rows])
    named = [replace(row, corrected=p) for row, p in zip(rows, corrected, strict=True)]
    order = list(plan.methods)
    return sorted(named, key=lambda row: order.index(row.method))


def judged(plan: Plan, run: Trained, reference: Trained, claim: Claim) -> Row | None:
    """One claim over the seeds that are there; not corrected yet."""
    start = stored(plan.file(claim.task, START), plan.settings(None))
    values, others = [], []
    for seed in plan.seeds:
        mine = stored(plan.file(claim.task, run.name, seed), plan.settings(run))
        theirs = stored(plan.file(claim.task, reference.name, seed), plan.settings(reference))
        if claim.against == START:
            theirs = start
        if mine is not None and theirs is not None:
            values.append(contrast(mine, claim.number))
            others.append(contrast(theirs, claim.number))
    if not values or start is None:
        return None
    ours, base = np.stack(values), np.stack(others)  # [seeds, questions]
    found, mean = estimate(ours - base), float(base.mean())
    ideal = IDEAL.get(claim.number, math.nan)
    if claim.number == "entropy":
        ideal = mean_of(start, "entropy")  # all that can be kept
    room = abs(ideal - mean)
    numbers = reference.summary()
    return Row(run.name, claim, numbers, float(ours.mean()), mean, found, 1.0, room)


def checked(plan: Plan) -> list[tuple[str, str, float, Estimate]]:
    """Whether each task lets its claim show: (task, text, mean, difference from the start or from 0)."""
    rows = []
    for task, text, number, against_start in CHECKS:
        pairs = plan.pairs(task)
        start = stored(plan.file(task, START), plan.settings(None))
        if not pairs or start is None:
            continue
        reference = next(iter(pairs.values()))[1]
        files = [plan.file(task, reference.name, seed) for seed in plan.seeds]
        found = [marks for file in files if (marks := stored(file, plan.settings(reference)))]
        if found:
            values = np.stack([contrast(marks, number) for marks in found])
            gaps = values - contrast(start, number) if against_start else values
            rows.append((task, text, float(values.mean()), estimate(gaps)))
    return rows


def report(
    rows: Sequence[Row], checks: Sequence[tuple[str, str, float, Estimate]], plan: Plan
) -> str:
    """The section of the document."""
    lines = [
        "## All methods against GRPO (`python benchmarks/effects.py`)",
        "",
        f"Embedded presets, {plan.steps} steps, up to {len(plan.seeds)} seeds, {plan.questions} held-out questions. "
        "The reference is GRPO with the same prompts × answers and rewards for accuracy / format. Differences are "
        "paired by seed and question, with the 95 % interval over both; p is corrected for all claims (Holm). Tasks "
        "and numbers are explained in `benchmarks/effect_tasks.py`.",
        "",
        "| method | claim | task | number | reference runs | value | reference | difference | seeds | p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        claim = row.claim
        against = f"{row.reference:.3f} ({claim.against})"
        cells = (row.method, claim.text, claim.task, claim.number, row.numbers)
        numbers = (f"{row.value:.3f}", against, gap(row.found), str(row.found.seeds))
        lines.append(_line(*cells, *numbers, f"{row.corrected:.2g}", row.verdict))
    lines += ["", "Could it have been shown? What a claim needs, and the room that it has:", ""]
    lines += [
        "| method | claim | needs, alone | needs, corrected | room |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        needs = (row.found.needed(), row.found.needed(LEVEL / len(rows)))
        told = [*(f"{value:.3f}" for value in needs), f"{row.room:.3f}"]
        plain = ["no bound" if text == "nan" else text for text in told]
        lines.append(_line(row.method, row.claim.text, *plain))
    lines += ["", "Does each task do what it is for? GRPO, not corrected:", ""]
    lines += ["| task | what | GRPO | difference |", "| --- | --- | --- | --- |"]
    lines += [
        _line(task, text, f"{mean:.3f}", gap(found)) for task, text, mean, found in checks
    ]
    return "\n".join([*lines, "", *means(plan)])


def means(plan: Plan) -> list[str]:
    """Every number of every run, mean over seeds."""
    lines: list[str] = []
    for task in TASKS:
        start = stored(plan.file(task, START), plan.settings(None))
        if start is None:
            continue
        names = list(start)
        lines += [_line(f"{task}: run", *names), _line(*["---"] * (len(names) + 1))]
        lines.append(_line("warm start", *(f"{mean_of(start, n):.3f}" for n in names)))
        for trained in each_once(plan.pairs(task)):
            files = [plan.file(task, trained.name, seed) for seed in plan.seeds]
            found = [marks for file in files if (marks := stored(file, plan.settings(trained)))]
            if found:
                told = [np.mean([mean_of(marks, n) for marks in found]) for n in names]
                title = f"{titled(trained, plan, task)}, mean of {len(found)}"
                lines.append(_line(title, *(f"{value:.3f}" for value in told)))
        lines.append("")
    return lines[:-1]


def titled(trained: Trained, plan: Plan, task: str) -> str:
    """A method's name; for a reference, whose it is."""
    pairs = plan.pairs(task).items()
    of = [name for name, (_, reference) in pairs if reference.name == trained.name]
    return f"grpo for {', '.join(of)} ({trained.summary()})" if of else trained.name


def gap(found: Estimate) -> str:
    """Difference and interval."""
    half = "" if math.isnan(found.half) else f" ± {found.half:.3f}"
    return f"{found.mean:+.3f}{half}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    tyro.cli(main)
