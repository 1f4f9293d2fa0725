"""How the time of a frame reaches a model. No torch at import.

An encoding takes a clip and gives the visual parts of a chat message with the media they show:

    native              the clip as it is: Qwen2.5-VL encodes the time by position, Qwen3-VL writes its own stamps
    interleaved_times   the time in seconds before each pair of frames (TimeLens-7B) or each single frame (its ablation)
    interleaved_index   the number of the frame in place of its time
    prefix_times        one list of all times before the clip
    drawn_times         the time drawn onto each frame
    drawn_index         the number drawn onto each frame

The stamp of a pair is the time of its *first* frame, as in TimeLens-7B; Qwen3-VL writes the mean of both, half a
sampling step later. `pair_stamps` gives either. An interleaved clip is several media, one for each pair or frame, so
stock processors take it without change; a pair costs as many visual tokens as inside a clip, a single frame twice as
many, which is why TimeLens halves the rate there.

Interleaving is for Qwen2.5-VL: Qwen3-VL would add its own stamps, which start at 0 in every pair.

Departure: the characters around the number in TimeLens-7B are in its published processor, which was not read; here a
stamp is "12.3s " before its frames.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mmrl.types import Media

Part = dict[str, Any]
"""{"type": "text", "text": ...}, {"type": "image"} or {"type": "video"}."""
Unit = Literal["pair", "frame"]
"""What stands between two stamps."""
PairTime = Literal["first", "mean"]
"""Which time a pair of frames has: that of its first frame, or the mean of both."""
PAIR = 2
SLACK = 1.001
"""Rounding allowed when the end of a clip is compared with its last stamp."""


@dataclass(frozen=True)
class EncodedClip:
    """Parts of a message and the media that its visual parts show, in order."""

    parts: tuple[Part, ...]
    media: tuple[Media, ...]


Encoding = Callable[["Media"], EncodedClip]


def native(clip: Media) -> EncodedClip:
    """The clip by itself."""
    return EncodedClip(({"type": "video"},), (clip,))


def interleaved_times(clip: Media, unit: Unit = "pair") -> EncodedClip:
    """ "12.3s " before each pair of frames (a short clip of its own) or before each frame (an image)."""
    return _interleaved(clip, unit, _time_stamp)


def interleaved_index(clip: Media, unit: Unit = "pair") -> EncodedClip:
    """ "Frame 7: " before each pair or frame, counted from 1 in frames."""
    return _interleaved(clip, unit, _number_stamp)


def prefix_times(clip: Media) -> EncodedClip:
    """One sentence with the time of every frame, then the clip."""
    listed = ", ".join(f"{time:.1f}" for time in frame_times(clip))
    count = len(clip.frames)
    text = f"The {count} frames of the video are at these times in seconds: {listed}. "
    return EncodedClip(({"type": "text", "text": text}, {"type": "video"}), (clip,))


def drawn_times(clip: Media) -> EncodedClip:
    """The time in seconds, red, at the bottom left of each frame."""
    labels = [f"{time:.1f}s" for time in frame_times(clip)]
    return native(draw_labels(clip, labels))


def drawn_index(clip: Media) -> EncodedClip:
    """The number of the frame, counted from 1, red, at the bottom left of each frame."""
    labels = [str(number) for number in range(1, len(clip.frames) + 1)]
    return native(draw_labels(clip, labels))


def frame_times(clip: Media) -> list[float]:
    """Seconds of each frame. Raises ValueError for an image."""
    if clip.times is None:
        raise ValueError(
            "This medium is an image and has no times; give a clip, with a time for each frame."
        )
    return [float(time) for time in clip.times]


def pair_stamps(clip: Media, of: PairTime = "first") -> list[float]:
    """Seconds of each pair of frames: of its first frame, or the mean of both; an odd last frame counts twice."""
    times = frame_times(clip)
    times += times[-1:] * (len(times) % PAIR)
    firsts, seconds = times[0::PAIR], times[1::PAIR]
    if of == "first":
        return firsts
    return [(first + second) / 2 for first, second in zip(firsts, seconds, strict=True)]


def check_stamps(clip: Media, of: PairTime = "first") -> None:
    """Guard against lost metadata: the last stamp lies within one step between stamps of the clip's end.

    Stamps that were made with a wrong frame rate end long before the clip does, and nothing else shows it. Raises
    ValueError. A clip of unknown duration, or with a single stamp, cannot be checked.
    """
    stamps = pair_stamps(clip, of)
    if clip.duration is None or len(stamps) < 2:
        return
    steps = [later - earlier for earlier, later in itertools.pairwise(stamps)]
    # The longest step: a clip of variable rate may pause, and its last pair then lies as far from the end.
    step = max(steps)
    if min(steps) < 0:
        raise ValueError(
            f"The stamps {stamps[:8]} … decrease; the frames of a clip must be in order of time."
        )
    ends_early = clip.duration - stamps[-1] > step * SLACK
    ends_late = stamps[-1] > clip.duration * SLACK
    if ends_early or ends_late:
        raise ValueError(
            f"The last stamp is {stamps[-1]:.2f} s and the clip ends at {clip.duration:.2f} s, but stamps are at most "
            f"{step:.2f} s apart; the times were made with a wrong frame rate, or frames of the end are missing."
        )


def draw_labels(clip: Media, labels: Sequence[str], height: int | None = None) -> Media:
    """The same clip with a label at the bottom left of each frame; letters of `height` pixels (40, less if small)."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

    rows = clip.frames.shape[2]
    size = height or max(6, min(40, rows // 4))
    font = ImageFont.load_default(size)
    frames = torch.empty_like(clip.frames)
    for place, label in enumerate(labels):
        pixels = clip.frames[place].permute(1, 2, 0).numpy()  # [H, W, 3]
        # A copy, because the caller's clip keeps its pixels: other encodings may show it, too.
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        corner = (2, rows - 2)
        ImageDraw.Draw(picture).text(corner, label, fill=(255, 0, 0), font=font, anchor="lb")
        frames[place] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return replace(clip, frames=frames)


def _time_stamp(place: int, time: float) -> str:
    return f"{time:.1f}s "


def _number_stamp(place: int, time: float) -> str:
    return f"Frame {place + 1}: "


def _interleaved(clip: Media, unit: Unit, stamp: Callable[[int, float], str]) -> EncodedClip:
    if unit not in ("pair", "frame"):
        raise ValueError(f"unit is {unit!r}; allowed are 'pair' and 'frame'.")
    times = frame_times(clip)
    stride = PAIR if unit == "pair" else 1
    parts: list[Part] = []
    media = []
    for place in range(0, len(times), stride):
        parts.append({"type": "text", "text": stamp(place, times[place])})
        parts.append({"type": "video" if unit == "pair" else "image"})
        # A piece lasts until the next one starts, so that the pieces together last as long as the clip.
        following = place + stride
        until = times[following] if following < len(times) else clip.duration
        media.append(_piece(clip, place, stride, until))
    return EncodedClip(tuple(parts), tuple(media))


def _piece(clip: Media, place: int, stride: int, until: float | None) -> Media:
    """Some frames as a medium of their own; an image if it is one frame that stands alone by design."""
    frames = clip.frames[place : place + stride]
    if stride == 1 or clip.times is None:
        return replace(clip, frames=frames, times=None, duration=None)
    times = clip.times[place : place + stride]
    length = None if until is None else until - float(times[0])
    # Each piece is a clip of its own, and the clock of a clip starts at 0; the text before it has the true time.
    return replace(clip, frames=frames, times=times - times[0], duration=length)
