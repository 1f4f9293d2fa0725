"""What a video file holds: frames, times, rotation. One pass over the packets and one decoded frame. Imports no torch.

Decides which frame an index means: frame i is the i-th frame that is shown and has the i-th presentation time of the
file, whatever decodes it later, so the frames chosen for a clip do not depend on the back-end. Times are presentation
times minus the first one, never i / fps.

Files whose packets do not tell the times of their frames are decoded once, and the order in which the decoder shows
the frames is believed:
1. Containers that store no presentation times, or not all of them (`WITHOUT_TIMES`), with a codec that reorders its
   frames. What a library says there is made from the order of decoding.
2. Files of other containers in which frames must be reordered but no time says so, as some muxers write them.
3. VP8, whose hidden reference frames have packets of their own.
If the times then turn out to belong to other frames, the sorted times are dealt out in the order of showing, and the
file is read by counting (`ClipInfo.counted`).

Limits: only mp4 and mov say in their header how many frames they show, so only they can be compared with it. Pictures
at the start that refer to what was cut away before the file are not counted as frames; players do not show them.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmrl.data.video.containers import (
    check_frame,
    decoder_faults,
    local_path,
    open_container,
    video_stream,
    what_failed,
)
from mmrl.ground.faults import BadMedia

TRUST = 1.25
"""A header's average rate is believed if it is within this factor of frames / time (avi may give its clock's rate)."""
WITHOUT_TIMES = ("avi", "asf", "mpeg", "mpegts")
"""Containers without presentation times (avi, asf), or with one for some of the frames only."""


BY_DECODING = ("avi", "asf")
"""Those of them that store times of decoding only. The sorted ones are the times of showing, but for a shift."""
REORDERS = 1 << 3
"""AV_CODEC_PROP_REORDER: frames of such a codec may be shown in another order than they are decoded."""


@dataclass(frozen=True, eq=False)
class ClipInfo:
    """What the packets of a file say."""

    path: str
    format: str
    """The demuxer, as ffmpeg names it: "mov" (also for mp4), "matroska" (also for webm), "mpegts" ..."""
    codec: str
    """As ffmpeg names it: "h264", "hevc", "av1" ..."""
    n: int
    """Frames that the file can deliver."""
    announced: int
    """Frames that the header promises to show; 0 if it does not say."""
    fps: float
    """Average frames per second."""
    duration: float
    """Seconds from the start of the first frame to the end of the last."""
    pts: np.ndarray | None
    """float64 [n], increasing: seconds from the first presentation time. None if the file has no usable times."""
    start: float
    """The first presentation time on the file's own clock, seconds."""
    rotation: int
    """Degrees (0, 90, 180, 270) counter-clockwise by which the stored picture is turned to be seen upright."""
    width: int
    """Pixels, after rotation."""
    height: int
    """Pixels, after rotation."""
    variable: bool
    """True if some frame lies more than one frame interval from i / fps."""
    keys: np.ndarray
    """long [K], increasing: the frames at which decoding can start."""
    sizes: np.ndarray
    """long [n]: bytes of each frame's packet, by which it is known again after a seek; 0: unknown."""
    counted: bool
    """True if the times in the file belong to other frames: frame i is the i-th that the decoder shows."""
    closed: bool
    """True if no frame refers beyond a key frame and none is hidden: any way of seeking then finds the right one."""

    @property
    def times(self) -> np.ndarray:
        """float64 [n]: seconds of every frame; i / fps where the file has no times."""
        return self.pts if self.pts is not None else np.arange(self.n) / self.fps

    @property
    def missing(self) -> float:
        """Share of the announced frames that the file does not hold, in [0, 1]."""
        return max(0.0, 1 - self.n / self.announced) if self.announced else 0.0


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    dts: int | None
    is_key: bool
    duration: int
    size: int
    is_refresh: bool
    """A key of H.264 to which later pictures may refer across: it is no IDR picture."""


@dataclass(frozen=True)
class _Packets:
    """The packets that hold shown frames, in the order of decoding."""

    listed: list[_Packet]
    hidden: int
    """Packets that an edit list cuts away."""

    @property
    def ambiguous(self) -> bool:
        """Does a packet lack its time, or share it with another?"""
        stamps = {packet.pts for packet in self.listed}
        return None in stamps or len(stamps) < len(self.listed)

    @property
    def reordered(self) -> bool:
        """Do the times say that frames are shown in another order than they are decoded?"""
        pairs = itertools.pairwise(packet.pts or 0 for packet in self.listed)
        return any(later < first for first, later in pairs)

    @property
    def decoding_times(self) -> list[int] | None:
        """The times of decoding, increasing; None if some are missing or shared."""
        times = {packet.dts for packet in self.listed if packet.dts is not None}
        return sorted(times) if len(times) == len(self.listed) else None

    @property
    def all_keys(self) -> bool:
        """Can decoding start at every frame?"""
        return all(packet.is_key for packet in self.listed)

    @property
    def closed(self) -> bool:
        """No hidden packet, no key that is none, no picture that is shown before the key it comes after."""
        latest = None
        for packet in self.listed:
            if packet.is_refresh or (latest is not None and (packet.pts or 0) < latest):
                return False
            if packet.is_key:
                latest = packet.pts
        return not self.hidden


