"""Where a crop is cut: from what a model writes to pixels of the picture as it was before it was shown smaller.

One axis at a time: a place v on an axis of length n as the model knows it, of N pixels in truth, is v·N / n, truncated.

    shown         pixels of the picture as it was shown (Qwen2.5-VL)
    normalised    shares of the sides, 0 to 1
    thousandths   0 to 1000 (Qwen3-VL)
    either        shares where all four numbers are at most 1, else pixels as shown (VerlTool)

Padding adds a share of the true side, at most so many pixels, on each side; then all is clipped to the picture.

Departure: VerlTool reads shares only where all numbers are below 1, so that its box of the whole picture, [0, 0, 1, 1],
means one pixel; no other box changes its meaning. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mmrl.tools.tool import BadAction

Coordinates = Literal["shown", "normalised", "thousandths", "either"]
Size = tuple[int, int]
"""Height and width."""
Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, the ends exclusive."""


def cut_box(
    corners: Sequence[float],
    size: Size,
    shown: Size,
    coordinates: Coordinates = "shown",
    padding: float = 0.0,
    most: int = 600,
    grow: float = 0.0,
) -> Box:
    """The box [x0, y0, x1, y1] that is cut out of a picture of true size `size` that was shown in size `shown`.

    `grow`: added on each side, in the units of the corners. Raises BadAction for what is no box within the picture.
    """
    x0, y0, x1, y1 = corners
    if min(corners) < 0:
        raise BadAction(f"The box {list(corners)} has negative numbers.")
    if x0 >= x1 or y0 >= y1:
        raise BadAction(
            f"The box {list(corners)} is empty; give [x0, y0, x1, y1] with x0 < x1 and y0 < y1."
        )
    height, width = lengths(corners, shown, coordinates)
    left, right = _span(x0 - grow, x1 + grow, width, size[1], padding, most)
    top, bottom = _span(y0 - grow, y1 + grow, height, size[0], padding, most)
    if left >= right or top >= bottom:
        raise BadAction(f"The box {list(corners)} holds no pixel of the picture.")
    return left, top, right, bottom


def window(
    point: Sequence[float], size: Size, shown: Size, side: int, coordinates: Coordinates
) -> Box:
    """The square of `side` true pixels round a point, moved into the picture; the picture where it is smaller.

    Raises BadAction for a point outside.
    """
    height, width = lengths(point, shown, coordinates)
    x, y = point
    if not (0 <= x <= width and 0 <= y <= height):
        raise BadAction(
            f"The point {list(point)} lies outside the picture, which is {width} wide and {height} high."
        )
    left, right = _around(x * size[1] / width, side, size[1])
    top, bottom = _around(y * size[0] / height, side, size[0])
    return left, top, right, bottom


def lengths(numbers: Sequence[float], shown: Size, coordinates: Coordinates) -> Size:
    """How high and wide the picture is in the units of these numbers."""
    if coordinates == "thousandths":
        return 1000, 1000
    is_share = coordinates == "either" and max(numbers) <= 1
    return (1, 1) if coordinates == "normalised" or is_share else shown


def _span(
    low: float, high: float, length: int, pixels: int, padding: float, most: int
) -> tuple[int, int]:
    """Both ends along one axis, in whole true pixels."""
    if not padding:
        ends = (low * pixels / length, high * pixels / length)
    else:
        # Padded as shares and then multiplied, as in the official code: what is truncated depends on it.
        share = min(padding * pixels, most) / pixels
        ends = (max(low / length - share, 0.0) * pixels, (high / length + share) * pixels)
    return max(int(ends[0]), 0), min(int(ends[1]), pixels)


def _around(centre: float, side: int, pixels: int) -> tuple[int, int]:
    side = min(side, pixels)
    low = min(max(int(centre) - side // 2, 0), pixels - side)
    return low, low + side
