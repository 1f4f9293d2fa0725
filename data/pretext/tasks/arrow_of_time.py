"""Arrow of time: does the clip play forwards or backwards?

Reward: 1 for the right word. With `reference` a first clip that certainly plays forwards is shown, and the question
is about the part of the video that follows it: then any steady motion decides, also where one clip alone is ambiguous.

Defences (Wei et al. 2018): clips must move; a clip whose frames return to where they began is refused, as it looks the
same both ways; the direction is a fair coin; the time line always runs forward from 0.
"""

from __future__ import annotations

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
from mmrl.data.pretext.craft.answer_forms import ChoiceTask
from mmrl.ground.seeds import Streams

WORDS = ("forward", "backward")


class ArrowOfTimeTask(ChoiceTask):
    name = "arrow-of-time"
    kinds = ("video",)
    knobs: ClassVar = {
        "frames": Knob(12, (12, 12, 8), help="Frames of the clip in question."),
        "reference": Knob(
            True, (True, True, False), help="Show a forward clip of the moments before."
        ),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "{reference}Does {which} play forward or backward?",
        "{reference}Decide in which direction of time {which} is played: forward or backward.",
        "{reference}Was {which} reversed? Say forward if it was not, backward if it was.",
    )
    hint = 'one word, "forward" or "backward"'

    def option_count(self, knobs: Knobs) -> int:
        return 2

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, reference = int(knobs["frames"]), bool(knobs["reference"])
        clip = media[0].video()
        total = 2 * count if reference else count
        indices = _stretch(clips.window(clip), total, rng.geometry)
        if indices is None:
            return Reject("too-few-frames")
        frames = clips.read_frames(clip, indices, int(knobs["side"]))
        if clips.too_small(frames):
            return Reject("too-small")
        asked = frames[-count:]
        pace = float(clips.motion(asked).mean())
        if pace < clips.STILL:
            return Reject("nothing-moves")
        # A swing or a loop ends where it began and plays alike both ways.
        if clips.change(asked[:1], asked[-1:]) < 1.5 * pace:
            return Reject("returns-to-the-start")
        answer = WORDS[int(rng.selection.integers(2))]
        step = clips.shown_step(clip, indices, np.arange(total))
        played = asked if answer == "forward" else asked[::-1]
        shown = clips.timed(played, step, "Clip 2:" if reference else "")
        before = (clips.timed(frames[:count], step, "Clip 1:"),) if reference else ()
        hint = "Clip 1 plays forward; clip 2 shows the moments right after it. "
        return Draft(
            visuals=(*before, shown),
            truth={"answer": answer, "options": list(WORDS)},
            key=answer,
            fields={
                "reference": hint if reference else "",
                "which": "clip 2" if reference else "the video",
            },
            evidence=(Evidence(len(before)),),
        )


def _stretch(span: tuple[int, int], count: int, rng: Generator) -> Array | None:
    """`count` evenly spaced source frames of a random part of the window: every k-th frame, k as large as 4 allow."""
    start, end = span
    room = end - start - 1
    stride = min(4, room // (count - 1)) if count > 1 else 1
    if stride < 1:
        return None
    free = room - stride * (count - 1)
    return start + int(rng.integers(free + 1)) + stride * np.arange(count)
