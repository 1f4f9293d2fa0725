"""What is opened as a clip: listed containers in regular files, nothing else, and damage in bounded time and memory."""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mmrl.data.video.containers import container_kind
from mmrl.data.video.decode_worker import MEMORY, DecodeWorker
from mmrl.data.video.video import ClipReader
from mmrl.ground.faults import BadMedia
from tests.data.video.odd_clips import TABLE, OddClip, number, write

SECRET = "the-content-of-another-file"
KINDS = {
    "h264_closed.mp4": "mov", "mjpeg.mov": "mov", "h264_fragments.mp4": "mov", "h264_pyramid.mkv": "matroska",
    "vp9_hidden.webm": "matroska", "mjpeg.avi": "avi", "mpeg4_b.avi": "avi", "h264_open.ts": "mpegts",
    "one.ts": "mpegts", "mpeg2_b.mpg": "mpeg", "flv1.flv": "flv", "wmv2.wmv": "asf", "animated.gif": "gif",
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good clip of each kind of container."""
    place = tmp_path_factory.mktemp("kinds")
    for clip in TABLE:
        if clip.name in KINDS:
            write(clip, place)
    return place


def clip_of(name: str) -> OddClip:
    return next(clip for clip in TABLE if clip.name == name)


@pytest.mark.parametrize("name", KINDS)
def test_containers_are_known_by_their_start_and_not_by_their_name(
    name: str, folder: Path, tmp_path: Path
) -> None:
    content = (folder / name).read_bytes()
    assert container_kind(content[:8192]) == KINDS[name]
    other = tmp_path / "clip.m3u8"
    other.write_bytes(content)
    frames, _ = ClipReader(isolate=False).read(other, [0])
    assert number(frames[0], clip_of(name)) == 0


def scripts(clip: Path, secret: Path) -> dict[str, str | bytes]:
    """Texts that a library takes for a clip and that lead to other files, and things that are no clips."""
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{clip}\n#EXT-X-ENDLIST\n",
        "hls_key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{secret}"\n#EXTINF:9,\n{clip}\n',
        "hls_indented": f"\n#EXTM3U\n#EXTINF:9,\nfile://{clip}\n",
        "hls_remote": "#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/clip.ts\n#EXT-X-ENDLIST\n",
        "m3u": f"{clip}\n{secret}\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{clip}'\n",
        "ffconcat_mark": f"\ufeffffconcat version 1.0\nfile '{clip}'\n",
        "concat": f"file '{clip}'\nfile '{secret}'\n",
        "concat_options": f"ffconcat version 1.0\nfile {clip}\noption protocol_whitelist file,http\n",
        "dash": f'<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{clip}</BaseURL>'
        "</Representation></AdaptationSet></Period></MPD>",
        "imf": f'<?xml version="1.0"?><AssetMap><Path>{secret}</Path></AssetMap>',
        "smooth": f'<SmoothStreamingMedia><c src="{secret}"/></SmoothStreamingMedia>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "pls": f"[playlist]\nFile1={clip}\n",
        "asx": f'<asx version="3.0"><entry><ref href="{clip}"/></entry></asx>',
        "ram": f"file://{clip}\n",
        "metadata": f";FFMETADATA1\ntitle={secret}\n",
        "subtitles": f"WEBVTT\n\n00:00.000 --> 00:01.000\n{SECRET}\n",
        "avisynth": f'AviSource("{clip}")\n',
        "link": f"[InternetShortcut]\nURL=file://{clip}\n",
        "text": SECRET * 40,
        "sound": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(64),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(64),
        "raw_h264": b"\x00\x00\x00\x01\x67" + bytes(64),
        "raw_frames": b"YUV4MPEG2 W96 H64 F30:1\nFRAME\n" + bytes(96 * 64 * 3 // 2),
    }


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".mpd", ".concat", "%03d.png"])
@pytest.mark.parametrize("name", scripts(Path("a"), Path("b")))
def test_no_script_leads_to_another_file(
    name: str, suffix: str, folder: Path, tmp_path: Path
) -> None:
    secret, path = tmp_path / "secret.txt", tmp_path / f"clip{suffix}"
    secret.write_text(SECRET)
    text = scripts(folder / "h264_closed.mp4", secret)[name]
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(
        BadMedia, match=r"unreadable container.*its start is that of none of mp4"
    ) as caught:
        ClipReader(isolate=False).probe(path)
    assert SECRET not in str(caught.value)
    assert str(folder) not in str(caught.value), "what a file says is not repeated"


@pytest.mark.parametrize(
    "name", ["concat:a.mp4|b.mp4", "subfile,,start,0,end,99,,:a.mp4", "frame%03d.png"]
)
def test_names_are_only_names(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that a library would read as an instruction is that of a file."""
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes((folder / "h264_closed.mp4").read_bytes())
    for backend in ("pyav", "decord"):
        try:
            reader = ClipReader(backend, isolate=False)
            frames, _ = reader.read(name, [7])
        except ImportError:
            continue
        assert number(frames[0], clip_of("h264_closed.mp4")) == 7


def test_only_regular_files_are_opened(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("/dev/zero")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.mp4").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
        reader, began = ClipReader(isolate=False), time.monotonic()
        for path, reason in {
            "/dev/zero": "not a file",
            tmp_path / "pipe.mp4": "not a file",
            tmp_path / "link.mp4": "not a file",
            tmp_path / "folder.mp4": "not a file",
            tmp_path / "s.mp4": "not a file",
            tmp_path / "gone.mp4": "missing file",
            "http://example.org/clip.mp4": "missing file",
            "a\0b.mp4": "missing file",
            "half \ud83d.mp4": "missing file",
            "x" * 5000: "missing file",
        }.items():
            with pytest.raises(BadMedia, match=reason) as caught:
                reader.probe(path)
            assert caught.value.reason == reason
        assert time.monotonic() - began < 5
    assert reader.probe(f"file://{folder / 'h264_closed.mp4'}").n == 60


def test_a_title_in_another_alphabet_is_no_damage(folder: Path, tmp_path: Path) -> None:
    content = (folder / "h264_pyramid.mkv").read_bytes()
    broken = content.replace(b"Lavf", b"L\xff\xfef")
    assert broken != content
    (tmp_path / "title.mkv").write_bytes(broken)
    assert ClipReader(isolate=False).probe(tmp_path / "title.mkv").n == 60


def test_frames_beyond_all_measure_are_refused(folder: Path, tmp_path: Path) -> None:
    gif = bytearray((folder / "animated.gif").read_bytes())
    struct.pack_into("<HH", gif, 6, 60000, 60000)
    (tmp_path / "large.gif").write_bytes(bytes(gif))
    worker = DecodeWorker("pyav", timeout=30)
    with pytest.raises(
        BadMedia, match=r"frames too large|decoder error|undecodable|unreadable"
    ):
        worker.probe(str(tmp_path / "large.gif"))
    assert worker._child is not None
    peak = _peak_memory(worker._child.pid)
    worker.close()
    assert peak < 1 << 30


def test_the_memory_of_a_decoder_is_bounded(folder: Path) -> None:
    worker = DecodeWorker("pyav")
    worker.probe(str(folder / "h264_closed.mp4"))
    assert worker._child is not None
    limits = Path(f"/proc/{worker._child.pid}/limits").read_text()
    worker.close()
    found = re.search(r"Max data size +(\d+)", limits)
    assert found is not None and int(found[1]) == MEMORY


def _peak_memory(pid: int) -> int:
    """Bytes that a process had in memory at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) << 10


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with one kind of damage."""
    changed, size = bytearray(content), len(content)
    start = (
        int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(min(size, 2000)))
    )
    length = min(int(rng.integers(1, 400)), size - start)
    kind = int(rng.integers(7))
    if kind == 0:
        return bytes(changed[:start])
    if kind == 1:
        changed[start : start + length] = rng.bytes(length)
    elif kind == 2:
        changed[start : start + length] = bytes(length)
    elif kind == 3:
        for place in rng.integers(0, size, int(rng.integers(1, 40))):
            changed[int(place)] ^= 1 << int(rng.integers(8))
    elif kind == 4:
        changed[start : start + 4] = (
            b"\xff\xff\xff\xff" if rng.random() < 0.5 else b"\x7f\xff\xff\xff"
        )
    elif kind == 5:
        del changed[start : start + length]
    else:
        changed[start:start] = changed[start : start + length] * int(rng.integers(1, 9))
    return bytes(changed)


def test_damaged_clips_are_bad_rows_in_bounded_time_and_memory(
    folder: Path, tmp_path: Path
) -> None:
    """A smaller form of the long run; `FUZZ_CLIPS` sets the number of files."""
    count = int(os.environ.get("FUZZ_CLIPS", "150"))
    rng, limit = np.random.default_rng(7), 20.0
    worker, outcomes = DecodeWorker("pyav", timeout=limit, recycle_after=10**9), Counter()
    contents = {name: (folder / name).read_bytes() for name in KINDS}
    peak, slowest = 0, 0.0
    for place in range(count):
        name = list(KINDS)[place % len(KINDS)]
        path = tmp_path / f"damaged-{name}"
        path.write_bytes(damaged(contents[name], rng))
        began = time.monotonic()
        outcomes[_outcome(worker, str(path))] += 1
        slowest = max(slowest, time.monotonic() - began)
        if worker._child is not None and worker._child.alive:
            assert not psutil.Process(worker._child.pid).children()
            peak = max(peak, _peak_memory(worker._child.pid))
    worker.close()
    print(count, "files;", dict(outcomes), f"peak {peak >> 20} MiB, slowest {slowest:.1f} s")
    assert outcomes["read"] > 0 and len(outcomes) > 2
    # A probe and a read, each within its limit, and once more if the child died.
    assert slowest < 4 * limit + 5 and peak < 1 << 30


def _outcome(worker: Any, path: str) -> str:
    """`read`, or the reason of the refusal; anything but BadMedia is raised."""
    try:
        info = worker.probe(path)
        wanted = sorted({0, info.n // 2, info.n - 1})
        frames, seconds = worker.read(info, wanted, (32, 48))
    except BadMedia as bad:
        return bad.reason
    assert frames.shape == (len(wanted), 3, 32, 48) and np.isfinite(seconds).all()
    return "read"
