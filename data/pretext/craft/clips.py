"""From a clip to shown frames: which frames, how large, on which time line, and whether anything moves.

Frames come from the middle 90 % of the clip (VideoSSR). The time line that the model sees starts at 0 and has one
constant step, rounded to 0.1 s and at least 0.2 s, so that every frame boundary is exact with one decimal and no
timestamp of the source survives cutting and shuffling.
"""

from __future__ import annotations

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
    indices = start + np.floor(units * ((end - 1 - start) / float(units[-1])) + 1e-9).astype(
        np.int64
    )
    return indices if np.all(np.diff(indices) > 0) else None


def shown_step(clip: Clip, indices: Array, units: Array) -> float:
    """Seconds per unit position on the shown time line."""
    seconds = float(clip.times[indices[-1]] - clip.times[indices[0]])
    return max(0.2, round(seconds / float(units[-1]), 1))


def read_frames(clip: Clip, indices: Array, side: int) -> Array:
    """uint8 [F, H, W, 3]: these frames with the longer side reduced to at most `side` pixels."""
    return fitted(clip.read([int(i) for i in indices]), side)


def fitted(frames: Array, side: int) -> Array:
    """uint8 [F, H, W, 3] with the longer side at most `side`."""
    height, width = frames.shape[1:3]
    scale = side / max(height, width)
    if scale >= 1.0:
        return frames
    wide, tall = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([resize(frame, wide, tall) for frame in frames])


def too_small(frames: Array, least: int = SMALLEST) -> bool:
    """Is a side of the frames shorter than this?"""
    return min(frames.shape[1:3]) < least


def timed(frames: Array, step: float, label: str = "") -> Visual:
    """A clip on a fresh time line."""
    return Visual(frames, np.round(np.arange(len(frames)) * step, 3), label)


def thumbnails(frames: Array, side: int = 32) -> Array:
    """int16 [F, h, w, 3]: every k-th pixel, about `side` along the shorter side."""
    every = max(1, min(frames.shape[1:3]) // side)
    return frames[:, every // 2 :: every, every // 2 :: every].astype(np.int16)


def motion(frames: Array) -> Array:
    """float64 [F − 1]: mean absolute change between neighbouring frames, in grey levels."""
    small = thumbnails(frames)
    return np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))


def change(first: Array, second: Array) -> float:
    """Mean absolute difference of two stacks of frames of one shape, in grey levels."""
    return float(np.abs(thumbnails(first) - thumbnails(second)).mean())


def closest_means(clips: list[Array]) -> float:
    """Smallest difference between the mean frames of two clips, in grey levels."""
    means = np.stack([thumbnails(frames).mean(axis=0) for frames in clips])
    return min(
        float(np.abs(means[i] - means[j]).mean())
        for i in range(len(means))
        for j in range(i + 1, len(means))
    )
