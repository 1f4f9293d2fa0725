"""What happens to a step that is not finite: tried again with other draws, left out, or the end of the run.

    retry   the step is tried again, with the next prompts and other draws, up to `RETRIES` times in a start
    skip    its update is left out; `SKIPPED_IN_A_ROW` such steps end the run
    stop    the run ends at once

A run that ended like this does not meet the same prompts and draws when it is started again: the number of attempts
and the place in the data are part of the state that is saved. So the n-th attempt at a step is the same in every start,
and a run that is killed and continued stays bit-equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from mmrl.ground.progress import Progress
from mmrl.ground.seeds import derive_seed
from mmrl.model.ranks import RankFailed
from mmrl.rewards.pay import RewardStopped

OnNonFinite = Literal["retry", "skip", "stop"]
RETRIES = 3
"""Further tries of a step in one start."""
SKIPPED_IN_A_ROW = 10
"""So many steps without an update end the run: it would learn nothing more."""
ADVICE = "Lower --optim.lr or the objectives' coefficients."


class NonFiniteStep(FloatingPointError):
    """A loss or a gradient is infinite or not a number; the weights are as they were before this update."""


class Retries:
    """Counts the attempts at a step and the steps that were left out."""

    def __init__(self, mode: OnNonFinite, seed: int) -> None:
        self.mode, self.seed = mode, seed
        self.attempts = 0
        """How often the coming step was tried and was not finite, over all starts of the run."""
        self._skipped = 0

    def run(
        self,
        step: Callable[[int], dict[str, float]],
        undo: Callable[[], None],
        is_untouched: Callable[[], bool],
    ) -> dict[str, float]:
        """The metrics of `step(seed)`. `undo` forgets an attempt; one after which weights moved is not repeated.

        Raises NonFiniteStep.
        """
        last = self.attempts + RETRIES
        while True:
            try:
                metrics = step(self._draws())
                break
            except NonFiniteStep as problem:
                self.attempts += 1
                repeats = self.mode == "retry" and is_untouched()
                if not repeats or self.attempts > last:
                    raise
                Progress.say(f"Tried again with other prompts and draws: {problem}")
                undo()
        if self.attempts:
            metrics["update/retried"] = float(self.attempts)
        self.attempts = 0
        self._count_skipped(metrics)
        return metrics

    def _draws(self) -> int:
        """The seed of the attempt: the first draws as the run's seed says."""
        return derive_seed("again", self.seed, self.attempts) if self.attempts else self.seed

    def _count_skipped(self, metrics: dict[str, float]) -> None:
        self._skipped = self._skipped + 1 if metrics.get("update/nonfinite") else 0
        if self._skipped >= SKIPPED_IN_A_ROW:
            raise NonFiniteStep(
                f"{SKIPPED_IN_A_ROW} steps in a row were not finite and left out. {ADVICE}"
            )


def said(error: Exception) -> str:
    """The message of an error; its kind too, unless it was raised to be read by a person."""
    return (
        str(error)
        if isinstance(error, (ValueError, RewardStopped, FloatingPointError, RankFailed))
        else repr(error)
    )
