"""Run a reward in the trainer's process: coroutines (judges) under a deadline each, marked functions without limits.

A coroutine that blocks its thread cannot be stopped; its loop is given up and a new one started.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any

from mmrl.rewards.parts import Call, Failure, Outcome
from mmrl.rewards.worker import as_floats, explain

GRACE = 2.0
"""Seconds that a coroutine may take to notice its deadline; then it is taken to block its event loop."""


class AsyncLoop:
    """An event loop on a thread of its own, so that it also works where a loop already runs (notebooks)."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(
        self, work: Callable[[Call], Coroutine[Any, Any, Any]], calls: Sequence[Call]
    ) -> list[Future[Any]]:
        """Start all calls at once; each ends at its limit. Collect them with `finish`."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(
                target=self._loop.run_forever, name="mmrl-judges", daemon=True
            ).start()
        return [
            asyncio.run_coroutine_threadsafe(_timed(work, call), self._loop) for call in calls
        ]

    def finish(
        self, futures: Sequence[Future[Any]], calls: Sequence[Call]
    ) -> list[tuple[Outcome, float]]:
        """Wait for the outcome of each call and the seconds it took."""
        grace = time.monotonic() + max((call.limit for call in calls), default=0.0) + GRACE
        outcomes: list[tuple[Outcome, float]] = []
        for future, call in zip(futures, calls, strict=True):
            try:
                outcomes.append(future.result(max(grace - time.monotonic(), 0.0)))
            except TimeoutError:
                outcomes.append(
                    (Failure("timeout", "the function blocks the event loop"), call.limit)
                )
                self._loop = None  # its thread is stuck; the next batch gets a new one
        return outcomes

    def close(self) -> None:
        """Stop the loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


def guarded(work: Callable[[], Any], several: bool) -> tuple[Outcome, float]:
    """Run a reward in this process, without any limit; an exception becomes a Failure."""
    began = time.monotonic()
    try:
        outcome: Outcome = as_floats(work(), several)
    except (Exception, SystemExit) as error:
        outcome = Failure(*explain(error))  # type: ignore[arg-type]
    return outcome, time.monotonic() - began


async def _timed(
    work: Callable[[Call], Coroutine[Any, Any, Any]], call: Call
) -> tuple[Outcome, float]:
    began = time.monotonic()
    try:
        outcome: Outcome = as_floats(
            await asyncio.wait_for(work(call), call.limit), call.several
        )
    except TimeoutError:
        outcome = Failure("timeout", f"no value after {call.limit:g} s")
    except (Exception, SystemExit) as error:
        outcome = Failure(*explain(error))  # type: ignore[arg-type]
    return outcome, time.monotonic() - began
