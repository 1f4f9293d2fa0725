"""Annealed numbers: frozen records called with the progress of the run in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """A number that depends on the progress of the run."""

    def __call__(self, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float = 1.0

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear:
    """Straight line from `start` to `end`, reached at progress `until`, then constant."""

    start: float = 1.0
    """The value at the beginning of the run."""
    end: float = 0.0
    """The value from `until` on."""
    until: float = 1.0
    """Share of the run after which `end` is kept, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0.0 < self.until <= 1.0:
            raise ValueError(
                f"Linear.until is {self.until}; it is a share of the run and must lie in (0, 1]."
            )

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * min(max(progress / self.until, 0.0), 1.0)


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` down (or up) to `end`."""

    start: float = 1.0
    """The value at the beginning of the run."""
    end: float = 0.0
    """The value at its end."""

    def __call__(self, progress: float) -> float:
        clipped = min(max(progress, 0.0), 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * clipped))


@dataclass(frozen=True)
class Sigmoid:
    """start · σ(steepness · (middle − progress)): near `start` early, near 0 late."""

    start: float = 1.0
    """The value long before `middle`."""
    steepness: float = 10.0
    """How sharply it falls: 4 / steepness is about the share of the run that the fall takes."""
    middle: float = 0.5
    """Progress at which half of `start` is left."""

    def __call__(self, progress: float) -> float:
        return self.start / (1.0 + math.exp(-self.steepness * (self.middle - progress)))
