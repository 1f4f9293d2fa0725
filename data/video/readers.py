"""Frames of a video file: one interface, three decoders. Imports no torch.

    load_backend(name)                        -> (name, version)
    fitting(info, name)                       -> the back-ends to try for this file, in order
    read_into(out, info, indices, backend)    -> seconds; fills uint8 rows [F, 3, h, w]

Back-ends: `pyav`, `decord`, `torchcodec` (exact mode only: approximate mode trusts the header and returns wrong frames
on variable frame rates). What an index means is settled in `mmrl.data.video.probe`; every back-end looks frames up by
presentation time.

PyAV is the default because it is the only one that is right on every file of the conformance table
(tests/data/video/odd_clips.py, results in docs/video.md): it shows packets and times, so that what is delivered can be
checked. decord 0.6 does not say which frame it delivers, and is wrong after seeks into open groups, behind edit lists
and in most containers. torchcodec says it, and is refused by its own times in containers without an index. Both
therefore read only what they were right on (`fitting`), and PyAV reads the rest, whichever was asked for.

Departures from the usual readers (qwen-vl-utils 0.0.14, transformers 5.23):
1. A missing or damaged frame is an error with a reason. Another back-end is asked only if it can tell a damaged frame.
2. The PyAV reader decodes only the groups of pictures that hold a wanted frame (`mmrl.data.video.pyav_frames`).
3. Rotation in the metadata is applied by all back-ends (PyAV itself does not).
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from mmrl.data.video.containers import decoder_faults
from mmrl.data.video.probe import ClipInfo
from mmrl.data.video.pyav_frames import Disordered, Frame, counted, decode_pyav
from mmrl.ground.faults import BadMedia, first_line

Backend = Literal["decord", "pyav", "torchcodec"]

DEFAULT: Backend = "pyav"
MODULES: dict[str, str] = {
    "decord": "decord",
    "pyav": "av",
    "torchcodec": "torchcodec.decoders",
}
INDEXED = ("mov", "matroska")
"""Containers with an index and presentation times. Of others, decord and torchcodec return wrong frames."""
DECORD_CODECS = ("h264", "vp8", "vp9")
"""On these decord is right if all groups are closed. In HEVC and MPEG-4 it returns pictures of other frames."""
CHUNK = 8
"""Frames that a back-end may hold at a time: bounds the memory beyond the result."""


def load_backend(name: Backend | None = None) -> tuple[Backend, str]:
    """Import a back-end and say which version it is; None is PyAV.

    The import really happens, since torchcodec's package can be found where its libraries cannot be loaded.
    """
    if name is not None and name not in get_args(Backend):
        raise ValueError(
            f"backend is {name!r}; the back-ends are {', '.join(get_args(Backend))}, or None to choose."
        )
    choice: Backend = name or DEFAULT
    package = MODULES[choice].partition(".")[0]
    try:
        importlib.import_module(MODULES[choice])
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"The video back-end {choice} cannot be loaded ({first_line(error)}). "
            f"Install it (pip install {package}), or ask for pyav."
        ) from error
    return choice, version_of(choice)


def version_of(backend: Backend) -> str:
    """The version of an installed back-end, without loading it."""
    return importlib.metadata.version(MODULES[backend].partition(".")[0])


def fitting(info: ClipInfo, wish: Backend) -> tuple[Backend, ...]:
    """The back-ends to try for this file, in order: the wished one if it is right on such files, and PyAV."""
    indexed = info.format in INDEXED and not info.counted
    fits = {
        "pyav": False,
        "decord": indexed and info.closed and info.codec in DECORD_CODECS and info.n > 1,
        "torchcodec": indexed,
    }
    return (wish, "pyav") if fits[wish] else ("pyav",)


def read_into(
    out: np.ndarray, info: ClipInfo, indices: Sequence[int], backend: Backend, threads: int = 1
) -> np.ndarray:
    """Decode frames into out, uint8 [F, 3, h, w]; rows follow `indices` (any order, repeats allowed).

    Frames whose size differs from h, w are resized (bicubic with antialias). Returns float64 [F]: the seconds of the
    delivered frames. Raises BadMedia if one of them cannot be decoded or the back-end does not fit the file, ValueError
    for an index outside 0 … n-1.
    """
    wanted = sorted({int(i) for i in indices})
    if not wanted or wanted[0] < 0 or wanted[-1] >= info.n:
        found = f"{wanted[0]} to {wanted[-1]}" if wanted else "none"
        raise ValueError(
            f"{info.path}: frames asked for: {found}; give at least one, from 0 to {info.n - 1}."
        )
    if backend not in fitting(info, backend):
        kind = f"{info.codec} in {info.format}; use the pyav back-end"
        raise BadMedia(info.path, f"not for {backend}", kind)
    with decoder_faults(info.path):
        try:
            return _fill(out, info, indices, backend, threads)
        except Disordered:
            return _fill(out, counted(info), indices, backend, threads)


def _fill(
    out: np.ndarray, info: ClipInfo, indices: Sequence[int], backend: Backend, threads: int
) -> np.ndarray:
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
        rows.setdefault(int(index), []).append(row)
    wanted, seconds = sorted(rows), np.full(len(indices), np.nan)
    decoders = {
        "decord": decode_decord,
        "pyav": decode_pyav,
        "torchcodec": decode_torchcodec,
    }
    height, width = out.shape[2:]
    for index, frame, time in decoders[backend](info, wanted, threads):
        picture = _resized(frame, height, width).transpose(2, 0, 1)
        for row in rows.pop(index):
            out[row], seconds[row] = picture, time
    if rows:
        lost = f"{len(rows)} of {len(wanted)}; the first is frame {min(rows)} of {info.n}"
        raise BadMedia(info.path, "undecodable frames", lost)
    return seconds


def decode_decord(info: ClipInfo, wanted: list[int], threads: int = 1) -> Iterator[Frame]:
    """Frames by presentation time, a few at a time. decord turns pictures upright itself, but not all widths."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(info.path, num_threads=threads)
        spans = reader.get_frame_timestamp(np.arange(len(reader)))  # [M, 2]: start and end
        stamps = np.asarray(spans, dtype=np.float64)[:, 0]
        stamps = stamps - stamps[0]
    except Exception as error:
        raise BadMedia(info.path, "unreadable container", first_line(error)) from error
    places = _by_time(info, wanted, stamps)
    for chunk in _chunks(sorted(places)):
        try:
            frames = reader.get_batch([places[i] for i in chunk]).asnumpy()
        except Exception as error:
            raise BadMedia(info.path, "undecodable frames", first_line(error)) from error
        for index, frame in zip(chunk, frames, strict=True):
            yield index, frame, float(info.times[index])


