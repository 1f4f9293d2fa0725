"""Chats and media in whatever container a table has for them, as plain lists and mappings.

    turns_in        a list of turns; a column per key, as `datasets` stores sequences of records; Arrow maps, which
                    arrive as lists of pairs; NumPy arrays; JSON text, as CSV files have it
    media_in        one medium or several: a list, a JSON list, records stored by column, pixels as nested numbers
    medium_of_part  what a part of a chat shows, under any of the keys that chat templates and APIs use

What is none of these is handed on as it is; whoever reads it says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mmrl.ground.faults import Fault
from mmrl.ground.media_names import IMAGE_SUFFIXES, VIDEO_SUFFIXES

TURN_KEYS = (("role", "content"), ("from", "value"))
MEDIA_KEYS = ("image", "image_url", "video", "video_url")
KEYS = (*MEDIA_KEYS, "input_image", "url", "path", "bytes", "base64", "data", "source")
"""Under these a part of a chat holds its medium, the most telling first."""

MAGIC: Mapping[str, re.Pattern[bytes]] = {
    "video": re.compile(
        rb".{4}ftyp(?!avif|avis|heic|heix|mif1)|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV", re.DOTALL
    ),
    "image": re.compile(
        rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF.{4}WEBP|BM|II\*\0|MM\0\*|.{4}ftyp|P[56]\s", re.DOTALL
    ),
}
"""How files of media begin; videos first, because AVIF pictures are boxes of the same family."""


def turns_in(value: Any) -> list[Any] | None:
    """The turns of a chat, unread; None if the value is no chat."""
    value = _unpacked(value)
    if isinstance(value, Mapping):
        return _turns_of_mapping(value)
    if isinstance(value, list) and value:
        return [_record(turn) for turn in value]
    return None


def parts_in(content: Any) -> Any:
    """The parts of a turn as a list; a text as it is."""
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if not isinstance(content, Mapping):
        return [_record(part) for part in content] if isinstance(content, list) else content
    if isinstance(content.get("type"), list):
        columns = {key: cells for key, cells in content.items() if isinstance(cells, list)}
        rows = zip_longest(*columns.values())
        return [dict(zip(columns, cells, strict=True)) for cells in rows]
    return [content]


def chat_in_text(text: str) -> list[Any] | None:
    """The turns of a chat that was written as JSON; None if the text is anything else."""
    found = from_json(text)
    turns = None if found is None else turns_in(found)
    return turns if turns and all(_is_turn(turn) for turn in turns) else None


def from_json(text: str) -> Any:
    """The list or object that a text holds; None if it is anything else."""
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def media_in(value: Any) -> list[Any]:
    """The media of a cell, each as it is stored; empty for a cell without any."""
    if isinstance(value, str) and (found := from_json(value)) is not None:
        value = found
    if is_empty(value):
        return []
    if isinstance(value, np.ndarray):
        # [H, W] and [H, W, 3] are one picture; more axes, or objects, are several media.
        several = value.dtype == object or value.ndim > 3
        return list(value) if several else [value]
    if isinstance(value, Mapping):
        return _records(value) or [value]
    if isinstance(value, list | tuple):
        return [value] if is_pixels(value) else list(value)
    return [value]


def clips_in(value: Any) -> list[Any]:
    """The clips of a cell: files, or lists of frames."""
    found = media_in(value)
    # Several pictures where clips are meant are the frames of one clip.
    return [found] if len(found) > 1 and all(map(_is_picture, found)) else found


def is_empty(cell: Any) -> bool:
    """Nothing, blank text, or a record whose every field is nothing."""
    if isinstance(cell, Mapping):
        return all(part is None for part in cell.values())
    return cell is None or (isinstance(cell, str | bytes) and not cell.strip())


def is_pixels(value: Any) -> bool:
    """Is this a picture as nested lists of numbers, [H][W] or [H][W][3]?"""
    if not _is_list(value) or not _is_list(value[0]):
        return False
    corner = value[0][0]
    if _is_list(corner):
        corner = corner[0]
    return isinstance(corner, int | float) and not isinstance(corner, bool)


def kind_of(cell: Any) -> str | None:
    """ "image" or "video" if a cell plainly holds or names such a file, as far as is seen without opening it."""
    if isinstance(cell, Mapping):
        parts = [cell.get(key) for key in ("bytes", "path", *MEDIA_KEYS, "url")]
        # Once more and no deeper: {"image_url": {"url": …}} is known, and a row may be nested without end.
        parts += [part.get("url") for part in parts if isinstance(part, Mapping)]
        flat = [part for part in parts if not isinstance(part, Mapping)]
        return next((kind for part in flat if (kind := kind_of(part))), None)
    if isinstance(cell, bytes | bytearray):
        return next((kind for kind, pattern in MAGIC.items() if pattern.match(cell)), None)
    if isinstance(cell, str):
        return _kind_of_text(cell)
    is_image = isinstance(cell, Image.Image | np.ndarray) or is_pixels(cell)
    return "image" if is_image else None


def picture_in(value: Any) -> Any:
    """Nested numbers as uint8 [H, W] or [H, W, C], any other cell as it is.

    Raises `Fault` if the numbers are ragged, broken or beyond 0 to 255.
    """
    if not is_pixels(value):
        return value
    try:
        pixels = np.asarray(value)
        in_range = pixels.dtype.kind in "iu" and pixels.min() >= 0 and pixels.max() <= 255
    except ValueError:
        in_range = False
    if not in_range:
        found = "nested numbers that are ragged, broken or beyond 0 to 255"
        raise Fault("broken image", found, "Give whole numbers [H][W][3], or an encoded file.")
    return pixels.astype(np.uint8)


def medium_of_part(part: Mapping[str, Any]) -> tuple[str, Any] | None:
    """("image" or "video", what the part holds, None for a bare placeholder); None if the part shows nothing."""
    kind = part.get("type")
    if kind is None:
        # Qwen's own chats name the kind by the key alone.
        kind = next((key for key in MEDIA_KEYS if not is_empty(part.get(key))), None)
    medium = _MEDIUM_OF.get(kind) if isinstance(kind, str) else None
    if medium is None:
        return None
    for key in KEYS:
        cell = part.get(key)
        if not is_empty(cell):
            return medium, _inner(key, cell)
    return medium, None


_MEDIUM_OF = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "input_video": "video",
}


def _kind_of_text(text: str) -> str | None:
    """What a path, a link or a data URI names."""
    for kind in ("image", "video"):
        if text.startswith(f"data:{kind}/"):
            return kind
    # Names of files are short; a question that ends in "a.png?" has a question mark there.
    name = text.partition("?")[0] if "://" in text else text
    if not 0 < len(name) <= 1000 or "\n" in name:
        return None
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "image" if suffix in IMAGE_SUFFIXES else None


def _inner(key: str, cell: Any) -> Any:
    """A part's medium without the record around it."""
    if key == "source" and isinstance(cell, Mapping):  # {"type": "base64", "data": …}
        return _as_uri(cell.get("media_type"), cell.get("data")) or cell.get("url")
    if key in ("base64", "data") and isinstance(cell, str):
        return cell if cell.startswith("data:") else _as_uri(None, cell)
    return cell


