"""One image, wherever a row holds it, as a uint8 tensor.

A cell may hold a path, the bytes of a file, a {"bytes", "path"} record (the way `datasets` stores images), a PIL image,
a uint8 array [H, W] or [H, W, 3], a data URI, or plain base64. What the bytes become is decided in
`mmrl.ground.images`; here they are found, and what is wrong with them becomes a `Fault` of the row: nothing there,
URLs, broken or too large files, and value ranges that cannot be told.

1. 16-bit grey is scaled by its full range (value / 257), so a 12-bit picture stored in 16 bits stays dark.
2. Float grey in [0, 1] is scaled by 255; float grey in [0, 255] is taken as it is.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrl.ground.faults import BadMedia, Fault, encodable, shown
from mmrl.ground.files import (
    FILE_TOO_LARGE,
    LARGEST_FILE,
    NOT_A_FILE,
    UNREADABLE,
    open_regular,
    regular_size,
)
from mmrl.ground.grey import ODD_GREY
from mmrl.ground.images import (
    EMPTY,
    NO_IMAGE,
    TOO_LARGE,
    decode_image,
    image_pixels,
)
from mmrl.ground.roots import Root

# Possessive (`+` behind a count): a long text is read once, whatever it ends with.
BASE64 = re.compile(r"(/9j/|iVBOR|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]{60,}+={0,2}+\s*+")
"""Bare base64 is told from a path by the first bytes of JPEG, PNG, GIF, WebP, BMP and TIFF."""
MEND = "Replace the file or drop the row."


def read_image(cell: Any, root: Root | Path | None = None) -> Tensor:
    """Decode a cell to uint8 RGB [1, 3, H, W]. Raises `Fault`.

    Relative paths start at `root`, and no path may leave it; without a root any file may be named.
    """
    if isinstance(cell, np.ndarray):
        return _as_frame(_array_pixels(cell))
    try:
        if isinstance(cell, Image.Image):
            return _as_frame(image_pixels(cell, "a PIL image"))
        held = _held_by(cell)
        if isinstance(held, str):
            path = media_path(held, root)
            # The open file rather than its bytes: a large one is then never in memory whole.
            with open_regular(path, LARGEST_FILE) as file:
                return _as_frame(decode_image(file, str(path)))
        return _as_frame(decode_image(*held))
    except BadMedia as bad:
        raise _as_fault(bad) from None


def media_path(cell: str, root: Root | Path | None = None) -> Path:
    """The existing, non-empty file that a cell names. Raises `Fault`."""
    if re.match(r"(https?|s3|gs|hf)://", cell):
        raise Fault(
            "remote media", f"{shown(cell)} is a URL", "Download the file and give its path."
        )
    path = Root.of(root).path(cell)
    try:
        size = regular_size(path)
    except BadMedia as bad:
        found = f"{shown(str(path), 200)} is not a file ({bad.detail})"
        fix = (
            "Check the path; relative paths start at the data file's folder unless --data.image-root "
            "(image_root=) names another."
        )
        raise Fault("missing media", found, fix) from None
    if size == 0:
        raise Fault("broken image", f"{path} is empty", MEND)
    return path


def _held_by(cell: Any) -> str | tuple[bytes, str]:
    """What a cell holds: the text of a path, or the encoded bytes and a name for messages. Raises `Fault`."""
    name = "embedded image"
    if isinstance(cell, Mapping):
        if cell.get("bytes") is not None:
            path = cell.get("path")
            named = path if isinstance(path, str) and path else name
            return _as_bytes(cell["bytes"]), encodable(named)
        cell = _named_medium(cell)
        if isinstance(cell, Mapping) and cell.get("bytes") is not None:
            return _as_bytes(cell["bytes"]), name  # {"image": {"bytes", "path"}}
        if isinstance(cell, Mapping):
            cell = _named_medium(cell)
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell), name
    if isinstance(cell, Path):
        return str(cell)
    if not isinstance(cell, str) or not cell.strip():
        allowed = "a path, bytes, {'bytes', 'path'}, a PIL image, a data URI or base64"
        raise Fault(
            "missing media", f"found {shown(cell)} where an image should be", f"Give {allowed}."
        )
    if _is_inline(cell):
        return _inline_bytes(cell), name
    return cell


def _as_bytes(value: Any) -> bytes:
    """What stands under "bytes": bytes, numbers from 0 to 255 (as JSON has them), or base64. Raises `Fault`."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str) and _is_inline(value):
        return _inline_bytes(value)
    # Nothing else: of a number `bytes` makes as many zeros.
    if isinstance(value, list | tuple):
        try:
            return bytes(value)
        except (TypeError, ValueError):
            pass  # a list of something else
    fix = "Store the bytes of the file (in JSON: base64, or a list of numbers from 0 to 255)."
    raise Fault("broken image", f"'bytes' holds {shown(value)}", fix)


