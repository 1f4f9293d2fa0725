"""Every video task over a folder of odd clips: several codecs, turned, of variable rate, broken in every way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mmrl.data.pretext.catalogue import TASKS
from mmrl.data.pretext.craft.procedural import clip
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.stream.media import FileClip
from mmrl.data.pretext.stream.sources import FolderSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.ground.quarantine import Quarantine

FRAMES = 72
EVEN = [index / 12 for index in range(FRAMES)]
UNEVEN = np.cumsum([0.03 + 0.17 * (index % 5 == 0) for index in range(FRAMES)]).tolist()
"""A camera that drops frames."""


def write(
    path: Path,
    index: int,
    times: Sequence[float],
    codec: str = "mpeg4",
    gop: int = 12,
    turned: int = 0,
) -> None:
    frames = (
        clip(3, index, height=144, width=176, seconds=len(times) / 12, fps=12.0)
        .video()
        .read(range(len(times)))
    )
    rate = 25 if codec == "mpeg2video" else 12
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.gop_size = 176, 144, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if path.suffix in (".mp4", ".mkv"):
            stream.codec_context.time_base = stream.time_base = Fraction(1, 9000)
        if codec == "libx264":
            stream.options = {"preset": "ultrafast"}
        elif codec == "libx265":
            stream.options = {"preset": "ultrafast", "x265-params": "log-level=none"}
        elif codec == "libvpx-vp9":
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        if turned:
            stream.set_display_rotation(turned)
        base = Fraction(1, 9000) if path.suffix in (".mp4", ".mkv") else Fraction(1, rate)
        for frame, time in zip(frames, times, strict=True):
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24")
            shown.pts, shown.time_base = round(time / base), base
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 2048), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clip_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    for index, (name, codec) in enumerate(
        (("plain.mp4", "mpeg4"), ("h264.mp4", "libx264"), ("vp8.webm", "libvpx"), ("vp9.webm", "libvpx-vp9"),
         ("h265.mp4", "libx265"), ("old.mpg", "mpeg2video"), ("stills.avi", "mjpeg"), ("lossless.mkv", "ffv1"))
    ):  # fmt: skip
        if codec in av.codecs_available:
            times = [i / 25 for i in range(FRAMES)] if codec == "mpeg2video" else EVEN
            write(folder / name, index, times, codec)
    for index, angle in enumerate((90, 180, 270)):
        write(folder / f"turned{angle}.mp4", 10 + index, EVEN, turned=angle)
    write(folder / "uneven.mkv", 20, UNEVEN)
    write(folder / "uneven.mp4", 21, UNEVEN, "libx264")
    write(folder / "onekey.mp4", 22, EVEN, gop=10_000)
    write(folder / "one.mp4", 23, EVEN[:1])
    write(folder / "few.mp4", 24, EVEN[:5])
    whole = (folder / "plain.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write(folder / "whole.mkv", 25, EVEN)
    matroska = (folder / "whole.mkv").read_bytes()
    (folder / "cut.mkv").write_bytes(matroska[: 2 * len(matroska) // 3])
    holed = bytearray(
        (folder / "h264.mp4").read_bytes() if (folder / "h264.mp4").exists() else whole
    )
    holed[len(holed) // 3 : len(holed) // 3 + 2000] = b"\0" * 2000
    (folder / "holed.mp4").write_bytes(bytes(holed))
    write_sound(folder / "sound.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<html>not a clip</html>")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    return folder


def test_every_container_is_read_whichever_decoders_are_installed(clip_zoo: Path) -> None:
    """MPEG program streams are beyond decord; the stream must not depend on whether it is there."""
    for name in ("old.mpg", "plain.mp4", "stills.avi"):
        found = FileClip(str(clip_zoo / name), name)
        assert len(found.times) >= FRAMES - 1 and found.read([0, 30]).shape == (
            2,
            144,
            176,
            3,
        ), name


def test_every_video_task_takes_a_folder_of_odd_clips(clip_zoo: Path) -> None:
    """A smaller form of 10,000 samples; `PRETEXT_SAMPLES` sets the number per task."""
    count, quarantine = int(os.environ.get("PRETEXT_SAMPLES", "4")), Quarantine()
    source, used = FolderSource(clip_zoo, quarantine), set()
    for task in (task for task in TASKS if task.kinds[0] == "video"):
        stream = SampleStream(
            source, TaskMix(task.name, (Ingredient(task.name),)), seed=5, quarantine=quarantine
        )
        for index in range(count):
            sample = stream.sample(index)
            if sample is not None:
                used.update(sample.recipe["media"])
                assert task.score(
                    sample.surface.wrap(task.format(sample.truth)), sample.truth, sample.surface
                ).correct
        assert stream.counts[f"made/{task.name}"] >= 0.7 * count, (
            task.name,
            dict(stream.counts),
        )
    assert len(used) >= (10 if count >= 20 else 4)
    known = {"one frame only", "empty file"}
    assert known <= set(quarantine.counts) or count < 20, quarantine.counts
    assert quarantine.counts
    if os.environ.get("PRETEXT_SAMPLES"):
        print(len(used), "clips used;", dict(quarantine.counts))
