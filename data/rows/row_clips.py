"""Clips of a row: a video file, decoded by `mmrl.data.video.video`, or single frames with times.

`clip`, where it is asked for, holds keyword arguments of `read_clip`. Of them single frames obey `num_frames`, `fps`
and `max_frames`: the frames nearest to an even grid of times. Without any of the three all of them are shown, since
whoever wrote them down has chosen already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrl.data.rows.containers import is_pixels, picture_in
from mmrl.data.rows.images import check_image, media_path, read_image
from mmrl.ground.faults import BadRow, Fault, shown
from mmrl.ground.roots import Root
from mmrl.types import Media

MAX_SECONDS = 1e9
"""A clip that lasts longer has no seconds but some other unit."""


@dataclass(frozen=True)
class FrameList:
    """A clip as image cells with a time each."""

    frames: tuple[Any, ...]
    times: tuple[float, ...]
    """Seconds, rising."""

    @staticmethod
    def of(frames: Any, times: Any, fps: Any) -> FrameList:
        """Pair frames with their times, or with number / fps. Raises `Fault`."""
        cells = tuple(frames) if isinstance(frames, list | tuple) else ()
        # Times, if there are any, win: a rate is the same only on average.
        if times is None and isinstance(fps, int | float) and fps > 0:
            times = [number / fps for number in range(len(cells))]
        seconds = times if isinstance(times, list | tuple) else []
        if not cells or len(seconds) != len(cells) or not _are_rising(seconds):
            found = f"{len(cells)} frames with times {shown(times)}"
            raise Fault("bad clip", found, "Give one rising time in seconds per frame, or fps.")
        return FrameList(cells, tuple(map(float, seconds)))

    def check(self, base: Root | Path | None) -> None:
        """What can be known without decoding. Raises `Fault`."""
        for frame in self.frames:
            if not is_pixels(frame):
                check_image(frame, base)

    def decode(self, base: Root | Path | None, clip: Mapping[str, Any] = {}) -> Media:
        """The chosen frames as one clip; its last frame lasts as long as the one before. Raises `Fault`."""
        chosen = _chosen_frames(self.times, clip)
        frames = [read_image(picture_in(self.frames[number]), base) for number in chosen]
        if len({frame.shape for frame in frames}) > 1:
            sizes = sorted({tuple(frame.shape[2:]) for frame in frames})
            found = f"frames of different sizes {sizes}"
            raise Fault("bad clip", found, "All frames of a clip must have one size.")
        # The clip lasts as long as it did, however few of its frames are shown.
        *earlier, last = self.times
        step = last - earlier[-1] if earlier else 0.0
        times = torch.tensor(self.times, dtype=torch.float64)[chosen]  # [F]
        return Media(torch.cat(frames), times, last + step)


def _chosen_frames(times: Sequence[float], clip: Mapping[str, Any]) -> list[int]:
    """Numbers of the frames that are shown, rising."""
    fps, count, most = (clip.get(name) for name in ("fps", "num_frames", "max_frames"))
    wanted = len(times)
    if count is not None:
        wanted = count
    elif fps is not None and wanted > 1:
        # The last frame has no length of its own: with n frames there are n - 1 steps between them.
        wanted = round((times[-1] - times[0]) * fps) + 1
    wanted = max(1, min(wanted, len(times), most or len(times)))
    if wanted == len(times):
        return list(range(wanted))
    # Imported here: rows without clips need nothing of the video room.
    from mmrl.data.video.frame_choice import nearest_frames

    return nearest_frames(np.array(times), wanted).tolist()


def _are_rising(seconds: Sequence[Any]) -> bool:
    """Numbers from 0 on, each larger than the one before."""
    # A bound, since JSON knows numbers of any length, and fps may be next to nothing.
    if not all(isinstance(time, int | float) and 0 <= time <= MAX_SECONDS for time in seconds):
        return False
    return all(earlier < later for earlier, later in pairwise(seconds))


def video_path(cell: Any, base: Root | Path | None) -> Path:
    """The file of a video cell: a path or a {"path": ...} record. Raises `Fault`."""
    if _is_embedded(cell):
        fix = "Write the clip to a file and give its path, or give single frames with times."
        raise Fault("embedded video", "the clip is embedded; only files are read", fix)
    if isinstance(cell, Mapping):
        known = [key for key in ("path", "video", "url") if isinstance(cell.get(key), str)]
        # A record without any of them goes on as it is and is refused below, with its content shown.
        cell = cell[known[0]] if known else cell
    if not isinstance(cell, str | Path) or not str(cell).strip():
        fix = (
            "Give the path of a video file, or single frames in a column 'frames' with 'times'."
        )
        raise Fault("missing media", f"found {shown(cell)} where a video should be", fix)
    return media_path(str(cell), base)


def _is_embedded(cell: Any) -> bool:
    """Is the content of the clip itself in the row, and no path to it?"""
    if isinstance(cell, Mapping):
        named = any(isinstance(cell.get(key), str) for key in ("path", "video"))
        inner = next((cell[key] for key in ("bytes", "url") if cell.get(key)), None)
        return not named and inner is not None and _is_embedded(inner)
    return isinstance(cell, bytes | bytearray) or str(cell).startswith("data:")


def read_video(path: Path, options: Mapping[str, Any]) -> Media:
    """Decode a clip; `options` go to `read_clip`. Raises `Fault`."""
    # Imported here: rows without clips need no decoder.
    from mmrl.data.video.video import read_clip

    try:
        return read_clip(path, **options)
    except (BadRow, OSError) as error:
        found = f"{path} cannot be decoded ({error})"
        raise Fault("broken video", found, "Replace the file or drop the row.") from None
