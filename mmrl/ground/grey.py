"""Grey pictures deeper than 8 bits, as 8 bits.

`grey_by_type` keeps a dark picture dark, `grey_by_range` makes the most of what is there and refuses nothing. Both look
at the range of the whole picture first; pixels are then converted piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmrl.ground.faults import BadMedia

ODD_GREY = "odd grey values"
"""Reason of `BadMedia`."""


@dataclass(frozen=True)
class GreyRange:
    """What values a deep grey picture holds."""

    low: float
    """NaN if any value is."""
    high: float
    top: float
    """The largest value, NaN left out; 0 if none is finite."""
    is_float: bool


Grey = Callable[[GreyRange, str], Callable[[np.ndarray], np.ndarray]]
"""The range of a deep grey picture and a name for messages -> what makes a block of it uint8."""


def grey_by_type(found: GreyRange, where: str) -> Callable[[np.ndarray], np.ndarray]:
    """Integers fill 16 bits, so a 12-bit picture stays dark; floats fill [0, 1], [0, 255] or 16 bits. Raises BadMedia
    for values outside of 0 to 65535, and for NaN."""
    if not (found.low >= 0 and found.high <= 65535):  # written so that NaN fails too
        detail = f"grey values from {found.low:g} to {found.high:g}"
        raise BadMedia(where, ODD_GREY, detail)
    scale = 1 / 257
    if found.is_float and found.high <= 255:
        scale = 255.0 if found.high <= 1 else 1.0

    def levels(values: np.ndarray) -> np.ndarray:
        rounded = np.rint(values * scale)
        return np.clip(rounded, 0, 255).astype(np.uint8)

    return levels


def grey_by_range(found: GreyRange, where: str) -> Callable[[np.ndarray], np.ndarray]:
    """The brightest value decides which range is filled: 1, 255, 65535 or its own. NaN and negative values are 0."""
    if found.top <= 1.0:
        scale = 255.0
    elif found.top <= 255:
        scale = 1.0
    else:
        scale = 255.0 / max(found.top, 65535.0)

    def levels(values: np.ndarray) -> np.ndarray:
        scaled = np.nan_to_num(values.astype(np.float32)) * scale
        return np.clip(scaled, 0, 255).astype(np.uint8)  # cut off rather than rounded

    return levels
