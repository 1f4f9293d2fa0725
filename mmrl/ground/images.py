"""One image to pixels, for everybody: upright 8-bit RGB as a NumPy array, or refused with a reason.

Of the formats in `FORMATS` whatever Pillow reads becomes uint8 [H, W, 3]: grey, palette, CMYK, 16-bit, float; EXIF
orientation applied, transparency laid over white, the first frame of an animation. `BadMedia` is raised for what is
empty, truncated, of another kind or format, or above `MAX_PIXELS`; the size is checked before anything is decoded.

1. CMYK is converted without a colour profile, as Pillow does.
2. How grey deeper than 8 bits becomes 8 bits is the caller's choice (`mmrl.ground.grey`).
3. Pictures come from anywhere, so the memory is bounded: below twice what the largest picture takes in Pillow (4 bytes
   a pixel). Conversions go block by block, and formats whose decoders need more have a smaller limit (`DECODER_BYTES`).
4. What a decoder says is cut before anything that it quotes: a file that is no picture may be somebody's secret.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image

from mmrl.ground.faults import BadMedia
from mmrl.ground.grey import Grey, GreyRange, grey_by_type

MAX_PIXELS = 120_000_000
"""A larger picture is taken for a decompression bomb."""
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is read: formats that are nothing but pictures and are decoded in this process. Not among them: PostScript,
which starts another program, and formats that hold whole files of other formats."""
DECODER_BYTES = {
    "WEBP": 17,
    "AVIF": 24,
    "JPEG2000": 26,
    "TIFF": 13,
    "progressive": 12,
    "interpreted": 96,
}
"""Bytes a pixel that a decoder needs at its worst, where that is more than 8. "interpreted": decoders that Pillow has
in Python are slow as well, and the bound is on their time."""
INTERPRETED = ("ppm", "ppm_plain", "bmp_rle")
"""Pillow's names of those decoders."""
LARGEST_WHOLE = 64 << 20
"""Bytes of a file whose decoder reads all of it before it looks at the size."""
MAX_SCANS = 200
"""Passes over the picture that one JPEG may ask for; encoders write about ten."""
MAX_TILE = 1 << 24
"""Pixels of one tile of a TIFF."""
BLOCK_WIDTH, BLOCK_PIXELS = 1 << 14, 1 << 20
"""Pixels that are converted at a time, in one row and in all."""
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
"""Pillow's modes with a channel of transparency."""
EMPTY, NO_IMAGE, TOO_LARGE = "empty file", "not an image", "too many pixels"
"""Reasons of `BadMedia` beside "broken image", whose detail says what the decoder found."""

_TILE_WIDTH, _TILE_HEIGHT, _ORIENTATION = 322, 323, 274
"""Tags of TIFF and EXIF."""
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda rows: rows[:, ::-1],
    3: lambda rows: rows[::-1, ::-1],
    4: lambda rows: rows[::-1],
    5: lambda rows: rows.swapaxes(0, 1),
    6: lambda rows: rows.swapaxes(0, 1)[:, ::-1],
    7: lambda rows: rows[::-1, ::-1].swapaxes(0, 1),
    8: lambda rows: rows.swapaxes(0, 1)[::-1],
}
"""How an EXIF orientation is undone."""


