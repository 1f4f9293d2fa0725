"""Counting overlays: how many circles, squares, … were painted on the picture, among distractors?

The image version of VideoSSR's counting (arXiv 2511.06281). Answer: one count per asked shape. Reward: mean over shapes
of max(0, 1 − |guess − count| / count), rewards.count_rel.

Defences: counts are drawn first, uniformly, and the sizes shrink until everything has a place, so no count is rarer
than another; shapes never overlap, contrast with what they cover, have soft edges, grain and random opacity;
distractors of other shapes are painted by the same function.
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
from mmrl.data.pretext.craft.degenerate_checks import harmless_history
from mmrl.data.pretext.craft.draws import repeatedly, some_of
from mmrl.data.pretext.craft.overlays import boxes_of, paint, place
from mmrl.data.pretext.craft.procedural import SHAPES, ShapeName
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import count_rel
from mmrl.ground.seeds import Streams


class OverlayCountTask(Task):
    name = "overlay-count"
    kinds = ("image", "rgbd", "document")
    avoid = ("flat-shapes",)
    knobs: ClassVar = {
        "asked": Knob(2, (1, 1, 2, 3), help="Number of shapes to count.", allowed=(1, 2, 3)),
        "most": Knob(5, (3, 5, 9), help="Largest count of each shape."),
        "distractors": Knob(3, (0, 3, 6), help="Largest number of shapes of other kinds."),
        "largest": Knob(
            0.16, (0.2, 0.1), smooth=True, help="Largest shape as a share of the short side."
        ),
        "side": Knob(448, help="Longest side of the picture in pixels."),
    }
    wordings = (
        "Flat shapes were painted on the picture. Count the {names}, whatever their colour, size and rotation.",
        "How many {names} were drawn over this image? Other shapes do not count.",
        "Count the painted {names} in the picture; ignore any other painted shape.",
    )
    hint = "{form}"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"])).copy()
        height, width = picture.shape[:2]
        if min(height, width) < 112:
            return Reject("too-small")
        kinds: list[ShapeName] = some_of(SHAPES, len(SHAPES), rng.selection)
        asked, others = kinds[: int(knobs["asked"])], kinds[int(knobs["asked"]) :]
        most = int(knobs["most"])
        counts = [int(rng.selection.integers(1, most + 1)) for _ in asked]
        extra = int(rng.selection.integers(int(knobs["distractors"]) + 1))
        names: list[ShapeName] = []
        for name, count in zip(asked, counts, strict=True):
            names.extend(name for _ in range(count))
        distractors: list[ShapeName] = repeatedly(others, extra, rng.selection)
        names += distractors
        largest = float(knobs["largest"])
        spots = place(len(names), height, width, (0.6 * largest, largest), rng.geometry)
        # Painted in random order: with few pixels between them, what lies on top must not depend on the kind.
        for index in rng.selection.permutation(len(names)):
            paint(picture, names[index], spots[index], rng.appearance)
        return Draft(
            visuals=(Visual(picture),),
            truth={"answer": counts, "most": most},
            key=tuple(counts),
            fields=_words(asked),
            evidence=(Evidence(0, boxes_of(spots[: sum(counts)])),),
            meta={"asked": asked, "painted": names},
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        count = len(truth["answer"])
        return parsing.integers(body, count)

    def verify(self, value: Any, truth: Truth) -> Score:
        if any(count < 0 for count in value):
            return Score(0.0, parts={"valid": 0.0})
        right = tuple(value) == tuple(truth["answer"])
        return Score(count_rel(value, truth["answer"]), right, {"valid": 1.0}, tuple(value))

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        counts = rng.integers(1, truth["most"] + 1, size=len(truth["answer"]))
        return listed(int(count) for count in counts)

    def chance(self, knobs: Knobs) -> float:
        return float(int(knobs["most"]) ** -int(knobs["asked"]))

    def chance_reward(self, knobs: Knobs) -> float:
        return expected_count_reward(int(knobs["most"]))


@lru_cache(maxsize=32)
def expected_count_reward(most: int) -> float:
    """Mean reward of a uniform guess for one uniform count in 1..most."""
    values = np.arange(1, most + 1)
    relative_error = np.abs(values[:, None] - values) / values
    return float(np.clip(1.0 - relative_error, 0.0, None).mean())


def _words(asked: Sequence[str]) -> dict[str, str]:
    # "crosses"
    names = [f"{name}{'es' if name.endswith('s') else 's'}" for name in asked]
    if len(names) == 1:
        return {"names": names[0], "form": "one whole number"}
    in_order = f"{listed(names[:-1])} and {names[-1]}"
    form = f"{len(names)} whole numbers in the order {in_order}, separated by commas"
    return {"names": in_order, "form": form}
