"""A verifier made to err at known rates: label noise for drawn tasks, whose own verifier does not err. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmrl.ground.require import require
from mmrl.ground.seeds import philox
from mmrl.rewards.contract import Reward
from mmrl.rewards.parts import RIGHT_ABOVE
from mmrl.rewards.worker import marker

if TYPE_CHECKING:
    from mmrl.types import Rollout


@dataclass(frozen=True)
class LabelNoise:
    """How often verdicts are turned round, as an experiment."""

    false_positive: float = 0.0
    """Share of wrong answers that are accepted."""
    false_negative: float = 0.0
    """Share of right answers that are rejected."""

    def __post_init__(self) -> None:
        require(
            self,
            false_positive=(0 <= self.false_positive <= 1, "in [0, 1]"),
            false_negative=(0 <= self.false_negative <= 1, "in [0, 1]"),
        )

    @property
    def errs(self) -> bool:
        """Is any verdict turned round?"""
        return max(self.false_positive, self.false_negative) > 0


@dataclass(frozen=True)
class NoisyVerdict(Reward):
    """1 or 0 as the verifier says, turned round at the rates of the noise.

    As with a real verifier the same answer to the same prompt gets the same verdict, whenever and wherever it is asked.
    """

    verifier: Callable[[Any], float]
    """Pays more than 0.5 for a right answer; no coroutine."""
    noise: LabelNoise = LabelNoise()
    seed: int = 0
    """Another seed errs elsewhere."""

    def __post_init__(self) -> None:
        # A worker reads these of the object that it calls.
        for name in ("needs", "needs_tags", "preload", "in_process"):
            given = marker(self.verifier, name, getattr(Reward, name))
            object.__setattr__(self, name, given)

    def __call__(self, rollout: Rollout) -> float:
        right = self.verifier(rollout) > RIGHT_ABOVE
        draw = philox("verdict", self.seed, rollout.prompt.id, rollout.text).random()
        rate = self.noise.false_negative if right else self.noise.false_positive
        return float(right != (draw < rate))
