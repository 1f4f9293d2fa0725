"""Prompts of the next step are read and encoded in worker processes while this one computes.

Which rows come next is known, so their pictures are decoded, resized and cut into patches ahead of their step. Nothing
else changes: `read` gives the same prompt with the same numbers as reading and encoding it here, in whatever order
workers finish; a checkpoint knows nothing of what is under way, for only rows that were taken count. Views that may
(`View.runs_ahead`) are drawn ahead too, for the step in which the row is expected.

A row that no worker has begun is done here, so nobody waits for a process to start. A row that cannot be used is read
once more here, where its error is raised, counted and logged as without workers. A worker that ends or exceeds its time
limit costs itself: it is killed and counted (`data/worker_failures`), the row is read here, and another is started.
What lies ready is bounded in rows by `expect`, and in bytes: beyond `held` the workers wait.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmrl.ground.printable import logger
from mmrl.ground.process import START_LIMIT, Child, NotStarted, how_it_ended
from mmrl.model.drawing import draws_ahead
from mmrl.model.policy import Policy
from mmrl.model.preparing_worker import UNUSABLE, Load, Prepared, receive, send
from mmrl.model.vision_cache import Drawn
from mmrl.objectives.base import Objective
from mmrl.types import Now, Prompt, Prompts, VisualBranch

log = logger(__name__)

ROW_SECONDS = 120.0
"""Seconds after which a worker has lost its way in a row; a decoder of clips has 60 of its own."""
HELD = 4 << 30
"""Bytes of prepared rows that may wait for their step."""
PATIENCE = 3
"""Failures in a row after which a worker is not started again."""
MOST, SHARE = 8, 2
"""Workers if nobody says how many: one for each `SHARE` cores, at most `MOST`."""


def default_workers(policy: Policy) -> int:
    """0 where the same cores compute the steps (no CUDA) or pictures cost next to nothing (small models)."""
    if policy.device.type != "cuda" or not policy.is_large:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = int(
        os.environ.get("LOCAL_WORLD_SIZE", "1")
    )  # set by torchrun: they share the cores
    return max(1, min(MOST, (cores or 1) // SHARE // ranks))


def read_ahead(
    prompts: Prompts,
    policy: Policy,
    objectives: Sequence[Objective] = (),
    branches: Mapping[str, VisualBranch] | None = None,
) -> Ahead | None:
    """What reads a run's prompts ahead; None without workers, or where a step decides which prompts come next."""
    if not policy.workers or any(objective.moves_prompts for objective in objectives):
        return None
    return Ahead(prompts, policy, policy.workers, branches)


