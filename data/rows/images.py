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

from mmrl.ground.faults import BadMedia, Fault, shown
from mmrl.ground.images import (
    EMPTY,
    MAX_PIXELS,
    NO_IMAGE,
    ODD_GREY,
    TOO_LARGE,
    decode_image,
    image_pixels,
)

BASE64 = re.compile(r"(/9j/|iVBOR|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]{60,}={0,2}\s*")
"""Bare base64 is told from a path by the first bytes of JPEG, PNG, GIF, WebP, BMP and TIFF."""
MEND = "Replace the file or drop the row."


def read_image(cell: Any, root: Path | None = None) -> Tensor:
    """Decode a cell to uint8 RGB [1, 3, H, W]; relative paths start at `root`. Raises `Fault`."""
    if isinstance(cell, np.ndarray):
        return _as_frame(_array_pixels(cell))
    try:
        if isinstance(cell, Image.Image):
            return _as_frame(image_pixels(cell, "a PIL image"))
        return _as_frame(decode_image(*file_bytes(cell, root)))
    except BadMedia as bad:
        raise _as_fault(bad) from None


def file_bytes(cell: Any, root: Path | None = None) -> tuple[bytes, str]:
    """The encoded bytes of a cell and a name for messages. Raises `Fault`."""
    if isinstance(cell, Mapping):
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"]), str(cell.get("path") or "embedded image")
        cell = _named_medium(cell)
        if isinstance(cell, Mapping):  # {"image": {"bytes", "path"}}
            return file_bytes(cell, root)
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell), "embedded image"
    if isinstance(cell, Path):
        cell = str(cell)
    if not isinstance(cell, str) or not cell.strip():
        allowed = "a path, bytes, {'bytes', 'path'}, a PIL image, a data URI or base64"
        raise Fault(
            "missing media", f"found {shown(cell)} where an image should be", f"Give {allowed}."
        )
    if _is_inline(cell):
        return _inline_bytes(cell), "embedded image"
    path = media_path(cell, root)
    try:
        return path.read_bytes(), str(path)
    except OSError as error:
        raise Fault(
            "missing media",
            f"{path} cannot be read ({error.strerror})",
            "Check its permissions.",
        ) from None


def media_path(cell: str, root: Path | None = None) -> Path:
    """The existing, non-empty file that a cell names. Raises `Fault`."""
    if re.match(r"(https?|s3|gs|hf)://", cell):
        raise Fault(
            "remote media", f"{shown(cell)} is a URL", "Download the file and give its path."
        )
    path = Path(cell.removeprefix("file://")).expanduser()
    path = path if path.is_absolute() or root is None else root / path
    try:
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        size = None
    if size is None:
        fix = "Check the path; relative paths start at the data file's folder unless image_root is given."
        raise Fault("missing media", f"{shown(str(path), 200)} is not a file", fix)
    if size == 0:
        raise Fault("broken image", f"{path} is empty", MEND)
    return path


def check_image(cell: Any, root: Path | None = None) -> None:
    """What can be known without decoding: a path must name a non-empty file, text must be a path or base64."""
    if isinstance(cell, Mapping) and cell.get("bytes") is None:
        cell = _named_medium(cell)
    # Base64 is not decoded here: of a million rows that is an hour.
    if isinstance(cell, str | Path) and not _is_inline(str(cell)):
        media_path(str(cell), root)
    elif cell is None or cell in ("", b""):
        raise Fault(
            "missing media",
            f"found {shown(cell)} where an image should be",
            "Give the image or drop the row.",
        )


def _named_medium(cell: Mapping[str, Any]) -> Any:
    """What a record without bytes points to; None if nothing."""
    for key in ("path", "url", "image"):
        if cell.get(key):
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
    if bad.reason == TOO_LARGE:
        return Fault(
            "image too large", f"{where}: {detail}", f"Scale it below {MAX_PIXELS} pixels."
        )
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
