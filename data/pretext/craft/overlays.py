"""Painting flat shapes on photographs so that they are readable but not trivially separable.

A shape is antialiased, filled with one colour modulated by weak grain, blended with an opacity of 0.75 to 1, and has a
colour that differs by at least `CONTRAST` grey levels from the mean of what it covers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.procedural import Shape, ShapeName, coverage

Spot = tuple[float, float, float]
"""x and y of the centre and diameter, in pixels."""
CONTRAST = 40.0
"""Smallest mean absolute colour difference between a shape and its surround, in grey levels."""


def place(
    count: int, height: int, width: int, sizes: tuple[float, float], rng: Generator
) -> list[Spot]:
    """`count` discs (x, y, diameter) that do not overlap, inside the picture. Sizes are shares of the short side and
    shrink when room gets short, so every count finds a place."""
    short = min(height, width)
    found: list[Spot] = []
    shrink, misses = 1.0, 0
    while len(found) < count:
        size = float(rng.uniform(*sizes)) * short * shrink
        # 0.6 instead of half the size: discs keep a fifth of their sizes apart, and a tenth from the border.
        reach = 0.6 * size
        x = float(rng.uniform(reach, width - reach))
        y = float(rng.uniform(reach, height - reach))
        if all(np.hypot(x - a, y - b) > 0.6 * (size + d) for a, b, d in found):
            found.append((x, y, size))
            misses = 0
            continue
        misses += 1
        if misses % 20 == 0:
            shrink *= 0.9
    return found


def paint(picture: Array, name: ShapeName, at: Spot, rng: Generator) -> Array:
    """Paint one shape in place on a writable uint8 picture; colour, angle, opacity and grain are drawn. Returns it."""
    x, y, size = at
    # Only the part that the shape can touch is blended; at most a diameter from the centre, also at its corners.
    x0, y0 = max(0, int(x - size) - 1), max(0, int(y - size) - 1)
    x1 = min(picture.shape[1], int(x + size) + 2)
    y1 = min(picture.shape[0], int(y + size) + 2)
    under = picture[y0:y1, x0:x1]
    height, width = under.shape[:2]
    colour = contrasting(under, rng)
    angle = float(rng.uniform(0, 360))
    shape = Shape(name, (0, 0, 0), x - x0, y - y0, size, angle)
    mask = np.asarray(coverage(shape, height, width), dtype=np.float32)[..., None]
    cover = mask * np.float32(rng.uniform(0.75, 1.0) / 255)
    grain = 1.0 + rng.normal(0.0, 0.05, size=(height, width, 1)).astype(np.float32)
    inside = np.clip(colour * grain, 0, 255)
    mixed = under * (1.0 - cover) + inside * cover
    picture[y0:y1, x0:x1] = mixed.astype(np.uint8)
    return picture


def contrasting(under: Array, rng: Generator) -> Array:
    """float32 [3]: a random colour that differs enough from the mean of `under`."""
    mean = under.reshape(-1, 3).mean(axis=0)
    while True:
        colour = rng.uniform(20, 250, size=3)
        if np.abs(colour - mean).mean() >= CONTRAST:
            return colour.astype(np.float32)


def boxes_of(
    spots: Sequence[Spot],
) -> tuple[tuple[int, int, int, int], ...]:
    """The boxes (x0, y0, x1, y1) of painted discs."""
    boxes = []
    for x, y, diameter in spots:
        half = diameter / 2
        x0, y0 = int(x - half), int(y - half)
        # Ends are exclusive, hence one more.
        x1, y1 = int(x + half) + 1, int(y + half) + 1
        boxes.append((x0, y0, x1, y1))
    return tuple(boxes)
