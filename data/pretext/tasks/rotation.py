"""Rotation: by how many degrees was the picture turned? Quarter turns, or steps of 45, 30 or 15 degrees.

Reward: 1 for the right angle; for steps below 90 degrees a neighbouring angle earns `near` (0 by default), as angles
are a circle. PuzzleCraft (arXiv 2512.14944): four angles, clockwise and counter-clockwise wording, binary.

Departures: a square is cut before turning, so the aspect ratio says nothing; every angle, also 0, goes through the same
path: turn at a higher resolution, cut the fixed inscribed square (side / √2 for steps below 90), reduce, so neither
borders nor blur tell the angle; pictures that look the same after some turn are refused.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image

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
from mmrl.data.pretext.craft.degenerate_checks import (
    harmless_history,
    nearly_invariant,
    random_crop,
    resize,
)
from mmrl.data.pretext.craft.draws import one_of
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams


class RotationTask(Task):
    name = "rotation"
    kinds = ("image", "rgbd", "document")
    knobs: ClassVar = {
        "step": Knob(
            90,
            (90, 90, 45, 30, 15),
            help="Degrees between the possible angles.",
            allowed=(90, 45, 30, 15),
        ),
        "near": Knob(0.0, help="Pay for an angle one step off (steps below 90 only)."),
        "side": Knob(336, help="Side of the shown square in pixels."),
    }
    wordings = (
        "The picture was turned {direction} by one of these angles: {angles} degrees. Which one?",
        "By how many degrees ({angles}) has this image been rotated {direction}?",
        "Someone rotated the image {direction}. Possible angles in degrees: {angles}. Find the angle.",
    )
    hint = "the angle in degrees, a number only"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        step, side = int(knobs["step"]), int(knobs["side"])
        picture = harmless_history(media[0].picture(), rng, 2 * side)
        edge = min(picture.shape[:2])
        square = random_crop(picture, edge, edge, rng.geometry)
        if square is None or 2 * edge < side:
            return Reject("too-small")
        angles = list(range(0, 360, step))
        upright = turned(square, 0, step, side)
        quarters = [np.rot90(upright, quarter) for quarter in (1, 2, 3)]
        if nearly_invariant(upright, quarters):
            return Reject("looks-the-same-turned")
        answer = one_of(angles, rng.selection)
        clockwise = bool(rng.selection.random() < 0.5)
        shown = turned(square, answer if clockwise else -answer, step, side)
        return Draft(
            visuals=(Visual(shown),),
            truth={"answer": answer, "step": step, "near": float(knobs["near"])},
            key=answer,
            fields={
                "direction": "clockwise" if clockwise else "counter-clockwise",
                "angles": listed(angles),
            },
            evidence=(Evidence(0),),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.number(body, units=("°", "deg", "degree", "degrees"))

    def verify(self, value: Any, truth: Truth) -> Score:
        step = truth["step"]
        if value not in range(0, 360, step):
            return Score(0.0, parts={"valid": 0.0})
        apart = abs(int(value) - truth["answer"])
        apart = min(apart, 360 - apart)  # the shorter way round
        # Quarter turns are told apart by content: the neighbour of one is not nearly right.
        near = truth["near"] if step < 90 and apart == step else 0.0
        reward = 1.0 if apart == 0 else near
        parts = {"valid": 1.0, "degrees_off": float(apart)}
        return Score(reward, apart == 0, parts, int(value))

    def format(self, truth: Truth) -> str:
        return str(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        step = truth["step"]
        return str(int(rng.integers(360 // step)) * step)

    def chance(self, knobs: Knobs) -> float:
        return int(knobs["step"]) / 360

    def chance_reward(self, knobs: Knobs) -> float:
        near = 2 * float(knobs["near"]) if int(knobs["step"]) < 90 else 0.0
        return self.chance(knobs) * (1.0 + near)


def turned(square: Array, degrees: int, step: int, side: int) -> Array:
    """uint8 [side, side, 3]: turned clockwise. Steps of 90 only move pixels; others cut the inscribed square."""
    if step == 90:
        return np.ascontiguousarray(np.rot90(resize(square, side, side), -degrees // 90))
    edge = square.shape[0]
    whole = np.asarray(Image.fromarray(square).rotate(-degrees, Image.Resampling.BICUBIC))
    # Cut for every angle, also for 0: the black corners, or their absence, would tell.
    inner = int(edge / np.sqrt(2))
    low = (edge - inner) // 2
    high = low + inner
    return resize(whole[low:high, low:high], side, side)
