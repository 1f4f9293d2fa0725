"""Frames of a video file: one interface, three decoders. Imports no torch.

    load_backend(name)                        -> (name, version)
    read_into(out, info, indices, backend)    -> seconds; fills uint8 rows [F, 3, h, w]

Back-ends: `decord`, `pyav`, `torchcodec` (exact mode only: approximate mode trusts the header and returns wrong frames
on variable frame rates). The torchcodec path follows its documented interface and has not been run. What an index
means is settled in `mmrl.data.video.probe`; every back-end looks frames up by presentation time.

Departures from the usual readers (qwen-vl-utils 0.0.14, transformers 5.23):
1. A missing or damaged frame is an error with a reason; nothing falls back to another back-end in silence.
2. The PyAV reader decodes only the groups of pictures that hold a wanted frame, and in them skips the pictures that no
   other one refers to. Its cost is thereby the smaller of seeking and scanning at every key-frame spacing.
3. Rotation in the metadata is applied by all back-ends (PyAV itself does not).
"""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from mmrl.data.video.probe import ClipInfo, decoded_frames, open_container, video_stream
from mmrl.ground.faults import BadMedia, first_line

Backend = Literal["decord", "pyav", "torchcodec"]
Frame = tuple[int, np.ndarray, float]
"""Frame number, uint8 [H, W, 3] RGB, seconds from the first presentation time."""

MODULES: dict[str, str] = {
    "decord": "decord",
    "pyav": "av",
    "torchcodec": "torchcodec.decoders",
}
DECORD_CONTAINERS = ("mov", "matroska", "avi")
"""Containers with an index. In mpegts decord 0.6 loses the first group of pictures and returns wrong frames."""
CHUNK = 8
"""Frames that a back-end may hold at a time: bounds the memory beyond the result."""


def load_backend(name: Backend | None = None) -> tuple[Backend, str]:
    """Import a back-end and say which version it is; None takes decord where its wheel imports, else PyAV.

    The import really happens, since torchcodec's package can be found where its libraries cannot be loaded.
    """
    if name is not None and name not in get_args(Backend):
        raise ValueError(
            f"backend is {name!r}; the back-ends are {', '.join(get_args(Backend))}, or None to choose."
        )
    choices: tuple[Backend, ...] = (name,) if name else ("decord", "pyav")
    problems = []
    for choice in choices:
        try:
            importlib.import_module(MODULES[choice])
        except (ImportError, OSError, RuntimeError) as error:
            problems.append(f"{choice}: {first_line(error)}")
            continue
        package = importlib.import_module(MODULES[choice].partition(".")[0])
        return choice, str(getattr(package, "__version__", "unknown"))
    raise ImportError(
        f"No video back-end can be loaded ({'; '.join(problems)}). Install one: pip install av, or decord."
    )


def read_into(
    out: np.ndarray, info: ClipInfo, indices: Sequence[int], backend: Backend, threads: int = 1
) -> np.ndarray:
    """Decode frames into out, uint8 [F, 3, h, w]; rows follow `indices` (any order, repeats allowed).

    Frames whose size differs from h, w are resized (bicubic with antialias). Returns float64 [F]: the seconds of the
    delivered frames. Raises BadMedia if one of them cannot be decoded, ValueError for an index outside 0 … n-1.
    """
    wanted = sorted({int(i) for i in indices})
    if not wanted or wanted[0] < 0 or wanted[-1] >= info.n:
        found = f"{wanted[0]} to {wanted[-1]}" if wanted else "none"
        raise ValueError(
            f"{info.path}: frames asked for: {found}; give at least one, from 0 to {info.n - 1}."
        )
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(indices):
        rows.setdefault(int(index), []).append(row)
    seconds = np.full(len(indices), np.nan)
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


def decode_pyav(info: ClipInfo, wanted: list[int], threads: int = 1) -> Iterator[Frame]:
    """Frames by presentation time: one seek for each group of pictures that holds a wanted frame."""
    with open_container(info.path) as container:
        stream = video_stream(container, info.path)
        _set_threads(stream, threads)
        ticks = _ticks(info, stream)
        keys = [ticks[key] for key in info.keys]
        # Group of pictures (-1: before the first key frame) -> the wanted ticks in it -> their frames.
        groups: dict[int, dict[int, int]] = {}
        for index in wanted:
            tick = ticks[index]
            group = bisect.bisect_right(keys, tick) - 1
            groups.setdefault(group, {})[tick] = index
        left: dict[int, int] = {}
        for group, members in sorted(groups.items()):
            left |= members  # what an earlier group could not give may turn up in this one
            if group >= 0 and info.pts is not None:
                yield from _decode_group(info, container, stream, keys[group], left)
    # Files without times, seeks that land too late, key frames that are none: decode everything once.
    if left:
        yield from _scan(info, left, threads)


