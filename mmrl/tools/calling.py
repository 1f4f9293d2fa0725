"""Calls of tools beside the policy, which goes on meanwhile: limits, repetitions, and what a failure is.

    with Calling(toolbox) as calling:
        calling.begin(ticket, tool, action, trajectory)     returns at once
        calling.done(wait=False)                            [(ticket, Answer)] of calls that have ended

A tool that is `quick` is called at once where it is asked. Any other has a thread of its own, or, if `act` is `async`,
runs on one event loop beside all others.

What a tool may do wrong: raise, or be silent beyond the time limit, or give something that is no `Observation`. Then it
is asked again (`ToolUse.retries`), and if that does not help the call has failed. A thread that is too slow cannot be
ended, so it is not asked again either, while it may still be at work on the answer's state: it is left to itself, and
what it finds in the end is dropped.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from mmrl.ground.calls import Action, Outcome
from mmrl.ground.faults import first_line
from mmrl.ground.printable import logger
from mmrl.tools.tool import BadAction, Observation, Tool, Trajectory
from mmrl.tools.toolbox import Toolbox

log = logger(__name__)


@dataclass(frozen=True)
class Answer:
    """What became of a call."""

    outcome: Outcome
    observation: Observation
    """Of a call that failed: empty."""
    why: str
    """Of one that was refused or failed."""
    seconds: float


class _TooSlow(Exception):
    """Beyond the time limit."""

    again = True
    """May the tool be asked again?"""


class Calling:
    """The calls of some answers. A context: when it ends nobody waits for calls that are under way."""

    def __init__(self, toolbox: Toolbox) -> None:
        self.use = toolbox.use
        self.under_way = 0
        """Calls that have begun and were not told."""
        self._ended: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._places: asyncio.Semaphore | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Calling:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            # Not for ever: a tool may hold the loop up.
            self._thread.join(5.0)

    def begin(self, ticket: int, tool: Tool, action: Action, trajectory: Trajectory) -> None:
        """Call the tool; `done` tells its answer by the ticket."""
        self.under_way += 1
        if tool.quick:
            self._ended.put((ticket, self._at_once(tool, action, trajectory)))
            return
        work = self._call(ticket, tool, action, trajectory)
        asyncio.run_coroutine_threadsafe(work, self._running())

    def done(self, *, wait: bool) -> list[tuple[int, Answer]]:
        """Calls that have ended since this was asked last; `wait`: at least one, if any is under way."""
        found: list[tuple[int, Answer]] = []
        while self.under_way and ((wait and not found) or not self._ended.empty()):
            found.append(self._ended.get())
            self.under_way -= 1
        return found

    def _running(self) -> asyncio.AbstractEventLoop:
        """The event loop of the calls, started when the first one asks for it."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._places = asyncio.Semaphore(self.use.concurrency)
            self._thread = threading.Thread(
                target=self._run, args=(self._loop,), name="mmrl-tools", daemon=True
            )
            self._thread.start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        # Once more, so that what was cancelled hears of it.
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    async def _call(
        self, ticket: int, tool: Tool, action: Action, trajectory: Trajectory
    ) -> None:
        began = time.monotonic()
        assert self._places is not None, "made with the loop"
        async with self._places:
            answer = await self._answer(tool, action, trajectory, began)
        self._ended.put((ticket, answer))

    async def _answer(
        self, tool: Tool, action: Action, trajectory: Trajectory, began: float
    ) -> Answer:
        for attempt in range(self.use.retries + 1):
            if attempt:
                await asyncio.sleep(self.use.pause)
            try:
                return _answered(await self._attempt(tool, action, trajectory), began)
            except BadAction as refusal:
                return _refused(refusal, began)
            except _TooSlow as silence:
                failed = self._too_slow(tool, began)
                if not silence.again:
                    break
            except Exception as error:  # whatever a tool does, the run goes on
                failed = _failed(tool, error, began)
        return failed

    async def _attempt(self, tool: Tool, action: Action, trajectory: Trajectory) -> Observation:
        if inspect.iscoroutinefunction(tool.act):
            limit = asyncio.timeout(self.use.time_limit)
            try:
                async with limit:
                    return _checked(tool, await tool.act(action, trajectory))
            except TimeoutError as error:
                # A tool may raise the same by itself.
                if not limit.expired():
                    raise
                raise _TooSlow from error
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        thread = threading.Thread(
            target=_in_thread, args=(future, tool, action, trajectory), daemon=True
        )
        thread.start()
        done, _ = await asyncio.wait([future], timeout=self.use.time_limit)
        if not done:
            silence = _TooSlow()
            silence.again = False
            raise silence
        found, error = future.result()
        if error is not None:
            raise error
        return _checked(tool, found)

    def _at_once(self, tool: Tool, action: Action, trajectory: Trajectory) -> Answer:
        """As `_answer`, here and now; no limit can be set."""
        began = time.monotonic()
        for _ in range(self.use.retries + 1):
            try:
                return _answered(_checked(tool, tool.act(action, trajectory)), began)
            except BadAction as refusal:
                return _refused(refusal, began)
            except Exception as error:
                failed = _failed(tool, error, began)
        return failed

    def _too_slow(self, tool: Tool, began: float) -> Answer:
        why = f"The tool {tool.name!r} gave no answer within {self.use.time_limit:g} s."
        log.warning("%s", why)
        return Answer("timeout", Observation(), why, time.monotonic() - began)


def _in_thread(
    future: asyncio.Future[Any], tool: Tool, action: Action, trajectory: Trajectory
) -> None:
    """Do what is asked for and tell the event loop, unless it has ended."""
    loop = future.get_loop()
    try:
        found, error = tool.act(action, trajectory), None
    except Exception as raised:  # told where the call is waited for
        found, error = None, raised

    def tell() -> None:
        if not future.cancelled():
            # Not as the future's own exception, which not every kind can be.
            future.set_result((found, error))

    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)


def _checked(tool: Tool, found: Any) -> Observation:
    """What a tool gave, if it can be put into an answer. Raises TypeError and ValueError."""
    whose = f"{type(tool).__name__}.act"
    if not isinstance(found, Observation) or not isinstance(found.text, str):
        raise TypeError(
            f"{whose} gave {found!r}; it must give an Observation, whose text is one."
        )
    for medium in found.media:
        frames = getattr(medium, "frames", None)
        shape, kind = list(getattr(frames, "shape", [])), str(getattr(frames, "dtype", None))
        if len(shape) != 4 or shape[1] != 3 or 0 in shape or kind != "torch.uint8":
            raise TypeError(
                f"{whose} shows {kind} {shape}; give Media with frames uint8 [F, 3, H, W] (RGB)."
            )
    found.marked()
    return found


def _answered(found: Observation, began: float) -> Answer:
    outcome: Outcome = "answered" if found.valid else "refused"
    why = "" if found.valid else found.note or found.text
    return Answer(outcome, found, why, time.monotonic() - began)


def _refused(refusal: BadAction, began: float) -> Answer:
    why = str(refusal) or "It cannot be done."
    told = Observation(why, valid=False)
    return Answer("refused", told, why, time.monotonic() - began)


def _failed(tool: Tool, error: Exception, began: float) -> Answer:
    why = f"The tool {tool.name!r} failed ({type(error).__name__}: {first_line(error)})."
    log.warning("%s", why)
    return Answer("failed", Observation(), why, time.monotonic() - began)
