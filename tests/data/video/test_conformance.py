"""The conformance table over all installed readers: a frame is the one of its time, or it is not delivered."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mmrl.data.video import readers
from mmrl.data.video.probe import ClipInfo, probe
from mmrl.data.video.readers import MODULES, Backend, fitting, read_into
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.faults import BadMedia
from mmrl.ground.quarantine import Quarantine
from tests.data.video.odd_clips import LOST, SWAPPED, TABLE, OddClip, number, requests, write

OTHERS: list[Backend] = [
    name
    for name in ("decord", "torchcodec")
    if importlib.util.find_spec(MODULES[name].split(".")[0])
]
Clip = Callable[[OddClip], Path]


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    import av

    folder = tmp_path_factory.mktemp("odd")
    os.environ.setdefault("SVT_LOG", "0")  # that encoder is talkative

    def make(clip: OddClip) -> Path:
        try:
            av.Codec(clip.codec, "w")
        except ValueError:
            pytest.skip(f"this PyAV cannot write {clip.codec}")
        return write(clip, folder)

    return make


def mistakes(
    read: Callable[[list[int]], tuple[np.ndarray, np.ndarray]], clip: OddClip
) -> list[str]:
    """What is wrong with the frames uint8 [F, H, W, 3] and seconds that `read` returns."""
    found = []
    for indices in requests(len(clip.numbers)):
        frames, seconds = read(indices)
        for frame, index, second in zip(frames, indices, seconds, strict=True):
            shown, right = number(frame, clip), clip.numbers[index]
            if shown != right or abs(second - clip.seconds[index]) > 0.011:
                found.append(f"asked {indices[:6]}: {second:.3f} s is {shown}, not {right}")
    return found


def by_hand(
    info: ClipInfo, backend: Backend
) -> Callable[[list[int]], tuple[np.ndarray, np.ndarray]]:
    def read(indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((len(indices), 3, info.height, info.width), dtype=np.uint8)
        seconds = read_into(out, info, indices, backend)
        return out.transpose(0, 2, 3, 1), seconds

    return read


@pytest.mark.parametrize("clip", TABLE, ids=lambda clip: clip.name)
def test_frames_are_those_of_their_times(clip: OddClip, odd: Clip) -> None:
    path = odd(clip)
    reader = ClipReader(isolate=False)
    info = reader.probe(path)
    assert info.n == len(clip.numbers)
    np.testing.assert_allclose(info.times, clip.seconds, atol=0.011)
    assert mistakes(lambda indices: reader.read(path, indices), clip) == []
    assert reader.counts["bad"] == 0


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("clip", TABLE, ids=lambda clip: clip.name)
def test_other_readers_are_right_or_give_way(
    clip: OddClip, backend: Backend, odd: Clip
) -> None:
    path = odd(clip)
    reader = ClipReader(backend, isolate=False)
    assert mistakes(lambda indices: reader.read(path, indices), clip) == []
    info = reader.probe(path)
    if fitting(info, backend) == ("pyav",):
        assert reader.counts[f"unfit/{backend}"] > 0
        with pytest.raises(BadMedia, match=f"not for {backend}.*use the pyav back-end"):
            by_hand(info, backend)([0])
    elif reader.counts[f"failed/{backend}"] == 0:
        assert mistakes(by_hand(info, backend), clip) == []


def test_decord_reads_what_it_is_right_on(odd: Clip) -> None:
    """Neither everything nor nothing is kept from it; each name was measured."""
    fit = {clip.name for clip in TABLE if fitting(probe(odd(clip)), "decord")[0] == "decord"}
    assert fit == {
        "h264_closed.mp4", "h264_pyramid.mkv", "h264_one_group.mp4", "h264_all_keys.mov", "h264_444_10bit.mkv",
        "h264_fragments.mp4", "vp8_hidden.webm", "vp9_hidden.webm", "vp9_hidden.mp4", "vp9_alpha.webm", "offset.mp4",
        "offset.mkv", "uneven.mp4", "uneven.mkv", "gap.mkv", "slow.mp4", "sound.mp4", "sound.mkv", "turned90.mp4",
        "turned270.mov",
    }  # fmt: skip


def test_disorder_seen_while_reading_is_mended(odd: Clip) -> None:
    path = odd(SWAPPED)
    info = probe(path)
    assert not info.counted, "the packets alone do not tell"
    frames, _ = ClipReader(isolate=False).read(path, range(info.n))
    assert [number(frame, SWAPPED) for frame in frames] == list(range(60))


@pytest.mark.parametrize("name", ["h264_b.avi", "decoding_times.mp4"])
def test_files_without_times_are_counted_and_checked(name: str, odd: Clip) -> None:
    """If another number of frames comes than was counted, which one is which is not known."""
    from dataclasses import replace

    info = probe(odd(next(clip for clip in TABLE if clip.name == name)))
    assert info.counted
    with pytest.raises(BadMedia, match="no presentation times"):
        by_hand(replace(info, n=info.n - 1, pts=info.times[:-1]), "pyav")([3])


def test_an_edit_list_that_cannot_be_followed_is_refused(odd: Clip) -> None:
    with pytest.raises(BadMedia, match=r"edit list not followed.*0.40 of 0.90 s are not shown"):
        probe(odd(LOST))


@pytest.mark.parametrize("isolate", [True, False])
def test_pyav_reads_what_another_reader_fails_on(
    isolate: bool, odd: Clip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "decord" not in OTHERS:
        pytest.skip("decord is not installed")

    def fail(*_: object) -> Iterator[readers.Frame]:
        raise BadMedia("x", "undecodable frames")

    path, file = odd(TABLE[0]), tmp_path / "bad.jsonl"
    reader = ClipReader("decord", isolate=isolate, timeout=20, quarantine=Quarantine(file))
    monkeypatch.setattr(readers, "decode_decord", fail)
    if reader.worker:
        original = reader.worker.read

        def worker_read(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
            return fail() if arguments[-1] == "decord" else original(*arguments)  # type: ignore[arg-type, return-value]

        monkeypatch.setattr(reader.worker, "read", worker_read)
    frames, _ = reader.read(path, [7])
    reader.close()
    assert number(frames[0], TABLE[0]) == 7
    assert reader.counts["failed/decord"] == 1 and reader.counts["bad"] == 0
    assert not file.exists(), "a file that can be read is not blamed"


def test_what_pyav_cannot_read_is_given_to_no_other(odd: Clip) -> None:
    """The others deliver damaged frames without a word."""
    info = probe(odd(TABLE[0]))
    assert fitting(info, "pyav") == ("pyav",)
    assert ClipReader(isolate=False).backend[0] == "pyav"


def test_case_of_long_open_groups(odd: Clip) -> None:
    """The reported one: 20 seconds by x265 as it comes, cut out of the middle."""
    options = {"x265-params": "log-level=none", "crf": "20", "preset": "superfast"}
    clip = OddClip("long.mp4", "libx265", options, times=[i / 30 for i in range(600)])
    media = ClipReader(isolate=False).clip(odd(clip), ClipSampling(fps=3), start=8, end=18)
    assert media.times is not None and len(media.times) > 20
    for frame, second in zip(media.frames, media.times.tolist(), strict=True):
        shown = number(frame.permute(1, 2, 0).numpy(), clip)
        assert abs(shown / 30 - 8 - second) < 0.01
