"""Difficulty over time: one level in [0, 1] per task, fixed, scheduled, or kept where half of the answers succeed.

`LevelController` is a bounded random walk with hysteresis. Success is the reward above chance,
s = max(0, (r − chance)/(1 − chance)). After `window` answers of a task their mean moves the level one step up if it is
above target + band, down if below target − band; a step against the last direction needs twice the band, so that noise
around the target does not make the level swing.

Several ranks: every rank collects sums (`pending`), the sums are added over ranks, and each rank applies the same total
(`apply`), so all ranks keep one level. The state is plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmrl.data.pretext.marking.rewards import above_chance
from mmrl.ground.require import require


class LevelSchedule(Protocol):
    """The level of a task now; None means the task's default knobs."""

    def __call__(self, task: str, progress: float) -> float | None: ...


@dataclass(frozen=True)
class DefaultKnobs:
    """No level: the default knobs of every task."""

    def __call__(self, task: str, progress: float) -> float | None:
        return None


@dataclass(frozen=True)
class FixedLevel:
    """One level for all tasks."""

    level: float = 0.5
    """0 is the easiest, 1 the hardest."""

    def __post_init__(self) -> None:
        require(self, level=(0.0 <= self.level <= 1.0, "in [0, 1]"))

    def __call__(self, task: str, progress: float) -> float | None:
        return self.level


@dataclass(frozen=True)
class LinearLevel:
    """From easy to hard over the run."""

    start: float = 0.0
    """Level at the beginning."""
    end: float = 1.0
    """Level from `until` on."""
    until: float = 0.8
    """Share of the run at which `end` is reached."""

    def __post_init__(self) -> None:
        require(
            self,
            start=(0.0 <= self.start <= 1.0, "in [0, 1]"),
            end=(0.0 <= self.end <= 1.0, "in [0, 1]"),
            until=(0.0 < self.until <= 1.0, "in (0, 1]"),
        )

    def __call__(self, task: str, progress: float) -> float | None:
        share = min(max(progress / self.until, 0.0), 1.0)
        return self.start + (self.end - self.start) * share


@dataclass
class Tally:
    """Sum and number of successes of one task since the last update."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float, times: int = 1) -> None:
        self.total += value * times
        self.count += times


@dataclass
class LevelController:
    """Keeps the success of every task near `target`."""

    start: float = 0.3
    """Level of a task that has not been seen."""
    target: float = 0.5
    """Wanted mean success above chance."""
    band: float = 0.1
    """Half width of the zone in which nothing changes."""
    step: float = 0.05
    """Size of one move."""
    window: int = 64
    """Answers of a task between two decisions."""
    levels: dict[str, float] = field(default_factory=dict)
    directions: dict[str, int] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    waiting: dict[str, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(
            self,
            start=(0.0 <= self.start <= 1.0, "in [0, 1]"),
            target=(0.0 < self.target < 1.0, "in (0, 1)"),
            band=(self.band >= 0.0, "at least 0"),
            step=(0.0 < self.step <= 1.0, "in (0, 1]"),
            window=(self.window >= 1, "at least 1"),
        )

    def __call__(self, task: str, progress: float) -> float | None:
        return self.levels.get(task, self.start)

    def observe(self, task: str, reward: float, chance_reward: float) -> None:
        """One answer seen on this rank. Takes effect with the next `apply`."""
        self.waiting.setdefault(task, Tally()).add(above_chance(reward, chance_reward))

    def pending(self) -> dict[str, tuple[float, int]]:
        """(sum, count) per task since the last call, to be added over ranks."""
        sums = {task: (tally.total, tally.count) for task, tally in self.waiting.items()}
        self.waiting = {}
        return sums

    def apply(self, totals: Mapping[str, tuple[float, int]]) -> dict[str, float]:
        """Take sums over all ranks; returns the levels that moved. Equal inputs give equal levels everywhere."""
        moved = {}
        # Sorted: ranks may have met the tasks in different orders.
        for task in sorted(totals):
            total, count = totals[task]
            tally = self.tallies.setdefault(task, Tally())
            tally.total += total
            tally.count += count
            if tally.count < self.window:
                continue
            self.tallies[task] = Tally()
            before = self.levels.get(task, self.start)
            level = self._decide(task, tally.total / tally.count)
            if level != before:
                moved[task] = level
            self.levels[task] = level
        return moved

    def _decide(self, task: str, mean: float) -> float:
        level, gap = self.levels.get(task, self.start), mean - self.target
        direction = (gap > 0) - (gap < 0)
        back = direction != 0 and direction == -self.directions.get(task, 0)
        # A step back needs twice the band: noise around the target must not make the level swing.
        if abs(gap) <= (2 * self.band if back else self.band):
            return level
        self.directions[task] = direction
        # Rounded, so that twenty steps up and twenty down end where they began.
        return round(min(max(level + direction * self.step, 0.0), 1.0), 6)

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {
            "levels": dict(self.levels),
            "directions": dict(self.directions),
            "tallies": _pairs(self.tallies),
            "waiting": _pairs(self.waiting),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.levels, self.directions = dict(state["levels"]), dict(state["directions"])
        self.tallies = _tallies(state["tallies"])
        self.waiting = _tallies(state["waiting"])


def _pairs(tallies: Mapping[str, Tally]) -> dict[str, list[float]]:
    return {task: [tally.total, tally.count] for task, tally in tallies.items()}


def _tallies(pairs: Mapping[str, Sequence[Any]]) -> dict[str, Tally]:
    return {task: Tally(*pair) for task, pair in pairs.items()}
