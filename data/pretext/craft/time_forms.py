"""Two answer forms on a time line: stretches of time, and one moment.

The time line has `frames` steps of `step` seconds; frame i is shown at i·step and a stretch of frames a..b−1 is
[a·step, b·step]: its end is the time of the first frame after it (VideoSSR). Truths:
stretches  {"answer": [[1.2, 3.6], …], "frames": 24, "step": 0.4, "lengths": [4, 8]}
moment     {"answer": 3.6, "frames": 24, "step": 0.4, "tau": 0.05}

A time is read to the nearest frame: what falls on the right frames is exactly right, anything else is paid by overlap
(stretches: IoU, several are matched one to one) or by distance (moment: exp(−seconds off / (tau · duration))).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import comb
from typing import Any

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import Knobs, Score, Task, Truth
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import interval_ious, multi_interval_iou, ordinal
from mmrl.ground.seeds import philox

APART = 2
"""Frames between two stretches, at least."""
SIMULATED = 4000
"""Draws for the expected reward of several stretches."""
SECONDS = ("s", "sec", "secs", "seconds", "second")

Spans = tuple[tuple[int, int], ...]


def span_lengths(frames: int, segments: int) -> tuple[int, int]:
    """Shortest and longest stretch in frames: 1/6 to 1/3 of the clip (VideoSSR), shared among the stretches."""
    low = max(2, frames // (6 * segments))
    return low, max(low + 1, frames // (3 * segments))


def draw_spans(frames: int, segments: int, rng: Generator) -> Spans:
    """Half-open frame ranges: lengths uniform and independent, places uniform given the lengths."""
    low, high = span_lengths(frames, segments)
    lengths = rng.integers(low, high + 1, size=segments)
    free = frames - int(lengths.sum()) - APART * (segments - 1)
    if free < 0:
        raise ValueError(
            f"{segments} stretches of {low} to {high} frames do not fit {frames} frames; use more frames."
        )
    # Stars and bars: stretches are points among the free frames, and get their lengths and distances afterwards. So
    # every arrangement is equally likely, which `_span_chance` counts on.
    places = np.arange(segments)
    picks = np.sort(rng.choice(free + segments, size=segments, replace=False)) - places
    before = np.concatenate([[0], np.cumsum(lengths[:-1])])
    starts = picks + before + APART * places
    return tuple((int(a), int(a + n)) for a, n in zip(starts, lengths, strict=True))


def seconds(spans: Spans, step: float) -> list[list[float]]:
    """Frame ranges as seconds with one decimal."""
    return [[round(a * step, 1), round(b * step, 1)] for a, b in spans]


class StretchTask(Task):
    """When does it happen: one or more stretches. Needs the knobs `frames` and `segments`."""

    hint = "{form}"

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        if len(truth["answer"]) > 1:
            return parsing.intervals(body)
        span = parsing.interval(body)
        return span if isinstance(span, ParseError) else (span,)

    def verify(self, value: Any, truth: Truth) -> Score:
        wanted = [tuple(span) for span in truth["answer"]]
        key = _frames_of(value, truth["step"])
        right = key == _frames_of(wanted, truth["step"])
        overlap = multi_interval_iou(value, wanted)
        # Only the right frames earn 1: an overlap can round to 1 without them.
        return Score(1.0 if right else min(overlap, 0.999), right, {"iou": overlap}, key)

    def format(self, truth: Truth) -> str:
        return "; ".join(f"{start:.1f}-{end:.1f}" for start, end in truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        spans = draw_spans(truth["frames"], len(truth["answer"]), rng)
        return self.format({"answer": seconds(spans, truth["step"])})

    def chance(self, knobs: Knobs) -> float:
        return _span_chance(int(knobs["frames"]), int(knobs["segments"]))

    def chance_reward(self, knobs: Knobs) -> float:
        return _span_reward(int(knobs["frames"]), int(knobs["segments"]))


class MomentTask(Task):
    """When does it happen: one moment, uniform over the frames. Needs the knobs `frames` and `tau`."""

    hint = "the time in seconds with one decimal, a number only"

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.number(body, SECONDS)

    def verify(self, value: Any, truth: Truth) -> Score:
        step, frames, answer = truth["step"], truth["frames"], truth["answer"]
        if not 0 <= value < frames * step:
            return Score(0.0, parts={"valid": 0.0})
        frame = _frame_of(value, step)
        right = frame == _frame_of(answer, step)
        near = ordinal(value, answer, truth["tau"] * frames * step)
        reward = 1.0 if right else min(near, 0.999)
        return Score(reward, right, {"valid": 1.0, "seconds_off": abs(value - answer)}, frame)

    def format(self, truth: Truth) -> str:
        return f"{truth['answer']:.1f}"

    def guess(self, truth: Truth, rng: Generator) -> str:
        frame = int(rng.integers(truth["frames"]))
        return f"{frame * truth['step']:.1f}"

    def chance(self, knobs: Knobs) -> float:
        return 1.0 / int(knobs["frames"])

    def chance_reward(self, knobs: Knobs) -> float:
        frames = np.arange(int(knobs["frames"]))
        apart = np.abs(frames[:, None] - frames[None, :])
        scale = float(knobs["tau"]) * len(frames)
        return float(np.exp(-apart / scale).mean())


def span_form(segments: int) -> str:
    """What an answer with this many stretches looks like."""
    one = "start and end in seconds with one decimal, written start-end"
    if segments == 1:
        return one
    return f"{segments} stretches in order, separated by semicolons, each as {one}"


def _frame_of(seconds: float, step: float) -> int:
    """The nearest frame; half a step belongs to the later one (`round` would go to the even one)."""
    return int(seconds / step + 0.5)


def _frames_of(spans: Sequence[Sequence[float]], step: float) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_frame_of(end, step) for end in span) for span in spans)


@lru_cache(maxsize=64)
def _span_chance(frames: int, segments: int) -> float:
    """Probability that two drawn sets of stretches are the same, summed over their lengths."""
    low, high = span_lengths(frames, segments)
    sizes = range(low, high + 1)
    total = 0.0
    for lengths in product(sizes, repeat=segments):
        free = frames - sum(lengths) - APART * (segments - 1)
        arrangements = comb(free + segments, segments)
        # Squared: both the truth and the guess must have drawn these lengths.
        total += 1.0 / len(sizes) ** (2 * segments) / arrangements
    return total


@lru_cache(maxsize=64)
def _span_reward(frames: int, segments: int) -> float:
    if segments == 1:
        return _single_reward(frames)
    rng = philox("stretch chance", frames, segments)
    overlaps = []
    for _ in range(SIMULATED):
        guess, truth = (_reals(draw_spans(frames, segments, rng)) for _ in "12")
        overlaps.append(multi_interval_iou(guess, truth))
    return float(np.mean(overlaps))


def _single_reward(frames: int) -> float:
    """Exactly, by enumeration of all pairs of stretches."""
    low, high = span_lengths(frames, 1)
    spans, weights = [], []
    for length in range(low, high + 1):
        starts = frames - length + 1
        spans += [(start, start + length) for start in range(starts)]
        weights += [1.0 / starts] * starts
    weight = np.array(weights) / (high - low + 1)
    expected = [
        w * (interval_ious(spans, span) @ weight) for w, span in zip(weight, spans, strict=True)
    ]
    return float(sum(expected))


def _reals(spans: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in spans]
