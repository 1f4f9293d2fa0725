"""Correspondence: a point is marked in one view; where is it in another view of the same plane?

Both views are random perspective windows of one picture, so the truth is an exact homography. Answer: x, y on the
0–1000 grid. Reward: 1 within `hit` of the truth (as a share of the side), else exp(−(d − hit)²/2σ²), d the distance
beyond it. Defences: both views are warped by the same resampler; no border is ever visible; the marked place must have
texture; colours of the second view are jittered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, hypot
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import listed
from mmrl.data.pretext.craft.coordinates import (
    RULE,
    SCALE,
    corners,
    homography,
    project,
    scaled_point,
    warp,
)
from mmrl.data.pretext.craft.degenerate_checks import harmless_history, jittered, textureless
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams, philox

MARGIN = 0.15
"""The point keeps this share of the side from the borders of both views."""


class CorrespondenceTask(Task):
    name = "correspondence"
    kinds = ("image", "rgbd", "document")
    knobs: ClassVar = {
        "bend": Knob(
            0.12,
            (0.04, 0.2),
            smooth=True,
            help="Displacement of the window's corners as a share of its side.",
        ),
        "turn": Knob(
            20.0,
            (0.0, 60.0),
            smooth=True,
            help="Largest rotation between the views, in degrees.",
        ),
        "hit": Knob(0.03, help="Distance that counts as exact, as a share of the side."),
        "sigma": Knob(0.08, help="Width of the partial reward, as a share of the side."),
        "side": Knob(336, help="Side of each square view in pixels."),
    }
    wordings = (
        "The red ring in the first view marks a point. Give the place of the same point in the second view; {rule}.",
        "Two views of one surface. Find in view 2 the point that is circled in view 1 ({rule}).",
        "Where in the second image lies the spot marked in the first? Coordinates of the second image: {rule}.",
    )
    hint = "two whole numbers x, y"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture = harmless_history(media[0].picture(), rng, 640)
        height, width = picture.shape[:2]
        edge = min(height, width)
        if edge < 160:
            return Reject("too-small")
        side, bend = int(knobs["side"]), float(knobs["bend"])
        turns = rng.geometry.uniform(-0.5, 0.5, size=2) * float(knobs["turn"])
        centre = np.array([width, height]) / 2.0
        quads = [_quad(centre, edge, bend, float(turn), rng.geometry) for turn in turns]
        views = [homography(corners(side, side), quad) for quad in quads]
        # Points are drawn well inside the first view; the first that also lies well inside the second is asked.
        inner = side * (MARGIN + (1.0 - 2 * MARGIN) * rng.geometry.random((32, 2)))
        in_second = project(np.linalg.inv(views[1]), project(views[0], inner))
        low, high = MARGIN * side, (1.0 - MARGIN) * side
        fits = ((in_second > low) & (in_second < high)).all(axis=1)
        if not fits.any():
            return Reject("not-in-both-views")
        point, target = inner[fits][0], in_second[fits][0]
        first, second = (warp(picture, view, side, side) for view in views)
        reach = side // 10
        box = _box(point, reach)
        x0, y0, x1, y1 = box
        if textureless(first[y0:y1, x0:x1]):
            return Reject("textureless")
        answer = scaled_point(target.tolist(), side, side)
        return Draft(
            visuals=(
                Visual(_ringed(first, point, side), label="View 1:"),
                Visual(jittered([second], rng.appearance)[0], label="View 2:"),
            ),
            truth={
                "answer": answer,
                "hit": float(knobs["hit"]),
                "sigma": float(knobs["sigma"]),
            },
            key=point_key(answer),
            fields={"rule": RULE},
            evidence=(Evidence(0, (box,)), Evidence(1, (_box(target, reach),))),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.numbers(body, 2)

    def verify(self, value: Any, truth: Truth) -> Score:
        if not all(0 <= v <= SCALE for v in value):
            return Score(0.0, parts={"valid": 0.0})
        answer = truth["answer"]
        apart = hypot(value[0] - answer[0], value[1] - answer[1]) / SCALE
        beyond = max(0.0, apart - truth["hit"])
        reward = exp(-0.5 * (beyond / truth["sigma"]) ** 2)
        correct = beyond == 0.0
        # A hit takes the key of the truth, since two hits may fall into neighbouring cells of the key's grid.
        key = point_key(answer) if correct else point_key(value)
        return Score(reward, correct, {"valid": 1.0, "distance": apart}, key)

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return listed(int(v) for v in rng.integers(0, SCALE + 1, size=2))

    def chance(self, knobs: Knobs) -> float:
        # The area of the disc that counts as a hit, all of it in the picture: `MARGIN` is wider than the usual `hit`.
        return float(np.pi * float(knobs["hit"]) ** 2)

    def chance_reward(self, knobs: Knobs) -> float:
        return _expected(float(knobs["hit"]), float(knobs["sigma"]))


def point_key(point: Sequence[float]) -> tuple[int, ...]:
    """Points that agree to a twentieth of the side share a key."""
    return tuple(int(value * 20 // SCALE) for value in point)


def _quad(centre: Array, edge: int, bend: float, turn: float, rng: Generator) -> Array:
    """[4, 2]: a bent, turned window around the centre that stays inside a square of side `edge`."""
    stretch = 1.0 + rng.uniform(-bend, bend, size=(4, 2))
    base = (corners(1.0, 1.0) - 0.5) * stretch
    angle = np.deg2rad(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    shape = base @ np.array([[cos, sin], [-sin, cos]])
    half = (edge - 4) / 2
    # As large as the square allows, less up to a fifth; moved within what room is left.
    size = half / np.abs(shape).max() * float(rng.uniform(0.8, 1.0))
    room = half - size * np.abs(shape).max(axis=0)
    return centre + size * shape + rng.uniform(-1, 1, size=2) * np.maximum(room, 0.0)


def _box(point: Array, reach: int) -> tuple[int, int, int, int]:
    x, y = (int(v) for v in point)
    return x - reach, y - reach, x + reach, y + reach


def _ringed(view: Array, point: Array, side: int) -> Array:
    image = Image.fromarray(view)
    pen, radius = ImageDraw.Draw(image), max(5, side // 40)
    x, y = (float(v) for v in point)
    ring = (x - radius, y - radius, x + radius, y + radius)
    # White beneath red: one of the two shows on any ground.
    pen.ellipse(ring, outline=(255, 255, 255), width=4)
    pen.ellipse(ring, outline=(230, 0, 0), width=2)
    return np.asarray(image)


@lru_cache(maxsize=64)
def _expected(hit: float, sigma: float, draws: int = 40_000) -> float:
    """Mean reward of a uniform point for a truth that is uniform inside the margins (fixed random numbers)."""
    rng = philox("expected-point", hit, sigma)
    truth = MARGIN + (1.0 - 2 * MARGIN) * rng.random((draws, 2))
    across, down = (rng.random((draws, 2)) - truth).T
    beyond = np.clip(np.hypot(across, down) - hit, 0.0, None)
    return float(np.exp(-0.5 * (beyond / sigma) ** 2).mean())
