"""A thread per process that sees whether the other processes of the run still live.

Each second it writes under its rank that it lives, and looks at what the others wrote. One that says that it failed, or
has been silent for `SILENCE` seconds (killed, stopped, its machine gone), ends this process too, with a message and at
once: the main thread may be waiting in a collective that would never end, and nobody could save anything any more.

So every process ends within a minute of the first, whatever it was doing, and the run goes on from its last checkpoint.

A process whose thread writes while its work hangs (a kernel, a file system, a reward) ends itself and by its word all:
each looks at its own work, and when that has been at one phase for longer than `Place.limit`, it says so, where it
stands in the code, and ends. Time in which it waits for the others is not its own and does not count, so it is the
one that hangs that is named.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from mmrl.ground.printable import tell

BEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = 25.0
"""Seconds without one after which a process counts as gone. Below the 30 that torchrun gives the others to end."""
LINGER = 3
"""Beats that the process which holds the connections waits for the others to leave."""
ENDED = 1
"""Exit code of a process that ends because of another."""
FRAMES = 4
"""Calls that are shown of work that hangs, the innermost."""


@dataclass
class Place:
    """Where the run is, for the message."""

    step: int = 0
    phase: str = "start"
    kept: Callable[[], str] = lambda: "nothing is saved yet"
    """Says what the run would go on from; asked when it must end."""
    limit: float = 0.0
    """Seconds that one phase may take; 0: any time."""
    alone: bool = False
    """Does this process work by itself now, so that it may break off without leaving others in a collective?"""
    since: float = field(default_factory=time.monotonic)
    """When the phase began, later by what was spent waiting for others."""
    waits: bool = False
    """Does it wait for the others now?"""

    def enter(self, phase: str) -> None:
        """The next phase begins."""
        self.phase, self.since = phase, time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time that belongs to the others."""
        began, self.waits = time.monotonic(), True
        try:
            yield
        finally:
            self.since += time.monotonic() - began
            self.waits = False

    def too_long(self) -> float:
        """Seconds of own work in this phase if they are more than the limit, else 0."""
        spent = time.monotonic() - self.since
        return spent if 0 < self.limit < spent and not self.waits else 0.0

    def __str__(self) -> str:
        return f"step {self.step}, {self.phase}"


class Watch:
    """Watches the other ranks through `store`, a connection that nobody else uses."""

    def __init__(self, store: Any, rank: int, world: int, place: Place) -> None:
        self._store, self._rank, self._place = store, rank, place
        self._others = [other for other in range(world) if other != rank]
        self._over = threading.Event()
        self._words: dict[int, bytes] = {}
        self._silent: dict[int, float] = {}
        """Seconds since each of the others last wrote something new."""
        self._looked = time.monotonic()
        # Before the first look of anybody: a silent process is one that never wrote.
        self._beats = 0
        self._beat()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self, problem: str = "") -> None:
        """Say that this process ends: as it should, or with a problem that ends the others as well."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join(2 * BEAT)
        try:
            self._store.set(f"left/{self._rank}", problem)
        except RuntimeError:
            return  # nobody is there to read it

    def linger(self) -> None:
        """Wait a little for the others to read what this process said, and to leave."""
        until = time.monotonic() + LINGER * BEAT
        try:
            while time.monotonic() < until:
                if all(self._store.check([f"left/{other}"]) for other in self._others):
                    return
                time.sleep(BEAT / 20)
        except RuntimeError:
            return  # nobody is there

    def _run(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._beat()
                self._look()
                self._look_at_own_work()
            except RuntimeError:
                if self._over.is_set():
                    return
                self._end("the process that connects them all (rank 0, or torchrun) is gone")

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self._rank}", f"{self._beats} {self._place}")

    def _look(self) -> None:
        # While this process did not run itself, it could not hear the others: only a part of that time counts.
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * BEAT), now
        for other in self._others:
            if self._store.check([f"left/{other}"]):
                problem = self._store.get(f"left/{other}").decode(errors="replace")
                if problem:
                    self._end(f"process {other} ended: {problem}")
                continue  # it came to its end, and is not missed
            key = f"beat/{other}"
            word = self._store.get(key) if self._store.check([key]) else b""
            same = self._words.get(other) == word
            self._words[other] = word
            self._silent[other] = self._silent.get(other, 0.0) + passed if same else 0.0
            if self._silent[other] > SILENCE:
                _, _, where = word.decode(errors="replace").partition(" ")
                last = f"; it was at {where}" if where else ""
                self._end(f"process {other} ended or hangs{last}")

    def _look_at_own_work(self) -> None:
        spent = self._place.too_long()
        if not spent:
            return
        why = (
            f"it has been there for {spent:.0f} s, and --run.phase-limit allows {self._place.limit:g}; "
            "raise it if the work may take so long (0: no limit)"
        )
        self._store.set(f"left/{self._rank}", f"it hangs at {self._place}: {why}")
        tell(f"Process {self._rank} hangs at {self._place}:\n{_stack()}", always=True)
        if not self._rank:
            self.linger()  # the store may live here, and the others have not read it yet
        self._end(why)

    def _end(self, reason: str) -> NoReturn:
        end_with(farewell(reason, self._rank, self._place))


def farewell(reason: str, rank: int, place: Place) -> str:
    """What a process says that ends because of another."""
    return (
        f"Process {rank} ends at {place}: {reason} (see its own message above). "
        f"No step can be done without it; {place.kept()}, and the same command goes on from there."
    )


def _stack() -> str:
    """Where the main thread is, its innermost calls."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)[-FRAMES:])


def end_with(message: str) -> NoReturn:
    """Say why, and leave at once: threads that wait for other processes would hold up an ordinary end."""
    tell(message, always=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ENDED)
