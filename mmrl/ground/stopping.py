"""Ending when a scheduler or a terminal says so: SIGTERM, SIGHUP, SIGUSR1.

The exit code is 128 plus the number of the signal, as a shell counts it: 143 for SIGTERM, 129 for SIGHUP, 138 for
SIGUSR1 on Linux (130 for Ctrl-C). A second signal leaves at once, with the same rule.

    leaving()          the first signal ends the process where it stands: nothing is there that could be saved
    Waiting(grace)     it is noted, and the work goes on to a point where it can be saved; when that takes longer than
                       `grace` seconds, `GivenUp` is raised in it, where it says that it may be (`until_overdue`)
    shielded()         not in here: what is half done here could be neither saved nor repeated

Python handles signals between two of its instructions, in the main thread: a single call of a library may delay it. In
other threads both do nothing. A signal that the process was told to ignore (`nohup`) stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from mmrl.ground.progress import Progress
from mmrl.ground.scratch import remove_scratch

NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1")
ECHO = 0.2
"""Seconds within which more signals count as the same: `timeout` and systemd send two at a time."""
AGAIN = 0.05
"""Seconds between two looks at whether overdue work may be given up."""


class Stopped(SystemExit):
    """A signal ended the work; as an exit code 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class GivenUp(BaseException):
    """Raised in work that takes longer than it may after a signal. Not an `Exception`, so that nobody swallows it."""


class _Desk:
    """What the handlers know. Signals belong to the process, so there is one."""

    asked: int | None = None
    """The first signal."""
    since: float = 0.0
    owner: int = 0
    depth: int = 0
    shields: int = 0
    waiting: Waiting | None = None


@contextmanager
def leaving() -> Iterator[None]:
    """End with `Stopped` at the first signal, unless somebody inside is `Waiting`."""
    with _handlers():
        yield


class Waiting:
    """Notes the first signal, for work that ends by itself at the next point where it can be saved."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._may_give_up: Callable[[], bool] = lambda: False
        self._outer: Waiting | None = None
        self._inside: Any = None

    @property
    def asked(self) -> int:
        """The signal that was sent; 0 without one."""
        return int(_Desk.asked or 0)

    @property
    def late(self) -> bool:
        """Is the time after a signal over? Never after Ctrl-C."""
        told = _Desk.asked not in (None, signal.SIGINT)
        return told and time.monotonic() - _Desk.since >= self.grace

    @contextmanager
    def until_overdue(self, allowed: Callable[[], bool]) -> Iterator[None]:
        """Work that may be given up when the time is up, whenever `allowed` says so. Raises `GivenUp`."""
        before, self._may_give_up = self._may_give_up, allowed
        try:
            yield
        finally:
            self._may_give_up = before

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """Work that may be given up wherever it is not shielded; then what follows the `with` goes on."""
        with suppress(GivenUp), self.until_overdue(lambda: True):
            yield

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Here Ctrl-C is noted too; it has all the time of the work. The second one is a `KeyboardInterrupt`."""
        if not _in_main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return
        before = signal.signal(signal.SIGINT, _on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def __enter__(self) -> Waiting:
        self._inside = _handlers()
        self._inside.__enter__()
        self._outer, _Desk.waiting = _Desk.waiting, self
        return self

    def __exit__(self, *exception: Any) -> None:
        if _in_main_thread():
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        _Desk.waiting = self._outer
        self._inside.__exit__(*exception)

    def noted(self, signum: int) -> None:
        """Called at the first signal."""
        Progress.say(
            f"{signal.Signals(signum).name}: stopping after this step, or in {self.grace:g} s with the state before "
            "it; a second signal leaves at once (the last checkpoint stays)."
        )
        signal.setitimer(signal.ITIMER_REAL, max(self.grace, AGAIN))

    def overdue(self) -> None:
        """Called when the time is up."""
        if _Desk.shields or not self._may_give_up():
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
            return
        raise GivenUp


def is_late() -> bool:
    """Is the time over that a signal leaves to the work of now?"""
    return _Desk.waiting is not None and _Desk.waiting.late


def stop_if_asked() -> None:
    """Raise `Stopped` if a signal was noted by work that came to its end all the same."""
    if _Desk.asked is not None:
        raise Stopped(_Desk.asked)


@contextmanager
def shielded() -> Iterator[None]:
    """Work in which `GivenUp` is not raised."""
    _Desk.shields += 1
    try:
        yield
    finally:
        _Desk.shields -= 1


@contextmanager
def _handlers() -> Iterator[None]:
    """Our handlers for the time of a `with`, then those from before."""
    if not _in_main_thread():
        yield
        return
    before: dict[int, Any] = {}
    for signum in _signals():
        # Whoever started us may have told us to ignore it, as nohup does with SIGHUP.
        if signal.getsignal(signum) not in (signal.SIG_IGN, None):
            before[signum] = signal.signal(signum, _on_signal)
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _on_alarm)
    _Desk.depth, _Desk.owner = _Desk.depth + 1, os.getpid()
    try:
        yield
    finally:
        _Desk.depth -= 1
        if not _Desk.depth:
            _Desk.asked = None
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _Desk.owner:
        # A worker that was forked from us ends as if it had no handler.
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    if _Desk.asked is not None:
        if time.monotonic() - _Desk.since > ECHO:
            _leave_now(signum)
        return
    _Desk.asked, _Desk.since = signum, time.monotonic()
    if _Desk.waiting is None:
        raise Stopped(signum)
    _Desk.waiting.noted(signum)


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    if os.getpid() != _Desk.owner or _Desk.asked is not None:
        raise KeyboardInterrupt
    _Desk.asked, _Desk.since = signum, time.monotonic()
    Progress.say(
        "Stopping after this step; press Ctrl-C again to stop at once (the last checkpoint stays)."
    )


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    if _Desk.waiting is not None and os.getpid() == _Desk.owner:
        _Desk.waiting.overdue()


def _leave_now(signum: int) -> None:
    """End without any of the interpreter's ceremonies, which may take long."""
    remove_scratch()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(128 + signum)


def _signals() -> list[int]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
