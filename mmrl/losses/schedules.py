"""Annealed numbers: frozen records called with the progress of the run in [0, 1].

Progress at step n of N is n/N (`Now.progress`), so the first step is already one step down and the last at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmrl.ground.require import require


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
        require(self, until=(0.0 < self.until <= 1.0, "a share of the run in (0, 1]"))

    def __call__(self, progress: float) -> float:
        share = min(max(progress / self.until, 0.0), 1.0)
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` down (or up) to `end`."""

    start: float = 1.0
    """The value at the beginning of the run."""
    end: float = 0.0
    """The value at its end."""

    def __post_init__(self) -> None:
        require(self)

    def __call__(self, progress: float) -> float:
        clipped = min(max(progress, 0.0), 1.0)
        height = 1.0 + math.cos(math.pi * clipped)  # 2 at the start, 0 at the end
        return self.end + (self.start - self.end) * 0.5 * height


@dataclass(frozen=True)
class Sigmoid:
    """start · σ(steepness · (middle − progress)): near `start` early, near 0 late."""

    start: float = 1.0
    """The value long before `middle`."""
    steepness: float = 10.0
    """How sharply it falls: 4 / steepness is about the share of the run that the fall takes."""
    middle: float = 0.5
    """Progress at which half of `start` is left."""

    def __post_init__(self) -> None:
        require(self)

    def __call__(self, progress: float) -> float:
        # NoisyRollout's form: neither end is reached, the noise at progress 0 is start · σ(steepness · middle).
        distance = self.middle - progress
        return self.start / (1.0 + math.exp(-self.steepness * distance))
