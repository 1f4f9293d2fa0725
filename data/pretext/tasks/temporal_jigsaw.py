"""Temporal jigsaw: a video cut into clips, shown in random order. Restore the order.

Answer: the shown numbers of the clips in order of play. Rewards: "positional" pays 1 for the exact order and `gamma`
times the share of right places otherwise (Visual Jigsaw, arXiv 2509.25190, gamma 0.2); "footrule" pays
1 − Σ|place off|/⌊K²/2⌋ (VideoSSR, arXiv 2511.06281); "kendall" pays gamma times the share of right pairs. The footrule
gives about 0.35 to noise: normalise it (`rewards.above_chance`) before mixing it with other tasks.

Departures: (1) both ends of every clip are cut by `trim`, and the clips start at a random offset, where Visual Jigsaw
drops the remainder of frames at the start in blocks (`compat.visual_jigsaw_clip_ranges`) and VideoSSR cuts nothing, so
that borders match; (2) from four clips on the order is never the identity (below, that would give much of the answer
away: of two clips all of it); (3) each clip is a separate video on its own time line from 0;
(4) clips that stand still or look alike are refused; (5) separators are free.
"""

from __future__ import annotations

from math import factorial
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
    Truth,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.answer_forms import OrderTask, shuffled_order
from mmrl.data.pretext.marking.rewards import footrule, is_permutation, kendall, positional
from mmrl.ground.seeds import Streams

PARTIAL = {"positional": positional, "kendall": kendall}


class TemporalJigsawTask(OrderTask):
    name = "temporal-jigsaw"
    version = 3
    kinds = ("video",)
    # Motion and colours go on from clip to clip: that is what there is to see.
    intended = ("boundary", "histogram")
    knobs: ClassVar = {
        "clips": Knob(4, (2, 3, 4, 5, 6, 8), help="Pieces of the video."),
        "per_clip": Knob(4, help="Shown frames per clip; with `fps` the most of them."),
        "fps": Knob(
            0.0,
            help="Frames per second of a clip, an even number of them (Visual Jigsaw); 0: all of per_clip.",
        ),
        "trim": Knob(0.1, (0.2, 0.1, 0.15), help="Share cut off at both ends of a clip."),
        "reward": Knob(
            "positional",
            help="How partly right orders are paid.",
            allowed=("positional", "footrule", "kendall"),
        ),
        "gamma": Knob(0.2, help="Weight of partial credit (positional, kendall)."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "One video was cut into {count} clips, shown above in random order and numbered from 1. In which order do they"
        " play?",
        "The {count} clips are shuffled pieces of a single video. Put them back into the order of time.",
        "Restore the original video: sort the {count} numbered clips by when they happen.",
    )
    hint = "the clip numbers from first to last, separated by commas"

    def length(self, knobs: Knobs) -> int:
        return int(knobs["clips"])

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, per_clip = int(knobs["clips"]), int(knobs["per_clip"])
        clip = media[0].video()
        ranges = _ranges(*clips.window(clip), count, float(knobs["trim"]), rng.geometry)
        if ranges is not None and knobs["fps"]:
            per_clip = _sampled(clip.times, ranges[0], float(knobs["fps"]), per_clip)
        if ranges is None or min(end - start for start, end in ranges) < per_clip:
            return Reject("too-few-frames")
        indices = [_inside(start, end, per_clip) for start, end in ranges]
        # All clips in one call: the decoder goes through the file once.
        frames = clips.read_frames(clip, np.concatenate(indices), int(knobs["side"]))
        if clips.too_small(frames):
            return Reject("too-small")
        pieces = list(np.split(frames, count))
        if min(float(clips.motion(piece).mean()) for piece in pieces) < clips.STILL:
            return Reject("nothing-moves")
        if clips.closest_means(pieces) < clips.SAME:
            return Reject("clips-look-alike")
        order = shuffled_order(count, rng.selection)
        position = {piece: shown_at for shown_at, piece in enumerate(order, 1)}
        answer = [position[piece] for piece in range(count)]
        step = clips.shown_step(clip, indices[0], np.arange(per_clip))
        visuals = []
        for number, piece in enumerate(order, 1):
            # Every clip starts at 0: times that went on from clip to clip would be the answer.
            visuals.append(clips.timed(pieces[piece], step, f"Clip {number}:"))
        return Draft(
            visuals=tuple(visuals),
            truth={
                "answer": answer,
                "gamma": float(knobs["gamma"]),
                "reward": str(knobs["reward"]),
            },
            key=tuple(answer),
            fields={"count": count},
            evidence=tuple(Evidence(j) for j in range(count)),
        )

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        if not is_permutation(value, answer):
            return Score(0.0, parts={"valid": 0.0})
        if truth["reward"] == "footrule":
            reward = footrule(value, answer)
        else:
            reward = PARTIAL[truth["reward"]](value, answer, truth["gamma"])
        return Score(reward, list(value) == list(answer), {"valid": 1.0}, tuple(value))

    def chance_reward(self, knobs: Knobs) -> float:
        count, exact = int(knobs["clips"]), self.chance(knobs)
        if knobs["reward"] == "footrule":
            # Mean footrule of a random order: (K² − 1)/3, beside a worst case of ⌊K²/2⌋.
            return 1.0 - (count * count - 1) / 3 / (count * count // 2)
        share = 0.5 if knobs["reward"] == "kendall" else 1.0 / count
        return exact + float(knobs["gamma"]) * (share - exact)

    def chance(self, knobs: Knobs) -> float:
        return 1.0 / factorial(int(knobs["clips"]))


def _ranges(
    first: int, last: int, count: int, trim: float, rng: Generator
) -> list[tuple[int, int]] | None:
    """Equal clips trimmed at both ends; the frames that are left over lie before and after, at random."""
    length = (last - first) // count
    cut = round(length * trim)
    if length <= 2 * cut:
        return None
    left_over = last - first - count * length
    offset = first + int(rng.integers(left_over + 1))
    starts = [offset + piece * length for piece in range(count)]
    return [(start + cut, start + length - cut) for start in starts]


def _sampled(times: Array, piece: tuple[int, int], fps: float, most: int) -> int:
    """Frames of a clip at this rate: even, at least two, at most `most` (Visual Jigsaw's rule)."""
    start, end = piece
    seconds = float(times[end - 1] - times[start]) * (end - start) / max(1, end - start - 1)
    # A hair more, because times are sums of float steps.
    return min(max(2, int(seconds * fps + 1e-6)), most) // 2 * 2


def _inside(start: int, end: int, count: int) -> Array:
    return np.linspace(start, end - 1, count).round().astype(np.int64)
