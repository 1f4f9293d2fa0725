"""How often each task is asked: fixed weights, or more of what is being learned.

`LearningProgress` is a bandit on |Δ success|: per task a quick and a slow running mean of the success above chance; the
distance between them is the progress, forward or backward. Weights are proportional to (base weight · progress), with
at least `floor` of the questions for every task, so that a task that looks flat is still visited. Tasks that have not
been seen `warmup` times count as progressing fully.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmrl.ground.require import require


class Weights(Protocol):
    """Shares of the tasks now, given the base weights; they sum to 1."""

    def __call__(self, base: Mapping[str, float]) -> dict[str, float]: ...


@dataclass(frozen=True)
class BaseWeights:
    """The weights of the preset, normalised."""

    def __call__(self, base: Mapping[str, float]) -> dict[str, float]:
        total = sum(base.values())
        return {task: weight / total for task, weight in base.items()}


@dataclass
class LearningProgress:
    """More of the tasks whose success is changing."""

    floor: float = 0.05
    """Least share of every task."""
    quick: float = 0.1
    """Rate of the quick running mean, per `apply`."""
    slow: float = 0.02
    """Rate of the slow running mean, per `apply`."""
    warmup: int = 5
    """Updates before a task's progress is believed."""
    means: dict[str, list[float]] = field(default_factory=dict)
    """Per task: quick mean, slow mean, number of updates."""

    def __post_init__(self) -> None:
        require(
            self,
            floor=(0.0 <= self.floor < 1.0, "in [0, 1)"),
            quick=(0.0 < self.quick <= 1.0, "in (0, 1]"),
            slow=(
                0.0 < self.slow < self.quick,
                f"above 0 and below quick, which is {self.quick}",
            ),
        )

    def __call__(self, base: Mapping[str, float]) -> dict[str, float]:
        even = BaseWeights()(base)
        seen = {task: self.progress(task) for task in base}
        nothing_moves = max(seen.values(), default=0.0) <= 0.0
        raw = {task: even[task] * (1.0 if nothing_moves else seen[task]) for task in base}
        total = sum(raw.values())
        if total <= 0.0:
            return even
        # With many tasks their floors alone would exceed the whole.
        floor = min(self.floor, 1.0 / len(base))
        rest = 1.0 - floor * len(base)
        return {task: floor + rest * raw[task] / total for task in base}

    def progress(self, task: str) -> float:
        """|quick − slow| in [0, 1]; 1 until the task has been seen often enough."""
        quick, slow, updates = self.means.get(task, [0.0, 0.0, 0.0])
        return 1.0 if updates < self.warmup else abs(quick - slow)

    def apply(self, totals: Mapping[str, tuple[float, int]]) -> None:
        """Take (sum, count) of successes per task, added over all ranks."""
        for task, (total, count) in totals.items():
            if count <= 0:
                continue
            mean = total / count
            # Both means begin at the first value: a start at 0 would look like progress.
            quick, slow, updates = self.means.get(task, [mean, mean, 0.0])
            quick += self.quick * (mean - quick)
            slow += self.slow * (mean - slow)
            self.means[task] = [quick, slow, updates + 1.0]

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {"means": {task: list(values) for task, values in self.means.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.means = {}
        for task, values in state["means"].items():
            self.means[task] = [float(value) for value in values]
