"""The process that reads and encodes prompts ahead of a step, and how it talks to the trainer.

`preparing.Ahead` starts it as a `mmrl.ground.process.Child`, so that it can be killed and never outlives the run. Both
sides trust each other: what runs here is the run's own code, a copy of its collection of prompts and of its processing.

Wire format, both ways: 8 bytes for the number n of parts, 8 bytes each for their lengths, then the parts: a pickle, and
the bytes of the tensors in it, which are so neither copied into the pickle nor out of it. Requests are the pickled load
(once), then pairs of a row's number and its step; the reply to a row is a `Prepared`, `UNUSABLE`, or a text that says
what went wrong.
"""

from __future__ import annotations

import contextlib
import io
import logging
import pickle
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow, first_line
from mmrl.ground.process import HEADER
from mmrl.model.drawing import draw, spoils
from mmrl.model.encoded import Encoded
from mmrl.model.patches import Patches
from mmrl.model.processing import Processing
from mmrl.types import Now, Prompt, Prompts, VisualBranch

UNUSABLE = "unusable"
"""Reply for a row that cannot be used. The trainer reads it itself and sees the error with all that follows from it."""


@dataclass(frozen=True)
class Prepared:
    """A row that was read and encoded."""

    prompt: Prompt
    encoded: Encoded
    counts: Mapping[str, int]
    """What the collection counted while it was read."""
    views: Mapping[str, tuple[Patches, ...]] = field(default_factory=dict)
    """What branches show of it at the step of the request, as far as they can be drawn ahead."""
    now: Now | None = None
    """That step."""


@dataclass(frozen=True)
class Load:
    """What a worker is given first."""

    prompts: Prompts
    processing: Processing
    branches: Mapping[str, VisualBranch] = field(default_factory=dict)
    """Those that can be drawn ahead."""


def prepare_rows(descriptor: int) -> None:
    """The worker's life: prepare the rows that are asked for until the trainer closes the socket or is gone."""
    channel = socket.socket(fileno=descriptor)
    logging.disable(logging.WARNING)  # what is wrong with a row is said where it is read again
    torch.set_num_threads(1)  # the other cores are the trainer's, or other workers'
    load: Load = pickle.loads(receive(channel))
    # Now, and not in the time of the first row.
    import torchvision.transforms.v2  # noqa: F401

    send(channel, "ready")
    while True:
        try:
            row, now = receive(channel)
        except EOFError:
            return
        send(channel, _reply(load, row, now))


def prepared(load: Load, row: int, now: Now | None = None) -> Prepared:
    """Read a row, encode it, and draw its views of a step. Raises `BadRow`, as reading and encoding do."""
    prompt = load.prompts[row]
    encoded = load.processing.encode(prompt)
    views: dict[str, tuple[Patches, ...]] = {}
    for name, branch in load.branches.items():
        # A view that spoils the question is an error where the view is asked for.
        if now is None or not prompt.media or spoils(branch.view, prompt):
            continue
        # What fails here fails there again, where it can be said.
        with contextlib.suppress(Exception):
            views[name] = draw(load.processing, prompt, encoded, name, branch, now)
    return Prepared(prompt, encoded, dict(load.prompts.drain()), views, now)


def _reply(load: Load, row: int, now: Now | None) -> Prepared | str:
    try:
        return prepared(load, row, now)
    except BadRow:
        load.prompts.drain()  # whoever reads it again counts it
        return UNUSABLE
    # Whatever it is, the trainer meets it where it can be said properly.
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"


def send(channel: socket.socket, value: Any) -> None:
    """Send any picklable value; tensors travel as their bytes."""
    try:
        parts = _packed(value)
    except Exception as error:
        parts = _packed(f"what was read cannot be sent: {type(error).__name__}")
    lengths = (HEADER.pack(part.nbytes) for part in parts)
    channel.sendall(HEADER.pack(len(parts)) + b"".join(lengths))
    for part in parts:
        channel.sendall(part)


def receive(channel: socket.socket, deadline: float | None = None) -> Any:
    """What the other side sent. Raises EOFError if it is gone, and TimeoutError after `deadline` (`time.monotonic`)."""
    (count,) = HEADER.unpack(_read(channel, HEADER.size, deadline))
    lengths = _read(channel, count * HEADER.size, deadline)
    parts = [_read(channel, size, deadline) for (size,) in HEADER.iter_unpack(lengths)]
    return pickle.loads(parts[0], buffers=parts[1:])


def _packed(value: Any) -> list[memoryview]:
    """The pickle, and the buffers that it refers to."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, 5, buffer_callback=buffers.append).dump(value)
    return [stream.getbuffer(), *(buffer.raw() for buffer in buffers)]


class _Pickler(pickle.Pickler):
    """Tensors as numpy arrays, whose memory a pickle can leave outside."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.dtype is torch.bfloat16:
            return NotImplemented
        # A view into something larger would take all of it along.
        return torch.from_numpy, (obj.detach().contiguous().numpy(),)


def _read(channel: socket.socket, size: int, deadline: float | None) -> bytearray:
    found = bytearray(size)
    view = memoryview(found)
    while view.nbytes:
        if deadline is not None:
            channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        got = channel.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return found