class Ahead:
    """Reads and encodes rows of a collection in `workers` processes, in the order in which they are expected."""

    def __init__(
        self,
        prompts: Prompts,
        policy: Policy,
        workers: int,
        branches: Mapping[str, VisualBranch] | None = None,
        *,
        limit: float = ROW_SECONDS,
        held: int = HELD,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers is {workers}; it must be at least 1 to read ahead.")
        self.prompts, self.policy = prompts, policy
        self.counters: Counter[str] = Counter()
        """What was counted since somebody took it from here."""
        every = dict(branches or {})
        self.branches = {name: branch for name, branch in every.items() if draws_ahead(branch)}
        """Those whose pictures are drawn ahead as well."""
        self._workers, self._limit, self._held = workers, limit, held
        self._desk: _Desk | None = None
        self._off = ""

    def expect(self, rows: Mapping[int, Now | None]) -> None:
        """The rows that will be read next, in order, each with the step at which its views will be asked for, if known.

        Rows that were expected before and are not now are dropped. A wrong step costs the views: they are drawn anew.
        """
        desk = self._open()
        if desk is not None:
            desk.expect(rows)

    def read(self, row: int) -> Prompt:
        """The prompt of a row, which the policy need not encode again. Raises `BadRow` as the collection does."""
        reply = NOT_BEGUN if self._desk is None else self._desk.take(row)
        if isinstance(reply, Prepared):
            self.counters.update(reply.counts)
            drawn = None
            if reply.now is not None:
                drawn = Drawn(reply.now, self.branches, reply.views)
            self.policy.vision.remember(reply.prompt, reply.encoded, drawn)
            return reply.prompt
        if reply not in (UNUSABLE, NOT_BEGUN):
            self.counters["data/worker_failures"] += 1
            log.warning("Row %d is read by the trainer itself: %s", row, reply)
        prompt = self.prompts[row]
        self.policy.encode(prompt)
        return prompt

    def drain(self) -> Counter[str]:
        """What workers counted since the last call, of rows that were read, and their failures."""
        counts, self.counters = self.counters, Counter()
        return counts

    def close(self) -> None:
        """End the workers. A later `expect` starts them again."""
        if self._desk is not None:
            self._desk.close()
            self._desk = None

    def _open(self) -> _Desk | None:
        """The workers with the processing of now; None if they cannot have it."""
        processing = self.policy.processing
        if self._desk is not None and self._desk.load.processing is not processing:
            self.close()  # tags have changed since
        if self._desk is None and not self._off:
            load = Load(self.prompts, processing, self.branches)
            try:
                message = _message(load)
            # Anything may hide in a collection of the user's: open files, locks, generators.
            except Exception as error:
                self._off = f"{type(error).__name__}: {error}"
                log.warning(
                    "Prompts are not read ahead: %s cannot be sent to a worker process (%s). Keep open files, locks "
                    "and generators out of it, or set --load.workers 0.",
                    type(self.prompts).__name__,
                    self._off,
                )
                return None
            self._desk = _Desk(load, message, self._limit, self._held)
            self._desk.start(self._workers)
            # The threads know the desk and not us, so that whoever forgets `close` leaves no process behind.
            weakref.finalize(self, self._desk.close)
        return self._desk


def _message(load: Load) -> bytes:
    """Pickled by value where it belongs to the user's own script."""
    import cloudpickle

    return cloudpickle.dumps(load)


NOT_BEGUN = "not begun"
"""No worker has begun the row."""


@dataclass
class _Job:
    """A row that somebody will ask for."""

    row: int
    now: Now | None
    begun: bool = False
    reply: Prepared | str | None = None
    size: int = 0
    """Bytes of the reply."""


@dataclass
class _Desk:
    """Where the trainer puts rows and a thread per worker takes them from."""

    load: Load
    message: bytes
    limit: float
    most: int
    jobs: dict[int, _Job] = field(default_factory=dict)
    held: int = 0
    closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    workers: list[_Worker] = field(default_factory=list)

    def start(self, count: int) -> None:
        """Start the threads; each starts its process."""
        for number in range(count):
            worker = _Worker(self.message, self.limit)
            self.workers.append(worker)
            name = f"mmrl-prompts-{number}"
            threading.Thread(target=self._serve, args=(worker,), name=name, daemon=True).start()

    def expect(self, rows: Mapping[int, Now | None]) -> None:
        """Keep and queue these rows, in this order, and no others."""
        with self.changed:
            before = self.jobs
            self.jobs = {
                row: before.pop(row, None) or _Job(row, now) for row, now in rows.items()
            }
            self.held -= sum(job.size for job in before.values())
            self.changed.notify_all()

    def take(self, row: int) -> Prepared | str:
        """The reply to a row, once it is there, or `NOT_BEGUN`."""
        with self.changed:
            job = self.jobs.get(row)
            if job is None or not job.begun:
                self.jobs.pop(row, None)
                return NOT_BEGUN
            # Not for ever: the worker has its time limit.
            self.changed.wait_for(lambda: job.reply is not None or self.closed)
            del self.jobs[row]
            self.held -= job.size
            self.changed.notify_all()
            return NOT_BEGUN if job.reply is None else job.reply

    def close(self) -> None:
        """End threads and processes."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        for worker in self.workers:
            worker.end()

    def _serve(self, worker: _Worker) -> None:
        """A thread's life: rows to its worker, replies back."""
        failures = 0
        while not self.closed and failures < PATIENCE:
            try:
                worker.start()
            except _Lost as problem:
                failures += 1
                if not self.closed:
                    log.warning("A worker that reads prompts did not start: %s", problem)
                continue
            job = self._next()
            if job is None:
                return
            try:
                reply, failures = worker.prepare(job.row, job.now), 0
            except Exception as problem:  # whatever it is: somebody may wait for this row
                failures += 1
                reply = f"{type(problem).__name__}: {problem}"
            self._deliver(job, reply)
        if not self.closed:
            log.warning(
                "A worker that reads prompts failed %d times in a row and is given up.",
                failures,
            )

    def _next(self) -> _Job | None:
        """The first row that nobody has begun, once there is room; None at the end."""
        with self.changed:
            while not self.closed:
                waiting = [job for job in self.jobs.values() if not job.begun]
                if waiting and self.held < self.most:
                    waiting[0].begun = True
                    return waiting[0]
                self.changed.wait()
        return None

    def _deliver(self, job: _Job, reply: Prepared | str) -> None:
        with self.changed:
            job.reply = reply
            if self.jobs.get(job.row) is job:  # else nobody expects it any more
                job.size = _bytes(reply)
                self.held += job.size
            self.changed.notify_all()


class _Lost(RuntimeError):
    """A worker is of no more use; the message says why."""


class _Worker:
    """The trainer's side of one process."""

    def __init__(self, load: bytes, limit: float) -> None:
        self._load, self._limit = load, limit
        self._child: Child | None = None
        self._ended = False

    def start(self) -> None:
        """Start the process and load it, if it does not run. Raises _Lost."""
        if self._child is not None and self._child.alive:
            return
        self._kill()
        # Several threads per worker would take the cores of the others.
        threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            self._child = Child("mmrl.model.preparing_worker:prepare_rows", environment=threads)
        except NotStarted as problem:
            raise _Lost(str(problem)) from problem
        self._ask(self._load, START_LIMIT)
        if self._ended:  # while it came up
            self._kill()

    def prepare(self, row: int, now: Now | None) -> Prepared | str:
        """The reply to a row. Raises _Lost."""
        return self._ask((row, now), self._limit)

    def end(self) -> None:
        """Kill the process, whatever it does."""
        self._ended = True
        self._kill()

    def _ask(self, request: object, seconds: float) -> Prepared | str:
        child = self._child
        if child is None:
            raise _Lost("it was ended")
        deadline = time.monotonic() + seconds
        try:
            child.channel.settimeout(seconds)
            send(child.channel, request)
            return receive(child.channel, deadline)
        except TimeoutError:
            self._kill()
            raise _Lost(f"no reply after {seconds:g} s; the worker was killed") from None
        except (OSError, EOFError):
            raise _Lost(f"the worker ended ({self._kill(0.2)})") from None
        except (
            Exception
        ) as error:  # what came back cannot be read: a class that is only there, torn bytes
            self._kill()
            raise _Lost(f"its reply cannot be read: {type(error).__name__}: {error}") from error

    def _kill(self, wait: float = 0.0) -> str:
        """How it ended by itself within `wait` seconds, in words."""
        child, self._child = self._child, None
        return "ended" if child is None else how_it_ended(child.end(wait))


def _bytes(reply: Prepared | str) -> int:
    """Bytes of pixels in a reply."""
    if isinstance(reply, str):
        return 0
    frames = sum(medium.frames.nbytes for medium in reply.prompt.media)
    shown = itertools.chain(reply.encoded.visual, *reply.views.values())
    return frames + sum(medium.pixels.nbytes for medium in shown)
