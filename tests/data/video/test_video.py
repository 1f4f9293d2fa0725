"""The odd-file table over all installed back-ends, and the reader's promises about time, size and blame."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrl.data.video.frame_cache import FrameCache
from mmrl.data.video.probe import probe
from mmrl.data.video.readers import MODULES, Backend, load_backend, read_into
from mmrl.data.video.video import ClipReader, ClipSampling, read_clip
from mmrl.ground.faults import BadMedia, BadRow
from mmrl.ground.quarantine import Quarantine

MODULE = {"decord": "decord", "pyav": "av", "torchcodec": "torchcodec"}
INSTALLED: list[Backend] = [name for name in MODULES if importlib.util.find_spec(MODULE[name])]  # type: ignore[misc]
CFR = [i / 30 for i in range(60)]
VFR = [*CFR[:30], *(1 + i / 5 for i in range(20))]
MakeClip = Any
"""The fixture of conftest.py."""


def frames_of(
    path: Path, backend: Backend, indices: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frames [F, H, W, 3] and seconds, decoded in this process."""
    info = probe(path)
    indices = list(range(info.n)) if indices is None else indices
    out = np.zeros((len(indices), 3, info.height, info.width), dtype=np.uint8)
    seconds = read_into(out, info, indices, backend)
    return out.transpose(0, 2, 3, 1), seconds


@dataclass(frozen=True)
class Odd:
    """One row of the table of good but unusual files."""

    name: str
    times: list[float]
    options: dict[str, object]
    size: tuple[int, int] = (48, 64)
    variable: bool = False
    start: float = 0.0


