"""Interleaved clips: the clips of two videos, shuffled together. Sort them by video and by time.

Answer: two lists separated by a bar, the list with clip 1 first. Reward: 1 if all is right; otherwise `gamma` times the
share of right places, for lists that hold every clip once; 0 for anything else.

Defences: all clips have one size and length; both videos give equally many; order and video are one uniform shuffle;
clips that stand still or resemble another are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Clip,
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
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.answer_forms import all_or_error, listed
from mmrl.data.pretext.craft.draws import shuffled_numbers
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import is_permutation
from mmrl.ground.seeds import Streams


class InterleavedClipsTask(Task):
    name = "interleaved-clips"
    kinds = ("video",)
    intended = ("boundary", "histogram")
    knobs: ClassVar = {
        "clips": Knob(2, (2, 2, 3, 4), help="Clips of each video."),
        "per_clip": Knob(4, help="Shown frames per clip."),
        "gamma": Knob(0.2, help="Pay for partly right lists."),
        "side": Knob(256, help="Longest side of a frame in pixels."),
    }
    wordings = (
        "The {count} clips come from two videos, {each} from each, and were shuffled. Sort them: which clips belong to"
        " the video of clip 1, in order of time, and which to the other one?",
        "Two videos were cut into {each} clips each and mixed. Give the order of play of both videos, starting with the"
        " one that contains clip 1.",
        "Separate the {count} shuffled clips into their two videos and restore the order of each; name the video with"
        " clip 1 first.",
    )
    hint = "the clip numbers of the first video, a bar |, and those of the second, e.g. with commas between numbers"

    def media_count(self, knobs: Knobs) -> int:
        return 2

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, per_clip, side = int(knobs["clips"]), int(knobs["per_clip"]), int(knobs["side"])
        first = _pieces(media[0].video(), count, per_clip, side)
        second = _pieces(media[1].video(), count, per_clip, side)
        if first is None or second is None:
            return Reject("too-few-frames")
        pieces, step = first
        # Of one size and on one time line, or these would tell the videos apart.
        pieces = [*pieces, *(_sized(piece, pieces[0]) for piece in second[0])]
        if clips.too_small(pieces[0]):
            return Reject("too-small")
        if min(float(clips.motion(piece).mean()) for piece in pieces) < clips.STILL:
            return Reject("nothing-moves")
        if clips.closest_means(pieces) < clips.SAME:
            return Reject("clips-look-alike")
        order = [int(piece) for piece in rng.selection.permutation(2 * count)]
        position = {piece: shown_at for shown_at, piece in enumerate(order, 1)}
        answer = _canonical([position[piece] for piece in range(2 * count)])
        visuals = []
        for number, piece in enumerate(order, 1):
            visuals.append(clips.timed(pieces[piece], step, f"Clip {number}:"))
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": answer, "gamma": float(knobs["gamma"])},
            key=tuple(answer),
            fields={"count": 2 * count, "each": count},
            evidence=tuple(Evidence(j) for j in range(2 * count)),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        half = len(truth["answer"]) // 2
        parts = body.split("|")
        if len(parts) != 2:
            return ParseError("malformed", body[:40])
        return all_or_error([parsing.integers(part, half) for part in parts])

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        numbers = [*value[0], *value[1]]
        if not is_permutation(numbers, answer):
            return Score(0.0, parts={"valid": 0.0})
        # Which video is named first is no part of the solution.
        guess = _canonical(numbers)
        hits = [given == right for given, right in zip(guess, answer, strict=True)]
        share = sum(hits) / len(guess)
        reward = 1.0 if share == 1.0 else truth["gamma"] * share
        return Score(reward, share == 1.0, {"valid": 1.0, "placed": share}, tuple(guess))

    def format(self, truth: Truth) -> str:
        answer = truth["answer"]
        half = len(answer) // 2
        return f"{listed(answer[:half])} | {listed(answer[half:])}"

    def guess(self, truth: Truth, rng: Generator) -> str:
        return self.format({"answer": shuffled_numbers(len(truth["answer"]), rng)})

    def chance(self, knobs: Knobs) -> float:
        return 2.0 / factorial(2 * int(knobs["clips"]))

    def chance_reward(self, knobs: Knobs) -> float:
        k, exact = int(knobs["clips"]), self.chance(knobs)
        # Expected right places of a random answer, the half with clip 1 put first: that of clip 1 itself (1/k), the
        # k − 1 others of its half (each right with (k − 1)/(k(2k − 1))), and the k of the other half (1/(2k − 1) each).
        places = 1 / k + (k - 1) ** 2 / (k * (2 * k - 1)) + k / (2 * k - 1)
        share = places / (2 * k)
        return exact + float(knobs["gamma"]) * (share - exact)


def _canonical(numbers: Sequence[int]) -> list[int]:
    """The half with clip 1 first."""
    half = len(numbers) // 2
    first, second = list(numbers[:half]), list(numbers[half:])
    return first + second if 1 in first else second + first


def _pieces(
    clip: Clip, count: int, per_clip: int, side: int
) -> tuple[list[Array], float] | None:
    """`count` clips of `per_clip` frames, with as many frames left out between two of them, and seconds per frame."""
    steps = (2 * count - 1) * per_clip
    indices = clips.spread_indices(clip, np.arange(steps, dtype=np.float64))
    if indices is None:
        return None
    stretches = np.split(indices, 2 * count - 1)
    shown = np.concatenate(stretches[::2])  # every other stretch is left out
    step = clips.shown_step(clip, indices, np.arange(steps))
    return list(np.split(clips.read_frames(clip, shown, side), count)), step


def _sized(frames: Array, like: Array) -> Array:
    height, width = like.shape[1:3]
    if frames.shape[1:3] == (height, width):
        return frames
    return clips.resized(frames, width, height)
