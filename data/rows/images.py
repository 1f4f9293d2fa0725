"""One image, wherever it comes from, as uint8 RGB.

A cell may hold a path, the bytes of a file, a {"bytes", "path"} record (the way `datasets` stores images), a PIL image,
a uint8 array [H, W] or [H, W, 3], a data URI, or plain base64. The result is upright (EXIF orientation applied), 8-bit
RGB, transparency laid over white, and the first frame of an animation. Refused with a reason: empty, truncated or
unknown files, URLs, pictures above `MAX_PIXELS`, and value ranges that cannot be told.

1. 16-bit grey is scaled by its full range (value / 257), so a 12-bit picture stored in 16 bits stays dark.
2. CMYK is converted without a colour profile, as Pillow does.
3. Float grey in [0, 1] is scaled by 255; float grey in [0, 255] is taken as it is.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmrl.ground.faults import Fault, shown

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
"""A larger picture is taken for a decompression bomb."""
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".avif",
    ".jp2",
)
BASE64 = re.compile(r"(/9j/|iVBOR|R0lGOD|UklGR|Qk|SUkq|TU0A)[A-Za-z0-9+/\s]{60,}={0,2}\s*")
"""Bare base64 is told from a path by the first bytes of JPEG, PNG, GIF, WebP, BMP and TIFF."""
MEND = "Replace the file or drop the row."


def read_image(cell: Any, root: Path | None = None) -> Tensor:
    """Decode a cell to uint8 RGB [1, 3, H, W]; relative paths start at `root`. Raises `Fault`."""
    from PIL import Image

    if isinstance(cell, Image.Image):
        return _pixels(cell, "a PIL image")
    if isinstance(cell, np.ndarray):
        return _array_pixels(cell)
    data, name = file_bytes(cell, root)
    if not data.strip():
        raise Fault("broken image", f"{name} is empty", MEND)
    try:
        return _pixels(Image.open(io.BytesIO(data)), name)
    except Fault:
        raise
    except Image.UnidentifiedImageError:
        raise Fault("broken image", f"{name} is not an image ({_guess(data)})", MEND) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Fault(
            "image too large", f"{name}: {error}", f"Scale it below {MAX_PIXELS} pixels."
        ) from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        struct.error,
        EOFError,
        KeyError,
        IndexError,
    ) as error:
        raise Fault("broken image", f"{name} cannot be decoded ({error})", MEND) from None


def file_bytes(cell: Any, root: Path | None = None) -> tuple[bytes, str]:
    """The encoded bytes of a cell and a name for messages. Raises `Fault`."""
    if isinstance(cell, Mapping):
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"]), str(cell.get("path") or "embedded image")
        cell = next((cell[key] for key in ("path", "url", "image") if cell.get(key)), None)
        if isinstance(cell, Mapping):
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
    inline = _decode_text(cell)
    if inline is not None:
        return inline, "embedded image"
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
    except (OSError, ValueError):
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
        cell = next((cell[key] for key in ("path", "url", "image") if cell.get(key)), None)
    if isinstance(cell, str | Path) and _decode_text(str(cell), decode=False) is None:
        media_path(str(cell), root)
    elif cell is None or cell in ("", b""):
        raise Fault(
            "missing media",
            f"found {shown(cell)} where an image should be",
            "Give the image or drop the row.",
        )


def _decode_text(text: str, *, decode: bool = True) -> bytes | None:
    """The bytes of a data URI or of bare base64; None if the text is neither (so a path)."""
    head, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    if not head and not BASE64.fullmatch(text):
        return None
    if not decode:
        return b""
    try:
        if head and (not comma or ";base64" not in head):
            raise binascii.Error("no ';base64,' in its head")
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error as error:
        raise Fault(
            "broken image", f"{shown(text, 60)} is not base64 ({error})", MEND
        ) from None


def _pixels(image: Image.Image, name: str) -> Tensor:
    """Upright 8-bit RGB of the first frame, uint8 [1, 3, H, W]."""
    from PIL import ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        limit = f"Scale it below {MAX_PIXELS} pixels."
        raise Fault("image too large", f"{name} has {width} x {height} pixels", limit)
    if width * height == 0:
        raise Fault("broken image", f"{name} has {width} x {height} pixels", MEND)
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    image.load()
    rgb = np.array(_to_rgb(ImageOps.exif_transpose(image), name))  # [H, W, 3], own memory
    return torch.from_numpy(rgb).permute(2, 0, 1)[None].contiguous()


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey_8bit(np.asarray(image), name)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_8bit(values: np.ndarray, name: str) -> np.ndarray:
    """16-bit, 32-bit or float grey [H, W] as uint8."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):
        fix = "Save it as 8-bit or 16-bit grey, or as float in [0, 1]."
        raise Fault("broken image", f"{name} has grey values from {low:g} to {high:g}", fix)
    if values.dtype.kind == "f":
        scale = 255.0 if high <= 1 else (1.0 if high <= 255 else 1 / 257)
    else:
        scale = 1 / 257
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def _array_pixels(array: np.ndarray) -> Tensor:
    """A uint8 array [H, W] or [H, W, 3] as [1, 3, H, W]."""
    if (
        array.dtype != np.uint8
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3))
        or not array.size
    ):
        found = f"an array of {array.dtype} with shape {array.shape}"
        raise Fault(
            "broken image", found, "Give uint8 RGB with shape [H, W, 3] or grey with [H, W]."
        )
    rgb = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].contiguous()


def _guess(data: bytes) -> str:
    """What a file that is no image seems to be."""
    head = data[:200]
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the real file with `git lfs pull`"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "a web page or XML"
    if head.isascii() and not re.search(rb"[\x00-\x08]", head):
        return f"text that begins with {shown(head[:30].decode())}"
    return f"{len(data)} bytes that begin with {head[:8].hex(' ')}"
