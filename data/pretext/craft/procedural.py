"""The embedded source: drawn scenes and clips, without any download.

A scene has a light sky above a darker, textured ground, so that up and down can be told, and shapes with their own
colours, sizes and small tilts, lit from above (each throws a shadow downwards); edges are antialiased. A clip moves the
shapes along straight lines that bounce off the borders; they turn clockwise and leave a fading trail, so that forward
and backward can be told. Depth scenes stand shapes on a floor that recedes from 1 m to 10 m; nearer shapes are larger
and drawn later. Everything follows from (seed, index) and the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mmrl.data.pretext.contract import Array, ArrayClip, Medium
from mmrl.data.pretext.craft.draws import one_of
from mmrl.ground.seeds import digest, philox

Colour = tuple[int, int, int]
ShapeName = Literal["circle", "square", "triangle", "star", "ring", "cross"]
SHAPES: tuple[ShapeName, ...] = ("circle", "square", "triangle", "star", "ring", "cross")
COLOURS: dict[str, Colour] = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (45, 100, 220),
    "yellow": (244, 208, 63),
    "purple": (142, 68, 173),
    "orange": (235, 130, 30),
    "cyan": (40, 190, 200),
    "white": (240, 240, 240),
}


def _regular(count: int, start: float) -> tuple[Array, Array]:
    """Radii (1 = the size) and angles of a regular polygon."""
    angles = np.arange(count) * (2 * np.pi / count) + np.deg2rad(start)
    return np.full(count, 0.5), angles


def _cross() -> tuple[Array, Array]:
    """Four arms: two corners at the end of each, and an inner corner between it and the next."""
    one_arm = np.array([-0.3, 0.3, np.pi / 4])
    angles = np.concatenate([np.pi / 2 * arm + one_arm for arm in range(4)])
    return np.tile([0.5, 0.5, 0.2], 4), angles


def _star() -> tuple[Array, Array]:
    """Five points and the five corners between them."""
    _, angles = _regular(10, -90)
    return np.tile([0.5, 0.225], 5), angles


_FORMS: dict[ShapeName, tuple[Array, Array]] = {
    "circle": _regular(40, 0),
    "ring": _regular(40, 0),
    "square": _regular(4, 45),
    "triangle": _regular(3, -90),
    "star": _star(),
    "cross": _cross(),
}


@dataclass(frozen=True)
class Shape:
    """One drawn object. Centre, size and speed are in pixels (per second); angle in degrees clockwise."""

    name: ShapeName
    colour: Colour
    x: float
    y: float
    size: float
    angle: float = 0.0
    depth: float = 1.0
    vx: float = 0.0
    vy: float = 0.0


def outline(shape: Shape, scale: float = 1.0) -> list[tuple[float, float]]:
    """The corners of a shape in picture coordinates times `scale`; at angle 0 it stands upright."""
    radius, angles = _FORMS[shape.name]
    turned = angles + math.radians(shape.angle)
    directions = np.stack([np.cos(turned), np.sin(turned)], axis=1)  # [K, 2]
    corners = directions * (radius * shape.size)[:, None] + np.array([shape.x, shape.y])
    return [(x, y) for x, y in (corners * scale).tolist()]


def coverage(shape: Shape, height: int, width: int, fine: int = 4) -> Image.Image:
    """An "L" image of this size: how much of each pixel the shape covers, 0 to 255, supersampled `fine` times."""
    mask = Image.new("L", (fine * width, fine * height))
    pen = ImageDraw.Draw(mask)
    pen.polygon(outline(shape, fine), fill=255)
    if shape.name == "ring":
        hole = replace(shape, size=0.55 * shape.size)
        pen.polygon(outline(hole, fine), fill=0)
    return mask.reduce(fine)


def ground(rng: Generator, height: int, width: int) -> Array:
    """uint8 [height, width, 3]: sky over ground with a soft horizon, broad colour changes and fine grain."""
    sky, soil = rng.uniform(150, 235, size=3), rng.uniform(40, 140, size=3)
    horizon = float(rng.uniform(0.35, 0.6))
    # Colours are drawn on 24×6 fields and enlarged; drawing them per pixel would be grain, not broad changes.
    below = (np.linspace(0, 1, 24) - horizon) * 6 + 0.5
    share_of_soil = np.clip(below, 0, 1)[:, None, None]
    blotches = rng.uniform(-22, 22, size=(24, 6, 3))
    coarse = sky * (1 - share_of_soil) + soil * share_of_soil + blotches
    # Lighter at the top, and a slope of colour from side to side: up, down and the sides can be told.
    coarse += np.linspace(20, -20, 24)[:, None, None]
    sideways = rng.uniform(-25, 25, size=3)
    coarse += np.linspace(-1, 1, 6)[None, :, None] * sideways
    tall, wide = height // 4 + 1, width // 4 + 1
    fields = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    broad = fields.resize((wide, tall), Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 33, size=(tall, wide, 3), dtype=np.uint8))
    grainy = ImageChops.add(broad, grain, 1.0, -16)
    return np.asarray(grainy.resize((width, height), Image.Resampling.BILINEAR))


def draw(back: Array, shapes: Sequence[Shape]) -> Array:
    """The shapes with their shadows on the ground, far ones first. uint8, same size as `back`."""
    picture = Image.fromarray(back)
    for shape in sorted(shapes, key=lambda shape: -shape.depth):
        reach = int(0.5 * shape.size) + 2
        x0, y0 = int(shape.x) - reach, int(shape.y) - reach
        inside = replace(shape, x=shape.x - x0, y=shape.y - y0)
        mask = coverage(inside, 2 * reach, 2 * reach, 2)
        shadow = tuple(int(0.25 * channel) for channel in shape.colour)
        half = Image.fromarray(np.asarray(mask) >> 1)
        # Lit from above: the shadow falls straight down, and tells where down is.
        below = y0 + max(2, int(0.09 * shape.size))
        picture.paste(shadow, (x0, below), half)
        picture.paste(shape.colour, (x0, y0), mask)
    return np.asarray(picture)


def random_shapes(rng: Generator, height: int, width: int, count: int) -> list[Shape]:
    """`count` nearly upright shapes of random kind, colour, place, speed and size (8 to 28 % of the short side)."""
    short, colours = min(height, width), list(COLOURS.values())
    # All uniform numbers at once, before the kinds and colours: the order of the draws is part of the format.
    uniform = rng.random((count, 7))
    shapes = []
    for across, down, size, tilt, depth, pace, heading in uniform:
        name, colour = one_of(SHAPES, rng), one_of(colours, rng)
        speed = 0.08 * (1 + pace) * short
        direction = 2 * np.pi * heading
        shapes.append(
            Shape(
                name,
                colour,
                x=float((0.05 + 0.9 * across) * width),
                y=float((0.05 + 0.9 * down) * height),
                size=float((0.08 + 0.2 * size) * short),
                angle=float(40 * tilt - 20),
                depth=float(0.5 + 7.5 * depth),
                vx=float(speed * np.cos(direction)),
                vy=float(speed * np.sin(direction)),
            )
        )
    return shapes


def scene(seed: int, index: int, height: int = 384, width: int = 512) -> Medium:
    """A still picture with 10 to 18 shapes."""
    rng = philox("scene", seed, index)
    back = ground(rng, height, width)
    shapes = random_shapes(rng, height, width, int(rng.integers(10, 19)))
    name = _name("scene", seed, index, height, width)
    return Medium(name, "image", image=draw(back, shapes))


def landscape(seed: int, index: int, height: int = 384, width: int = 512) -> Medium:
    """A still picture without any flat shape: soft blobs on the ground, to paint on."""
    rng = philox("landscape", seed, index)
    pixels = _soft(rng, height, width)
    return Medium(_name("landscape", seed, index, height, width), "image", image=pixels)


def drift(
    seed: int,
    index: int,
    height: int = 192,
    width: int = 256,
    seconds: float = 16.0,
    fps: float = 4.0,
) -> Medium:
    """A clip without any flat shape: a window that glides over a landscape along a slow ellipse."""
    rng = philox("drift", seed, index)
    wide = _soft(rng, round(1.5 * height), round(1.5 * width))
    times = np.arange(round(seconds * fps)) / fps
    phase, turns = rng.uniform(0.6, 1.0, size=2)
    angles = 2 * np.pi * (phase + turns * times / seconds)
    free_down, free_across = wide.shape[0] - height, wide.shape[1] - width
    tops = np.round((0.5 + 0.48 * np.sin(angles)) * free_down).astype(int)
    lefts = np.round((0.5 + 0.48 * np.cos(angles)) * free_across).astype(int)
    windows = zip(tops, lefts, strict=True)
    frames = np.stack([wide[y : y + height, x : x + width] for y, x in windows])
    name = _name("drift", seed, index, height, width, seconds, fps)
    return Medium(name, "video", clip=ArrayClip(frames, times.astype(np.float64)))


def depth_scene(seed: int, index: int, height: int = 384, width: int = 512) -> Medium:
    """A picture with exact depth in metres."""
    rng = philox("depth", seed, index)
    back = ground(rng, height, width)
    floor = np.linspace(10.0, 1.0, height, dtype=np.float32)
    depth = np.repeat(floor[:, None], width, axis=1)
    shapes = []
    for shape in random_shapes(rng, height, width, int(rng.integers(8, 13))):
        far = float(np.interp(shape.y, [0, height - 1], [9.5, 1.2]))
        size = float(min(height, width) * 0.45 / (0.6 + far * 0.5))
        # A ring would show the floor, and its depth, through its hole.
        name = "circle" if shape.name == "ring" else shape.name
        shapes.append(replace(shape, name=name, depth=far, size=size))
    # Far ones first, as they are painted: what is seen at a pixel gives its depth.
    for shape in sorted(shapes, key=lambda shape: -shape.depth):
        cover = Image.new("1", (width, height))
        ImageDraw.Draw(cover).polygon(outline(shape), fill=1)
        depth[np.asarray(cover)] = shape.depth
    name = _name("depth", seed, index, height, width)
    return Medium(name, "rgbd", image=draw(back, shapes), depth=depth)


def clip(
    seed: int,
    index: int,
    height: int = 192,
    width: int = 256,
    seconds: float = 16.0,
    fps: float = 4.0,
) -> Medium:
    """A clip of 5 to 8 moving shapes."""
    rng = philox("clip", seed, index)
    back = ground(rng, height, width)
    shapes = random_shapes(rng, height, width, int(rng.integers(5, 9)))
    times = np.arange(round(seconds * fps)) / fps
    name = _name("clip", seed, index, height, width, seconds, fps)

    def frame_at(time: float) -> Array:
        return _moment(back, shapes, time)

    return Medium(name, "video", clip=DrawnClip(times, frame_at))


class DrawnClip:
    """A clip whose frames are drawn when first read, and kept."""

    def __init__(self, times: Array, moment: Callable[[float], Array]) -> None:
        self.times, self._moment = times, moment
        self._frames: dict[int, Array] = {}

    def read(self, indices: Sequence[int]) -> Array:
        """uint8 [F, H, W, 3]."""
        wanted = {int(index) for index in indices}
        for index in wanted - self._frames.keys():
            self._frames[index] = self._moment(float(self.times[index]))
        return np.stack([self._frames[int(index)] for index in indices])

    @property
    def held(self) -> int:
        """Bytes of the frames in memory."""
        return sum(frame.nbytes for frame in self._frames.values())


def _soft(rng: Generator, height: int, width: int) -> Array:
    """The ground with 14 blurred ellipses."""
    back = ground(rng, height, width)
    # At a quarter of the size the ellipses cost little, and enlarging them blurs them further.
    layer = Image.fromarray(back).reduce(4)
    pen = ImageDraw.Draw(layer)
    for x, y, across, down, *colour in rng.random((14, 7)):
        left, top = x * layer.width, y * layer.height
        right = left + (0.06 + 0.2 * across) * layer.width
        bottom = top + (0.06 + 0.2 * down) * layer.height
        fill = tuple(int(30 + 200 * channel) for channel in colour)
        pen.ellipse((left, top, right, bottom), fill=fill)
    soft = layer.filter(ImageFilter.GaussianBlur(2.5))
    blurred = soft.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(Image.blend(Image.fromarray(back), blurred, 0.7))


def _moment(back: Array, shapes: Sequence[Shape], time: float) -> Array:
    """One frame: every shape with a smaller, paler copy where it was shortly before."""
    height, width = back.shape[:2]
    drawn = []
    for shape in shapes:
        before = _at(shape, time - 0.3, height, width)
        red, green, blue = ((2 * channel + 128) // 3 for channel in shape.colour)
        trail = replace(
            before,
            size=0.6 * shape.size,
            colour=(red, green, blue),
            depth=shape.depth + 0.01,  # just behind the shape itself
        )
        drawn += [trail, _at(shape, time, height, width)]
    return draw(back, drawn)


def _at(shape: Shape, time: float, height: int, width: int) -> Shape:
    return replace(
        shape,
        x=_bounce(shape.x + shape.vx * time, width),
        y=_bounce(shape.y + shape.vy * time, height),
        angle=shape.angle + 40.0 * time,
    )


def _bounce(position: float, length: int) -> float:
    """A position on a line folded between the two borders."""
    folded = position % (2 * length)
    return folded if folded < length else 2 * length - folded


def _name(*parts: int | float | str) -> str:
    return f"drawn-{digest(*parts, size=8).hex()}"