@dataclass(frozen=True)
class _Table:
    """Frames in presentation order."""

    ticks: list[int] | None
    """Presentation times in units of the stream; None if they are absent."""
    n: int
    keys: list[int]
    last: int
    """Length of the last frame in ticks; 0 if unknown."""
    hidden: int = 0
    """Packets that are not to be shown."""
    sizes: list[int] = field(default_factory=list)
    counted: bool = False


@dataclass(frozen=True)
class _Clock:
    """The fields of the same names in `ClipInfo`."""

    fps: float
    duration: float
    pts: np.ndarray | None
    start: float
    variable: bool


@dataclass(frozen=True)
class _First:
    """The first frame that decodes."""

    width: int
    height: int
    rotation: int
    pts: int | None


def probe(path: str | os.PathLike[str]) -> ClipInfo:
    """Read the packet table of a file and decode its first frame. Raises BadMedia."""
    path = local_path(path)
    with decoder_faults(path):
        return _probe(path)


def _probe(path: str) -> ClipInfo:
    first = _first_frame(path)
    with open_container(path) as container:
        stream = video_stream(container, path)
        rate = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)
        name, unit = container.format.name, float(stream.time_base)
        codec = stream.codec_context.codec.canonical_name
        # Of other containers the number is a guess, or counts something else than frames shown.
        announced = int(stream.frames or 0) if name == "mov" else 0
        promised = float(stream.duration or 0) * unit if name == "mov" else 0.0
        packets = _read_packets(container, stream, path)
        plain = _tells_times(packets, name, stream.codec_context)
    table = _packet_table(packets, first) if plain else _decoded_table(path, packets, name)
    clock = _clock(table, unit, rate)
    if packets.hidden and len(packets.listed) + packets.hidden >= announced:
        _check_edits(path, clock, promised)
    sideways = first.rotation % 180 != 0
    return ClipInfo(
        path=path,
        format=name,
        codec=codec,
        n=table.n,
        announced=max(0, announced - table.hidden),
        fps=clock.fps,
        duration=clock.duration,
        pts=clock.pts,
        start=clock.start,
        rotation=first.rotation,
        width=first.height if sideways else first.width,
        height=first.width if sideways else first.height,
        variable=clock.variable,
        keys=np.array(table.keys, dtype=np.int64),
        sizes=np.array(table.sizes or [0] * table.n, dtype=np.int64),
        counted=table.counted or table.ticks is None,
        closed=packets.closed and table.hidden == 0,
    )


def _clock(table: _Table, unit: float, rate: float) -> _Clock:
    """Times in seconds; `unit` is the length of a tick, `rate` what the header says of frames per second."""
    pts, start, measured = None, 0.0, rate or 1.0
    if table.ticks is not None:
        # Differences of integers first: ticks of a live stream are too large for exact floats.
        pts = (np.array(table.ticks, dtype=np.int64) - table.ticks[0]) * unit
        start = table.ticks[0] * unit
        if table.n > 1:
            measured = (table.n - 1) / float(pts[-1])
    if not 1 / TRUST < rate / measured < TRUST:
        rate = measured
    duration, drift = table.n / rate, 0.0
    if pts is not None:
        duration = float(pts[-1]) + (table.last * unit or 1 / rate)
        drift = float(np.abs(pts - np.arange(table.n) / rate).max())
    return _Clock(rate, duration, pts, start, variable=drift > 1 / rate + 1e-9)


def _check_edits(path: str, clock: _Clock, promised: float) -> None:
    """Raises BadMedia if much less is shown than an edit list promises, in seconds; no packet is missing then."""
    lost = promised - clock.start - clock.duration
    # The header rounds, and the last frame may last longer than it says.
    if lost > max(0.1 * promised, 2 / clock.fps):
        found = f"{lost:.2f} of {promised:.2f} s are not shown; encode the clip anew"
        raise BadMedia(path, "edit list not followed", found)


def _read_packets(container: Any, stream: Any, path: str) -> _Packets:
    import av

    listed, hidden = [], 0
    try:
        for packet in container.demux(stream):
            if packet.size and packet.is_discard:
                hidden += 1
            elif packet.size and not packet.is_corrupt:
                listed.append(
                    _Packet(
                        packet.pts,
                        packet.dts,
                        packet.is_keyframe,
                        packet.duration or 0,
                        packet.size,
                        packet.is_keyframe and _is_refresh(packet, stream.codec_context),
                    )
                )
    except av.FFmpegError as error:
        # Else the file is cut off; what came before can be shown.
        if not listed:
            raise BadMedia(path, "unreadable container", what_failed(error)) from error
    if not listed:
        raise BadMedia(path, "no frames")
    return _Packets(listed, hidden)


