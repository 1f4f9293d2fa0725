"""The embedded source: drawn scenes and clips, without any download.

A scene is a smooth two-colour ground with a soft texture, and shapes with their own colours, sizes and texture, drawn
at twice the size and averaged down (antialiased edges). A clip moves the shapes along straight lines that bounce off
the borders, in front of the same ground. Depth scenes give each shape a distance; nearer shapes are drawn later and
larger. Everything follows from (seed, index).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from data.pretext.contract import Array, ArrayClip, Medium
from data.pretext.rng import digest, generator

ShapeName = Literal["circle", "square", "triangle", "star", "ring", "cross"]
SHAPES: tuple[ShapeName, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (45, 100, 220),
    "yellow": (244, 208, 63),
    "purple": (142, 68, 173),
    "orange": (235, 130, 30),
    "cyan": (40, 190, 200),
    "white": (240, 240, 240),
}


@dataclass(frozen=True)
class Shape:
    """One drawn object. Centre, size and speed are in pixels (per second); angle in degrees."""

    name: ShapeName
    colour: tuple[int, int, int]
    x: float
    y: float
    size: float
    angle: float = 0.0
    depth: float = 1.0
    vx: float = 0.0
    vy: float = 0.0


def outline(shape: Shape, scale: float = 1.0) -> list[tuple[float, float]]:
    """The corners of a shape in picture coordinates times `scale` (circles and rings get 48)."""
    turns = {"circle": 48, "ring": 48, "square": 4, "triangle": 3, "star": 10, "cross": 12}[shape.name]
    radius = np.full(turns, shape.size / 2)
    angles = np.arange(turns) * (2 * np.pi / turns) + np.deg2rad(shape.angle)
    if shape.name == "star":
        radius[1::2] *= 0.45
    if shape.name == "cross":
        radius = np.tile([0.5, 0.5, 0.2], 4) * shape.size
        angles = np.concatenate([np.pi / 2 * arm + np.array([-0.3, 0.3, np.pi / 4]) for arm in range(4)])
        angles = angles + np.deg2rad(shape.angle)
    xs, ys = shape.x + radius * np.cos(angles), shape.y + radius * np.sin(angles)
    return [(float(x * scale), float(y * scale)) for x, y in zip(xs, ys, strict=True)]


def ground(rng: np.random.Generator, height: int, width: int) -> Array:
    """uint8 [height, width, 3]: a colour gradient with soft blobs and fine grain."""
    low = rng.uniform(40, 215, size=(4, 4, 3))
    low += np.linspace(-30, 30, 4)[:, None, None] * rng.uniform(-1, 1, size=3)
    small = Image.fromarray(np.clip(low, 0, 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.integers(-9, 10, size=(height // 2 + 1, width // 2 + 1, 1), dtype=np.int16)
    grain = np.repeat(np.repeat(grain, 2, axis=0), 2, axis=1)[:height, :width]
    return np.clip(np.asarray(small, dtype=np.int16) + grain, 0, 255).astype(np.uint8)


def draw(back: Array, shapes: list[Shape]) -> Array:
    """The shapes on the ground, far ones first. uint8, same size as `back`."""
    height, width = back.shape[:2]
    picture = Image.fromarray(back).resize((2 * width, 2 * height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(picture)
    for shape in sorted(shapes, key=lambda s: -s.depth):
        shade = tuple(int(0.6 * channel) for channel in shape.colour)
        pen.polygon(outline(shape, 2.0), fill=shape.colour, outline=shade, width=3)
        if shape.name == "ring":
            inner = replace(shape, size=0.55 * shape.size)
            x, y = int(np.clip(shape.x, 0, width - 1)), int(np.clip(shape.y, 0, height - 1))
            pen.polygon(outline(inner, 2.0), fill=tuple(int(v) for v in back[y, x]), outline=shade, width=3)
    return np.asarray(picture.reduce(2))


def random_shapes(rng: np.random.Generator, height: int, width: int, count: int) -> list[Shape]:
    """`count` shapes of random kind, colour, place and size (8 to 28 % of the short side)."""
    short, colours = min(height, width), list(COLOURS.values())
    return [
        Shape(
            SHAPES[int(rng.integers(len(SHAPES)))],
            colours[int(rng.integers(len(colours)))],
            float(rng.uniform(0.05, 0.95) * width),
            float(rng.uniform(0.05, 0.95) * height),
            float(rng.uniform(0.08, 0.28) * short),
            float(rng.uniform(0, 360)),
            float(rng.uniform(0.5, 8.0)),
            float(rng.uniform(-0.25, 0.25) * short),
            float(rng.uniform(-0.25, 0.25) * short),
        )
        for _ in range(count)
    ]


def scene(seed: int, index: int, height: int = 384, width: int = 512) -> Medium:
    """A still picture with 10 to 18 shapes."""
    rng = generator("scene", seed, index)
    pixels = draw(ground(rng, height, width), random_shapes(rng, height, width, int(rng.integers(10, 19))))
    return Medium(_name("scene", seed, index, height, width), "image", image=pixels)


def depth_scene(seed: int, index: int, height: int = 384, width: int = 512) -> Medium:
    """A picture with exact depth: a floor that recedes from 1 m to 10 m and shapes that stand at their distance."""
    rng = generator("depth", seed, index)
    back = ground(rng, height, width)
    depth = np.repeat(np.linspace(10.0, 1.0, height, dtype=np.float32)[:, None], width, axis=1)
    back = (back * (0.45 + 0.55 * (10.0 - depth[..., None]) / 9.0)).astype(np.uint8)
    shapes = []
    for shape in random_shapes(rng, height, width, int(rng.integers(8, 13))):
        far = float(np.interp(shape.y, [0, height - 1], [9.5, 1.2]))
        shapes.append(replace(shape, depth=far, size=float(min(height, width) * 0.45 / (0.6 + far * 0.5))))
    for shape in sorted(shapes, key=lambda s: -s.depth):
        cover = Image.new("1", (width, height))
        ImageDraw.Draw(cover).polygon(outline(shape), fill=1)
        depth[np.asarray(cover)] = shape.depth
    solid = [replace(shape, name="circle") if shape.name == "ring" else shape for shape in shapes]
    return Medium(_name("depth", seed, index, height, width), "rgbd", image=draw(back, solid), depth=depth)


def clip(seed: int, index: int, height: int = 192, width: int = 256, seconds: float = 16.0, fps: float = 4.0) -> Medium:
    """A clip of 5 to 8 moving shapes whose colours of ground and places change all the time (never static)."""
    rng = generator("clip", seed, index)
    back = ground(rng, height, width)
    shapes = [_moving(shape, rng) for shape in random_shapes(rng, height, width, int(rng.integers(5, 9)))]
    times = np.arange(round(seconds * fps)) / fps
    frames = np.stack([draw(back, [_at(shape, t, height, width) for shape in shapes]) for t in times])
    name = _name("clip", seed, index, height, width, seconds, fps)
    return Medium(name, "video", clip=ArrayClip(frames, times.astype(np.float64)))


def scenes(seed: int = 0, **size: int) -> Iterator[Medium]:
    """Endless scenes."""
    index = 0
    while True:
        yield scene(seed, index, **size)
        index += 1


def _moving(shape: Shape, rng: np.random.Generator) -> Shape:
    speed = rng.uniform(0.06, 0.2) * shape.size * 6
    angle = rng.uniform(0, 2 * np.pi)
    return replace(shape, vx=float(speed * np.cos(angle)), vy=float(speed * np.sin(angle)))


def _at(shape: Shape, time: float, height: int, width: int) -> Shape:
    return replace(
        shape,
        x=_bounce(shape.x + shape.vx * time, width),
        y=_bounce(shape.y + shape.vy * time, height),
        angle=shape.angle + 12.0 * time,
    )


def _bounce(position: float, length: int) -> float:
    folded = position % (2 * length)
    return folded if folded < length else 2 * length - folded


def _name(*parts: int | float | str) -> str:
    return f"drawn-{digest(*parts, size=8).hex()}"
