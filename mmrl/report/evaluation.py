"""Held-out evaluation with intervals, and two runs compared question by question.

    interval   Wilson's for a share of right answers, at 95 %; for scores between 0 and 1 it is wider than needed
    change     mean difference over the questions that both answered, with a paired bootstrap interval (95 %), and
               McNemar's exact test of those that only one of them got right (a score above 0.5 is right)

Questions are the rows of the held-out data, so their differences are paired by the id of the prompt.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.ground.intervals import NORMAL_95, wilson
from mmrl.report.run_files import Row, RunFiles, number, text

Scored = Mapping[str, Row]
"""Question -> the row of its answer, whose `score` is a number."""
RIGHT = 0.5
"""A score above this is right."""
DRAWS = 1000
"""Resamples of a bootstrap."""
LOGGED = ("accuracy", "accuracy_error", "reward", "length", "truncated")
"""What an evaluation logs, below `eval/`."""
SHOWN = 40
"""Questions that are listed."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run."""

    step: int
    accuracy: float
    low: float
    high: float
    questions: int
    """0 where the answers themselves were not kept."""
    reward: float | None = None
    length: float | None = None
    truncated: float | None = None


@dataclass(frozen=True)
class Change:
    """Two sets of scores for the same questions."""

    questions: int
    first: float
    second: float
    """Mean scores."""
    low: float
    high: float
    """Interval of their difference."""
    both: int
    only_first: int
    only_second: int
    neither: int
    p: float
    """Of McNemar's exact test, two-sided."""

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


def evaluations(run: RunFiles) -> list[Evaluation]:
    """Every evaluation that a run logged."""
    found = []
    asked = _questions_of_steps(run)
    for row in run.metrics:
        logged = {name: number(row.get(f"eval/{name}")) for name in LOGGED}
        accuracy = logged.pop("accuracy")
        if accuracy is None:
            continue
        error = logged.pop("accuracy_error")
        step = row["step"]
        count = asked.get(step, 0)
        low, high = interval(accuracy, count, error)
        found.append(Evaluation(step, accuracy, low, high, count, **logged))
    return found


def interval(share: float, count: int, error: float | None = None) -> tuple[float, float]:
    """Wilson's interval of a share of `count`; from the standard error where the count is not known."""
    if count and 0 <= share <= 1:
        return wilson(share, count)
    width = NORMAL_95 * (error or 0.0)
    return share - width, share + width


def scores_at(run: RunFiles, step: int | None = None) -> dict[str, Row]:
    """Question -> its row, of the evaluation at a step, the last one by default."""
    steps = [row["step"] for row in run.evaluations]
    if not steps:
        return {}
    wanted = max(steps) if step is None else step
    found: dict[str, Row] = {}
    for row in run.evaluations:
        if row["step"] == wanted and number(row.get("score")) is not None:
            found[text(row.get("prompt"))] = row
    return found


def change(first: Scored, second: Scored, seed: int = 0) -> Change | None:
    """Compare two evaluations over the questions of both; None without any."""
    shared = [question for question in first if question in second]
    if not shared:
        return None
    before = [float(first[name]["score"]) for name in shared]
    after = [float(second[name]["score"]) for name in shared]
    pairs = list(zip(before, after, strict=True))
    low, high = bootstrap([new - old for old, new in pairs], seed)
    right = [(old > RIGHT, new > RIGHT) for old, new in pairs]
    only_first = right.count((True, False))
    only_second = right.count((False, True))
    return Change(
        questions=len(pairs),
        first=sum(before) / len(before),
        second=sum(after) / len(after),
        low=low,
        high=high,
        both=right.count((True, True)),
        only_first=only_first,
        only_second=only_second,
        neither=right.count((False, False)),
        p=mcnemar(only_first, only_second),
    )


def bootstrap(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean, by drawing the values again with replacement."""
    rng, count = random.Random(seed), len(values)
    sums = sorted(sum(rng.choices(values, k=count)) for _ in range(DRAWS))
    last = DRAWS - 1
    low, high = sums[round(0.025 * last)], sums[round(0.975 * last)]
    return low / count, high / count


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: are the questions that one alone got right split evenly?"""
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    # In whole numbers: 2^-count is 0 as a float beyond a thousand questions.
    return min(1.0, 2 * tail / 2**count)


def flips(first: Scored, second: Scored, asked: Mapping[str, str]) -> list[dict[str, Any]]:
    """Questions whose score changed most, with both answers; `asked`: question -> its text, where it is known."""
    moved: list[tuple[float, str]] = []
    for name in first:
        if name in second and first[name]["score"] != second[name]["score"]:
            size = abs(second[name]["score"] - first[name]["score"])
            moved.append((-size, name))
    listed = []
    for _, name in sorted(moved)[:SHOWN]:
        before, after = first[name], second[name]
        listed.append(
            {
                "prompt": name,
                "question": asked.get(name, ""),
                "before": text(before.get("answer", "")),
                "after": text(after.get("answer", "")),
                "scores": (before["score"], after["score"]),
            }
        )
    return listed


def _questions_of_steps(run: RunFiles) -> dict[int, int]:
    counts: dict[int, int] = {}
    for row in run.evaluations:
        counts[row["step"]] = counts.get(row["step"], 0) + 1
    return counts
