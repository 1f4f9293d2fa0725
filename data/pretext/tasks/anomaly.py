"""Anomaly grounding: in one stretch of the video (or in several) something is wrong. When?

VideoSSR (arXiv 2511.06281, task A): a stretch of 1/6 to 1/3 of the frames is perturbed; answer "start-end" in seconds,
reward the temporal IoU. Kinds and constants: `perturbations`. With `segments` > 1 all stretches must be found; they are
matched one to one.

Departures: (1) times are read to the nearest frame, so the right frames earn exactly 1; (2) units, "to", other dashes
are understood; (3) stretches whose change cannot be seen, or that do not move where motion is the cue, are refused;
(4) `decoys` harmless jumps in time elsewhere, so that a cut alone does not mark a border; (5) frames outside go through
the same resampler where the kind resamples; (6) `fade` blends the border frames of a stretch.
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
    Medium,
    Proposal,
    RawMedia,
    Reject,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.perturbations import (
    DESCRIPTIONS,
    ORDER_KINDS,
    PIXEL_KINDS,
    RESAMPLING_KINDS,
    SPEEDS,
    SQUARE_KINDS,
    TRAIN_MIX,
    untouched,
    zoom_out,
)
from mmrl.data.pretext.craft.time_forms import (
    Spans,
    StretchTask,
    draw_spans,
    seconds,
    span_form,
    span_lengths,
)
from mmrl.ground.seeds import Streams

PAPER_KINDS = tuple(kind for kind in DESCRIPTIONS if kind not in ("swap", *SQUARE_KINDS))
"""The 14 kinds of the paper's table."""
VISIBLE = 6.0
"""Smallest mean change of a perturbed stretch, in grey levels."""
JUMP = 4.0
"""Frames skipped by a decoy."""


class AnomalyGroundingTask(StretchTask):
    name = "anomaly-grounding"
    kinds = ("video",)
    intended = ("cut",)
    knobs: ClassVar = {
        "kind": Knob("any", help="What goes wrong.", allowed=("any", "train", *DESCRIPTIONS)),
        "frames": Knob(24, (16, 24, 32), help="Shown frames."),
        "segments": Knob(1, (1, 1, 2, 3), help="How many stretches are changed."),
        "told": Knob(True, (True, True, False), help="Say in the question what goes wrong."),
        "decoys": Knob(1, (0, 1, 2), help="Harmless jumps in time outside the stretches."),
        "fade": Knob(
            False, help="Blend the first and last frame of a stretch with the clean one."
        ),
        "fill": Knob("blur", help="Border of a zoomed-out picture.", allowed=("blur", "black")),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "In {where} of this video, {what}. When does this happen?",
        "Watch the video. {What} during {where}. Find the time of it.",
        "The video is ordinary except for {where}, in which {what}. Locate it in time.",
    )

    def media_count(self, knobs: Knobs) -> int:
        return 2 if knobs["kind"] == "swap" else 1

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        kind = _chosen(str(knobs["kind"]), rng.selection)
        frames, segments = int(knobs["frames"]), int(knobs["segments"])
        spans = draw_spans(frames, segments, rng.geometry)
        clip, speed = media[0].video(), SPEEDS.get(kind, 1.0)
        units = _units(frames, spans, speed, int(knobs["decoys"]), rng)
        indices = clips.spread_indices(clip, units)
        if indices is None:
            return Reject("too-few-frames")
        clean = clips.read_frames(clip, indices, int(knobs["side"]))
        if clips.too_small(clean):
            return Reject("too-small")
        if kind in SQUARE_KINDS:
            clean = _square(clean)
        # Changes of order and speed show in motion only.
        if kind not in PIXEL_KINDS and min(_moving(clean, spans)) < clips.STILL:
            return Reject("nothing-moves")
        foreign = _foreign(media[1], clean) if kind == "swap" else None
        if kind == "swap" and foreign is None:
            return Reject("too-few-frames")
        shown = _perturbed(clean, spans, kind, knobs, foreign, rng)
        # A changed speed changes which frames are read, so `clean` has it already and there is nothing to compare.
        if kind not in SPEEDS:
            changes = [clips.change(shown[start:end], clean[start:end]) for start, end in spans]
            if min(changes) < _floor(kind):
                return Reject("change-not-visible")
        step = clips.shown_step(clip, indices, units)
        words = _words(kind, segments, bool(knobs["told"]))
        return stretch_draft(shown, spans, step, words, {"kind": kind})


