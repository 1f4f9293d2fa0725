"""Needle clip: a piece of another video was put into this one. From when to when?

Reward: temporal IoU, times read to the nearest frame (see `anomaly`, whose kind "swap" this refines).

Defences: the foreign frames have the size of the others and are brought to the mean brightness of the stretch that they
replace; harmless jumps in time elsewhere (`decoys`), so that one cut does not mark the place.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmrl.data.pretext.contract import (
    Array,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.time_forms import StretchTask, draw_spans
from mmrl.data.pretext.tasks.anomaly import JUMP, VISIBLE, stretch_draft
from mmrl.ground.seeds import Streams


class NeedleClipTask(StretchTask):
    name = "needle-clip"
    kinds = ("video",)
    intended = ("cut",)
    knobs: ClassVar = {
        "frames": Knob(24, (16, 24, 32), help="Shown frames."),
        "segments": Knob(
            1, (1, 1, 2), help="How many foreign pieces, all from one other video."
        ),
        "decoys": Knob(2, (0, 1, 2, 3), help="Harmless jumps in time elsewhere."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "Into this video, {pieces} of a different video {were} inserted. When is the other video shown?",
        "{Pieces} of an unrelated video {were} spliced into this clip. Give the time of the foreign part.",
        "Part of what you see does not belong to this video: {pieces} of another one {were} put in. Locate it in time.",
    )

    def media_count(self, knobs: Knobs) -> int:
        return 2

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        frames, segments = int(knobs["frames"]), int(knobs["segments"])
        spans = draw_spans(frames, segments, rng.geometry)
        host, other = media[0].video(), media[1].video()
        units = np.arange(frames, dtype=np.float64)
        # Never at frame 0, before which there is nothing to jump over.
        for place in rng.geometry.permutation(np.arange(1, frames))[: int(knobs["decoys"])]:
            units[place:] += JUMP
        indices = clips.spread_indices(host, units)
        foreign = clips.spread_indices(other, np.arange(frames, dtype=np.float64))
        if indices is None or foreign is None:
            return Reject("too-few-frames")
        shown = clips.read_frames(host, indices, int(knobs["side"])).copy()
        if clips.too_small(shown):
            return Reject("too-small")
        for start, end in spans:
            piece = _matched(other.read(foreign[start:end].tolist()), shown[start:end])
            if clips.change(piece, shown[start:end]) < 2 * VISIBLE:
                return Reject("clips-look-alike")
            shown[start:end] = piece
        count = "one piece" if segments == 1 else f"{segments} pieces"
        words = {
            "pieces": count,
            "Pieces": count.capitalize(),
            "were": "was" if segments == 1 else "were",
        }
        return stretch_draft(shown, spans, clips.shown_step(host, indices, units), words, {})


def _matched(piece: Array, like: Array) -> Array:
    """Resized to the other frames and shifted to their mean brightness."""
    height, width = like.shape[1:3]
    fitted = clips.resized(piece, width, height).astype(np.int16)
    # Every eighth pixel is enough for a mean.
    shift = int(clips.thumbnails(like).mean() - fitted[:, ::8, ::8].mean())
    return np.clip(fitted + shift, 0, 255).astype(np.uint8)
