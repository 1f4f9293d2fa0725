"""Frames through PyAV: the groups of pictures that are needed, and what comes is checked. Imports no torch.

A frame is found by its presentation time after a seek to the key frame before it. That the seek led where it should is
seen from the packets: their times and sizes must be those of the probe (demuxers of streams without an index make up
times after a seek). That the times belong to the frames is seen from their order: a decoder shows frames in order.
Whatever does not fit costs time, never a wrong frame: the file is then decoded from its start, by time if the times
hold, else by counting.

Limit: two frames that bear each other's time are seen only if both are decoded.

In the groups, pictures to which no other one refers are skipped unless they are wanted (`SKIPPABLE`). The cost is
thereby the smaller of seeking and scanning at every key-frame spacing.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mmrl.data.video.containers import check_frame, open_container, video_stream
from mmrl.data.video.probe import ClipInfo, decoded_frames
from mmrl.ground.faults import BadMedia

Frame = tuple[int, np.ndarray, float]
"""Frame number, uint8 [H, W, 3] RGB, seconds from the first presentation time."""
SKIPPABLE = ("h264", "mpeg4", "mpeg1video", "mpeg2video")
"""Codecs whose "not referred to" is final. In HEVC a picture of a higher temporal layer may still refer to it."""

EARLIER = (0.0, 2.0, 20.0)
"""Seconds before a key frame to which a seek goes, in turn: streams without an index lead too far."""


class Disordered(Exception):
    """Frames came in another order than that of their times."""


def decode_pyav(info: ClipInfo, wanted: list[int], threads: int = 1) -> Iterator[Frame]:
    """Frames by presentation time: one seek for each group of pictures that holds a wanted frame.

    May raise Disordered after some frames; call again with `counted(info)` then, and believe only the second answer.
    """
    if info.counted:
        yield from _scan(info, {index: index for index in wanted}, threads)
        return
    with open_container(info.path) as container:
        stream = video_stream(container, info.path)
        _set_threads(stream, threads)
        group_decoder = _GroupDecoder(info, container, stream)
        left = {group_decoder.ticks[index]: index for index in wanted}
        for key, members in group_decoder.groups(wanted).items():
            for frame in group_decoder.decode(key, members):
                del left[group_decoder.ticks[frame[0]]]
                yield frame
    # Frames before the first key frame, seeks that led elsewhere, key frames that are none.
    if left:
        yield from _scan(info, left, threads)


def counted(info: ClipInfo) -> ClipInfo:
    """The same file, read by counting the frames as they are shown."""
    return replace(info, counted=True)


class _GroupDecoder:
    """Decodes one group of pictures after the other."""

    def __init__(self, info: ClipInfo, container: Any, stream: Any) -> None:
        self.info, self.container, self.stream = info, container, stream
        self.ticks = _ticks(info, stream)
        self.sizes = dict(zip(self.ticks, info.sizes.tolist(), strict=True))
        self.skippable = info.codec in SKIPPABLE

    def groups(self, wanted: list[int]) -> dict[int, dict[int, int]]:
        """The tick of a key frame -> {tick: frame number} of those wanted in its group, in order."""
        keys = [self.ticks[key] for key in self.info.keys]
        found: dict[int, dict[int, int]] = {}
        for index in wanted:
            tick = self.ticks[index]
            group = bisect.bisect_right(keys, tick) - 1
            if group >= 0:
                found.setdefault(keys[group], {})[tick] = index
        return found

    def decode(self, key: int, members: dict[int, int]) -> Iterator[Frame]:
        """Decode from a key frame until the members have come or passed. Raises Disordered."""
        import av

        codec = self.stream.codec_context
        codec.flush_buffers()  # else frames of the last group would come first
        left, last, latest = dict(members), max(members), key - 1
        for packet in self._packets_from(key):
            # Pictures that no other one refers to need not be decoded, unless they are wanted themselves.
            spare = self.skippable and packet.pts is not None and packet.pts not in left
            codec.skip_frame = "NONREF" if spare else "DEFAULT"
            try:
                frames = codec.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue
            for frame in frames:
                # Pictures shown before the key but decoded after it may come, although they lack what they refer to.
                if frame.pts is not None and frame.pts < key:
                    continue
                if frame.pts is None or frame.pts <= latest:
                    raise Disordered
                latest = frame.pts
                if latest in left and not frame.is_corrupt:
                    index = left.pop(latest)
                    yield index, _upright(frame, self.info), float(self.info.times[index])
            if not left or latest > last:
                return

    def _packets_from(self, key: int) -> Iterator[Any]:
        """Packets from this key frame to the end, or to the first one that is not what the probe saw."""
        import av

        try:
            for packet in self._sought(key):
                seen = self.sizes.get(packet.pts, 0)
                if packet.size and not packet.is_discard and seen not in (0, packet.size):
                    return
                yield packet
        except av.FFmpegError:
            return

    def _sought(self, key: int) -> Iterator[Any]:
        """Packets from this key frame on; none if no seek leads to it."""
        for seconds in EARLIER:
            target = key - round(seconds / float(self.stream.time_base))
            self.container.seek(target, stream=self.stream, backward=True)
            packets = self.container.demux(self.stream)
            for packet in packets:
                if packet.is_keyframe and (packet.pts is None or packet.pts > key):
                    break  # too far
                if packet.is_keyframe and packet.pts == key:
                    yield packet
                    yield from packets
                    return


def _scan(info: ClipInfo, left: dict[int, int], threads: int) -> Iterator[Frame]:
    """Decode from the start; frames are found by their tick, or counted.

    Raises Disordered, and BadMedia if a counted file gives another number of frames than it has.
    """
    latest = None
    with open_container(info.path) as container:
        stream = video_stream(container, info.path)
        _set_threads(stream, threads)
        count = 0
        for frame in decoded_frames(container, stream):
            tick = count if info.counted else frame.pts
            count += 1
            if not info.counted:
                if latest is not None and (tick is None or tick <= latest):
                    raise Disordered
                latest = tick
            if tick in left and not frame.is_corrupt:
                index = left.pop(tick)
                yield index, _upright(frame, info), float(info.times[index])
            # Counting holds only if all frames come, so it goes to the end.
            if not left and not info.counted:
                return
    if info.counted and count != info.n:
        found = f"{count} frames decode, and the times of {info.n} do not say which"
        raise BadMedia(info.path, "no presentation times", found)


def _ticks(info: ClipInfo, stream: Any) -> list[int]:
    """The presentation time of each frame in units of the stream."""
    ticks = (info.times + info.start) / float(stream.time_base)
    return np.rint(ticks).astype(np.int64).tolist()


def _upright(frame: Any, info: ClipInfo) -> np.ndarray:
    check_frame(frame.width, frame.height, info.path)
    picture = frame.to_ndarray(format="rgb24")  # [H, W, 3]
    return np.rot90(picture, info.rotation // 90) if info.rotation else picture


def _set_threads(stream: Any, threads: int) -> None:
    stream.codec_context.thread_count = threads
    stream.codec_context.thread_type = "SLICE" if threads == 1 else "AUTO"
