"""Depth order: arrange the marked points from near to far (Visual Jigsaw 3D, arXiv 2509.25190).

Points have a depth between 0.1 and 10 m, lie at least 40 pixels (at 640 pixels width) apart and differ by at least
`apart` metres pairwise; marks are half-transparent red discs with white numbers. Reward: 1, else gamma times the share
of right places.

Departures: a point is used only if the depth around it is flat (range below 0.15 m in a small window), because at a
border the disc covers two depths; points are drawn by us from the depth map, the paper's data bring them along.
"""

from __future__ import annotations

from itertools import product
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import OrderTask
from mmrl.data.pretext.craft.degenerate_checks import resize
from mmrl.ground.seeds import Streams

NEAR, FAR = 0.1, 10.0
"""Usable depths in metres."""
FLAT = 0.15
"""Largest range of depth in the window around a point, in metres."""


class DepthOrderTask(OrderTask):
    name = "depth-order"
    kinds = ("rgbd",)
    knobs: ClassVar = {
        "points": Knob(6, (2, 3, 4, 5, 6), help="Number of marked points."),
        "apart": Knob(
            0.2,
            (1.0, 0.2),
            smooth=True,
            help="Smallest difference of depth between two points, in metres.",
        ),
        "gamma": Knob(0.2, help="Pay for partly right orders."),
        "side": Knob(640, help="Longest side of the picture in pixels."),
    }
    wordings = (
        "{count} points are marked by numbered discs. Order them from the nearest to the farthest from the camera.",
        "Sort the marked points 1 to {count} by their distance to the camera, nearest first.",
        "Looking at the scene, list the {count} numbered marks from near to far.",
    )
    hint = "all the numbers in that order, separated by commas"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture, depth = media[0].picture(), media[0].depth
        if depth is None:
            return Reject("no-depth")
        scale = min(1.0, int(knobs["side"]) / max(picture.shape[:2]))
        height = max(1, round(picture.shape[0] * scale))
        width = max(1, round(picture.shape[1] * scale))
        radius = max(6, round(15 * max(width, height) / 640))
        if min(width, height) < 8 * radius:
            return Reject("too-small")
        count, apart = int(knobs["points"]), float(knobs["apart"])
        points = _points(depth, (height, width), count, apart, radius, rng.geometry)
        if points is None:
            return Reject("no-points")
        # The points come from near to far; the numbers on the discs are shuffled.
        shown = points[rng.selection.permutation(count)]
        answer = [int(i) + 1 for i in np.argsort(shown[:, 2])]
        places, depths = shown[:, :2], shown[:, 2]
        boxes = []
        for x, y in places.astype(int).tolist():
            boxes.append((x - radius, y - radius, x + radius, y + radius))
        return Draft(
            visuals=(Visual(_marked(resize(picture, width, height), places, radius)),),
            truth={"answer": answer, "gamma": float(knobs["gamma"])},
            key=tuple(answer),
            fields={"count": count},
            evidence=(Evidence(0, tuple(boxes)),),
            meta={"depths": [round(float(value), 3) for value in depths]},
        )

    def length(self, knobs: Knobs) -> int:
        return int(knobs["points"])


def _points(
    depth: Array,
    size: tuple[int, int],
    count: int,
    apart: float,
    radius: int,
    rng: Generator,
) -> Array | None:
    """[count, 3]: x, y in shown pixels and depth, near to far; or None."""
    height, width = size
    ys = rng.uniform(radius, height - radius, size=400)
    xs = rng.uniform(radius, width - radius, size=400)
    # The depth map keeps its own size, so places are looked up in shares of it.
    rows = (ys * depth.shape[0] / height).astype(int)
    columns = (xs * depth.shape[1] / width).astype(int)
    reach = max(1, round(0.4 * radius * depth.shape[1] / width))
    fine = _flat(depth, rows, columns, reach)
    chosen: list[tuple[float, float, float]] = []
    for x, y, far in zip(xs[fine], ys[fine], depth[rows, columns][fine], strict=True):
        clear = all(
            np.hypot(x - a, y - b) >= 40 / 15 * radius and abs(far - c) > apart
            for a, b, c in chosen
        )
        if clear:
            chosen.append((float(x), float(y), float(far)))
        if len(chosen) == count:
            return np.array(sorted(chosen, key=lambda point: point[2]))
    return None


def _flat(depth: Array, rows: Array, columns: Array, reach: int) -> Array:
    """bool [N]: where nine depths around the place are known, usable and nearly equal."""
    steps = np.array(list(product((-reach, 0, reach), repeat=2)))  # [9, 2]
    around_rows = np.clip(rows[:, None] + steps[:, 0], 0, depth.shape[0] - 1)
    around_columns = np.clip(columns[:, None] + steps[:, 1], 0, depth.shape[1] - 1)
    around = depth[around_rows, around_columns]  # [N, 9]
    known = np.isfinite(around).all(axis=1)
    usable = (around.min(axis=1) >= NEAR) & (around.max(axis=1) <= FAR)
    return known & usable & (np.ptp(around, axis=1) < FLAT)


def _marked(picture: Array, points: Array, radius: int) -> Array:
    """Red discs (alpha 120 of 255) with white numbers."""
    image = Image.fromarray(picture).convert("RGBA")
    # Drawn on a layer of their own: a pen on the picture would replace its pixels instead of blending.
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    face = ImageFont.load_default(size=1.2 * radius)
    white = (255, 255, 255, 255)
    for number, (x, y) in enumerate(points.tolist(), 1):
        disc = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(disc, fill=(255, 0, 0, 120))
        pen.text((x, y), str(number), fill=white, font=face, anchor="mm")
    return np.asarray(Image.alpha_composite(image, layer).convert("RGB"))
