"""Stop a run on intrinsic rewards at its model-collapse step: they no longer agree with the truth.

The step is the first of `patience` steps in a row whose `urlvr/agreement` is below `least` (arXiv 2603.08660:
below 1 %). It is logged as `collapse/step`, 0 before. Without rows that have an answer there is no agreement,
and no guard: then the alarms of `monitor.py` (length, entropy) are all there is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.ground.require import require
from mmrl.objectives.base import Objective
from mmrl.training.early_stop import EarlyStop, Plateau

WATCHED = "urlvr/agreement"


@dataclass(frozen=True)
class CollapseGuard:
    """When intrinsic rewards count as collapsed, and whether the run ends then."""

    least: float = 0.01
    """Agreement with the truth below which a step counts, in [0, 1]."""
    patience: int = 3
    """Steps in a row below it."""
    stop: bool = True
    """End the run there; off only logs the step."""

    def __post_init__(self) -> None:
        require(
            self,
            least=(0 <= self.least <= 1, "in [0, 1]"),
            patience=(self.patience >= 1, "at least 1"),
        )

    def started(self) -> Collapse:
        """The watch of one run."""
        return Collapse(self)


@dataclass
class Collapse:
    """What a run has shown so far; its state is part of the checkpoint."""

    rule: CollapseGuard
    seen: int = 0
    """Steps that had an agreement."""
    below: int = 0
    """Steps in a row below `least`, so far."""
    step: int = 0
    """The model-collapse step, counted over steps with an agreement from 1; 0 while there is none."""

    @property
    def reached(self) -> bool:
        """Shall the run end?"""
        return self.rule.stop and self.step > 0

    @property
    def why(self) -> str:
        """Why it ends, as the end of a sentence."""
        return (
            f"the intrinsic reward agrees with the truth in less than {self.rule.least:.0%} of the groups since step "
            f"{self.step} (model collapse)"
        )

    def observe(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in a step's metrics; what is logged: the model-collapse step."""
        if WATCHED not in metrics:
            return {}
        self.seen += 1
        self.below = self.below + 1 if metrics[WATCHED] < self.rule.least else 0
        if not self.step and self.below >= self.rule.patience:
            self.step = self.seen - self.rule.patience + 1
        return {"collapse/step": float(self.step)}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"seen": self.seen, "below": self.below, "step": self.step}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.seen, self.below, self.step = (
            int(state[key]) for key in ("seen", "below", "step")
        )


def watched(
    early: EarlyStop | CollapseGuard, objectives: Sequence[Objective]
) -> Plateau | Collapse:
    """The watch of one run; warns of intrinsic rewards that nobody watches, for they collapse sooner or later."""
    sure = [one for one in objectives if "rewards certainty" in one.traits()]
    if sure and not isinstance(early, CollapseGuard):
        warnings.warn(
            f"{type(sure[0]).__name__} pays for being sure, which ends in collapse, and nothing stops the run there. "
            "Give the trainer early=CollapseGuard().",
            stacklevel=3,
        )
    return early.started()
