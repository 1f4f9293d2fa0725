"""A time limit for Python code of somebody else: templates that come with a checkpoint or a data set may never return.

    limit = TimeLimit()
    with limit.hold("The chat template"):
        template.render(...)

One thread of the process looks on, ten times a second while somebody is held to a limit, and raises an exception in
whoever is late; a block that keeps to its limit pays microseconds. Counted are seconds of the thread's own processor
time, so that a busy machine makes nobody late, and memory: a block that runs for a while and takes half a gigabyte is
ended too.

Limit of the limit: one call of C code, such as 10 ** 10 ** 10, is not interrupted before it returns.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS, PATIENCE = 5.0, 3
LOOK = 0.1
"""Seconds between two looks."""
MEMORY = 512 << 20
"""Bytes by which the process may grow while a block runs for longer than half a second."""


class TooLong(TimeoutError):
    """The block did not return in time."""


class GivenUp(ValueError):
    """It did not return several times in a row, so that there is no use in trying again."""


class TimeLimit:
    """`seconds` of processor time for each block; `patience` blocks in a row may be late before it is given up."""

    def __init__(self, seconds: float = SECONDS, patience: int = PATIENCE) -> None:
        self.seconds, self.patience = seconds, patience
        self.late = 0
        """Blocks in a row that were late."""

    @contextmanager
    def hold(self, what: str) -> Iterator[None]:
        """Raises TooLong for a block that is late, and GivenUp for the last of several; `what` begins the message."""
        try:
            with _within(self.seconds):
                yield
        except TooLong:
            self.late += 1
            took = f"{what} did not return within {self.seconds:g} s"
            if self.late >= self.patience:
                raise GivenUp(
                    f"{took}, {self.late} times one after the other; look for a loop without end in it."
                ) from None
            raise TooLong(took) from None
        self.late = 0


class _Interrupt(BaseException):
    """What the looker-on raises in the other thread; no `except Exception` on the way takes it."""


@dataclass
class _Held:
    clock: int
    """Of the thread's own processor time."""
    since: float
    seconds: float
    start_memory: int | None = None
    """Bytes; looked up when somebody first looks on, since most blocks are done by then."""
    fired: bool = False


class _LookerOn:
    """Knows which threads of this process are held to a limit, and ends what is late."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._held: dict[int, _Held] = {}
        threading.Thread(target=self._look, name="time limit", daemon=True).start()

    def hold(self, thread: int, seconds: float) -> None:
        clock = _clock_of(thread)
        with self._lock:
            assert thread not in self._held, "a limit within a limit"
            self._held[thread] = _Held(clock, time.clock_gettime(clock), seconds)
            self._wake.set()

    def release(self, thread: int) -> bool:
        """Was the thread late?"""
        with self._lock:
            held = self._held.pop(thread, None)
            if held is None or not held.fired:
                return False
            _raise_in(thread, None)  # the exception may still be on its way
            return True

    def _look(self) -> None:
        while True:
            self._wake.wait()
            time.sleep(LOOK)
            with self._lock:
                if not self._held:
                    self._wake.clear()
                for thread, held in self._held.items():
                    if not held.fired and _is_late(held):
                        held.fired = True
                        _raise_in(thread, _Interrupt)


@functools.cache
def _looker_on(process: int) -> _LookerOn:
    # One a process: a forked child inherits the object, but not the thread.
    return _LookerOn()


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    looker, thread = _looker_on(os.getpid()), threading.get_ident()
    late = released = False
    other: BaseException | None = None
    try:
        looker.hold(thread, seconds)
        yield
    except _Interrupt:
        late = True
    finally:
        while not released:
            try:
                late = looker.release(thread) or late
                released = True
            except _Interrupt:  # it came while it was being called off
                late = True
            except (
                BaseException
            ) as error:  # a signal; a thread that stays held would be hit later
                other = error
    if other is not None:
        raise other
    if late:
        raise TooLong


def _is_late(held: _Held) -> bool:
    memory = _memory()
    if held.start_memory is None:
        held.start_memory = memory
    used = time.clock_gettime(held.clock) - held.since
    grown = memory - held.start_memory
    # Not before it has run for a while: other threads take memory as well.
    return used > held.seconds or (used > 0.5 and grown > MEMORY)


def _clock_of(thread: int) -> int:
    if hasattr(time, "pthread_getcpuclockid"):
        return time.pthread_getcpuclockid(thread)
    return time.CLOCK_MONOTONIC  # macOS


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise in another thread as soon as it runs Python again; None calls it off."""
    given = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)


def _memory() -> int:
    """Bytes of this process that lie in memory; 0 where that is not known."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
