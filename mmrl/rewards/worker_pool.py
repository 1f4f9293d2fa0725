"""Run a reward without trusting it: in a process that can be killed.

`WorkerPool` runs plain functions in worker processes (`worker`). A call that passes its time limit is ended
from outside, so endless loops inside C code end too; a call that eats memory, raises, or ends its process gives a
`Failure` with a name, and the next call gets a fresh worker. Functions travel by cloudpickle: those of a notebook, a
script or any file of the user by value, with the globals that they use (a recipe that imports torch costs the worker
nothing unless the reward uses it); those of `mmrl` and of installed packages by reference: the worker imports them.

Limits: POSIX only. A process that a reward starts is ended with the worker unless it left the worker's process group.
The memory limit is per process and enforced by Linux only.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import select
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from mmrl.ground.printable import logger
from mmrl.ground.process import HEADER, LOOK, START_LIMIT, Child, NotStarted, how_it_ended
from mmrl.rewards.begun import Running, collected
from mmrl.rewards.parts import Call, Failure, Outcome, Reason
from mmrl.rewards.worker import MESSAGE_LIMIT, RECEIPT, REPLY_LIMIT, frame, unwrapped
from mmrl.rewards.worker_output import WorkerOutput

_LOG = logger(__name__)


class LoadError(ValueError):
    """A reward function cannot be brought into a worker; nothing has been scored."""


class WorkerPool:
    """Killable processes for reward functions. They start at the first call and end with `close` or the trainer."""

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        workers: int,
        memory_limit: int | None,
    ) -> None:
        if os.name != "posix":
            raise ValueError(
                "Isolated rewards need Linux or macOS; on this system pass isolate=False to Rewards."
            )
        pickled = {name: _pickle(name, function) for name, function in functions.items()}
        load = pickle.dumps(("load", pickled, memory_limit))
        self._workers = [_Worker(load) for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="mmrl-rewards")

    def start(self) -> None:
        """Start the workers now and wait until they are ready. Raises LoadError."""
        list(self._threads.map(_Worker.start, self._workers))

    def run(self, calls: Sequence[Call]) -> list[tuple[Outcome, float]]:
        """The outcome of each call, in order, and the seconds it took. Raises LoadError."""
        return collected(self.begin(calls))

    def begin(self, calls: Sequence[Call]) -> list[Running]:
        """Make all calls and do not wait for them; a call's result raises LoadError."""
        return [self._threads.submit(self._one, call) for call in calls]

    def close(self) -> None:
        """End all workers and their processes. A later call starts them again."""
        for worker in self._workers:
            worker.end()

    def _one(self, call: Call) -> tuple[Outcome, float]:
        try:
            import cloudpickle

            request = ("call", call.part, call.several, call.args, dict(call.kwargs))
            message = cloudpickle.dumps(request)
        except Exception as error:
            text = f"the answer cannot be sent to the worker: {error!r}"
            return Failure("exception", text), 0.0
        worker = self._idle.get()
        try:
            worker.start()
            began = time.monotonic()
            return worker.call(message, call.limit), time.monotonic() - began
        finally:
            self._idle.put(worker)


