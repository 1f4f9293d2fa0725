"""The tables of the effects benchmark: claims with intervals and verdicts, whether they could show, all means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from effect_claims import Claim
from effect_methods import Trained
from effect_results import START, Plan, each_once, stored
from effect_statistics import LEVEL, Estimate, estimate, holm, verdict
from effect_tasks import IDEAL, TASKS, contrast, mean_of

LEAST_SEEDS = 5
"""With fewer nothing is decided."""
Check = tuple[str, str, str, bool]
"""Task, text, number, whether the difference is that from the start or the number itself."""
CHECKS: tuple[Check, ...] = (
    ("cells", "GRPO learns", "accuracy", True),
    ("cells", "GRPO gains on black pictures, too", "blank", True),
    ("noise", "noise takes accuracy away from GRPO's model", "accuracy-noisy", False),
    ("usual", "GRPO's model names what is usual where it is wrong", "lean", False),
    ("usual", "and does so more than the warm start", "lean", True),
    ("usual", "on black pictures it names what is usual", "blind", False),
    ("failing", "GRPO learns where all answers fail", "accuracy", True),
)
OF_ANSWERS: tuple[Check, ...] = (
    ("cells", "GRPO learns", "pass1", True),
    ("cells", "GRPO's pass@8 changes", "pass8", True),
    ("cells", "GRPO's entropy changes", "entropy", True),
    ("either", "GRPO's right answers differ less", "variety", True),
    ("failing", "GRPO learns where all answers fail", "pass1", True),
    ("steps", "GRPO learns two steps", "pass1", True),
    ("lengths", "GRPO's answers change in length", "length", True),
)
"""The same for the RLVR systems."""


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
    answers: tuple[float, float] | None = None
    """Answers per step of the method and of its reference, where they were counted."""

    @property
    def verdict(self) -> str:
        """See `effect_statistics.verdict`; none with too few seeds."""
        if self.found.seeds < LEAST_SEEDS:
            return f"open, {self.found.seeds} of {LEAST_SEEDS} seeds"
        return verdict(self.found, self.corrected, self.claim.larger)


def compared(plan: Plan) -> list[Row]:
    """All claims of which at least one seed is there, corrected together."""
    rows = []
    for task in TASKS:
        for name, (run, reference) in plan.pairs(task).items():
            claims = [c for c in plan.suite.methods[name].claims if c.task == task]
            rows += [row for claim in claims if (row := judged(plan, run, reference, claim))]
    # A claim that is not measured yet counts as one that showed nothing: half a table is not corrected by half.
    missing = [1.0] * (len(plan.suite.claims) - len(rows))
    corrected = holm([*(row.found.p for row in rows), *missing])
    named = [replace(row, corrected=p) for row, p in zip(rows, corrected, strict=False)]
    order = list(plan.methods)
    return sorted(named, key=lambda row: order.index(row.method))


def judged(plan: Plan, run: Trained, reference: Trained, claim: Claim) -> Row | None:
    """One claim over the seeds that are there; not corrected yet."""
    start = stored(plan.file(claim.task, START), plan.settings(None))
    values, others = [], []
    asked: list[tuple[float, float]] = []
    for seed in plan.seeds:
        mine = stored(plan.file(claim.task, run.name, seed), plan.settings(run))
        theirs = stored(plan.file(claim.task, reference.name, seed), plan.settings(reference))
        if claim.against == START:
            theirs = start
        if mine is not None and theirs is not None:
            if "trained/answers" in mine and "trained/answers" in theirs:
                asked.append((mine["trained/answers"][0], theirs["trained/answers"][0]))
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
    answers = tuple(np.mean(asked, axis=0).tolist()) if asked else None
    return Row(run.name, claim, numbers, float(ours.mean()), mean, found, 1.0, room, answers)


def checked(plan: Plan) -> list[tuple[str, str, float, Estimate]]:
    """Whether each task lets its claim show: (task, text, mean, difference from the start or from 0)."""
    rows = []
    for task, text, number, against_start in OF_ANSWERS if plan.suite.options else CHECKS:
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
        f"## {plan.suite.title} (`python benchmarks/effects.py{plan.suite.flags}`)",
        "",
        f"Embedded presets, {plan.steps} steps, up to {len(plan.seeds)} seeds, {plan.questions} held-out questions. "
        "The reference is GRPO with the same prompts × answers and rewards for accuracy / format. Differences are "
        "paired by seed and question, with the 95 % interval over both; p is corrected for all claims (Holm). "
        f"{plan.suite.explained}",
        "",
        "| method | claim | task | number | reference runs | value | reference | difference | seeds | p | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        claim = row.claim
        against = f"{row.reference:.3f} ({claim.against})"
        cells = (row.method, claim.text, claim.task, claim.number, row.numbers)
        if row.answers:
            cells = (
                *cells[:-1],
                f"{row.numbers}; {row.answers[0]:.0f} against {row.answers[1]:.0f}",
            )
        numbers = (f"{row.value:.3f}", against, gap(row.found), str(row.found.seeds))
        lines.append(_line(*cells, *numbers, f"{row.corrected:.2g}", row.verdict))
    lines += ["", outcome(rows, plan)]
    lines += ["", "Could it have been shown? What a claim needs, and the room that it has:", ""]
    lines += [
        "| method | claim | needs, alone | needs, corrected | room |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        needs = (row.found.needed(), row.found.needed(LEVEL / len(plan.suite.claims)))
        told = ["one seed" if math.isnan(value) else f"{value:.3f}" for value in needs]
        room = "no bound" if math.isnan(row.room) else f"{row.room:.3f}"
        lines.append(_line(row.method, row.claim.text, *told, room))
    lines += ["", "Does each task do what it is for? GRPO, not corrected:", ""]
    lines += ["| task | what | GRPO | difference |", "| --- | --- | --- | --- |"]
    lines += [
        _line(task, text, f"{mean:.3f}", gap(found)) for task, text, mean, found in checks
    ]
    return "\n".join([*lines, "", *means(plan)])


def outcome(rows: Sequence[Row], plan: Plan) -> str:
    """The tables in a few sentences."""

    def named(verdict: str) -> str:
        found = [f"{row.method}: {row.claim.text}" for row in rows if row.verdict == verdict]
        return "; ".join(found) or "none"

    missing = len(plan.suite.claims) - len(rows)
    short = [row for row in rows if row.found.seeds < len(plan.seeds)]
    tight = [row for row in rows if row.room < row.found.needed()]
    told = [
        f"Of {len(plan.suite.claims)} claims, shown: {named('shown')}.",
        f"Only before the correction: {named('only before correction')}.",
        f"Shown to be opposite: {named('opposite')}.",
    ]
    if short or missing:
        told.append(f"{len(short)} claims still lack seeds, {missing} are not measured yet.")
    if tight:
        names = "; ".join(f"{row.method}: {row.claim.text}" for row in tight)
        told.append(f"With less room than they need, even alone: {names}.")
    return " ".join(told)


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
