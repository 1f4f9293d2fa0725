"""Stop when a run has nothing more to learn from: mean reward and spread within groups have both come to rest.

TimeLens (arXiv 2512.14698) stops there, since going on lowers the benchmark score: the reward no longer rises, and the
answers to a prompt no longer differ more or less than before. The paper gives no rule; ours compares means of
`reward/total` and of `reward/group_std` (mean standard deviation within groups) over the last `window` steps with those
over the `window` before. Both must move by less than their limits for `patience` steps in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from mmrl.ground.require import require

WATCHED = ("reward/total", "reward/group_std")


@dataclass(frozen=True)
class EarlyStop:
    """When a run ends before its last step."""

    window: int = 0
    """Steps over which reward and deviation are averaged; 0 never stops early."""
    reward: float = 0.005
    """The mean reward rests if it moves by less than this between two windows."""
    deviation: float = 0.005
    """The deviation within groups rests if it moves by less than this between two windows."""
    patience: int = 5
    """Steps in a row in which both must rest."""

    def __post_init__(self) -> None:
        require(
            self,
            window=(self.window >= 0, "0 (never) or positive"),
            reward=(self.reward >= 0, "0 or positive"),
            deviation=(self.deviation >= 0, "0 or positive"),
            patience=(self.patience >= 1, "at least 1"),
        )

    def started(self) -> Plateau:
        """The watch of one run."""
        return Plateau(self)


@dataclass
class Plateau:
    """What a run has shown so far; its state is part of the checkpoint."""

    rule: EarlyStop
    rows: list[tuple[float, float]] = field(default_factory=list)
    """(mean reward, deviation) of the last 2 · window steps."""
    resting: int = 0
    """Steps in a row in which both rested."""

    @property
    def reached(self) -> bool:
        """Shall the run end?"""
        return self.rule.window > 0 and self.resting >= self.rule.patience

    @property
    def why(self) -> str:
        """Why it ends, as the end of a sentence."""
        return "mean reward and deviation within groups rest"

    def observe(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take in a step's metrics; what is logged: how far both moved, and for how many steps they have rested."""
        window = self.rule.window
        if not window or not all(name in metrics for name in WATCHED):
            return {}
        reward, deviation = (metrics[name] for name in WATCHED)
        # What is older than two windows is never read again.
        self.rows = [*self.rows, (reward, deviation)][-2 * window :]
        if len(self.rows) < 2 * window:
            return {}
        reward_moved = _moved([reward for reward, _ in self.rows])
        deviation_moved = _moved([deviation for _, deviation in self.rows])
        # Both: while the spread within groups moves, answers still change, though their mean does not.
        rests = reward_moved < self.rule.reward and deviation_moved < self.rule.deviation
        self.resting = self.resting + 1 if rests else 0
        return {
            "stop/reward_moved": reward_moved,
            "stop/deviation_moved": deviation_moved,
            "stop/resting": float(self.resting),
        }

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"rows": [list(row) for row in self.rows], "resting": self.resting}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        # JSON has no tuples.
        self.rows = [(float(reward), float(deviation)) for reward, deviation in state["rows"]]
        self.resting = int(state["resting"])


def _moved(values: Sequence[float]) -> float:
    """How far the mean of the second half lies from that of the first."""
    half = len(values) // 2
    return abs(fmean(values[half:]) - fmean(values[:half]))
