"""A directed graph as a picture: named nodes on a ring, and arrows that pass no other node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.lettering import font

RADIUS = 22
"""Of a node, in pixels."""
CLEAR = RADIUS + 5.0
"""Pixels between an arrow and the centre of any node but its own two."""
HEAD = 9.0
"""Length of an arrow's head."""
TRIES = 40
Edges = Sequence[tuple[int, int]]
"""(cause, effect), counted from 0."""


def drawn_arrows(names: Sequence[str], edges: Edges, rng: Generator) -> Array | None:
    """uint8 [H, W, 3]; None if no clear drawing was found."""
    side = 300 + 24 * len(names)
    for _ in range(TRIES):
        places = _ring(len(names), side, rng)
        if _is_clear(places, edges):
            return _joined(places, names, edges, side)
    return None


def _ring(count: int, side: int, rng: Generator) -> Array:
    """float64 [count, 2]: places round a circle, in random order and with jitter."""
    turn = 2 * np.pi * (rng.permutation(count) + rng.uniform(-0.15, 0.15, count)) / count
    radius = (side / 2 - RADIUS - 8) * rng.uniform(0.8, 1.0, size=count)
    return side / 2 + np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)


def _is_clear(places: Array, edges: Edges) -> bool:
    """Do nodes lie apart, and arrows away from nodes that are not theirs?"""
    gaps = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(gaps, np.inf)
    if gaps.min() < 2 * RADIUS + 3 * HEAD:
        return False
    for start, end in edges:
        way = places[end] - places[start]
        share = np.clip((places - places[start]) @ way / (way @ way), 0.0, 1.0)
        away = np.linalg.norm(places - places[start] - share[:, None] * way, axis=-1)
        away[[start, end]] = np.inf
        if away.min() < CLEAR:
            return False
    return True


def _joined(places: Array, names: Sequence[str], edges: Edges, side: int) -> Array:
    # Drawn at twice the size and reduced, which smooths lines; letters would lose by it and come after.
    large = Image.new("RGB", (2 * side, 2 * side), "white")
    pen = ImageDraw.Draw(large)
    for start, end in edges:
        _arrow(pen, 2 * places[start], 2 * places[end])
    for x, y in 2 * places:
        pen.ellipse(
            (x - 2 * RADIUS, y - 2 * RADIUS, x + 2 * RADIUS, y + 2 * RADIUS),
            fill=(236, 242, 252),
            outline=(20, 20, 20),
            width=3,
        )
    small = large.reduce(2)
    pen = ImageDraw.Draw(small)
    for (x, y), name in zip(places.tolist(), names, strict=True):
        pen.text((x, y), name, fill="black", font=font(16), anchor="mm")
    return np.asarray(small)


def _arrow(pen: ImageDraw.ImageDraw, start: Array, end: Array) -> None:
    """From rim to rim of two nodes, at twice the size."""
    ahead = (end - start) / np.linalg.norm(end - start)
    across = np.array([-ahead[1], ahead[0]])
    tip = end - 2 * RADIUS * ahead
    foot = tip - 2 * HEAD * ahead
    pen.line([*start, *foot], fill=(60, 60, 60), width=4)
    corners = [tip, foot + HEAD * across, foot - HEAD * across]
    pen.polygon([tuple(corner) for corner in corners], fill=(60, 60, 60))
