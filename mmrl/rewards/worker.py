"""The process in which rewards run: small, without torch, and safe to kill.

`worker_pool.WorkerPool` starts it as a `mmrl.ground.process.Child`, which also ends whatever processes a reward starts.

Wire format on one socket: 8 bytes length (big endian), then the message. Requests are pickles of
("load", {part: pickled function}, memory limit) or ("call", part, several, args, kwargs); replies are JSON, so that the
trainer unpickles nothing that a reward has made: {"values": [number | null | text, ...]}, where a text describes
something that is no number, or {"failure": reason, "message": traceback}. Before each reply comes one byte of
receipt: a worker that ends without it had not begun, and the request is repeated elsewhere.

Departure from a common design: memory is limited by RLIMIT_DATA rather than RLIMIT_AS, counted from what is in use
after loading. Address space says little (CUDA builds of torch reserve far more than they use). Linux enforces it; other
systems only have the time limit.
"""

from __future__ import annotations

import functools
import itertools
import json
import numbers
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mmrl.ground.process import HEADER

RECEIPT = b"\x06"
MESSAGE_LIMIT = 4000
"""Characters of a traceback that travel back."""
VALUES_LIMIT = 1 << 17
"""Values of one call that travel back: more answers than any step has."""
REPLY_LIMIT = 1 << 26
"""Bytes of a reply that the trainer reads."""


class Unavailable(Exception):
    """A value cannot be had (a judge that is down, a budget that is spent). This is never a reward of 0."""


def answer_calls(descriptor: int) -> None:
    """The worker's life: answer requests until the trainer closes the socket or is gone."""
    channel, me = socket.socket(fileno=descriptor), os.getpid()
    functions: dict[str, Callable[..., Any]] = {}
    while (request := receive(channel)) is not None:
        channel.sendall(RECEIPT)
        try:
            reply = _answer(functions, request)
        except BaseException as error:  # a reward may raise anything, SystemExit included
            reason, message = explain(error)
            reply = {"failure": reason, "message": message}
        if os.getpid() != me:  # a reward forked and the child came back too: it must not answer
            os._exit(0)
        channel.sendall(frame(json.dumps(reply).encode()))
    # Not by returning: threads that a reward has left running would keep this process alive, and its own processes
    # would stay behind until the keeper looks.
    os.killpg(0, signal.SIGKILL)


def as_floats(returned: Any, several: bool) -> list[float | str | None]:
    """What a reward returned as floats; a text describes what is no number. `several`: a sequence was expected.

    Raises ValueError for a sequence without end, and TypeError for what is none.
    """
    values: Iterable[Any] = returned if several else [returned]
    found = [_as_float(value) for value in itertools.islice(values, VALUES_LIMIT + 1)]
    if len(found) > VALUES_LIMIT:
        raise ValueError(f"it returned more than {VALUES_LIMIT} values")
    return found


def explain(error: BaseException) -> tuple[str, str]:
    """The reason under which an error is counted, and its traceback."""
    if isinstance(error, MemoryError):
        return "memory", "MemoryError"
    if isinstance(error, Unavailable):
        return "unavailable", str(error)[-MESSAGE_LIMIT:]
    text = "".join(traceback.format_exception(error))[-MESSAGE_LIMIT:]
    return ("exit" if isinstance(error, SystemExit) else "exception"), text


def unwrapped(function: Any) -> Any:
    """The function below `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def marker(function: Any, name: str, default: Any) -> Any:
    """An attribute set by one of the markers of `parts`."""
    return getattr(unwrapped(function), name, default)


def receive(channel: socket.socket) -> bytes | None:
    """Read one message; None at the end of the stream."""
    header = _read(channel, HEADER.size)
    return None if header is None else _read(channel, HEADER.unpack(header)[0])


def frame(message: bytes) -> bytes:
    """Put the length before a message."""
    return HEADER.pack(len(message)) + message


def _answer(functions: dict[str, Callable[..., Any]], request: bytes) -> dict[str, Any]:
    kind, *rest = pickle.loads(request)
    if kind == "load":
        pickled, memory_limit = rest
        functions.update({name: _load(function) for name, function in pickled.items()})
        _limit_memory(memory_limit)
        return {"values": []}
    part, several, args, kwargs = rest
    return {"values": as_floats(functions[part](*args, **kwargs), several)}


def _load(pickled: bytes) -> Callable[..., Any]:
    """Unpickle a function and import what it will import at its first call, so that this costs no answer its time."""
    import importlib

    function = pickle.loads(pickled)
    for module in marker(function, "preload", ()):
        importlib.import_module(module)
    return function


def _limit_memory(limit: int | None) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limit is None:
        return
    try:
        with open("/proc/self/status") as status:
            lines: Mapping[str, str] = dict(
                line.split(":", 1) for line in status if ":" in line
            )
    except OSError:  # no Linux
        return
    in_use = int(lines["VmData"].split()[0]) * 1024
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    wanted = in_use + limit
    bound = wanted if hard < 0 else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def _read(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        chunk = channel.recv(min(size - len(parts), 1 << 20))
        if not chunk:
            return None
        parts += chunk
    return bytes(parts)


def _as_float(value: Any) -> float | str | None:
    if value is None:
        return None
    if hasattr(value, "item"):
        value = value.item()  # a numpy or torch scalar
    if isinstance(value, numbers.Real):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
    return f"{type(value).__name__[:80]} {str(value)[:80]!r}"