def check_image(cell: Any, root: Root | Path | None = None) -> None:
    """What can be known without decoding: a path must name a non-empty file, text must be a path or base64."""
    if isinstance(cell, Image.Image | np.ndarray):
        return
    # Base64 is not decoded here: of a million rows that is an hour.
    if isinstance(cell, str) and _is_inline(cell):
        return
    held = _held_by(cell)
    if isinstance(held, str):
        media_path(held, root)
    elif not held[0]:
        raise Fault(
            "missing media", "the image has no bytes", "Give the image or drop the row."
        )


def _named_medium(cell: Mapping[str, Any]) -> Any:
    """What a record without bytes points to; None if nothing."""
    for key in ("path", "url", "image"):
        if cell.get(key) is not None and cell[key] != "":
            return cell[key]
    return None


def _is_inline(text: str) -> bool:
    """Is this a data URI or bare base64, rather than a path?"""
    return text.startswith("data:") or BASE64.fullmatch(text) is not None


def _inline_bytes(text: str) -> bytes:
    """The bytes in a data URI or in bare base64."""
    head, body = "", text
    if text.startswith("data:"):
        head, _, body = text.partition(",")
    try:
        if head and (";base64" not in head or head == text):
            raise binascii.Error("no ';base64,' in its head")
        unbroken = "".join(body.split())  # base64 of mails and notebooks is wrapped
        return base64.b64decode(unbroken, validate=True)
    except binascii.Error as error:
        found = f"{shown(text, 60)} is not base64 ({error})"
        raise Fault("broken image", found, MEND) from None


def _as_fault(bad: BadMedia) -> Fault:
    """The fault of a row whose picture was refused."""
    where, detail = bad.where, bad.detail
    if bad.reason in (TOO_LARGE, FILE_TOO_LARGE):
        return Fault("image too large", f"{where}: {detail}", "Scale it down or drop the row.")
    if bad.reason in (NOT_A_FILE, UNREADABLE):
        fix = "Check the path and its permissions."
        return Fault("missing media", f"{where} cannot be read ({detail})", fix)
    if bad.reason == ODD_GREY:
        fix = "Save it as 8-bit or 16-bit grey, or as float in [0, 1]."
        return Fault("broken image", f"{where} has {detail}", fix)
    said = {EMPTY: "is empty", NO_IMAGE: f"is not an image ({detail})"}
    found = said.get(bad.reason, f"cannot be decoded ({detail})")
    return Fault("broken image", f"{where} {found}", MEND)


def _as_frame(rgb: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] as [1, 3, H, W]."""
    planes = torch.from_numpy(rgb).permute(2, 0, 1)
    return planes[None].contiguous()


def _array_pixels(array: np.ndarray) -> np.ndarray:
    """A uint8 array [H, W] or [H, W, 3] as [H, W, 3] in memory of its own."""
    is_grey = array.ndim == 2
    is_rgb = array.ndim == 3 and array.shape[2] == 3
    if array.dtype != np.uint8 or not (is_grey or is_rgb) or not array.size:
        found = f"an array of {array.dtype} with shape {array.shape}"
        fix = "Give uint8 RGB with shape [H, W, 3] or grey with [H, W]."
        raise Fault("broken image", found, fix)
    rgb = np.repeat(array[..., None], 3, axis=2) if is_grey else array
    return np.array(rgb)  # a copy: the row keeps its array
