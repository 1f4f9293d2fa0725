"""Pixels as data URIs for a page, small enough to be many.

Only what these functions write is ever shown: `is_picture` refuses any other text that a file may hold in its place.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

LARGEST_PNG = 128 * 128
"""Pixels up to which a picture is kept without loss: small ones are tiles and icons whose borders matter."""
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")


def data_uri(pixels: np.ndarray, quality: int = 88) -> str:
    """A PNG (small) or JPEG (large) data URI of uint8 [H, W, 3]."""
    small = pixels.shape[0] * pixels.shape[1] <= LARGEST_PNG
    kind = "png" if small else "jpeg"
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.save(buffer, kind.upper(), quality=quality)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{encoded}"


def is_picture(text: object) -> bool:
    """Is this a data URI of pixels? Drawings that hold scripts or links, and addresses, are none."""
    return isinstance(text, str) and _PICTURE.fullmatch(text) is not None


def reduced(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The picture uint8 [H, W, 3] with at most `longest` pixels on its longer side."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def spread(count: int, most: int) -> list[int]:
    """At most `most` places of `count`, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    places = np.linspace(0, count - 1, most).round()
    return [int(place) for place in places]


def strip(
    frames: np.ndarray, times: Sequence[float] | None, longest: int, most: int
) -> list[dict[str, object]]:
    """Frames uint8 [F, H, W, 3] as pictures with their times in seconds (None for a still), evenly chosen."""
    shown = []
    for place in spread(len(frames), most):
        time = None if times is None else round(float(times[place]), 2)
        uri = data_uri(reduced(frames[place], longest), quality=75)
        shown.append({"uri": uri, "time": time})
    return shown