class _Worker:
    """The trainer's side of one worker process."""

    def __init__(self, load: bytes) -> None:
        self._load = load
        self._child: Child | None = None
        self._output = WorkerOutput()

    def start(self) -> None:
        """Start the process and load the functions, if it does not run. Raises LoadError."""
        if self._child is not None and self._child.alive:
            return
        self.end()
        # A reward that computes on many threads would take the trainer's cores; the user's own setting wins.
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        output = self._output.open()
        try:
            self._child = Child(
                "mmrl.rewards.worker:answer_calls", environment=one_thread, output=output
            )
            outcome = self._ask(self._load, START_LIMIT)
        except NotStarted as error:
            outcome = Failure("exit", str(error))
        except BrokenPipeError:
            outcome = Failure("exit", self.end(LOOK))
        finally:
            os.close(output)
        if isinstance(outcome, Failure):
            self.end()
            raise LoadError(
                f"A reward worker could not load the reward functions ({outcome.reason}): {outcome.message}\n"
                "A reward must be importable, or picklable by value, in a fresh process; keep models and open files "
                "out of it, or mark it with @in_process."
            )

    def call(self, message: bytes, limit: float) -> Outcome:
        """Score one request in at most `limit` seconds; any failure but an exception costs the process."""
        self.start()
        try:
            return self._ask(message, limit)
        except BrokenPipeError:  # it died while idle, which is not this answer's fault
            self.end()
            self.start()
        try:
            return self._ask(message, limit)
        except BrokenPipeError:
            return Failure("exit", f"the worker ended ({self.end()})")

    def end(self, wait: float = 0.0) -> str:
        """Kill the process and its group; say how it had ended by itself within `wait` seconds."""
        child, self._child = self._child, None
        return "not started" if child is None else how_it_ended(child.end(wait))

    def _ask(self, message: bytes, limit: float) -> Outcome:
        """Send and receive. Raises BrokenPipeError if the worker was gone before it had the request."""
        assert self._child is not None
        deadline = time.monotonic() + limit
        self._output.next_call()
        try:
            self._child.channel.settimeout(limit)
            self._child.channel.sendall(frame(message))
            reply = self._receive(self._child, deadline)
        except TimeoutError:
            self.end()
            return Failure("timeout", f"no value after {limit:g} s")
        except BrokenPipeError:
            raise
        except OSError:
            reply = None  # connection reset
        except (ValueError, RecursionError) as error:
            # A reward has found the socket: what else it has written there would answer the next call.
            self.end()
            return Failure("exit", f"something else than a reply came back ({error})")
        if reply is None:
            return Failure("exit", f"the reward ended its process ({self.end(LOOK)})")
        if isinstance(reply, Failure) and reply.reason == "memory":
            self.end()
        return reply

    @staticmethod
    def _receive(child: Child, deadline: float) -> Outcome | None:
        """The reply; None if the worker ended after the receipt.

        Raises TimeoutError, BrokenPipeError, and ValueError or RecursionError for what is no reply.
        """
        received = bytearray()
        size = start = len(RECEIPT) + HEADER.size
        while len(received) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            chunk = b""
            if select.select([child.channel], [], [], min(left, LOOK))[0]:
                with contextlib.suppress(ConnectionResetError):
                    chunk = child.channel.recv(1 << 16)
            elif child.alive:
                continue  # else it is gone, though a process that it started keeps the socket open
            if not chunk:
                if received:
                    return None
                raise BrokenPipeError
            received += chunk
            if size == start and len(received) >= start:
                length = HEADER.unpack(received[len(RECEIPT) : start])[0]
                if length > REPLY_LIMIT:
                    raise ValueError(f"{length} bytes, at most {REPLY_LIMIT} are read")
                size += length
        return _outcome(json.loads(received[start:]))


def _outcome(reply: Any) -> Outcome:
    """A reply as an outcome; ValueError for what no worker of ours writes."""
    if isinstance(reply, dict):
        values, message = reply.get("values"), reply.get("message")
        if isinstance(values, list) and all(
            value is None or type(value) in (float, str) for value in values
        ):
            return values
        for reason in get_args(Reason):
            if reply.get("failure") == reason and isinstance(message, str):
                return Failure(reason, message[-MESSAGE_LIMIT:])
    raise ValueError(f"JSON of the kind {type(reply).__name__}, with no values")


def _pickle(name: str, function: Callable[..., Any]) -> bytes:
    """Pickle by value what belongs to the user's own files, else by reference. Raises LoadError."""
    import cloudpickle

    module = sys.modules.get(getattr(unwrapped(function), "__module__", None) or "")
    if module is not None and _is_own_file(module):
        cloudpickle.register_pickle_by_value(module)
        try:
            return cloudpickle.dumps(function)
        except Exception as error:
            # It refers to an open file or the like, which a fresh import makes anew.
            _LOG.debug("the reward part %r goes by reference: %r", name, error)
        finally:
            cloudpickle.unregister_pickle_by_value(module)
    try:
        return cloudpickle.dumps(function)
    except Exception as error:
        raise LoadError(
            f"The reward part {name!r} cannot be sent to a worker process: {error!r}. Define it at the top of a module "
            "without open files, locks or models in its closure, or mark it with @in_process."
        ) from error


def _is_own_file(module: ModuleType) -> bool:
    """Is this neither ours nor the standard library's nor an installed package's?"""
    file = getattr(module, "__file__", None)
    ours = __name__.partition(".")[0]
    if file is None or module.__name__.partition(".")[0] == ours:
        return False
    place = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(place.parts):
        return False
    return not place.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve())