def stretch_draft(
    shown: Array, spans: Spans, step: float, words: dict[str, str], meta: dict[str, str]
) -> Draft:
    """A question about the time of these frame ranges."""
    frames, segments = len(shown), len(spans)
    inside = tuple(frame for start, end in spans for frame in range(start, end))
    return Draft(
        visuals=(clips.timed(shown, step),),
        truth={
            "answer": seconds(spans, step),
            "frames": frames,
            "step": step,
            "lengths": list(span_lengths(frames, segments)),
        },
        key=spans,
        fields={**words, "form": span_form(segments)},
        evidence=(Evidence(0, frames=inside),),
        meta=meta,
    )


def _chosen(kind: str, rng: Generator) -> str:
    pool = {"any": PAPER_KINDS, "train": TRAIN_MIX}.get(kind, (kind,))
    return one_of(pool, rng)


def _units(frames: int, spans: Spans, speed: float, decoys: int, rng: Streams) -> Array:
    """Source position of every shown frame: one unit per frame, `speed` inside the stretches, jumps at decoys."""
    advance = np.ones(frames)
    advance[0] = 0.0
    for start, end in spans:
        # The step into the first frame of a stretch is an ordinary one; the step out of it is still at its speed.
        advance[start + 1 : end + 1] = speed
    # A decoy beside a border would move it.
    outside = [
        frame
        for frame in range(2, frames)
        if all(frame < start - 1 or frame > end + 1 for start, end in spans)
    ]
    for frame in some_of(outside, decoys, rng.geometry):
        advance[frame] += JUMP
    return np.cumsum(advance)


def _perturbed(
    clean: Array, spans: Spans, kind: str, knobs: Knobs, foreign: Array | None, rng: Streams
) -> Array:
    # Where the kind resamples, all frames do: sharpness alone must not mark the stretch.
    shown = untouched(clean) if kind in RESAMPLING_KINDS else clean.copy()
    for start, end in spans:
        segment = clean[start:end]
        if kind == "zoom-out":
            changed = zoom_out(segment, rng.appearance, str(knobs["fill"]))
        elif kind in PIXEL_KINDS or kind in ORDER_KINDS:
            changed = (PIXEL_KINDS | ORDER_KINDS)[kind](segment, rng.appearance)
        else:
            changed = segment if foreign is None else foreign[start:end]
        shown[start:end] = changed
        if knobs["fade"] and (kind in PIXEL_KINDS or kind == "swap"):
            for border in (start, end - 1):
                shown[border] = _mean(shown[border], clean[border])
    return shown


def _mean(one: Array, other: Array) -> Array:
    """Of two frames; uint16, since the sum of two grey levels does not fit into 8 bits."""
    return (one.astype(np.uint16) + other) // 2


def _foreign(medium: Medium, like: Array) -> Array | None:
    """Frames of another clip in the same number and size."""
    other = medium.video()
    indices = clips.spread_indices(other, np.arange(len(like), dtype=np.float64))
    if indices is None:
        return None
    height, width = like.shape[1:3]
    return clips.resized(other.read(indices.tolist()), width, height)


def _square(frames: Array) -> Array:
    height, width = frames.shape[1:3]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return frames[:, top : top + edge, left : left + edge]


def _moving(frames: Array, spans: Spans) -> list[float]:
    """Mean motion inside each stretch."""
    moved = clips.motion(frames)
    # Change number i leads from frame i to i + 1, so the last one inside is that to the last frame.
    return [float(moved[start : end - 1].mean()) for start, end in spans]


def _floor(kind: str) -> float:
    """Order kinds and blur change edges only, so less is asked of them."""
    return clips.STILL if kind in ORDER_KINDS or kind == "blur" else VISIBLE


def _words(kind: str, segments: int, told: bool) -> dict[str, str]:
    what = DESCRIPTIONS[kind] if told else "something was changed by editing"
    where = "one stretch" if segments == 1 else f"{segments} separate stretches"
    return {"what": what, "What": what[0].upper() + what[1:], "where": where}
