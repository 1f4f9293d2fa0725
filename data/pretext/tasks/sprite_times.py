"""First or last appearance: an object comes and goes. When is it seen for the first (or the last) time?

Answer: seconds; the right frame earns 1, others exp(−seconds off / (tau · duration)). The asked moment is uniform over
the frames.

Defences: the object comes up to `visits` times; other objects come and go by the same rule and look alike in shape or
in colour; the object must contrast with the ground at the asked moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.procedural import COLOURS, SHAPES, ShapeName
from mmrl.data.pretext.craft.sprites import readable, spot, sprite, stamp
from mmrl.data.pretext.craft.time_forms import MomentTask
from mmrl.ground.seeds import Streams

SIDES = ("first", "last")


class SpriteTimesTask(MomentTask):
    name = "sprite-times"
    kinds = ("video",)
    avoid = ("flat-shapes",)
    knobs: ClassVar = {
        "ask": Knob("any", help="Which appearance is asked for.", allowed=("any", *SIDES)),
        "frames": Knob(16, (8, 12, 16, 24), help="Shown frames."),
        "visits": Knob(2, (1, 2, 3), help="Most times that an object comes."),
        "distractors": Knob(2, (0, 1, 2, 3), help="Other objects."),
        "tau": Knob(0.05, help="Scale of the pay for a near miss, as a share of the duration."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "Painted shapes come and go in this video. At what time is the {name} seen for the {which} time?",
        "When does the {name} appear for the {which} time? Give the time of the {edge} frame that shows it.",
        "Find the {edge} moment at which a {name} can be seen on top of the video.",
    )

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, visits = int(knobs["frames"]), int(knobs["visits"])
        clip, units = media[0].video(), np.arange(count, dtype=np.float64)
        indices = clips.spread_indices(clip, units)
        if indices is None:
            return Reject("too-few-frames")
        shown = clips.read_frames(clip, indices, int(knobs["side"])).copy()
        if clips.too_small(shown, clips.PAINTABLE):
            return Reject("too-small")
        which = str(knobs["ask"])
        if which not in SIDES:
            which = one_of(SIDES, rng.selection)
        frame = int(rng.selection.integers(count))
        objects = _objects(int(knobs["distractors"]) + 1, rng.selection)
        schedules = [_visible(count, frame, which, visits, rng.selection)]
        # The distractors come and go by the same rule, or their number of visits would tell them apart.
        for _ in objects[1:]:
            edge = int(rng.selection.integers(count))
            schedules.append(_visible(count, edge, which, visits, rng.selection))
        boxes = _paint(shown, objects, schedules, frame, rng)
        if boxes is None:
            return Reject("object-not-readable")
        step = clips.shown_step(clip, indices, units)
        shape, colour = objects[0]
        return Draft(
            visuals=(clips.timed(shown, step),),
            truth={
                "answer": round(frame * step, 1),
                "frames": count,
                "step": step,
                "tau": float(knobs["tau"]),
            },
            key=frame,
            fields={
                "name": f"{colour} {shape}",
                "which": which,
                "edge": "earliest" if which == "first" else "latest",
            },
            evidence=tuple(Evidence(0, (box,), (i,)) for i, box in boxes.items()),
            meta={"visible": [bool(seen) for seen in schedules[0]]},
        )


def _objects(count: int, rng: Generator) -> list[tuple[ShapeName, str]]:
    """The object and distractors that share its shape or its colour, all different."""
    shape: ShapeName = one_of(SHAPES, rng)
    colour = one_of(list(COLOURS), rng)
    alike: list[tuple[ShapeName, str]] = []
    for other_colour in COLOURS:
        if other_colour != colour:
            alike.append((shape, other_colour))
    for other_shape in SHAPES:
        if other_shape != shape:
            alike.append((other_shape, colour))
    return [(shape, colour), *some_of(alike, count - 1, rng)]


def _visible(count: int, edge: int, which: str, visits: int, rng: Generator) -> Array:
    """bool [F]: visits whose first (or last) visible frame is `edge`."""
    seen = np.zeros(count, dtype=bool)
    longest = max(2, count // 4)
    # A last appearance is a first one in the reversed clip.
    at = edge if which == "first" else count - 1 - edge
    for _ in range(int(rng.integers(1, visits + 1))):
        length = int(rng.integers(1, longest + 1))
        seen[at : at + length] = True
        at += length + int(rng.integers(1, longest + 1))
        if at >= count:
            break
    return seen if which == "first" else seen[::-1]


def _paint(
    shown: Array,
    objects: Sequence[tuple[ShapeName, str]],
    schedules: Sequence[Array],
    frame: int,
    rng: Streams,
) -> dict[int, tuple[int, int, int, int]] | None:
    """Paint all objects, the asked one last (on top). Boxes of the asked one per frame, None if it cannot be read."""
    height, width = shown.shape[1:3]
    boxes = {}
    for index in reversed(range(len(objects))):
        share = rng.geometry.uniform(0.16, 0.24)
        size = int(share * min(height, width))
        what = sprite(*objects[index], size, rng.appearance)
        at = spot(height, width, size, rng.geometry)
        seen = schedules[index]
        for i in np.flatnonzero(seen):
            # A new visit, a new place.
            if i and not seen[i - 1]:
                at = spot(height, width, size, rng.geometry)
            if index == 0 and i == frame and not readable(shown[i], what, *at):
                return None
            box = stamp(shown[i], what, *at)
            if index == 0:
                boxes[int(i)] = box
    return boxes
