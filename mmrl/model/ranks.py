"""The processes that work on one run together: who I am, and what all of us know.

`torchrun` starts one process per device and tells each its number; `Ranks.start` reads that, connects the processes and
watches over the others (`watch.py`). Without it there is one process, `Ranks.alone()`, for which all of this does
nothing, so nobody needs to ask how many there are.

Everything here is collective: all ranks call the same methods in the same order. What they exchange are small Python
objects, over a group of their own on the CPU; tensors of the model are the business of those who shard it.

Every message is a value or a problem, and whoever receives a problem raises. So an error that only one rank meets (a
bad row, a reward that failed) ends the work on all of them, wherever the others wait for a message:

    with ranks.together("rewards"):
        ...                              # may fail on some ranks, may exchange messages
    # here, all ranks came through; else each has raised: those that failed their own error, the others RankFailed

Work that is given up after a signal (`mmrl.ground.stopping`) is given up by all: whoever hears of it raises AllGiveUp.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mmrl.ground.faults import first_line
from mmrl.ground.printable import hush
from mmrl.ground.stopping import GivenUp, shielded
from mmrl.model.watch import Place, Watch

Value = TypeVar("Value")

LONGEST_COLLECTIVE = timedelta(minutes=30)
"""Of one collective. Processes that ended or hang are found by the watch, long before."""
FIRST_LOOK, LONGEST_LOOK = 0.0005, 0.1
"""Seconds between two looks at whether the others have come; each pause is twice the one before."""


class RankFailed(RuntimeError):
    """Another process met a problem and says which; its own message has the details."""


class AllGiveUp(GivenUp):
    """The time after a signal is over, and all processes know that the work is given up."""


@dataclass(frozen=True)
class _Problem:
    """A message that says why its sender cannot go on."""

    text: str
    gives_up: bool = False
    """Nothing is wrong: its time after a signal is over."""


class Ranks:
    """One process among those of a run. Made by `alone` or `start`."""

    def __init__(
        self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1
    ) -> None:
        self.rank, self.world = rank, world
        """My number, from 0, and how many there are."""
        self.local_rank, self.local_world = local_rank, local_world
        """The same among the processes of this machine."""
        self.place = Place()
        """Where the run is; what is said if another process ends."""
        self.talk: Any = None
        """Group for messages, on the CPU; None for the default group of one process."""
        self.saving: Any = None
        """Group for checkpoints that are written while the training goes on."""
        self.agreed_to_end = False
        """Have all ranks agreed that the run ends before its last step (a signal)?"""
        self._store: Any = None
        self._watch: Watch | None = None
        self._waits = 0
        self._told: Exception | None = None

    @classmethod
    def alone(cls) -> Ranks:
        """The only process."""
        return cls()

    @classmethod
    def start(cls, device: str = "cpu") -> Ranks:
        """Connect with the other processes that torchrun started; `alone` if there are none.

        `device`: where the model will be, "cpu" or "cuda" (then this process takes the card of its local number).
        May be called again: there is one set of ranks in a process. Raises ValueError for a broken environment.
        """
        if cls.asked() == 1:
            return cls.alone()
        if not _here:
            _here.append(cls._connected(device))
        return _here[0]

    @staticmethod
    def asked() -> int:
        """How many processes torchrun started."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @classmethod
    def here(cls) -> Ranks:
        """The ranks of this process, alone if nobody started them."""
        return _here[0] if _here else cls.alone()

    @classmethod
    def connected(cls) -> Ranks:
        """As `here`. Raises ValueError if torchrun started several processes and nobody connected them."""
        ranks = cls.here()
        if cls.asked() > 1 and not ranks.several:
            raise ValueError(
                f"WORLD_SIZE is {cls.asked()}, but the processes are not connected: each would train for itself. Call "
                'mmrl.model.ranks.Ranks.start("cpu" or "cuda") first, or start the program without torchrun.'
            )
        return ranks

    @property
    def several(self) -> bool:
        return self.world > 1

    @property
    def first(self) -> bool:
        """Is it this process that writes files and talks?"""
        return self.rank == 0

    def gathered(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of ranks; any object that can be pickled. Raises RankFailed, AllGiveUp."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.world
        with (
            shielded()
        ):  # the others would wait for the rest of a message that is given up half way
            self.wait()
            dist.all_gather_object(found, value, group=self.talk)
        # Whoever sent one knows it and raises its own error.
        if not isinstance(value, _Problem) and any(
            isinstance(said, _Problem) for said in found
        ):
            raise _outcome(found)
        return found

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks, place by place. Exact for whole numbers, rounded once for others, in any order."""
        columns = zip(*self.gathered(list(numbers)), strict=True)
        return [_sum(column) for column in columns]

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return max(self.gathered(number))

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """The value of one rank, on all; what the others give is ignored."""
        return self.gathered(value if self.rank == source else None)[source]  # type: ignore[return-value]

    def agree(self, problem: str | None) -> None:
        """All go on, or all raise RankFailed, which names the ranks with a problem and what it is."""
        if problem is None:
            self.gathered(None)
            return
        raise _outcome(self.gathered(_Problem(problem)))

    def give_up_if(self, late: bool) -> None:
        """Raise AllGiveUp on all if it is `late` for one. Collective."""
        if any(self.gathered(late)):
            raise AllGiveUp

    @contextmanager
    def together(self, phase: str = "") -> Iterator[None]:
        """Work that fails on all ranks if it fails on one; each raises its own error, or else RankFailed."""
        if phase:
            self.place.enter(phase)
        try:
            yield
        except (RankFailed, AllGiveUp):  # all know already
            raise
        except GivenUp:
            if not self.several:
                raise
            # Somebody may have a real problem at the same time, which then counts.
            raise _outcome(self.gathered(_Problem("", gives_up=True))) from None
        except Exception as error:
            if self.several and not lost(error) and not self.shares(error):
                self._told = error
                self.gathered(_Problem(f"{type(error).__name__}: {first_line(error)}"))
            raise
        self.agree(None)

    def by_first(self, work: Callable[[], Value]) -> Value:
        """What rank 0 found, on all; the others wait for it. Raises on all ranks if it raises."""
        found: Any = None
        with self.together():
            if self.first:
                found = work()
        return self.broadcast(found)

    def shares(self, error: BaseException) -> bool:
        """Do all ranks know of this error, because a `together` told them of it or of its cause?"""
        causes: BaseException | None = error
        while causes is not None:
            if causes is self._told or isinstance(causes, RankFailed):
                return True
            causes = causes.__cause__
        return False

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """What is made once and then found by all (caches): rank 0 does it, the others after it."""
        if self.first:
            with self.together():
                yield
            return
        self.agree(None)
        yield

    def wait(self, phase: str = "") -> None:
        """Wait until all ranks are here, however long the slowest takes: by looking, not by a collective."""
        if phase:
            self.place.enter(phase)
        if self.several:
            with self.place.waiting(), shielded():
                self._wait()

    def _wait(self) -> None:
        self._waits += 1
        here, opened = f"here/{self._waits}", f"open/{self._waits}"
        if self._store.add(here, 1) == self.world:
            self._store.delete_key(here)
            self._store.set(opened, "")
        pause = FIRST_LOOK
        while not self._store.check([opened]):
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_LOOK)
        if self.first and self._waits > 1:  # all have left the one before, since they are here
            self._store.delete_key(f"open/{self._waits - 1}")

    def end(self, problem: str = "") -> None:
        """Part from the others. With a problem they are told and end as well, wherever they are; else all end here."""
        if self._watch is None:
            return
        if not problem:
            self.wait("end")
        self._watch.stop(problem)
        if self.first:
            # The store may live in this process, and the others still ask it.
            self._watch.linger()
        if not problem:
            dist.destroy_process_group()
            self._watch = None
            _here.clear()

    @classmethod
    def _connected(cls, device: str) -> Ranks:
        """Ranks of several processes: store, process groups, watch."""
        ranks = cls(*_numbers())
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(ranks.local_rank)
        # A place of its own for each restart: what processes wrote before they died must not be read.
        prefix = f"mmrl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = _client(ranks)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=dist.PrefixStore(f"{prefix}/groups", store),
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=LONGEST_COLLECTIVE,
        )
        # Of their own: a group that two threads use, or two kinds of work, mixes up their messages.
        ranks.talk = dist.new_group(backend="gloo", timeout=LONGEST_COLLECTIVE)
        ranks.saving = dist.new_group(backend="gloo", timeout=LONGEST_COLLECTIVE)
        ranks._store = dist.PrefixStore(f"{prefix}/waits", store)
        # Its own connection: while one thread waits for an answer, another cannot ask.
        beats = dist.PrefixStore(f"{prefix}/beats", _client(ranks, master=False))
        ranks._watch = Watch(beats, ranks.rank, ranks.world, ranks.place)
        if not ranks.first:
            hush()
        return ranks


_here: list[Ranks] = []
"""The ranks of this process, if it is one of several."""


def lost(error: BaseException) -> bool:
    """Does this error say that another process is gone, rather than what is wrong here?"""
    if isinstance(error, dist.DistError):
        return True
    # gloo raises plain RuntimeErrors, with the place in its source code in front.
    return isinstance(error, RuntimeError) and "gloo" in str(error)


def is_of_another(error: BaseException) -> bool:
    """Is another process the cause of this error?"""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, RankFailed):
        cause = cause.__cause__
    return cause is not None


def _numbers() -> tuple[int, int, int, int]:
    """rank, world, local rank, local world as torchrun tells them. Raises ValueError."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    missing = [
        name for name in (*names[:2], "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if missing:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several processes "
            "with torchrun --nproc-per-node N -m recipes.NAME …, or unset WORLD_SIZE for one."
        )
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    # On one machine unless told otherwise.
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return rank, world, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", world))


def _client(ranks: Ranks, master: bool = True) -> dist.TCPStore:
    """A connection to the store that all processes share; rank 0 runs it unless torchrun does."""
    agent_has_it = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        ranks.world,
        is_master=master and ranks.first and not agent_has_it,
        wait_for_workers=False,
    )


def _outcome(found: Sequence[Any]) -> RankFailed | AllGiveUp:
    """What all raise after messages with problems."""
    lines = [
        f"process {rank} of {len(found)}: {said.text}"
        for rank, said in enumerate(found)
        if isinstance(said, _Problem) and not said.gives_up
    ]
    return RankFailed("\n".join(lines)) if lines else AllGiveUp()


def _sum(column: Sequence[float]) -> float:
    whole = all(isinstance(number, int) for number in column)
    return sum(column) if whole else math.fsum(column)
