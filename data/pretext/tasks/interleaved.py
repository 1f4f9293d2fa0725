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

from mmrl.data.pretext.contract import (
    Array,
    Clip,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Medium,
    Reject,
    Score,
    Task,
    Truth,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.rng import Streams
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import is_permutation


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

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        count, per_clip, side = int(knobs["clips"]), int(knobs["per_clip"]), int(knobs["side"])
        found = [_pieces(medium.video(), count, per_clip, side) for medium in media[:2]]
        if found[0] is None or found[1] is None:
            return Reject("too-few-frames")
        (pieces, step), (others, _) = found[0], found[1]
        pieces = [*pieces, *(_sized(piece, pieces[0]) for piece in others)]
        if clips.too_small(pieces[0]):
            return Reject("too-small")
        if min(float(clips.motion(piece).mean()) for piece in pieces) < clips.STILL:
            return Reject("nothing-moves")
        if clips.closest_means(pieces) < clips.SAME:
            return Reject("clips-look-alike")
        order = rng.selection.permutation(2 * count)
        position = {int(piece): place + 1 for place, piece in enumerate(order)}
        answer = _canonical([position[i] for i in range(2 * count)])
        return Draft(
            visuals=tuple(
                clips.timed(pieces[int(i)], step, f"Clip {j + 1}:") for j, i in enumerate(order)
            ),
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
        first, second = (parsing.integers(part, half) for part in parts)
        return next(
            (part for part in (first, second) if isinstance(part, ParseError)), (first, second)
        )

    def verify(self, value: Any, truth: Truth) -> Score:
        numbers = [*value[0], *value[1]]
        if not is_permutation(numbers, truth["answer"]):
            return Score(0.0, parts={"valid": 0.0})
        guess = _canonical(numbers)
        share = sum(a == b for a, b in zip(guess, truth["answer"], strict=True)) / len(guess)
        reward = 1.0 if share == 1.0 else truth["gamma"] * share
        return Score(reward, share == 1.0, {"valid": 1.0, "placed": share}, tuple(guess))

    def format(self, truth: Truth) -> str:
        half = len(truth["answer"]) // 2
        return " | ".join(
            ", ".join(map(str, part))
            for part in (truth["answer"][:half], truth["answer"][half:])
        )

    def guess(self, truth: Truth, rng: np.random.Generator) -> str:
        return self.format(
            {"answer": [int(i) + 1 for i in rng.permutation(len(truth["answer"]))]}
        )

    def chance(self, knobs: Knobs) -> float:
        return 2.0 / factorial(2 * int(knobs["clips"]))

    def chance_reward(self, knobs: Knobs) -> float:
        k, exact = int(knobs["clips"]), self.chance(knobs)
        share = (1 / k + (k - 1) ** 2 / (k * (2 * k - 1)) + k / (2 * k - 1)) / (2 * k)
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
    shown = np.concatenate(
        [indices[2 * i * per_clip : (2 * i + 1) * per_clip] for i in range(count)]
    )
    step = clips.shown_step(clip, indices, np.arange(steps))
    return list(np.split(clips.read_frames(clip, shown, side), count)), step


def _sized(frames: Array, like: Array) -> Array:
    if frames.shape[1:3] == like.shape[1:3]:
        return frames
    return np.stack([clips.resize(frame, like.shape[2], like.shape[1]) for frame in frames])
