"""Where a step may be given up when the time after a signal is over (`Run.grace`): on one process, and on several.

What is given up is repeated from the state before the step, so weights must not have moved yet. One process may be
interrupted wherever it is. Of several none may leave the others in a collective, so there it is

    while each works by itself     sampling, rewards, an evaluation: wherever it is; the others hear of it in their next
                                   message, or when their own time is over
    while they work together       between two parts of an update, where they agree on it

Each process has its own alarm: `torchrun` and schedulers send a signal to all. One that has not got it finishes what it
does by itself first.
"""

from __future__ import annotations

from mmrl.ground.stopping import Waiting
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks


class GivingUp:
    """What of a run may be given up now."""

    def __init__(self, policy: Policy, ranks: Ranks) -> None:
        self._policy, self._ranks = policy, ranks
        self._version = policy.version
        self.signals: Waiting | None = None
        """Who hears of signals; None outside of a run."""

    def step_begins(self) -> None:
        """From here on weights that have moved are no longer those before the step."""
        self._version = self._policy.version

    def beside(self) -> bool:
        """May this process break off an evaluation?"""
        return not self._ranks.several or self._ranks.place.alone

    def in_step(self) -> bool:
        """May this process break off the step?"""
        return self.beside() and self._untouched()

    def between_parts(self) -> None:
        """Raise `AllGiveUp` on all of several processes if the time is over for one of them. Collective."""
        if self.signals is not None and self._ranks.several and self._untouched():
            self._ranks.give_up_if(self.signals.late)

    def _untouched(self) -> bool:
        return self._policy.version == self._version
