"""Crop localisation: which box of the picture does this enlarged crop show?

The answer is a box on the 0–1000 grid, paid by its IoU. The crop is enlarged to one size whatever its box, has its own
colour jitter and is refused if it has no texture. `correct` means an IoU of 1; the part `hit50` tells IoU ≥ 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
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
from mmrl.data.pretext.craft.coordinates import RULE, SCALE, is_box, scaled_box
from mmrl.data.pretext.craft.degenerate_checks import (
    harmless_history,
    jittered,
    resize,
    textureless,
)
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import box_iou
from mmrl.ground.seeds import Streams, philox


class CropLocationTask(Task):
    name = "crop-location"
    kinds = ("image", "rgbd", "document")
    knobs: ClassVar = {
        "share": Knob(
            0.3,
            (0.5, 0.15),
            smooth=True,
            help="Mean side of the box as a share of the picture's side.",
        ),
        "zoom": Knob(224, help="Longer side of the shown crop in pixels."),
        "side": Knob(448, help="Longest side of the picture in pixels."),
    }
    wordings = (
        "The second image is an enlarged part of the first. Give its box in the first image as x0, y0, x1, y1; {rule}.",
        "Locate the crop (second image) inside the picture (first image). Coordinates: {rule}.",
        "Which rectangle of the first picture was enlarged to make the second? In the first picture, {rule}.",
    )
    hint = "four whole numbers x0, y0, x1, y1 (left, top, right, bottom)"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"]))
        height, width = picture.shape[:2]
        if min(height, width) < 64:
            return Reject("too-small")
        share = _share(float(knobs["share"]), rng.geometry.random(1))[0]
        wide, tall = round(share * width), round(share * height)
        left = int(rng.geometry.integers(width - wide + 1))
        top = int(rng.geometry.integers(height - tall + 1))
        crop = picture[top : top + tall, left : left + wide]
        if textureless(crop):
            return Reject("textureless")
        # Always enlarged to one size: the size of the crop must not tell that of the box.
        scale = int(knobs["zoom"]) / max(width, height)
        enlarged = resize(crop, round(width * scale), round(height * scale))
        shown = jittered([enlarged], rng.appearance)[0]
        box = (left, top, left + wide, top + tall)
        answer = scaled_box(box, width, height)
        return Draft(
            visuals=(Visual(picture, label="Picture:"), Visual(shown, label="Crop:")),
            truth={"answer": answer},
            key=box_key(answer),
            fields={"rule": RULE},
            evidence=(Evidence(0, (box,)),),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.numbers(body, 4)

    def verify(self, value: Any, truth: Truth) -> Score:
        if not is_box(value):
            return Score(0.0, parts={"valid": 0.0})
        iou = box_iou(tuple(value), tuple(truth["answer"]))
        parts = {"valid": 1.0, "hit50": float(iou >= 0.5)}
        return Score(iou, iou == 1.0, parts, box_key(value))

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return listed(random_box(rng))

    def chance(self, knobs: Knobs) -> float:
        # A guess would have to meet all four numbers of about 10¹² boxes; the reward has a level of its own.
        return 0.0

    def chance_reward(self, knobs: Knobs) -> float:
        return _expected_iou(float(knobs["share"]))


def box_key(box: Sequence[float]) -> tuple[int, ...]:
    """Boxes that agree to a tenth of the picture share a key."""
    return tuple(int(value * 10 // SCALE) for value in box)


def random_box(rng: Generator) -> list[int]:
    """A box between two uniform corners of the answer grid."""
    # Without replacement, so that no side is empty.
    across = rng.choice(SCALE + 1, size=2, replace=False)
    down = rng.choice(SCALE + 1, size=2, replace=False)
    x0, x1 = sorted(map(int, across))
    y0, y1 = sorted(map(int, down))
    return [x0, y0, x1, y1]


def _share(mean: float, uniform: np.ndarray) -> np.ndarray:
    """Side shares between 70 and 130 % of the mean."""
    return mean * (0.7 + 0.6 * uniform)


@lru_cache(maxsize=64)
def _expected_iou(share: float, draws: int = 20_000) -> float:
    """Mean IoU of a random box with a drawn truth, by simulation with fixed random numbers (error about 0.001)."""
    rng = philox("expected-iou", share)
    side = _share(share, rng.random(draws))
    low = rng.random((draws, 2)) * (1.0 - side[:, None])
    high = low + side[:, None]
    ends = np.sort(rng.random((draws, 2, 2)), axis=2)  # [draws, axis, start and end]
    start, end = ends[..., 0], ends[..., 1]
    overlap = np.minimum(high, end) - np.maximum(low, start)
    inside = np.clip(overlap, 0.0, None).prod(axis=1)
    union = side**2 + (end - start).prod(axis=1) - inside
    return float((inside / union).mean())
