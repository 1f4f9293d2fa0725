"""What is said between an engine that asks and a vLLM that answers, in one process or over HTTP. No vLLM here.

A message is JSON and tensors, and travels as one safetensors file whose metadata holds the JSON: nothing in it is code.
Replies to questions come one by one, each as a line of JSON:

    {"place": 2, "reply": …}       to the question of this number, in any order
    {"status": 500, "why": …}      the rest does not come; what would be an HTTP status, had nothing been said yet
    {"end": 4}                     so many replies were sent, and all of them
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import safetensors.torch
from torch import Tensor

PROTOCOL = 3
"""Both sides must speak the same."""
GONE = (
    "A process of this vLLM has ended, killed or out of memory, and the others with it (the log above says which). "
    "Start the server again; the run brings its weights anew."
)
"""What is said when a worker is lost."""
LogprobsMode = Literal["raw", "processed"]


@dataclass(frozen=True, eq=False)
class Shown:
    """One medium as the engine shall show it."""

    kind: Literal["image", "video"]
    uuid: str
    """Equal for equal pixels at equal times, and for nothing else: the engine keeps features and pixels under it."""
    frames: Tensor
    """uint8 [F, 3, H, W] at their final size."""
    times: Mapping[str, Any] | None = None
    """A video's metadata."""


@dataclass(frozen=True, eq=False)
class Question:
    """One prompt for vLLM."""

    ids: Sequence[int]
    """One placeholder per medium."""
    media: tuple[Shown, ...]
    params: Mapping[str, Any]
    """Of `vllm.SamplingParams`, without what all questions share."""
    size: Mapping[str, int] | None = None
    """Limits of the processor under which the pixels keep their size; None: its own."""


@dataclass(frozen=True)
class Said:
    """One answer of vLLM."""

    tokens: Sequence[int]
    logp: Sequence[float]
    finish: str
    """"stop" or "length"."""
    reason: str | int | None
    """The string or id that stopped it."""
    version: str
    """Of the weights; several, joined by "+", if they changed meanwhile."""


@dataclass(frozen=True)
class Reply:
    """What vLLM says to one question."""

    seen: Sequence[int]
    """The prompt as it was read, placeholders expanded."""
    answers: Sequence[Said]


@dataclass(frozen=True)
class About:
    """What an engine says of itself."""

    vllm: str
    """Version."""
    model: str
    version: str
    """Of the weights that it holds; empty before it was given any."""
    mode: LogprobsMode
    length: int
    """Most tokens of a prompt and its answer together."""
    rank: int = 0
    """Largest rank of an adapter; 0: it takes none."""
    tower: bool = False
    """May an adapter adapt the vision tower?"""
    protocol: int = PROTOCOL
    extra: Mapping[str, Any] = field(default_factory=dict)


def packed(message: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """A message as bytes."""
    there = {
        name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()
    }
    return safetensors.torch.save(there, metadata={"message": json.dumps(message)})


def unpacked(body: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A message from bytes. Raises ValueError for anything else."""
    try:
        (length,) = struct.unpack("<Q", body[:8])
        header = json.loads(body[8 : 8 + length])
        message = json.loads(header["__metadata__"]["message"])
        tensors = safetensors.torch.load(body)
    except Exception as error:  # the library has errors of its own
        raise ValueError(f"{len(body)} bytes that are no message of mmrl ({error})") from error
    return message, tensors


def questions_to(questions: Sequence[Question]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Questions as a message; a medium that several of them show travels once."""
    frames: dict[str, Tensor] = {}
    out: list[dict[str, Any]] = []
    for question in questions:
        media: list[dict[str, Any]] = []
        for shown in question.media:
            frames[shown.uuid] = shown.frames
            media.append({"kind": shown.kind, "uuid": shown.uuid, "times": shown.times})
        params, size = dict(question.params), question.size
        out.append({"ids": list(question.ids), "media": media, "params": params, "size": size})
    return {"questions": out}, frames


def questions_from(message: Mapping[str, Any], frames: Mapping[str, Tensor]) -> list[Question]:
    """The other way round."""
    found: list[Question] = []
    for one in message["questions"]:
        media = [
            Shown(m["kind"], m["uuid"], frames[m["uuid"]], m["times"]) for m in one["media"]
        ]
        found.append(Question(one["ids"], tuple(media), one["params"], one["size"]))
    return found


def line_of(message: Mapping[str, Any]) -> bytes:
    """A message without tensors as a line, its end included."""
    return json.dumps(message).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """The other way round. Raises ValueError for anything else, a line without its end among it."""
    try:
        message = json.loads(line if line.endswith(b"\n") else b"")
    except ValueError as error:
        raise ValueError(f"{len(line)} bytes that are no line of mmrl ({error})") from error
    if not isinstance(message, dict):
        raise ValueError(f"{len(line)} bytes that are no line of mmrl (no object)")
    return message


def reply_to(place: int, reply: Reply) -> dict[str, Any]:
    """The reply to the question of this number as a message."""
    return {"place": place, "reply": asdict(reply)}


def reply_from(message: Mapping[str, Any]) -> tuple[int, Reply]:
    """The other way round."""
    reply = message["reply"]
    return message["place"], Reply(reply["seen"], [Said(**said) for said in reply["answers"]])
