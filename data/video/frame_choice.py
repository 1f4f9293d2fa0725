"""Which frames of a clip are shown. Pure numpy; every function is deterministic.

Three published rules choose *different* frames for the same rate, so the rule is named:

    "qwen-vl-utils"  n = floor_even(clamp(total / fps_video * fps, min, max)); both ends, round(linspace(first, last))
    "qwen2"          the same count; truncated arange(0, total, total / n): the last frame is never shown
    "qwen3"          n = int(total / fps_video * fps), may be odd; both ends

Sources: qwen-vl-utils 0.0.14, the Qwen2-VL and Qwen3-VL video processors of transformers 5.23. Their rounding is part
of the rule: torch's linspace and arange work in float32, and ties go to the even frame.

`choose_frames` is ours. Departures from qwen-vl-utils:
1. A clip with fewer frames than asked for shows all of them; one frame is allowed (the processors repeat it).
2. On a variable frame rate, frames are chosen evenly in time instead of evenly in number.
3. A crop that holds a single frame shows this frame.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

Rule = Literal["qwen-vl-utils", "qwen2", "qwen3"]
MIN_FRAMES, MAX_FRAMES, PAIR = 4, 768, 2
DEFAULT_FPS = 2.0
"""Frames shown per second where neither a rate nor a number is asked for."""
UNKNOWN_FPS = 24.0
"""What transformers assumes for a clip without a frame rate."""


def frame_count(
    total: int,
    video_fps: float,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = MIN_FRAMES,
    max_frames: int | None = None,
) -> int:
    """How many frames qwen-vl-utils takes: even, at least 2, at most `total`; `max_frames` wins over `min_frames`.

    `fps` (2 if both are None) and `num_frames` exclude each other. Raises ValueError, also for one-frame clips.
    """
    if fps is not None and num_frames is not None:
        raise ValueError(f"fps is {fps} and num_frames is {num_frames}; give only one of them.")
    if num_frames is not None:
        # Halves of a pair go to the even number of pairs: 5 frames give 4, 7 give 8.
        count = round(num_frames / PAIR) * PAIR
    else:
        if not video_fps > 0:  # also true for nan
            raise ValueError(
                f"The clip's frame rate is {video_fps}; it must be positive to sample by fps."
            )
        if max_frames is None:
            max_frames = min(MAX_FRAMES, total)
        low, high = _even_above(min_frames), _even_below(max_frames)
        wanted = total / video_fps * (DEFAULT_FPS if fps is None else fps)
        # The order decides: a raised minimum is cut again by the maximum and by the clip.
        count = _even_below(min(max(wanted, low), high, total))
    if not PAIR <= count <= total:
        raise ValueError(
            f"{count} frames of a clip with {total} were asked for; allowed are {PAIR} to {total}."
        )
    return count


def evenly_spaced(first: int, last: int, count: int) -> np.ndarray:
    """long [count]: frames from first to last, both included, as torch.linspace(...).round() gives them."""
    if count == 1:
        return np.array([first])
    start, end = np.float32(first), np.float32(last)
    step = float((end - start) / np.float32(count - 1))
    position = np.arange(count)
    rising = float(start) + step * position
    falling = float(end) - step * (count - 1 - position)
    # torch divides in float32, walks from the nearer end, and rounds once, to float32; hence float64 in between.
    places = np.where(position < count // 2, rising, falling).astype(np.float32)
    return np.rint(places).astype(np.int64)


def frame_range(
    total: int, video_fps: float, start: float | None = None, end: float | None = None
) -> tuple[int, int]:
    """First and last frame between `start` and `end` seconds, as qwen-vl-utils crops; ValueError if they meet.

    `choose_frames` crops by the same rule but for one thing: a crop that holds a single frame shows it.
    """
    if total <= 0 or not video_fps > 0:
        raise ValueError(
            f"The clip has {total} frames at {video_fps} frames per second; both must be positive."
        )
    length = total / video_fps
    first, last = 0, total - 1
    if start is not None:
        first = math.ceil(_between(start, 0.0, length) * video_fps)
    if end is not None:
        last = min(math.floor(_between(end, 0.0, length) * video_fps), last)
    cropped = start is not None or end is not None
    if cropped and first >= last:
        raise ValueError(
            f"The crop from {start} to {end} s holds frames {first} to {last} of a clip of {length:.2f} s; "
            "at least two frames are needed."
        )
    return first, last


def qwen2_frames(
    total: int,
    video_fps: float | None,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
) -> np.ndarray:
    """long [n]: frames chosen by the Qwen2-VL and Qwen2.5-VL video processor.

    Raises ValueError for both or neither of fps and num_frames (the processor raises TypeError), for an unknown frame
    rate with fps, and for more frames than the clip has.
    """
    if (fps is None) == (num_frames is None):
        raise ValueError(
            f"fps is {fps} and num_frames is {num_frames}; give exactly one of them."
        )
    if num_frames is not None:
        count = round(num_frames / PAIR) * PAIR
    else:
        if video_fps is None:
            raise ValueError(
                "The clip's frame rate is unknown; give it, or num_frames instead of fps."
            )
        high = _even_below(min(max_frames, total))
        # Unlike qwen-vl-utils, the minimum is not made even first.
        wanted = max(total / video_fps * (fps or 0), min_frames)
        count = _even_below(min(wanted, high, total))
    if not 1 <= count <= total:
        raise ValueError(
            f"{count} frames of a clip with {total} were asked for; allowed are {PAIR} to {total}."
        )
    step = total / count
    # torch.arange ends before `total`; by rounding this can be one frame more than `count`, and it stays in.
    places = np.arange(math.ceil(total / step)) * step
    # Through float32, as there: a place just below a whole number may reach it before the cut.
    return places.astype(np.float32).astype(np.int64)


def qwen3_frames(
    total: int,
    video_fps: float | None,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
) -> np.ndarray:
    """long [n]: frames chosen by the Qwen3-VL video processor; 2 per second by default; n may be odd.

    A num_frames above `total` repeats frames. An unknown frame rate counts as 24, as there. Raises ValueError.
    """
    if fps is not None and num_frames is not None:
        raise ValueError(f"fps is {fps} and num_frames is {num_frames}; give only one of them.")
    if num_frames is None:
        seconds = total / (video_fps or UNKNOWN_FPS)
        num_frames = int(seconds * (DEFAULT_FPS if fps is None else fps))
        num_frames = min(max(num_frames, MIN_FRAMES), MAX_FRAMES, total)
    # numpy here, torch in qwen-vl-utils: float64 throughout, so that a tie may fall on another frame.
    return np.linspace(0, total - 1, num_frames).round().astype(np.int64)


def sampled_fps(count: int | None, total: int, video_fps: float | None) -> float:
    """Frames shown per second of clip, as transformers computes it; count None means every frame."""
    if count is None or video_fps is None:
        return video_fps or UNKNOWN_FPS
    return count / total * video_fps


def choose_frames(
    times: np.ndarray,
    video_fps: float,
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
    start: float | None = None,
    end: float | None = None,
    rule: Rule = "qwen-vl-utils",
    even_in_time: bool = False,
) -> np.ndarray:
    """long [n], strictly increasing: our choice. `times` float64 [total] are the frames' seconds.

    `even_in_time` is for variable frame rates: the shown frames are the ones nearest to an even grid of times.
    Raises ValueError if the crop is empty.
    """
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; it must be at least 1.")
    first, last = _crop(times, video_fps, start, end, even_in_time)
    total = last - first + 1
    if total < PAIR or num_frames == 1:
        return np.array([first])
    if even_in_time:
        # The header's average rate says nothing about a part of the clip; the part's own times do.
        video_fps = (total - 1) / float(times[last] - times[first])
    if num_frames is not None:
        num_frames = min(num_frames, total if rule == "qwen3" else _even_below(total))
    low, high = min(min_frames, total), min(max_frames, total)
    if rule == "qwen3":
        theirs = qwen3_frames(total, video_fps, fps=fps, num_frames=num_frames)
        count = min(len(theirs), high)
    else:
        count = frame_count(
            total,
            video_fps,
            fps=fps,
            num_frames=num_frames,
            min_frames=low,
            max_frames=max(high, PAIR),
        )
    if rule == "qwen2":
        # Rounding gives the reference one frame too many now and then, beyond the end.
        return first + qwen2_frames(total, video_fps, num_frames=count)[:count]
    if even_in_time:
        return first + nearest_frames(times[first : last + 1], count)
    return evenly_spaced(first, last, count)


def nearest_frames(times: np.ndarray, count: int) -> np.ndarray:
    """long [count], strictly increasing: the frames nearest to `count` evenly spaced times; count ≤ len(times)."""
    grid = np.linspace(times[0], times[-1], count)
    right = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
    left = right - 1
    near = np.where(grid - times[left] <= times[right] - grid, left, right)
    position = np.arange(count)
    # No frame twice: push later ones forward, then, at the end of the clip, earlier ones back.
    near = np.maximum.accumulate(near - position) + position
    return np.minimum(near, len(times) - count + position)


def subset(count: int, keep: int) -> np.ndarray:
    """long [keep]: evenly spread members of a list of `count` frames, both ends included where keep > 1."""
    return evenly_spaced(0, count - 1, keep)


def _crop(
    times: np.ndarray, video_fps: float, start: float | None, end: float | None, by_time: bool
) -> tuple[int, int]:
    if start is None and end is None:
        return 0, len(times) - 1
    first, last = 0, len(times) - 1
    if by_time:
        if start is not None:
            first = int(np.searchsorted(times, start))
        if end is not None:
            # A frame at the very end of the crop belongs to it.
            last = int(np.searchsorted(times, end, side="right")) - 1
    else:
        # By number, not by time: the frame that qwen-vl-utils would take, even if its time is a little off.
        length = len(times) / video_fps
        first = math.ceil(_between(start or 0.0, 0.0, length) * video_fps)
        if end is not None:
            last = min(math.floor(max(end, 0.0) * video_fps), last)
    if first > last:
        raise ValueError(
            f"No frame lies between {start} and {end} s in a clip of {times[-1]:.2f} s."
        )
    return first, last


def _even_below(count: float) -> int:
    return math.floor(count / PAIR) * PAIR


def _even_above(count: float) -> int:
    return math.ceil(count / PAIR) * PAIR


def _between(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
