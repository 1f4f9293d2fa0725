"""One image to pixels, for everybody: upright 8-bit RGB as a NumPy array, or refused with a reason.

Whatever Pillow reads becomes uint8 [H, W, 3]: grey, palette, CMYK, 16-bit, float; EXIF orientation applied,
transparency laid over white, the first frame of an animation. `BadMedia` is raised for what is empty, truncated, of
another kind, or above `MAX_PIXELS`; the size is checked before anything is decoded.

1. CMYK is converted without a colour profile, as Pillow does.
2. How grey deeper than 8 bits becomes 8 bits is the caller's choice: `grey_by_type` keeps a dark picture dark,
   `grey_by_range` makes the most of what is there and refuses nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from mmrl.ground.faults import BadMedia, shown

MAX_PIXELS = 120_000_000
"""A larger picture is taken for a decompression bomb."""
PLAIN_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Formats that are nothing but pictures: no PostScript or other interpreters."""
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
"""Pillow's modes with a channel of transparency."""
EMPTY, NO_IMAGE, TOO_LARGE, ODD_GREY = (
    "empty file",
    "not an image",
    "too many pixels",
    "odd grey values",
)
"""Reasons of `BadMedia` beside "broken image", whose detail says what the decoder found."""

Grey = Callable[[np.ndarray, str], np.ndarray]
"""Deep grey [H, W] and a name for messages -> uint8 [H, W]."""


def grey_by_type(values: np.ndarray, where: str) -> np.ndarray:
    """Integers fill 16 bits, so a 12-bit picture stays dark; floats fill [0, 1], [0, 255] or 16 bits. Raises BadMedia
    for values outside of 0 to 65535, and for NaN."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # written so that NaN fails too
        raise BadMedia(where, ODD_GREY, f"grey values from {low:g} to {high:g}")
    scale = 1 / 257
    if values.dtype.kind == "f" and high <= 255:
        scale = 255.0 if high <= 1 else 1.0
    levels = np.rint(values * scale)
    return np.clip(levels, 0, 255).astype(np.uint8)


def grey_by_range(values: np.ndarray, where: str) -> np.ndarray:
    """The brightest value decides which range is filled: 1, 255, 65535 or its own. NaN and negative values are 0."""
    values = values.astype(np.float32)
    top = 0.0
    if np.isfinite(values).any():
        top = float(np.nanmax(values))
    if top <= 1.0:
        scale = 255.0
    elif top <= 255:
        scale = 1.0
    else:
        scale = 255.0 / max(top, 65535.0)
    levels = np.nan_to_num(values) * scale
    return np.clip(levels, 0, 255).astype(np.uint8)  # cut off rather than rounded


def decode_image(
    content: bytes,
    where: str,
    *,
    longest: int | None = None,
    formats: tuple[str, ...] | None = None,
    grey: Grey = grey_by_type,
) -> np.ndarray:
    """The file's picture, uint8 [H, W, 3]. Raises BadMedia.

    `longest` bounds the longer side in pixels; a large JPEG is then reduced while it is decoded. `formats` are names of
    Pillow (default: all that it reads).
    """
    if not content or content.isspace():
        raise BadMedia(where, EMPTY)
    allowed = None if formats is None else _readable(*formats)
    with refusals(where):
        try:
            image = Image.open(io.BytesIO(content), formats=allowed)
        except Image.UnidentifiedImageError:
            raise BadMedia(where, NO_IMAGE, _guess(content)) from None
        return image_pixels(image, where, longest=longest, grey=grey)


def image_pixels(
    image: Image.Image, where: str, *, longest: int | None = None, grey: Grey = grey_by_type
) -> np.ndarray:
    """An opened picture of Pillow's as uint8 [H, W, 3] in memory of its own. Raises BadMedia."""
    with refusals(where):
        check_size(image, where)
        if image.tell():  # a picture that the caller has moved on
            image.seek(0)
        # Only JPEG can be decoded at a fraction of its size. MPO is JPEG with further pictures behind the first.
        is_jpeg = image.format in ("JPEG", "MPO")
        if is_jpeg and longest is not None and max(image.size) > 2 * longest:
            image.draft("RGB", (longest, longest))
        image.load()
        # Turned first: most conversions lose the metadata that says how.
        rgb = _as_rgb(ImageOps.exif_transpose(image), where, grey)
        if longest is not None and max(rgb.size) > longest:
            scale = longest / max(rgb.size)
            width = max(1, round(rgb.width * scale))
            height = max(1, round(rgb.height * scale))
            # The gap: first by a whole factor to about twice the size, which is much faster and still smooth.
            rgb = rgb.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        return np.array(rgb)


def check_size(image: Image.Image, where: str) -> None:
    """Raises BadMedia if a picture, not yet decoded, promises more than `MAX_PIXELS`, or none."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadMedia(where, TOO_LARGE, f"{width} x {height} pixels")
    if width * height == 0:
        raise BadMedia(where, "broken image", f"{width} x {height} pixels")


@contextmanager
def refusals(where: str, reason: str = "broken image") -> Iterator[None]:
    """Whatever a decoder raises becomes a BadMedia."""
    try:
        yield
    except BadMedia:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadMedia(where, TOO_LARGE, str(error)) from None
    except MemoryError:
        raise BadMedia(where, TOO_LARGE, "out of memory") from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise BadMedia(where, reason, f"{type(error).__name__}: {error}"[:200]) from None


def _as_rgb(image: Image.Image, where: str, grey: Grey) -> Image.Image:
    """Convert any mode to RGB."""
    # Pillow clips these modes to 255 when it converts them itself.
    if image.mode.startswith("I") or image.mode == "F":
        levels = grey(np.asarray(image), where)
        return Image.fromarray(levels).convert("RGB")
    # "transparency" marks one colour of a palette, or one grey, as clear.
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(paper, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


@cache
def _readable(*formats: str) -> tuple[str, ...]:
    """Those of the formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


def _guess(content: bytes) -> str:
    """What a file that is no image seems to be."""
    head = content[:200]
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the real file with `git lfs pull`"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "a web page or XML"
    if head.isascii() and not re.search(rb"[\x00-\x08]", head):
        return f"text that begins with {shown(head[:30].decode())}"
    return f"{len(content)} bytes that begin with {head[:8].hex(' ')}"