def decode_torchcodec(info: ClipInfo, wanted: list[int], threads: int = 1) -> Iterator[Frame]:
    """Frames by number in exact mode, which scans the file; the times of what is delivered are checked."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    reach = _reach(info)
    try:
        decoder = VideoDecoder(
            info.path, seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=threads
        )
        count = int(decoder.metadata.num_frames or 0)
        for chunk in _chunks([i for i in wanted if i < count]):
            batch = decoder.get_frames_at(indices=chunk)
            times = batch.pts_seconds.tolist()
            for index, frame, time in zip(chunk, batch.data.numpy(), times, strict=True):
                if abs(time - info.start - info.times[index]) > reach:
                    found = f"frame {index} came with the time {time:.3f} s"
                    raise BadMedia(info.path, "wrong frame", found)
                yield index, frame, float(info.times[index])
    except BadMedia:
        raise
    except Exception as error:
        raise BadMedia(info.path, "undecodable frames", first_line(error)) from error


def _reach(info: ClipInfo) -> float:
    """Half the shortest interval in seconds: a neighbour is never taken for the frame itself."""
    shortest = float(np.diff(info.times).min()) if info.n > 1 else 1.0
    return 0.5 * min(1 / info.fps, shortest)


def _by_time(info: ClipInfo, wanted: list[int], stamps: np.ndarray) -> dict[int, int]:
    """Wanted frame -> its place in `stamps` (seconds [M], increasing); frames that are not there are left out."""
    times, reach, found = info.times, _reach(info), {}
    for index in wanted:
        right = int(np.searchsorted(stamps, times[index]))
        beside = range(max(right - 1, 0), min(right + 1, len(stamps)))
        distances = {place: abs(stamps[place] - times[index]) for place in beside}
        near = [place for place in beside if distances[place] < reach]
        if near:
            found[index] = min(near, key=distances.__getitem__)
    return found


def _chunks(items: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
