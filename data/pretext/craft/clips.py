"""From a clip to shown frames: which frames, how large, on which time line, and whether anything moves.

Frames come from the middle 90 % of the clip (VideoSSR). The time line that the model sees starts at 0 and has one
constant step, rounded to 0.1 s and at least 0.2 s, so that every frame boundary is exact with one decimal and no
timestamp of the source survives cutting and shuffling.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mmrl.data.pretext.contract import Array, Clip, Visual
from mmrl.data.pretext.craft.degenerate_checks import resize

EDGE = 0.05
"""Share of the clip left out at each end."""
SMALLEST = 32
"""Shorter side of a frame below which there is little to see, in pixels."""
PAINTABLE = 64
"""Shorter side of a frame on which objects can be painted, in pixels."""
STILL = 2.0
"""Mean change between neighbouring frames (grey levels) below which nothing is seen to move."""
SAME = 3.0
"""Two clips whose mean frames differ by less cannot be told apart."""


def window(clip: Clip) -> tuple[int, int]:
    """First and end (exclusive) source frame that may be shown."""
    total = len(clip.times)
    return int(EDGE * total), int((1 - EDGE) * total)


def spread_indices(clip: Clip, units: Array) -> Array | None:
    """Source indices int64 [F] for frames at these positions (ascending, in any unit, from 0); None if too short.

    The positions are stretched over the window; neighbours must fall on different source frames."""
    start, end = window(clip)
    if len(units) < 2 or end - start < 2:
        return None
    frames_per_unit = (end - 1 - start) / float(units[-1])
    # The small addend keeps a position that is whole but for rounding from falling one frame short.
    offsets = np.floor(units * frames_per_unit + 1e-9).astype(np.int64)
    indices = start + offsets
    return indices if np.all(np.diff(indices) > 0) else None


def shown_step(clip: Clip, indices: Array, units: Array) -> float:
    """Seconds per unit position on the shown time line."""
    seconds = float(clip.times[indices[-1]] - clip.times[indices[0]])
    return max(0.2, round(seconds / float(units[-1]), 1))


def read_frames(clip: Clip, indices: Array, side: int) -> Array:
    """uint8 [F, H, W, 3]: these frames with the longer side reduced to at most `side` pixels."""
    frames = clip.read([int(index) for index in indices])
    return fitted(frames, side)


def fitted(frames: Array, side: int) -> Array:
    """uint8 [F, H, W, 3] with the longer side at most `side`."""
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1.0:
        return frames
    wide = max(1, round(width * scale))
    tall = max(1, round(height * scale))
    return resized(frames, wide, tall)


def resized(frames: Array, width: int, height: int) -> Array:
    """uint8 [F, height, width, 3]: every frame at this size."""
    return np.stack([resize(frame, width, height) for frame in frames])


def too_small(frames: Array, least: int = SMALLEST) -> bool:
    """Is a side of the frames shorter than this?"""
    return min(frames.shape[1:3]) < least


def timed(frames: Array, step: float, label: str = "") -> Visual:
    """A clip on a fresh time line."""
    # Rounded, so that 3 · 0.1 is 0.3 here and in the answer.
    times = np.round(np.arange(len(frames)) * step, 3)
    return Visual(frames, times, label)


def thumbnails(frames: Array, side: int = 32) -> Array:
    """int16 [F, h, w, 3]: every k-th pixel, about `side` along the shorter side."""
    every = max(1, min(frames.shape[1:3]) // side)
    middle = every // 2
    # Signed, so that differences of two thumbnails do not wrap around.
    return frames[:, middle::every, middle::every].astype(np.int16)


def motion(frames: Array) -> Array:
    """float64 [F − 1]: mean absolute change between neighbouring frames, in grey levels."""
    steps = np.diff(thumbnails(frames), axis=0)
    return np.abs(steps).mean(axis=(1, 2, 3))


def change(first: Array, second: Array) -> float:
    """Mean absolute difference of two stacks of frames of one shape, in grey levels."""
    difference = thumbnails(first) - thumbnails(second)
    return float(np.abs(difference).mean())


def closest_means(clips: list[Array]) -> float:
    """Smallest difference between the mean frames of two clips, in grey levels."""
    means = [thumbnails(frames).mean(axis=0) for frames in clips]
    return min(float(np.abs(one - other).mean()) for one, other in combinations(means, 2))