def decode_image(
    content: bytes | BinaryIO,
    where: str,
    *,
    longest: int | None = None,
    grey: Grey = grey_by_type,
) -> np.ndarray:
    """The picture in the bytes of a file, or in an open file: uint8 [H, W, 3]. Raises BadMedia.

    `longest` bounds the longer side in pixels; a large JPEG is then reduced while it is decoded.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    # Not kept in a variable: the decoded picture is given up as soon as its pixels are copied.
    return image_pixels(open_image(file, where), where, longest=longest, grey=grey)


def open_image(file: BinaryIO, where: str, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """A picture of one of the formats, its size checked and its pixels not yet decoded. Raises BadMedia."""
    with refusals(where):
        head, size = file.read(512), file.seek(0, io.SEEK_END)
        file.seek(0)
        if not head or (size == len(head) and head.isspace()):
            raise BadMedia(where, EMPTY)
        if size > LARGEST_WHOLE and (head[8:12] == b"WEBP" or head[4:8] == b"ftyp"):
            raise BadMedia(where, TOO_LARGE, f"a file of {size} bytes")
        if head.startswith(b"\xff\xd8"):
            _check_scans(file, where)
        try:
            image = Image.open(file, formats=_readable(*formats))
        except Image.UnidentifiedImageError:
            raise BadMedia(where, NO_IMAGE, _guess(head, size)) from None
        check_size(image, where)
        return image


def image_pixels(
    image: Image.Image, where: str, *, longest: int | None = None, grey: Grey = grey_by_type
) -> np.ndarray:
    """An opened picture of Pillow's as uint8 [H, W, 3] in memory of its own. Raises BadMedia."""
    with refusals(where):
        # A picture that was made rather than opened has no format.
        if image.format is not None and image.format not in FORMATS:
            raise BadMedia(where, NO_IMAGE, f"{image.format} is not read; {_allowed()}")
        check_size(image, where)
        if image.tell():  # a picture that the caller has moved on
            image.seek(0)
        # Only JPEG can be decoded at a fraction of its size. MPO is JPEG with further pictures behind the first.
        is_jpeg = image.format in ("JPEG", "MPO")
        if is_jpeg and longest is not None and max(image.size) > 2 * longest:
            image.draft("RGB", (longest, longest))
        image.load()
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
        reduce = longest is not None and max(image.size) > longest
        if reduce and turn is None and _is_plain_rgb(image):
            return _reduced(image, longest or 0)
        rows = _rgb_rows(image, where, grey)
        del image  # half of the memory, if nobody else holds it
        if turn is not None:
            # Turned last: its pixels are fewest bytes here.
            rows = np.ascontiguousarray(turn(rows))
        return _reduced(Image.fromarray(rows), longest or 0) if reduce else rows


def check_size(image: Image.Image, where: str) -> None:
    """Raises BadMedia if a picture, not yet decoded, promises more than is allowed for its format, or none."""
    width, height = image.size
    most = most_pixels(_kind_of(image))
    if width * height > most:
        raise BadMedia(where, TOO_LARGE, f"{width} x {height} pixels, at most {most}")
    if width * height == 0:
        raise BadMedia(where, "broken image", f"{width} x {height} pixels")
    tags = getattr(image, "tag_v2", {})
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))
    if tile > MAX_TILE:
        raise BadMedia(where, TOO_LARGE, f"{tile} pixels in one tile")


