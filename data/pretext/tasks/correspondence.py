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
    Medium,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
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
from mmrl.data.pretext.craft.rng import Streams, generator
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError

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

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        picture = harmless_history(media[0].picture(), rng, 640)
        if min(picture.shape[:2]) < 160:
            return Reject("too-small")
        side, bend = int(knobs["side"]), float(knobs["bend"])
        turns = rng.geometry.uniform(-0.5, 0.5, size=2) * float(knobs["turn"])
        edge = min(picture.shape[:2])
        centre = np.array([picture.shape[1], picture.shape[0]]) / 2.0
        quads = [_quad(centre, edge, bend, float(turn), rng.geometry) for turn in turns]
        views = [homography(corners(side, side), quad) for quad in quads]
        inner = side * (MARGIN + (1.0 - 2 * MARGIN) * rng.geometry.random((32, 2)))
        in_second = project(np.linalg.inv(views[1]), project(views[0], inner))
        fits = ((in_second > MARGIN * side) & (in_second < (1.0 - MARGIN) * side)).all(axis=1)
        if not fits.any():
            return Reject("not-in-both-views")
        point, target = inner[fits][0], in_second[fits][0]
        first, second = (warp(picture, view, side, side) for view in views)
        reach = side // 10
        x, y = (int(v) for v in point)
        if textureless(first[y - reach : y + reach, x - reach : x + reach]):
            return Reject("textureless")
        answer = scaled_point(target.tolist(), side, side)
        at = (int(target[0]), int(target[1]))
        box = (at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach)
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
            evidence=(
                Evidence(0, ((x - reach, y - reach, x + reach, y + reach),)),
                Evidence(1, (box,)),
            ),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.numbers(body, 2)

    def verify(self, value: Any, truth: Truth) -> Score:
        if not all(0 <= v <= SCALE for v in value):
            return Score(0.0, parts={"valid": 0.0})
        apart = hypot(value[0] - truth["answer"][0], value[1] - truth["answer"][1]) / SCALE
        beyond = max(0.0, apart - truth["hit"])
        reward = exp(-0.5 * (beyond / truth["sigma"]) ** 2)
        correct = beyond == 0.0
        key = point_key(truth["answer"]) if correct else point_key(value)
        return Score(reward, correct, {"valid": 1.0, "distance": apart}, key)

    def format(self, truth: Truth) -> str:
        return ", ".join(map(str, truth["answer"]))

    def guess(self, truth: Truth, rng: Generator) -> str:
        return ", ".join(str(int(v)) for v in rng.integers(0, SCALE + 1, size=2))

    def chance(self, knobs: Knobs) -> float:
        return float(np.pi * float(knobs["hit"]) ** 2)

    def chance_reward(self, knobs: Knobs) -> float:
        return _expected(float(knobs["hit"]), float(knobs["sigma"]))


def point_key(point: Sequence[float]) -> tuple[int, ...]:
    """Points that agree to a twentieth of the side share a key."""
    return tuple(int(value * 20 // SCALE) for value in point)


def _quad(centre: Array, edge: int, bend: float, turn: float, rng: Generator) -> Array:
    """[4, 2]: a bent, turned window around the centre that stays inside a square of side `edge`."""
    base = (corners(1.0, 1.0) - 0.5) * (1.0 + rng.uniform(-bend, bend, size=(4, 2)))
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    shape = base @ np.array([[cos, sin], [-sin, cos]])
    size = (edge - 4) / 2 / np.abs(shape).max() * float(rng.uniform(0.8, 1.0))
    room = (edge - 4) / 2 - size * np.abs(shape).max(axis=0)
    return centre + size * shape + rng.uniform(-1, 1, size=2) * np.maximum(room, 0.0)


def _ringed(view: Array, point: Array, side: int) -> Array:
    image = Image.fromarray(view)
    pen, radius = ImageDraw.Draw(image), max(5, side // 40)
    x, y = (float(v) for v in point)
    pen.ellipse(
        (x - radius, y - radius, x + radius, y + radius), outline=(255, 255, 255), width=4
    )
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=(230, 0, 0), width=2)
    return np.asarray(image)


@lru_cache(maxsize=64)
def _expected(hit: float, sigma: float, draws: int = 40_000) -> float:
    """Mean reward of a uniform point for a truth that is uniform inside the margins (fixed random numbers)."""
    rng = generator("expected-point", hit, sigma)
    truth = MARGIN + (1.0 - 2 * MARGIN) * rng.random((draws, 2))
    beyond = np.clip(np.hypot(*(rng.random((draws, 2)) - truth).T) - hit, 0.0, None)
    return float(np.exp(-0.5 * (beyond / sigma) ** 2).mean())