def _is_refresh(packet: Any, codec: Any) -> bool:
    """Is this key of an H.264 stream in mp4 or mkv something else than an IDR picture?"""
    header = codec.extradata
    if codec.codec.canonical_name != "h264" or not header or header[0] != 1:
        return False
    content, length, at = bytes(packet), (header[4] & 3) + 1, 0
    while at + length < len(content):
        if content[at + length] & 31 == 5:  # nal_unit_type: a slice of an IDR picture
            return False
        at += length + int.from_bytes(content[at : at + length], "big")
    return True


def _tells_times(packets: _Packets, container: str, codec: Any) -> bool:
    """Does every packet name one shown frame and its own time?"""
    # VP8 has packets of reference frames that are never shown.
    if packets.ambiguous or codec.codec.canonical_name == "vp8":
        return False
    if packets.all_keys or not codec.codec.properties & REORDERS:
        return True
    if container in WITHOUT_TIMES:
        return False
    return packets.reordered or not codec.has_b_frames


def _packet_table(packets: _Packets, first: _First) -> _Table:
    """The table from packets alone."""
    cut = _cut_away(packets, first)
    # Packets come in the order of decoding, which differs where pictures refer to later ones.
    shown = sorted(
        (packet for packet in packets.listed if packet.pts not in cut),
        key=lambda packet: packet.pts or 0,
    )
    return _Table(
        ticks=[packet.pts or 0 for packet in shown],
        n=len(shown),
        keys=[place for place, packet in enumerate(shown) if packet.is_key],
        last=shown[-1].duration,
        hidden=packets.hidden + len(cut),
        sizes=[packet.size for packet in shown],
    )


def _cut_away(packets: _Packets, first: _First) -> set[int | None]:
    """Times of pictures around the first key frame that refer to what is not in the file."""
    key = next((packet for packet in packets.listed if packet.is_key), None)
    # If another frame than the first key is the first to decode, the file is damaged, or an edit list starts later.
    if key is None or key.pts is None or key.pts != first.pts or packets.hidden:
        return set()
    place = packets.listed.index(key)
    before = {packet.pts for packet in packets.listed[:place]}
    after = {packet.pts for packet in packets.listed[place:]}
    return before | {stamp for stamp in after if stamp is not None and stamp < key.pts}


def _decoded_table(path: str, packets: _Packets, container_name: str) -> _Table:
    """The table by decoding all frames: they come in the order in which they are shown."""
    stamps: list[int | None] = []
    keys, last = [], 0
    with open_container(path) as container:
        for frame in decoded_frames(container, video_stream(container, path)):
            if frame.key_frame:
                keys.append(len(stamps))
            stamps.append(frame.pts)
            last = frame.duration or 0
    if not stamps:
        raise BadMedia(path, "undecodable frames", "not one frame can be decoded")
    table = _Table(None, len(stamps), keys, last, packets.hidden)
    stored = packets.decoding_times if container_name in BY_DECODING else None
    if _are_theirs(stamps, stored):
        sizes = {packet.pts: packet.size for packet in packets.listed}
        ticks = [stamp for stamp in stamps if stamp is not None]
        return replace(table, ticks=ticks, sizes=[sizes.get(tick, 0) for tick in ticks])
    ticks = sorted(set(stored or [stamp for stamp in stamps if stamp is not None]))
    if len(ticks) == len(stamps) == len(packets.listed):
        return replace(table, ticks=ticks, counted=True)
    if container_name != "avi":
        found = f"{len(ticks)} different times for {len(stamps)} frames"
        raise BadMedia(path, "no presentation times", f"{found}; write the file anew")
    # All frames of an avi last equally long.
    return replace(table, last=0)


def _are_theirs(stamps: list[int | None], stored: list[int] | None) -> bool:
    """Do the times with which frames were shown belong to them? `stored`: what is in the file, if no such times are."""
    shown = [stamp for stamp in stamps if stamp is not None]
    if len(shown) < len(stamps) or any(
        late <= early for early, late in itertools.pairwise(shown)
    ):
        return False
    if stored is None:
        return True
    if len(stored) != len(shown):  # some frames are damaged
        return set(shown) <= set(stored)
    return len({time - stamp for time, stamp in zip(stored, shown, strict=True)}) == 1


def decoded_frames(container: Any, stream: Any) -> Any:
    """Every frame that decodes, in order; damaged packets are passed over as players do."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _first_frame(path: str) -> _First:
    with open_container(path) as container:
        for frame in decoded_frames(container, video_stream(container, path)):
            check_frame(frame.width, frame.height, path)
            quarter_turns = round(frame.rotation / 90)
            return _First(frame.width, frame.height, quarter_turns * 90 % 360, frame.pts)
    raise BadMedia(path, "undecodable frames", "not one frame can be decoded")