def _as_uri(kind: Any, text: Any) -> str | None:
    """Base64 that says of itself what it is, so that nobody takes it for a path."""
    return f"data:{kind or 'image/*'};base64,{text}" if isinstance(text, str) else None


def _unpacked(value: Any) -> Any:
    """Arrays and tuples as lists, JSON text as what it says."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str):
        return from_json(value)
    return value


def _turns_of_mapping(value: Mapping[str, Any]) -> list[Any] | None:
    """One turn, or turns stored as one list per key."""
    for role, content in TURN_KEYS:
        roles, contents = value.get(role), value.get(content)
        if isinstance(roles, str):
            return [value]
        if isinstance(roles, list) and isinstance(contents, list):
            pairs = zip(roles, contents, strict=False)
            return [{role: who, content: what} for who, what in pairs]
    return None


def _is_turn(turn: Any) -> bool:
    if not isinstance(turn, Mapping):
        return False
    return any(role in turn and content in turn for role, content in TURN_KEYS)


def _record(turn: Any) -> Any:
    """An Arrow map, which is a list of pairs, as the mapping it stands for."""
    is_map = isinstance(turn, list) and all(isinstance(pair, tuple) for pair in turn)
    return dict(turn) if is_map and turn else turn


def _records(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Records of media that are stored as one list per key; empty if this is one record."""
    columns = {key: value[key] for key in ("bytes", "path") if key in value}
    if not columns or not all(isinstance(cells, list) for cells in columns.values()):
        return []
    # A list of numbers is the content of one file.
    if any(isinstance(part, int) for part in columns.get("bytes", ())[:1]):
        return []
    rows = zip_longest(*columns.values())
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


def _is_picture(cell: Any) -> bool:
    return kind_of(cell) == "image"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0
