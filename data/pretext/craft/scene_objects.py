"""A drawn scene whose facts are known: objects with shape, colour, size, digit and place, none of them touching.

No two objects of a scene share both shape and colour, so each can be named; the colours are at least 30
degrees of hue apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.craft.procedural import (
    COLOURS,
    SHAPES,
    Shape,
    ShapeName,
    coverage,
    outline,
)

Place = tuple[float, float]
"""x and y of a centre, in pixels."""
HUES: tuple[str, ...] = ("red", "yellow", "green", "cyan", "blue", "purple", "white")
"""The named colours that stay apart by 30 degrees of hue (or have none)."""


@dataclass(frozen=True)
class Thing:
    """One object. Centre and size (diameter) in pixels."""

    shape: ShapeName
    colour: str
    x: float
    y: float
    size: float
    digit: int = 0
    """Written on it if above 0."""
    letter: str = ""

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def area(self) -> float:
        """Square pixels, without holes."""
        return unit_area(self.shape) * self.size**2

    @property
    def box(self) -> tuple[int, int, int, int]:
        half = self.size / 2
        x0, y0 = int(self.x - half), int(self.y - half)
        x1, y1 = int(self.x + half) + 1, int(self.y + half) + 1
        return x0, y0, x1, y1


@lru_cache(maxsize=16)
def unit_area(shape: ShapeName) -> float:
    """Area of the shape at diameter 1."""
    corners = np.array(outline(Shape(shape, (0, 0, 0), 0.0, 0.0, 1.0)))
    x, y = corners.T
    # The shoelace formula.
    twice = x @ np.roll(y, -1) - y @ np.roll(x, -1)
    return float(abs(twice) / 2)


def shape_colour_pairs(count: int, rng: Generator) -> list[tuple[ShapeName, str]]:
    """`count` different pairs of shape and colour."""
    return some_of(list(product(SHAPES, HUES)), count, rng)


def spread_out(
    sizes: Sequence[float], height: int, width: int, rng: Generator
) -> list[Place] | None:
    """Centres (x, y) for discs of these diameters, inside the picture and a fifth of their size apart; None if there is
    no room after 40 tries for one of them."""
    places: list[Place] = []
    for size in sizes:
        room = np.array([width, height]) - 1.2 * size
        # All 40 tries at once: the number of draws does not depend on which of them fits.
        tries = 0.6 * size + rng.random((40, 2)) * np.maximum(room, 0.0)
        free = np.ones(40, dtype=bool)
        for (x, y), other in zip(places, sizes, strict=False):
            distance = np.hypot(tries[:, 0] - x, tries[:, 1] - y)
            free &= distance > 0.6 * (size + other)
        if not free.any():
            return None
        x, y = tries[int(free.argmax())]
        places.append((float(x), float(y)))
    return places


def drawn_ground(height: int, width: int, rng: Generator) -> Array:
    """uint8 [H, W, 3]: a grey of any brightness with broad soft blotches and fine grain."""
    grey = rng.uniform(70, 190)
    tint = rng.uniform(-12, 12, size=3)
    blotches = rng.uniform(-18, 18, size=(4, 5, 1))
    coarse = np.clip(grey + tint + blotches, 0, 255).astype(np.uint8)
    broad = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
    quarter = (height // 4 + 1, width // 4 + 1)
    grain = Image.fromarray(rng.integers(0, 25, size=quarter, dtype=np.uint8))
    fine = grain.resize((width, height), Image.Resampling.BILINEAR)
    # The same grain in all planes, so that it is no colour.
    return np.asarray(ImageChops.add(broad, Image.merge("RGB", (fine, fine, fine)), 1.0, -12))


def draw_things(ground: Array, things: Sequence[Thing]) -> Array:
    """The objects with dark rims (and their digits or letters) on the ground. uint8, the size of the ground."""
    picture = Image.fromarray(ground)
    for thing in things:
        reach = int(0.56 * thing.size) + 3
        x0, y0 = int(thing.x) - reach, int(thing.y) - reach
        colour = COLOURS[thing.colour]
        body = Shape(thing.shape, colour, thing.x - x0, thing.y - y0, thing.size)
        rim = replace(body, size=1.1 * thing.size)
        picture.paste((15, 15, 15), (x0, y0), coverage(rim, 2 * reach, 2 * reach, 3))
        picture.paste(colour, (x0, y0), coverage(body, 2 * reach, 2 * reach, 3))
        text = thing.letter or (str(thing.digit) if thing.digit else "")
        if text:
            write(picture, text, (thing.x, thing.y), _room(thing.shape) * thing.size)
    return np.asarray(picture)


def _room(shape: ShapeName) -> float:
    """How large a letter can be inside the shape, as a share of the diameter."""
    pointed = {"triangle": 0.36, "star": 0.34, "cross": 0.36}
    return pointed.get(shape, 0.46)


def write(picture: Image.Image, text: str, centre: Place, size: float) -> None:
    """White letters of about this height with a black outline, centred, in place."""
    # Even heights only, so that few pairs of masks are kept.
    edge, inside = _glyphs(text, max(10, int(size / 2) * 2))
    left = round(centre[0] - edge.width / 2)
    top = round(centre[1] - edge.height / 2)
    corner = (left, top)
    picture.paste((0, 0, 0), corner, edge)
    picture.paste((255, 255, 255), corner, inside)


@lru_cache(maxsize=1024)
def _glyphs(text: str, size: int) -> tuple[Image.Image, Image.Image]:
    """Two "L" masks of one size: the outlined text and the text."""
    face = font(size)
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    x0, y0, x1, y1 = (int(side) for side in probe.textbbox((0, 0), text, font=face))
    masks = []
    for stroke in (2, 0):
        mask = Image.new("L", (x1 - x0 + 6, y1 - y0 + 6))
        pen = ImageDraw.Draw(mask)
        pen.text((3 - x0, 3 - y0), text, fill=255, font=face, stroke_width=stroke)
        masks.append(mask)
    return masks[0], masks[1]
