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

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Rule = Literal["qwen-vl-utils", "qwen2", "qwen3"]
MIN_FRAMES, MAX_FRAMES, PAIR = 4, 768, 2
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
        count = round(num_frames / PAIR) * PAIR
    else:
        if not video_fps > 0:
            raise ValueError(
                f"The clip's frame rate is {video_fps}; it must be positive to sample by fps."
            )
        low = math.ceil(min_frames / PAIR) * PAIR
        high = (
            math.floor((min(MAX_FRAMES, total) if max_frames is None else max_frames) / PAIR)
            * PAIR
        )
        wanted = total / video_fps * (2.0 if fps is None else fps)
        count = math.floor(min(max(wanted, low), high, total) / PAIR) * PAIR
    if not PAIR <= count <= total:
        raise ValueError(
            f"{count} frames of a clip with {total} were asked for; allowed are {PAIR} to {total}."
        )
    return count


def spread(first: int, last: int, count: int) -> np.ndarray:
    """long [count]: frames from first to last, both included, as torch.linspace(...).round() gives them."""
    if count == 1:
        return np.array([first])
    start, end = np.float32(first), np.float32(last)
    step = float((end - start) / np.float32(count - 1))
    position = np.arange(count)
    rising, falling = float(start) + step * position, float(end) - step * (count - 1 - position)
    # torch walks from the nearer end and rounds once, to float32.
    return np.rint(np.where(position < count // 2, rising, falling).astype(np.float32)).astype(
        np.int64
    )


def frame_range(
    total: int, video_fps: float, start: float | None = None, end: float | None = None
) -> tuple[int, int]:
    """First and last frame between `start` and `end` seconds, as qwen-vl-utils crops; ValueError if they meet."""
    if total <= 0 or not video_fps > 0:
        raise ValueError(
            f"The clip has {total} frames at {video_fps} frames per second; both must be positive."
        )
    length = total / video_fps
    first = 0 if start is None else math.ceil(min(max(start, 0.0), length) * video_fps)
    last = (
        total - 1
        if end is None
        else min(math.floor(min(max(end, 0.0), length) * video_fps), total - 1)
    )
    if (start is not None or end is not None) and first >= last:
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
        high = math.floor(min(max_frames, total) / PAIR) * PAIR
        count = (
            math.floor(min(max(total / video_fps * (fps or 0), min_frames), high, total) / PAIR)
            * PAIR
        )
    if not 1 <= count <= total:
        raise ValueError(
            f"{count} frames of a clip with {total} were asked for; allowed are {PAIR} to {total}."
        )
    step = total / count
    return (np.arange(math.ceil(total / step)) * step).astype(np.float32).astype(np.int64)


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
        num_frames = int(total / (video_fps or UNKNOWN_FPS) * (2.0 if fps is None else fps))
        num_frames = min(max(num_frames, MIN_FRAMES), MAX_FRAMES, total)
    return np.linspace(0, total - 1, num_frames).round().astype(np.int64)


def qwen3_stamps(times: Sequence[float], temporal_patch: int = PAIR) -> list[float]:
    """Seconds that Qwen3-VL writes before each temporal patch: the mean of its first and last frame's times.

    An incomplete last patch repeats the last frame. [n] -> ceil(n / temporal_patch) values.
    """
    padded = [*times, *[times[-1]] * (-len(times) % temporal_patch)]
    return [
        (padded[i] + padded[i + temporal_patch - 1]) / 2
        for i in range(0, len(padded), temporal_patch)
    ]


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
        video_fps = (total - 1) / float(times[last] - times[first])
    if num_frames is not None:
        num_frames = min(num_frames, total if rule == "qwen3" else total - total % PAIR)
    low, high = min(min_frames, total), min(max_frames, total)
    if rule == "qwen3":
        count = min(len(qwen3_frames(total, video_fps, fps=fps, num_frames=num_frames)), high)
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
    return spread(first, last, count)


def nearest_frames(times: np.ndarray, count: int) -> np.ndarray:
    """long [count], strictly increasing: the frames nearest to `count` evenly spaced times; count ≤ len(times)."""
    grid = np.linspace(times[0], times[-1], count)
    right = np.clip(np.searchsorted(times, grid), 1, len(times) - 1)
    near = np.where(grid - times[right - 1] <= times[right] - grid, right - 1, right)
    position = np.arange(count)
    # No frame twice: push later ones forward, then, at the end of the clip, earlier ones back.
    near = np.maximum.accumulate(near - position) + position
    return np.minimum(near, len(times) - count + position)


def subset(count: int, keep: int) -> np.ndarray:
    """long [keep]: evenly spread members of a list of `count` frames, both ends included where keep > 1."""
    return spread(0, count - 1, keep)


def frame_metadata(times: Sequence[float], duration: float | None = None) -> dict[str, object]:
    """Metadata with which both processors see the given frame times [n], evenly spaced or not.

    A clock of 1000 ticks per second stands in for the frame rate: `frames_indices / fps` are the times (to the
    millisecond) and `n / total_num_frames * fps` is n / duration. Without a duration, the clip is taken to end one mean
    interval after the last frame.
    """
    times = [float(t) for t in times]
    if not times or any(b < a for a, b in itertools.pairwise(times)) or times[0] < 0:
        raise ValueError(
            f"Frame times are {times[:8]}; give at least one, not negative and not decreasing."
        )
    if duration is None:
        duration = times[-1] + (
            (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
        )
    clock = 1000.0
    return {
        "fps": clock,
        "frames_indices": [round(t * clock) for t in times],
        "total_num_frames": max(1, round(duration * clock)),
        "duration": duration,
    }


def _crop(
    times: np.ndarray, video_fps: float, start: float | None, end: float | None, by_time: bool
) -> tuple[int, int]:
    if start is None and end is None:
        return 0, len(times) - 1
    if by_time:
        first = int(np.searchsorted(times, 0.0 if start is None else start))
        last = int(np.searchsorted(times, math.inf if end is None else end, side="right")) - 1
    else:
        length = len(times) / video_fps
        first = math.ceil(min(max(start or 0.0, 0.0), length) * video_fps)
        last = (
            len(times) - 1
            if end is None
            else min(math.floor(max(end, 0.0) * video_fps), len(times) - 1)
        )
    if first > last:
        raise ValueError(
            f"No frame lies between {start} and {end} s in a clip of {times[-1]:.2f} s."
        )
    return first, last