def _decode_group(
    info: ClipInfo, container: Any, stream: Any, key: int, left: dict[int, int]
) -> Iterator[Frame]:
    """Decode from a key frame until the ticks of `left` have come or passed; what is yielded leaves `left`."""
    import av

    codec = stream.codec_context
    codec.flush_buffers()  # else frames of the last group would come first
    try:
        container.seek(key, stream=stream, backward=True)
    except av.FFmpegError:
        return
    last = max(left)
    for packet in _packets(container, stream):
        # Pictures that no other one refers to need not be decoded, unless they are wanted themselves.
        if packet.pts is not None:
            codec.skip_frame = "DEFAULT" if packet.pts in left else "NONREF"
        try:
            frames = codec.decode(packet if packet.size else None)
        except av.FFmpegError:
            continue
        for frame in frames:
            if frame.pts in left and not frame.is_corrupt:
                index = left.pop(frame.pts)
                yield index, _upright(frame, info), float(info.times[index])
        if not left or (frames and (frames[-1].pts or 0) > last):
            return


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Packets up to the end or the first one that cannot be read."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        return


def _scan(info: ClipInfo, left: dict[int, int], threads: int) -> Iterator[Frame]:
    """Decode from the start; frames are found by their tick, or counted where the file has no times."""
    with open_container(info.path) as container:
        stream = video_stream(container, info.path)
        _set_threads(stream, threads)
        for count, frame in enumerate(decoded_frames(container, stream)):
            tick = count if info.pts is None else frame.pts
            if tick in left and not frame.is_corrupt:
                index = left.pop(tick)
                yield index, _upright(frame, info), float(info.times[index])
            if not left:
                return


def _ticks(info: ClipInfo, stream: Any) -> list[int]:
    """The presentation time of each frame in units of the stream; its number where the file has no times."""
    if info.pts is None:
        return list(range(info.n))
    ticks = (info.pts + info.start) / float(stream.time_base)
    return np.rint(ticks).astype(np.int64).tolist()


def _upright(frame: Any, info: ClipInfo) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")  # [H, W, 3]
    return np.rot90(picture, info.rotation // 90) if info.rotation else picture


def _set_threads(stream: Any, threads: int) -> None:
    stream.codec_context.thread_count = threads
    stream.codec_context.thread_type = "SLICE" if threads == 1 else "AUTO"


def decode_decord(info: ClipInfo, wanted: list[int], threads: int = 1) -> Iterator[Frame]:
    """Frames by presentation time, a few at a time. decord turns pictures upright itself, but not all widths."""
    import decord

    if not any(name in info.format for name in DECORD_CONTAINERS):
        raise BadMedia(
            info.path, "container not for decord", f"{info.format}; use the pyav back-end"
        )
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
    """Frames by number in exact mode, which scans the file; their times are checked. Not run (optional extra)."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    try:
        decoder = VideoDecoder(
            info.path, seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=threads
        )
        count = int(decoder.metadata.num_frames or 0)
        for chunk in _chunks([i for i in wanted if i < count]):
            batch = decoder.get_frames_at(indices=chunk)
            times = batch.pts_seconds.tolist()
            for index, frame, time in zip(chunk, batch.data.numpy(), times, strict=True):
                late = 0.0 if info.pts is None else time - info.start - info.pts[index]
                if abs(late) > 0.5 / info.fps:
                    found = f"frame {index} came with the time {time:.3f} s"
                    raise BadMedia(info.path, "wrong frame", found)
                yield index, frame, float(info.times[index])
    except BadMedia:
        raise
    except Exception as error:
        raise BadMedia(info.path, "undecodable frames", first_line(error)) from error


def _by_time(info: ClipInfo, wanted: list[int], stamps: np.ndarray) -> dict[int, int]:
    """Wanted frame -> its place in `stamps` (seconds [M], increasing); frames that are not there are left out."""
    pts = info.pts
    if pts is None:
        return {i: i for i in wanted if i < len(stamps)}
    # Half the shortest interval: a neighbour is never taken for the frame itself.
    shortest = float(np.diff(pts).min()) if info.n > 1 else 1.0
    reach = 0.5 * min(1 / info.fps, shortest)
    found = {}
    for index in wanted:
        right = int(np.searchsorted(stamps, pts[index]))
        beside = range(max(right - 1, 0), min(right + 1, len(stamps)))
        distances = {place: abs(stamps[place] - pts[index]) for place in beside}
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
