"""Missing clip: a piece was cut out of the video. Where does it belong?

The video is shown with several joins; at each join a piece of the same length is missing, but only one of the missing
pieces is shown. Answer: the number of the join. Reward: 1 for the right one.

Defences: all joins are real cuts of one length, so a cut says nothing; they are evenly likely; every missing piece must
look different from the others, and the piece is trimmed at both ends so that its border frames do not continue exactly.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmrl.data.pretext.contract import (
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, listed
from mmrl.ground.seeds import Streams


class ClipInsertionTask(ChoiceTask):
    name = "clip-insertion"
    kinds = ("video",)
    intended = ("boundary", "histogram")
    knobs: ClassVar = {
        "joins": Knob(3, (2, 3, 4, 5), help="Places where a piece is missing."),
        "part": Knob(4, help="Shown frames between two joins."),
        "piece": Knob(4, help="Frames of the missing piece."),
        "trim": Knob(1, help="Frames left out at both ends of the piece."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "The video has {joins} joins, at {times} seconds; at each of them a piece was cut out. The extra clip is one"
        " of these pieces. At which join, counted from 1, does it belong?",
        "Pieces were removed from the video at {times} seconds ({joins} joins, numbered from 1). Which join does the"
        " extra clip fill?",
        "The extra clip once stood in the video at one of the {joins} joins ({times} seconds). Give the number of the"
        " join.",
    )
    hint = "the number of the join"

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["joins"])

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        joins, part = int(knobs["joins"]), int(knobs["part"])
        piece, trim = int(knobs["piece"]), int(knobs["trim"])
        clip = media[0].video()
        gone = piece + 2 * trim
        total = (joins + 1) * part + joins * gone
        indices = clips.spread_indices(clip, np.arange(total, dtype=np.float64))
        if indices is None:
            return Reject("too-few-frames")
        frames = clips.read_frames(clip, indices, int(knobs["side"]))
        if clips.too_small(frames):
            return Reject("too-small")
        cuts = [part + join * (part + gone) for join in range(joins)]
        # Trimmed: the border frames of the piece must not continue those beside the join.
        pieces = [frames[cut + trim : cut + trim + piece] for cut in cuts]
        if clips.closest_means(pieces) < clips.SAME:
            return Reject("clips-look-alike")
        removed = [frame for cut in cuts for frame in range(cut, cut + gone)]
        kept = np.delete(frames, removed, axis=0)
        chosen = int(rng.selection.integers(joins))
        step = clips.shown_step(clip, indices, np.arange(total))
        times = [f"{(join + 1) * part * step:.1f}" for join in range(joins)]
        # The frames on both sides of the join are what the piece must go with.
        around = tuple(range(chosen * part, (chosen + 2) * part))
        return Draft(
            visuals=(
                clips.timed(kept, step, "Video:"),
                clips.timed(pieces[chosen], step, "Extra clip:"),
            ),
            truth={"answer": str(chosen + 1), "options": [str(i + 1) for i in range(joins)]},
            key=str(chosen + 1),
            fields={"joins": joins, "times": listed(times)},
            evidence=(Evidence(0, frames=around), Evidence(1)),
        )