def most_pixels(kind: str | None) -> int:
    """How many pixels a picture may have whose format or decoder this is: decoding it must stay within the memory."""
    # Twice the largest picture, at Pillow's 4 bytes a pixel.
    return min(MAX_PIXELS, 8 * MAX_PIXELS // DECODER_BYTES.get(kind or "", 8))


def _kind_of(image: Image.Image) -> str | None:
    """The format, or what costs more than other pictures of the format."""
    # The coefficients of all passes over a progressive JPEG are kept until the last.
    if image.info.get("progression"):
        return "progressive"
    decoders = [piece[0] for piece in getattr(image, "tile", ())]
    return "interpreted" if any(name in INTERPRETED for name in decoders) else image.format


@contextmanager
def refusals(where: str, reason: str = "broken image") -> Iterator[None]:
    """Whatever a decoder raises becomes a BadMedia."""
    try:
        yield
    except BadMedia:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadMedia(where, TOO_LARGE, "a decompression bomb") from None
    except MemoryError:
        raise BadMedia(where, TOO_LARGE, "out of memory") from None
    except Exception as error:  # Pillow's decoders raise many kinds on broken files
        raise BadMedia(where, reason, unquoted(error)) from None


def unquoted(error: Exception) -> str:
    """The kind of an error and what it says, up to the first thing that it may quote from a file."""
    said = re.split(r"[:'\"`<]", str(error), maxsplit=1)[0].strip()
    # Some messages are bytes, of which the text begins with the quotation mark.
    if not said or str(error).startswith(("b'", 'b"')):
        return type(error).__name__
    return f"{type(error).__name__}: {said}"[:100]


def _reduced(image: Image.Image, longest: int) -> np.ndarray:
    """The picture with its longer side at `longest`, uint8 [H, W, 3]."""
    scale = longest / max(image.size)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    # The gap: first by a whole factor to about twice the size, which is much faster and still smooth.
    smaller = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.array(smaller)


def _rgb_rows(image: Image.Image, where: str, grey: Grey) -> np.ndarray:
    """A loaded picture of any mode as uint8 [H, W, 3]."""
    rows = np.empty((image.height, image.width, 3), dtype=np.uint8)
    levels = grey(_grey_range(image), where) if _is_deep(image) else None
    for left, top, block in _blocks(image):
        if levels is None:
            pixels = _as_rgb(block)
        else:
            pixels = levels(np.asarray(block))[..., None]  # [h, w, 1]: three equal colours
        rows[top : top + block.height, left : left + block.width] = pixels
    return rows


def _blocks(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """The picture in pieces: column and row where each begins, and the piece."""
    width = min(image.width, BLOCK_WIDTH)
    height = BLOCK_PIXELS // width
    for top in range(0, image.height, height):
        for left in range(0, image.width, width):
            right, bottom = min(left + width, image.width), min(top + height, image.height)
            yield left, top, image.crop((left, top, right, bottom))


def _grey_range(image: Image.Image) -> GreyRange:
    low, high, top, finite, is_float = np.inf, -np.inf, -np.inf, False, False
    for _, _, block in _blocks(image):
        values = np.asarray(block)
        is_float = values.dtype.kind == "f"
        low = np.minimum(low, values.min())  # both keep NaN
        high = np.maximum(high, values.max())
        if np.isfinite(values).any():
            finite = True
            top = max(top, float(np.nanmax(values)))
    return GreyRange(float(low), float(high), float(top) if finite else 0.0, is_float)


def _is_deep(image: Image.Image) -> bool:
    """Grey of more than 8 bits? Pillow clips it to 255 when it converts it itself."""
    return image.mode.startswith("I") or image.mode == "F"


def _is_plain_rgb(image: Image.Image) -> bool:
    return image.mode == "RGB" and "transparency" not in image.info


def _as_rgb(image: Image.Image) -> np.ndarray:
    """A block of a mode of 8 bits as uint8 [h, w, 3]."""
    # "transparency" marks one colour of a palette, or one grey, as clear.
    if image.mode in WITH_ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        paper = Image.new("RGBA", layer.size, "white")
        return np.asarray(Image.alpha_composite(paper, layer).convert("RGB"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _check_scans(file: BinaryIO, where: str) -> None:
    """Refuse a JPEG that is small, yet asks for thousands of passes over a large picture."""
    scans, last = 0, b""
    while piece := file.read(1 << 20):
        scans += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    file.seek(0)
    if scans > MAX_SCANS:
        raise BadMedia(where, "broken image", f"{scans} scans, at most {MAX_SCANS}")


@cache
def _readable(*formats: str) -> tuple[str, ...]:
    """Those of the formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in formats if name in Image.OPEN)


_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the real file with `git lfs pull`"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"DDS ", "a DDS texture"),
    (b"8BPS", "a Photoshop document"),
    (b"\0\0\x01\0", "an icon"),
    (b"\x1aE\xdf\xa3", "a Matroska video"),
)


def _guess(head: bytes, size: int) -> str:
    """What a file that is no image seems to be. Nothing of its content is said."""
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return f"{name}; {_allowed()}" if "git" not in name else name
    if re.match(rb"\s*<(!doctype|html|\?xml|svg)", head, re.IGNORECASE):
        return "a web page or XML"
    if head[4:8] == b"ftyp":
        return f"a video, or a picture of another kind in such a container; {_allowed()}"
    if head.isascii() and not re.search(rb"[\x00-\x08]", head):
        return f"text of {size} bytes"
    return f"{size} bytes of another kind; {_allowed()}"


def _allowed() -> str:
    return f"allowed are {', '.join(FORMATS)}"
