"""Spot the difference: find the boxes where the second picture was edited.

Edits under a soft mask: recolour, copy from elsewhere, shift of the content, removal by texture from beside
it. Answer: one box per edit on the 0–1000 grid, separated by semicolons. Reward: the best one-to-one matching of boxes,
sum of IoU / max(number given, number true). `correct` means a reward of 1; the part `found` is the share of edits that
are met with IoU ≥ 0.5.

Defences: both pictures get their own colour jitter, so plain subtraction leaves a pattern everywhere; edits are smooth
at their border; an edit that changes less than 12 grey levels is refused; boxes are disjoint. Comparing frames is what
the task is about, so the cut auditor is intended.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

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
from mmrl.data.pretext.craft.answer_forms import all_or_error, listed
from mmrl.data.pretext.craft.coordinates import RULE, is_box, scaled_box
from mmrl.data.pretext.craft.degenerate_checks import difference, harmless_history, jittered
from mmrl.data.pretext.craft.draws import repeatedly
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import box_iou
from mmrl.data.pretext.tasks.crop_location import box_key, random_box
from mmrl.ground.seeds import Streams, philox

KINDS = ("recolour", "copy", "shift", "remove")
Box = tuple[int, int, int, int]


class DifferencesTask(Task):
    name = "differences"
    kinds = ("image", "rgbd", "document")
    intended = ("cut",)
    knobs: ClassVar = {
        "edits": Knob(2, (1, 1, 2, 3), help="Number of edits."),
        "told": Knob(True, (True, False), help="Say how many edits there are."),
        "size": Knob(
            0.2,
            (0.28, 0.14),
            smooth=True,
            help="Mean side of an edit as a share of the picture's side.",
        ),
        "side": Knob(392, help="Longest side of the pictures in pixels."),
    }
    wordings = (
        "The second picture was edited in {count}. Give a box around each edited place; {rule}.",
        "Compare the two pictures and mark every difference ({count}) with a box; {rule}.",
        "Find what changed between the images: {count}. For each, give its box; {rule}.",
    )
    hint = "the boxes as x0, y0, x1, y1 (left, top, right, bottom), separated by semicolons"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"]))
        height, width = picture.shape[:2]
        if min(height, width) < 112:
            return Reject("too-small")
        count = int(knobs["edits"])
        boxes = _disjoint(count, height, width, float(knobs["size"]), rng.geometry)
        if boxes is None:
            return Reject("no-room")
        edited = picture.copy()
        kinds = repeatedly(KINDS, count, rng.selection)
        for box, kind in zip(boxes, kinds, strict=True):
            x0, y0, x1, y1 = box
            # Made from the unedited picture, so that an edit never shows the content of another one.
            new = _edit(picture, box, kind, rng)
            edited[y0:y1, x0:x1] = new
            if difference(new, picture[y0:y1, x0:x1]) < 12.0:
                return Reject("edit-not-visible")
        answer = sorted(scaled_box(box, width, height) for box in boxes)
        told = f"{count} place{'s' if count > 1 else ''}"
        # Each picture has its own colours: plain subtraction would show the edits alone.
        first = jittered([picture], rng.child("first").appearance, common=0.04)[0]
        second = jittered([edited], rng.child("second").appearance, common=0.04)[0]
        return Draft(
            visuals=(
                Visual(first, label="First picture:"),
                Visual(second, label="Second picture:"),
            ),
            truth={"answer": answer},
            key=tuple(sorted(box_key(box) for box in answer)),
            fields={"count": told if knobs["told"] else "one or more places", "rule": RULE},
            evidence=(Evidence(0, tuple(boxes)), Evidence(1, tuple(boxes))),
            meta={"kinds": kinds},
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        pieces = [piece for piece in body.split(";") if piece.strip()]
        if not 0 < len(pieces) <= 16:
            return ParseError("length", body[:40])
        return all_or_error([parsing.numbers(piece, 4) for piece in pieces])

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        if not all(is_box(box) for box in value):
            return Score(0.0, parts={"valid": 0.0})
        ious = _ious(value, answer)
        matched = _matched(ious)
        # Divided by the larger number: surplus boxes cost as much as missing ones.
        reward = float(sum(matched)) / max(ious.shape)
        found = sum(iou >= 0.5 for iou in matched) / len(answer)
        key = tuple(sorted(box_key(box) for box in value))
        return Score(min(reward, 1.0), reward >= 1.0, {"valid": 1.0, "found": found}, key)

    def format(self, truth: Truth) -> str:
        return "; ".join(listed(box) for box in truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return "; ".join(listed(random_box(rng)) for _ in truth["answer"])

    def chance(self, knobs: Knobs) -> float:
        return 0.0

    def chance_reward(self, knobs: Knobs) -> float:
        return _expected(int(knobs["edits"]), float(knobs["size"]))


def _ious(guesses: Sequence[Sequence[float]], truths: Sequence[Sequence[float]]) -> Array:
    """float64 [guesses, truths]."""
    table = []
    for guess in guesses:
        table.append([box_iou(tuple(guess), tuple(truth)) for truth in truths])  # type: ignore[arg-type]
    return np.array(table)


def _matched(ious: Array) -> list[float]:
    """The IoUs of the best one-to-one matching."""
    from scipy.optimize import linear_sum_assignment  # here: scipy is slow to import

    if min(ious.shape) == 1:
        return [float(ious.max())]
    rows, columns = linear_sum_assignment(-ious)
    return [float(value) for value in ious[rows, columns]]


def _disjoint(
    count: int, height: int, width: int, size: float, rng: Generator
) -> list[Box] | None:
    """`count` boxes at least 8 pixels apart; None if 60 tries do not give that many."""
    boxes: list[Box] = []
    for _ in range(60):
        wide = max(8, int(width * size * float(rng.uniform(0.75, 1.25))))
        tall = max(8, int(height * size * float(rng.uniform(0.75, 1.25))))
        x0 = int(rng.integers(width - wide + 1))
        y0 = int(rng.integers(height - tall + 1))
        box = (x0, y0, x0 + wide, y0 + tall)
        if all(_apart(box, other) for other in boxes):
            boxes.append(box)
        if len(boxes) == count:
            return boxes
    return None


def _apart(one: Box, other: Box) -> bool:
    beside = one[2] + 8 < other[0] or other[2] + 8 < one[0]
    above = one[3] + 8 < other[1] or other[3] + 8 < one[1]
    return beside or above


def _edit(picture: Array, box: Box, kind: str, rng: Streams) -> Array:
    """The edited content of a box, blended inside a soft rounded rectangle that touches the box's sides."""
    x0, y0, x1, y1 = box
    height, width = picture.shape[:2]
    tall, wide = y1 - y0, x1 - x0
    old = picture[y0:y1, x0:x1]
    if kind == "recolour":
        new = np.roll(old, int(rng.appearance.integers(1, 3)), axis=2)
    elif kind == "copy":
        top = int(rng.selection.integers(height - tall + 1))
        left = int(rng.selection.integers(width - wide + 1))
        new = picture[top : top + tall, left : left + wide]
    elif kind == "shift":
        new = np.roll(old, (tall // 3, wide // 3), axis=(0, 1))
    else:
        # Removed: covered by what lies to the right, or to the left where the picture ends.
        left = x1 if x1 + wide <= width else max(0, x0 - wide)
        new = picture[y0:y1, left : left + wide]
    down = np.linspace(-1, 1, tall, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, wide, dtype=np.float32)[None]
    # 1 in the middle, 0 at the border: a superellipse of power 4, steep enough to keep most of the box.
    # Products and square roots are rounded alike on every processor; a power of 0.25 is not, and one grey
    # level follows.
    fourth = across * across * across * across + down * down * down * down
    outwards = np.sqrt(np.sqrt(fourth))
    alpha = np.clip((1.0 - outwards) * 6.0, 0.0, 1.0)[..., None]
    return (old * (1.0 - alpha) + new * alpha).astype(np.uint8)


@lru_cache(maxsize=32)
def _expected(count: int, size: float, draws: int = 1500) -> float:
    """Mean reward of random boxes, by simulation on a wide picture with fixed random numbers."""
    rng, total = philox("expected-boxes", count, size), 0.0
    for _ in range(draws):
        truth = _disjoint(count, 750, 1000, size, rng) or []
        boxes = [scaled_box(box, 1000, 750) for box in truth]
        guesses = [random_box(rng) for _ in boxes]
        total += sum(_matched(_ious(guesses, boxes))) / count
    return total / draws
