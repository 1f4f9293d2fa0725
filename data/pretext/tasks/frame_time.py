"""Frame to time: one frame of the video is shown again. When does it occur?

Answer: seconds; the nearest frame earns 1, others exp(−seconds off / (tau · duration)). The moment is uniform over the
frames.

Defences: the still is a source frame next to the shown one, not the shown one itself, with its own brightness and
colour balance, so that equal pixels do not decide; a still that some distant frame resembles as much is refused.
"""

from __future__ import annotations

from typing import ClassVar

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
    Visual,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.degenerate_checks import jittered
from mmrl.data.pretext.craft.draws import one_of
from mmrl.data.pretext.craft.time_forms import MomentTask
from mmrl.ground.seeds import Streams

MARGIN = 1.15
"""The best frame further than one step away must differ this many times as much as the true one."""


class FrameTimeTask(MomentTask):
    name = "frame-time"
    kinds = ("video",)
    intended = ("histogram", "boundary")
    knobs: ClassVar = {
        "frames": Knob(16, (8, 12, 16, 24), help="Shown frames."),
        "tau": Knob(0.05, help="Scale of the pay for a near miss, as a share of the duration."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "The picture is a frame of the video. At what time does it occur?",
        "Find the moment of the video that the still image shows.",
        "When in the video can the scene of the still picture be seen?",
    )

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count = int(knobs["frames"])
        clip, units = media[0].video(), np.arange(count, dtype=np.float64)
        indices = clips.spread_indices(clip, units)
        if indices is None:
            return Reject("too-few-frames")
        frame = int(rng.selection.integers(count))
        beside = _beside(indices, frame, rng.selection)
        # The still is read in one call with the clip: a second pass over the file would cost as much again.
        frames = clips.read_frames(clip, np.append(indices, beside), int(knobs["side"]))
        if clips.too_small(frames):
            return Reject("too-small")
        video, still = frames[:-1], frames[-1]
        difference = clips.thumbnails(video) - clips.thumbnails(still[None])
        apart = np.abs(difference).mean(axis=(1, 2, 3))
        far = np.abs(np.arange(count) - frame) > 1
        needed = max(clips.SAME, MARGIN * float(apart[frame]))
        if far.any() and float(apart[far].min()) < needed:
            return Reject("frames-look-alike")
        step = clips.shown_step(clip, indices, units)
        picture = jittered([still], rng.appearance)[0]
        return Draft(
            visuals=(clips.timed(video, step, "Video:"), Visual(picture, label="Picture:")),
            truth={
                "answer": round(frame * step, 1),
                "frames": count,
                "step": step,
                "tau": float(knobs["tau"]),
            },
            key=frame,
            evidence=(Evidence(0, frames=(frame,)), Evidence(1)),
        )


def _beside(indices: np.ndarray, frame: int, rng: Generator) -> int:
    """A source frame at most a third of a step from the shown one; the shown one itself if there is none."""
    gap = int(np.diff(indices).min())
    # A third at most, so that the shown frame stays the nearest one.
    reach = max(1, gap // 3) if gap > 1 else 0
    here = int(indices[frame])
    near = [here + offset for offset in range(-reach, reach + 1) if offset]
    inside = [index for index in near if indices[0] <= index <= indices[-1]]
    return one_of(inside, rng) if inside else here