GOOD = [
    Odd("cfr.mp4", CFR, {}),
    Odd("one_group.mkv", CFR, {"gop": 250}),
    Odd("all_keys.mp4", CFR, {"gop": 1}),
    Odd("variable.mp4", VFR, {}, variable=True),
    Odd("variable.mkv", VFR, {}, variable=True),
    Odd("offset.mp4", [5 + t for t in CFR], {}, start=5.0),
    Odd("offset.mkv", [5 + t for t in CFR], {}, start=5.0),
    Odd("offset.ts", [5 + t for t in CFR], {}, start=5.0),
    Odd("one_frame.mp4", [0.0], {}),
    Odd("deep.mp4", CFR, {"pix_fmt": "yuv444p10le"}),
    Odd("even_size.mp4", CFR, {"size": (242, 322)}, size=(242, 322)),
    Odd("odd_size.mp4", CFR, {"size": (49, 63), "pix_fmt": "yuv444p"}, size=(49, 63)),
    Odd("old.avi", CFR, {"codec": "mpeg4"}),
    Odd(
        "hidden.webm",
        CFR,
        {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    ),
]


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("row", GOOD, ids=lambda row: row.name)
def test_odd_but_good_files(row: Odd, backend: Backend, make_clip: MakeClip) -> None:
    path = make_clip(row.name, row.times, **row.options)
    info = probe(path)
    assert (info.n, info.height, info.width, info.variable) == (
        len(row.times),
        *row.size,
        row.variable,
    )
    assert info.start == pytest.approx(row.start, abs=0.002)
    np.testing.assert_allclose(info.times, np.array(row.times) - row.times[0], atol=0.0015)
    wanted = sorted({0, info.n // 3, info.n // 2, info.n - 1})
    # Where this back-end does not fit the file, another one reads it.
    reader = ClipReader(backend, isolate=False)
    frames, seconds = reader.read(path, [*wanted, wanted[0]])
    assert frames.shape == (len(wanted) + 1, *row.size, 3)
    for frame, index in zip(frames, [*wanted, wanted[0]], strict=True):
        assert abs(make_clip.number(frame) - index) <= 1
    np.testing.assert_allclose(seconds[:-1], info.times[wanted])


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(degrees: int, backend: Backend, make_clip: MakeClip) -> None:
    path = make_clip(f"turned{degrees}.mp4", CFR[:10], size=(64, 96), rotation=degrees)
    info = probe(path)
    stored = make_clip.picture(0, 64, 96)
    upright = np.rot90(stored, degrees // 90)
    assert (info.height, info.width, info.rotation) == (*upright.shape[:2], degrees % 360)
    frames, _ = frames_of(path, backend, [0])
    assert np.abs(frames[0].astype(int) - upright).mean() < 3
    assert np.abs(frames[0].astype(int) - np.rot90(upright, 2)).mean() > 10


@pytest.mark.parametrize("backend", INSTALLED)
def test_backends_agree_on_pixels(backend: Backend, make_clip: MakeClip) -> None:
    path = make_clip("cfr.mp4", CFR)
    ours, _ = frames_of(path, backend)
    reference, _ = frames_of(path, "pyav")
    assert np.abs(ours.astype(int) - reference).mean() < 2


CODECS = [
    (
        "bframes.mp4",
        {
            "options": {
                "x264-params": "keyint=20:min-keyint=20:bframes=3:b-pyramid=normal",
                "crf": "20",
            }
        },
    ),
    (
        "open_gop.mp4",
        {
            "options": {
                "x264-params": "keyint=20:min-keyint=20:bframes=3:open-gop=1",
                "crf": "20",
            }
        },
    ),
    (
        "hevc.mp4",
        {
            "codec": "libx265",
            "options": {"x265-params": "keyint=20:bframes=4:log-level=none", "crf": "20"},
        },
    ),
    ("b_mpeg4.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "20"}}),
    (
        "vp9.webm",
        {
            "codec": "libvpx-vp9",
            "options": {"g": "20", "lag-in-frames": "16", "auto-alt-ref": "1"},
        },
    ),
]


@pytest.mark.parametrize(("name", "options"), CODECS, ids=[name for name, _ in CODECS])
def test_skipping_unneeded_pictures_changes_no_pixel(
    name: str, options: Any, make_clip: MakeClip
) -> None:
    import av

    if options.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {options['codec']}")
    path = make_clip(name, CFR, size=(96, 128), **options)
    with av.open(str(path)) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(everything) == 60
    for wanted in ([0, 59], [7], [18, 19, 20, 21, 22], [1, 13, 38, 39, 58], list(range(60))):
        frames, seconds = frames_of(path, "pyav", wanted)
        for frame, index in zip(frames, wanted, strict=True):
            assert np.array_equal(frame, everything[index]), f"frame {index} of {wanted}"
        np.testing.assert_allclose(seconds, probe(path).times[wanted])


def test_only_needed_groups_are_decoded(
    make_clip: MakeClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrl.data.video import pyav_frames

    path = make_clip("cfr.mp4", CFR)
    seen: list[int] = []
    decoder = pyav_frames._GroupDecoder
    original = decoder.decode
    monkeypatch.setattr(
        decoder, "decode", lambda *args: (seen.append(args[1]), original(*args))[1]
    )
    monkeypatch.setattr(
        pyav_frames, "_scan", lambda *args: pytest.fail("a sound file needs no scan")
    )
    info = probe(path)
    frames_of(path, "pyav", [0, 1, 59])
    assert len(seen) == 2 < len(info.keys)


def truncated_end(good: Path, bad: Path) -> None:
    bad.write_bytes(good.read_bytes()[: good.stat().st_size * 6 // 10])


def corrupted(good: Path, bad: Path) -> None:
    data = bytearray(good.read_bytes())
    middle, noise = len(data) // 2, np.random.default_rng(0).bytes(len(data) // 10)
    data[middle : middle + len(noise)] = noise
    bad.write_bytes(bytes(data))


def without_keys(good: Path, bad: Path) -> None:
    import av

    with av.open(str(good)) as source, av.open(str(bad), "w") as target:
        old = source.streams.video[0]
        new = target.add_stream_from_template(old)
        for packet in source.demux(old):
            if packet.size and not packet.is_keyframe:
                packet.stream = new
                target.mux(packet)


def sound_only(good: Path, bad: Path) -> None:
    import av

    with av.open(str(bad), "w") as target:
        stream = target.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, 0
        target.mux(stream.encode(frame))
        target.mux(stream.encode())


BAD = {
    "header_first.mp4": (truncated_end, ("truncated",)),
    "header_last.mp4": (truncated_end, ("unreadable container", "no video stream")),
    "corrupted.mp4": (corrupted, ("undecodable frames",)),
    "no_keys.mkv": (without_keys, ("undecodable frames",)),
    "sound.mp4": (sound_only, ("no video stream",)),
    "zero.mp4": (lambda good, bad: bad.write_bytes(b""), ("empty file",)),
    "random.mp4": (
        lambda good, bad: bad.write_bytes(np.random.default_rng(0).bytes(4000)),
        ("unreadable container",),
    ),
    "absent.mp4": (lambda good, bad: None, ("missing file",)),
}


@pytest.fixture(scope="session")
def bad_clip(
    make_clip: MakeClip, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("bad")

    def make(name: str) -> Path:
        faststart = (
            {} if name == "header_last.mp4" else {"container": {"movflags": "faststart"}}
        )
        good = make_clip(
            f"before_{name}", CFR, size=(96, 128), options={"crf": "0"}, **faststart
        )
        path = folder / name
        if not path.exists():
            BAD[name][0](good, path)
        return path

    return make


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("name", BAD)
def test_bad_files_raise_one_typed_error(
    name: str, backend: Backend, bad_clip: Callable[[str], Path]
) -> None:
    reader = ClipReader(backend, isolate=False)
    path = bad_clip(name)
    with pytest.raises(BadMedia) as caught:
        info = reader.probe(path)
        reader.read(path, list(range(info.n)))
    assert caught.value.reason in BAD[name][1]
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert reader.counts[f"bad/{caught.value.reason}"] == 1


def test_truncated_file_can_be_read_as_far_as_it_goes(bad_clip: Callable[[str], Path]) -> None:
    reader = ClipReader("pyav", isolate=False, max_missing=1.0)
    info = reader.probe(bad_clip("header_first.mp4"))
    assert 0 < info.n < info.announced == 60
    assert reader.counts["incomplete"] == 1
    media = reader.clip(info.path, ClipSampling(num_frames=8))
    assert media.times is not None and float(media.times[-1]) == pytest.approx(
        (info.n - 1) / 30, abs=1e-3
    )


def test_good_part_of_a_corrupted_file_is_usable(
    make_clip: MakeClip, bad_clip: Callable[[str], Path]
) -> None:
    frames, _ = frames_of(bad_clip("corrupted.mp4"), "pyav", [0, 5, 10])
    for frame, index in zip(frames, (0, 5, 10), strict=True):
        assert abs(make_clip.number(frame) - index) <= 1


@pytest.mark.parametrize("indices", [[], [-1], [60]])
def test_indices_outside_are_refused(indices: list[int], make_clip: MakeClip) -> None:
    with pytest.raises(ValueError, match="0 to 59"):
        ClipReader("pyav", isolate=False).read(make_clip("cfr.mp4", CFR), indices)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="decord, pyav, torchcodec"):
        load_backend("opencv")  # type: ignore[arg-type]


@pytest.mark.skipif("torchcodec" in INSTALLED, reason="torchcodec is installed")
def test_missing_backend_is_an_error_and_not_another_backend() -> None:
    with pytest.raises(ImportError, match="torchcodec"):
        _ = ClipReader("torchcodec", isolate=False).backend
    reader = ClipReader("torchcodec")
    with pytest.raises(ImportError, match="torchcodec"):
        _ = reader.backend


def test_default_backend_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        name, version = ClipReader(isolate=False).backend
    assert name == "pyav"
    assert name in caplog.text and version in caplog.text


def test_reader_does_not_import_torch() -> None:
    code = "import sys, data.video; print('torch' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_clip_is_ready_media(make_clip: MakeClip) -> None:
    media = ClipReader("pyav", isolate=False).clip(
        make_clip("cfr.mp4", CFR), ClipSampling(fps=4)
    )
    assert media.frames.shape == (8, 3, 48, 64) and media.frames.dtype == torch.uint8
    assert media.frames.is_contiguous() and media.is_video
    assert media.times is not None and media.times.dtype == torch.float64
    assert media.duration == pytest.approx(2.0)
    # The last frame shown lies within one sampling step of the end.
    assert media.duration - float(media.times[-1]) < 1 / 4


def test_crop_counts_from_its_start(make_clip: MakeClip) -> None:
    reader = ClipReader("pyav", isolate=False)
    media = reader.clip(make_clip("cfr.mp4", CFR), ClipSampling(fps=10), start=1.0, end=1.5)
    assert media.times is not None
    assert abs(make_clip.number(media.frames[0].permute(1, 2, 0).numpy()) - 30) <= 1
    assert float(media.times[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(media.times[-1]) == pytest.approx(0.5, abs=1e-6)
    assert media.duration == pytest.approx(0.5)


def test_variable_rate_is_sampled_evenly_in_time(make_clip: MakeClip) -> None:
    media = ClipReader("pyav", isolate=False).clip(
        make_clip("variable.mp4", VFR), ClipSampling(num_frames=10)
    )
    assert media.times is not None
    steps = np.diff(media.times.numpy())
    assert steps.max() < 1.5 * 4.8 / 9, (
        "by number of frame, half of the clip would fall into its first second"
    )


def test_token_budget_holds_for_a_clip(make_clip: MakeClip) -> None:
    sampling = ClipSampling(fps=30, max_tokens=20, factor=16, min_pixels=256, stamp_tokens=2)
    media = ClipReader("pyav", isolate=False).clip(make_clip("cfr.mp4", CFR), sampling)
    frames, _, height, width = media.frames.shape
    assert frames // 2 * ((height // 16) * (width // 16) + 2) <= 20


def test_read_clip_raises_bad_row_with_its_cause(tmp_path: Path) -> None:
    with pytest.raises(BadRow, match="missing file") as caught:
        read_clip(tmp_path / "none.mp4", reader=ClipReader("pyav", isolate=False))
    assert isinstance(caught.value.__cause__, BadMedia)


def test_empty_crop_is_a_bad_video(make_clip: MakeClip) -> None:
    reader = ClipReader("pyav", isolate=False)
    with pytest.raises(BadMedia, match="No frame lies between"):
        reader.clip(make_clip("cfr.mp4", CFR), start=7.0, end=8.0)


def test_cache_spares_the_decoder(make_clip: MakeClip, tmp_path: Path) -> None:
    path = make_clip("cfr.mp4", CFR)
    reader = ClipReader("pyav", isolate=False, cache=FrameCache(tmp_path))
    first = reader.clip(path, ClipSampling(num_frames=8))
    again = reader.clip(path, ClipSampling(num_frames=8))
    other = reader.clip(path, ClipSampling(num_frames=6))
    assert (reader.counts["clips_decoded"], reader.counts["cache_hits"]) == (2, 1)
    assert torch.equal(first.frames, again.frames) and len(other.frames) == 6
    again.frames[:] = 0
    assert torch.equal(first.frames, reader.clip(path, ClipSampling(num_frames=8)).frames)


def test_quarantined_clip_is_not_decoded_again(
    bad_clip: Callable[[str], Path], tmp_path: Path
) -> None:
    path = bad_clip("random.mp4")
    for attempt in range(2):
        reader = ClipReader(
            "pyav", isolate=False, quarantine=Quarantine(tmp_path / "bad.jsonl")
        )
        with pytest.raises(BadMedia) as caught:
            reader.probe(path)
        assert ("in quarantine" in str(caught.value)) == (attempt == 1)
        assert reader.counts["bad"] == 1 - attempt
