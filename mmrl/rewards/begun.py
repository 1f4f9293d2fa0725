"""Calls of reward parts that began while other answers of the step were still being drawn.

Only calls for one answer begin early, and only those that run elsewhere: in a worker, or on the loop of the judges.
What scores several answers at once waits for all of them, and what runs in the trainer's process keeps its order. So a
call is the same whether it began early or not, and so are the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from mmrl.rewards.parts import Call, Outcome

if TYPE_CHECKING:
    from mmrl.types import Rollout

Running = Future[tuple[Outcome, float]]
"""The outcome of a call and the seconds that it took."""


class Begun:
    """Calls under way, by part and answer."""

    def __init__(self) -> None:
        # The answer is kept beside its call: as long as it lives, its id is nobody else's.
        self._calls: dict[tuple[str, int], tuple[Rollout, Running]] = {}
        self.early = 0.0
        """Seconds of calls that were over when somebody asked for them, since this was last set to 0."""

    def add(self, part: str, rollout: Rollout, call: Running) -> None:
        """A call has begun."""
        self._calls[part, id(rollout)] = rollout, call

    def take(self, part: str, rollout: Rollout) -> Running | None:
        """The call of a part for this very answer, once; None if it has not begun."""
        _, call = self._calls.pop((part, id(rollout)), (None, None))
        if call is not None and call.done() and call.exception() is None:
            self.early += call.result()[1]
        return call

    def forget(self) -> None:
        """Nobody will ask: calls that wait for a worker are not made, those that run come to their end."""
        for _, call in self._calls.values():
            call.cancel()
        self._calls.clear()


def collected(calls: list[Running]) -> list[tuple[Outcome, float]]:
    """The outcome of each call, in order; waits for them. Raises what a call raised, and makes no further ones then."""
    try:
        return [call.result() for call in calls]
    finally:
        for call in calls:
            call.cancel()


def all_running(
    begin: Callable[[Sequence[Call]], list[Running]],
    calls: Sequence[Call],
    running: Sequence[Running | None],
) -> list[Running]:
    """The calls, those that do not run yet begun now."""
    due = [call for call, begun in zip(calls, running, strict=True) if begun is None]
    fresh = iter(begin(due) if due else ())
    return [next(fresh) if begun is None else begun for begun in running]
