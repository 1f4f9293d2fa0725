"""Clips made on the spot. Frame i is a flat grey of 20 + 2 i, with a bright top-left corner: a decoded frame says which
one it is and which way up it is."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def picture(index: int, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    image = np.full((height, width, 3), 20 + 2 * index % 200, dtype=np.uint8)
    image[: height // 4, : width // 4] = 255
    return image


def frame_number(image: np.ndarray) -> int:
    """Which frame a decoded picture [H, W, 3] is, from its bottom-right quarter."""
    height, width = image.shape[:2]
    return round((float(image[height // 2 :, width // 2 :].mean()) - 20) / 2)


def write_clip(
    path: Path,
    times: Sequence[float],
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    rate: int = 30,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    import av

    with av.open(str(path), "w", options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size = pix_fmt, gop
        stream.codec_context.time_base = stream.time_base = Fraction(1, 9000)
        if codec == "libx264":
            fixed = f"keyint={gop}:min-keyint={gop}:scenecut=0"
            stream.options = {"crf": "8", "preset": "veryfast", "x264-params": fixed} | (
                options or {}
            )
        elif options:
            stream.options = options
        if rotation:
            stream.set_display_rotation(rotation)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = round(time * 9000), Fraction(1, 9000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


class ClipMaker:
    """maker(name, times, ...) writes a clip once per test session; `picture` and `number` tell its frames apart."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.picture = picture
        self.number = frame_number

    def __call__(self, name: str, times: Sequence[float], **options: Any) -> Path:
        path = self.folder / name
        return path if path.exists() else write_clip(path, times, **options)


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> ClipMaker:
    return ClipMaker(tmp_path_factory.mktemp("clips"))
