"""The pay of ordinary rows where puzzles are asked too. Without torch: it travels to the workers that run rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RowAccuracy:
    """The accuracy of rows; not available (None) for puzzles, which have pay of their own."""

    accuracy: Callable[..., float | None]

    @property
    def preload(self) -> Sequence[str]:
        """What a worker imports before the first answer."""
        return getattr(self.accuracy, "preload", ())

    def __call__(self, rollout: Any) -> float | None:
        return None if is_puzzle(rollout.prompt.extra) else self.accuracy(rollout)


def is_puzzle(extra: Mapping[str, object]) -> bool:
    """Was the prompt made by a pretext task?"""
    return "truth" in extra and "surface" in extra
