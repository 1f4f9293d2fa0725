"""What a tool's client and server say to each other: the request and reply of VerlTool's tool server, as JSON.

    request   trajectory_ids [n], actions [n], finish [n], is_last_step [n], extra_fields [n]
    reply     observations [n], dones [n], valids [n]

An observation is a text, or {obs, image, invalid_reason}, where `image` is a picture or a list of pictures as data
URIs. Ours adds: `extra_fields` have `images` (of the prompt, with the first call), `turn` and `key` (for draws), and an
observation may have `found`, for rewards.

Source: github.com/TIGER-AI-Lab/verl-tool (arXiv 2509.01055).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrl.ground.faults import BadMedia
from mmrl.ground.images import decode_image
from mmrl.tools.tool import Observation
from mmrl.types import Media

Picture = str | list[str]
"""A picture as a data URI; of a clip its frames."""


class Garbage(ValueError):
    """What came is no message of this kind."""


@dataclass(frozen=True)
class Told:
    """One entry of a request."""

    trajectory: str
    action: str
    finish: bool
    extra: Mapping[str, Any]


def request_of(told: Sequence[Told], last: bool = False) -> bytes:
    """A request with these entries."""
    return json.dumps(
        {
            "trajectory_ids": [one.trajectory for one in told],
            "actions": [one.action for one in told],
            "finish": [one.finish for one in told],
            "is_last_step": [last for _ in told],
            "extra_fields": [dict(one.extra) for one in told],
        }
    ).encode()


def told_by(body: bytes) -> list[Told]:
    """The entries of a request. Raises Garbage."""
    message = _object(body)
    ids = _listed(message, "trajectory_ids", str)
    actions = _listed(message, "actions", str, len(ids))
    finish = _listed(message, "finish", bool, len(ids), False)
    extra = _listed(message, "extra_fields", dict, len(ids), {})
    return [Told(*entry) for entry in zip(ids, actions, finish, extra, strict=True)]


def reply_of(observations: Sequence[Observation]) -> bytes:
    """A reply with these observations."""
    return json.dumps(
        {
            "observations": [_written(one) for one in observations],
            "dones": [one.done for one in observations],
            "valids": [one.valid for one in observations],
        }
    ).encode()


def observation_in(body: bytes) -> Observation:
    """The observation of a reply to one entry. Raises Garbage."""
    message = _object(body)
    (told,) = _listed(message, "observations", (str, dict), 1)
    (done,) = _listed(message, "dones", (bool, int), 1)
    (valid,) = _listed(message, "valids", (bool, int), 1)
    if isinstance(told, str):
        return Observation(told, done=bool(done), valid=bool(valid))
    text, shown = told.get("obs", ""), told.get("image") or []
    pictures = [shown] if isinstance(shown, str) else shown
    note, found = told.get("invalid_reason") or "", told.get("found") or {}
    if not (isinstance(text, str) and isinstance(note, str) and isinstance(found, dict)):
        raise Garbage("an observation whose obs, invalid_reason or found is of another kind")
    if not isinstance(pictures, list):
        raise Garbage("an observation whose image is neither a picture nor a list of them")
    media = tuple(medium_of(one) for one in pictures)
    return Observation(text, media, bool(done), bool(valid), note, found)


def picture_of(medium: Media) -> Picture:
    """A picture as a data URI, a clip as those of its frames; without loss."""
    frames = [_png(frame) for frame in medium.frames.permute(0, 2, 3, 1).cpu().numpy()]
    return frames if medium.is_video else frames[0]


def medium_of(picture: object) -> Media:
    """A picture from a data URI, or from bare base 64. Raises Garbage."""
    if not isinstance(picture, str):
        raise Garbage(f"a picture that is {type(picture).__name__}, no text")
    _, _, encoded = picture.rpartition(",")
    try:
        pixels = decode_image(base64.b64decode(encoded, validate=True), "a tool's picture")
    except (binascii.Error, BadMedia) as error:
        raise Garbage(f"a picture that cannot be read ({error})") from error
    return Media(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _written(one: Observation) -> str | dict[str, Any]:
    plain = not (one.media or one.note or one.found)
    if plain:
        return one.text
    shown = [picture_of(medium) for medium in one.media]
    told: dict[str, Any] = {"obs": one.marked(), "found": dict(one.found)}
    if any(isinstance(one, list) for one in shown):
        raise Garbage("an observation that shows a clip; pictures alone travel")
    return {**told, "image": shown, "invalid_reason": one.note if not one.valid else ""}


def _object(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Garbage(f"{len(body)} bytes that are no JSON") from error
    if not isinstance(message, dict):
        raise Garbage("JSON that is no object")
    return message


def _listed(
    message: Mapping[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    count: int | None = None,
    default: Any = None,
) -> list[Any]:
    """A list of a message. `default`: each of its entries where it is not there."""
    if default is not None and count is not None and message.get(name) is None:
        return [default] * count
    found = message.get(name)
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise Garbage(f"{name} is not there, or no list of what it must hold")
    if count is not None and len(found) != count:
        raise Garbage(f"{name} has {len(found)} entries, not {count}")
    return found
