"""Objects that are stamped on the frames of a clip: the same look in every frame, at any place.

A sprite is a shape in a named colour with weak grain, soft edges and a dark rim, so that it can be seen on any ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.procedural import COLOURS, Shape, ShapeName, coverage

CONTRAST = 30.0
"""Smallest mean difference of a sprite's colour from what it covers, in grey levels."""
RIM = 1.18
"""Size of the dark rim relative to the shape."""


@dataclass(frozen=True)
class Sprite:
    """A drawn object, ready to be stamped."""

    shape: ShapeName
    colour: str
    size: int
    """Diameter in pixels, without the rim."""
    fill: Array
    """float32 [S, S, 3]: colour times cover."""
    keep: Array
    """float32 [S, S, 1]: share of the ground that stays visible."""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def sprite(
    shape: ShapeName, colour: str, size: int, rng: Generator, opacity: float = 1.0
) -> Sprite:
    """Draw a sprite; angle and grain come from the generator."""
    side = int(size * RIM) + 3
    middle = side / 2
    body = Shape(shape, COLOURS[colour], middle, middle, size, float(rng.uniform(-25, 25)))
    rim = Shape(shape, (0, 0, 0), middle, middle, size * RIM, body.angle)
    inside = _cover(body, side)
    # The larger of the two: at the tips of a star the enlarged outline does not quite hold the shape.
    whole = np.maximum(_cover(rim, side), inside) * np.float32(opacity)
    grain = 1.0 + rng.normal(0.0, 0.04, size=(side, side, 1))
    filled = np.clip(np.array(COLOURS[colour]) * grain, 0, 255)
    colours = filled * inside + 20.0 * (1.0 - inside)
    # Multiplied with the cover here, once, so that stamping is one product and one sum.
    return Sprite(shape, colour, size, (colours * whole).astype(np.float32), 1.0 - whole)


def _cover(shape: Shape, side: int) -> Array:
    """float32 [side, side, 1] in [0, 1]."""
    return np.asarray(coverage(shape, side, side), dtype=np.float32)[..., None] / 255


def stamp(frame: Array, what: Sprite, x: float, y: float) -> tuple[int, int, int, int]:
    """Paint the sprite around (x, y) on a writable uint8 frame, in place. Returns the painted box."""
    side = what.fill.shape[0]
    left, top = round(x - side / 2), round(y - side / 2)
    # What lies outside the frame is cut off, also when that is all of it.
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + side, frame.shape[1])
    y1 = min(top + side, frame.shape[0])
    if x0 < x1 and y0 < y1:
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        under = frame[y0:y1, x0:x1]
        frame[y0:y1, x0:x1] = under * what.keep[part] + what.fill[part]
    return x0, y0, max(x0, x1), max(y0, y1)


def readable(frame: Array, what: Sprite, x: float, y: float) -> bool:
    """Does the sprite's colour differ from the ground that it would cover?"""
    half = what.size // 2
    rows = slice(max(0, int(y) - half), int(y) + half + 1)
    columns = slice(max(0, int(x) - half), int(x) + half + 1)
    under = frame[rows, columns]
    if not under.size:
        return False
    mean = under.reshape(-1, 3).mean(axis=0)
    contrast = np.abs(mean - np.array(COLOURS[what.colour])).mean()
    return float(contrast) >= CONTRAST


def spot(height: int, width: int, size: int, rng: Generator) -> tuple[float, float]:
    """A centre (x, y) at which the whole sprite lies inside the frame."""
    margin = size * RIM / 2 + 2
    x = rng.uniform(margin, max(margin, width - margin))
    y = rng.uniform(margin, max(margin, height - margin))
    return float(x), float(y)
