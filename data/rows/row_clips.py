"""Clips of a row: a video file, decoded by `data.video`, or single frames with times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from mmrl.data.rows.images import check_image, media_path, read_image
from mmrl.ground.faults import BadRow, Fault, shown
from mmrl.types import Media


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
        if times is None and isinstance(fps, int | float) and fps > 0:
            times = [number / fps for number in range(len(cells))]
        seconds = times if isinstance(times, list | tuple) else []
        numeric = all(isinstance(time, int | float) and time >= 0 for time in seconds)
        if (
            not cells
            or len(seconds) != len(cells)
            or not numeric
            or any(b <= a for a, b in pairwise(seconds))
        ):
            found = f"{len(cells)} frames with times {shown(times)}"
            raise Fault("bad clip", found, "Give one rising time in seconds per frame, or fps.")
        return FrameList(cells, tuple(float(time) for time in seconds))

    def check(self, base: Path | None) -> None:
        """What can be known without decoding. Raises `Fault`."""
        for frame in self.frames:
            check_image(frame, base)

    def decode(self, base: Path | None) -> Media:
        """All frames as one clip; the last frame lasts as long as the one before. Raises `Fault`."""
        frames = [read_image(frame, base) for frame in self.frames]
        if len({frame.shape for frame in frames}) > 1:
            sizes = sorted({tuple(frame.shape[2:]) for frame in frames})
            raise Fault(
                "bad clip",
                f"frames of different sizes {sizes}",
                "All frames of a clip must have one size.",
            )
        times = torch.tensor(self.times, dtype=torch.float64)  # [F]
        step = float(times[-1] - times[-2]) if len(times) > 1 else 0.0
        return Media(torch.cat(frames), times, float(times[-1]) + step)


def video_path(cell: Any, base: Path | None) -> Path:
    """The file of a video cell: a path or a {"path": ...} record. Raises `Fault`."""
    if isinstance(cell, Mapping):
        cell = next(
            (cell[key] for key in ("path", "video", "url") if isinstance(cell.get(key), str)),
            cell,
        )
    if not isinstance(cell, str | Path) or not str(cell).strip():
        fix = (
            "Give the path of a video file, or single frames in a column 'frames' with 'times'."
        )
        raise Fault("missing media", f"found {shown(cell)} where a video should be", fix)
    return media_path(str(cell), base)


def read_video(path: Path, options: Mapping[str, Any]) -> Media:
    """Decode a clip; `options` go to `data.video.read_clip`. Raises `Fault`."""
    from mmrl.data.video.video import read_clip

    try:
        return read_clip(path, **options)
    except (BadRow, OSError) as error:
        raise Fault(
            "broken video",
            f"{path} cannot be decoded ({error})",
            "Replace the file or drop the row.",
        ) from None
