"""What a video file holds: frames, times, rotation. One pass over the packets and one decoded frame. Imports no torch.

Decides which frame an index means: frame i is the i-th presentation time of the file, whatever decodes it later, so the
frames chosen for a clip do not depend on the back-end. Times are presentation times minus the first one, never i / fps.

Limits: only mp4 and mov say in their header how many frames they show, so only they can be compared with it.
Files without usable times, and VP8, whose hidden reference frames have packets of their own, are decoded once to be
counted.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmrl.ground.faults import BadMedia, first_line

TRUST = 1.25
"""A header's average rate is believed if it is within this factor of frames / time (avi may give its clock's rate)."""


@dataclass(frozen=True, eq=False)
class ClipInfo:
    """What the packets of a file say."""

    path: str
    format: str
    """The container, as ffmpeg names it: "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts" ..."""
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

    @property
    def times(self) -> np.ndarray:
        """float64 [n]: seconds of every frame; i / fps where the file has no times."""
        return self.pts if self.pts is not None else np.arange(self.n) / self.fps

    @property
    def missing(self) -> float:
        """Share of the announced frames that the file does not hold, in [0, 1]."""
        return max(0.0, 1 - self.n / self.announced) if self.announced else 0.0


@dataclass(frozen=True)
class _Table:
    """Frames in presentation order."""

    ticks: list[int] | None
    """Presentation times in units of the stream; None if they are absent or not increasing."""
    n: int
    keys: list[int]
    last: int
    """Length of the last frame in ticks; 0 if unknown."""
    hidden: int = 0
    """Packets that an edit list cuts away."""


def probe(path: str | os.PathLike[str]) -> ClipInfo:
    """Read the packet table of a file and decode its first frame. Raises BadMedia."""
    import av

    av.logging.set_level(av.logging.PANIC)
    path = local_path(path)
    width, height, rotation = _first_frame(path)
    with open_container(path) as container:
        stream = video_stream(container, path)
        rate = float(stream.average_rate or stream.guessed_rate or stream.base_rate or 0)
        name, unit = container.format.name, float(stream.time_base)
        # Of other containers the number is a guess, or counts something else than frames shown.
        announced = int(stream.frames or 0) if "mov" in name else 0
        table = _packet_table(container, stream, path)
    table = table or _decoded_table(path)
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
    sideways = rotation % 180 != 0
    return ClipInfo(
        path=path,
        format=name,
        n=table.n,
        announced=max(0, announced - table.hidden),
        fps=rate,
        duration=duration,
        pts=pts,
        start=start,
        rotation=rotation,
        width=height if sideways else width,
        height=width if sideways else height,
        variable=drift > 1 / rate + 1e-9,
        keys=np.array(table.keys, dtype=np.int64),
    )


def local_path(path: str | os.PathLike[str]) -> str:
    """A local file that is there and not empty, without a file:// prefix. Raises BadMedia."""
    path = os.fspath(path).removeprefix("file://")
    if not os.path.isfile(path):
        raise BadMedia(path, "missing file", "only local files are read")
    if os.path.getsize(path) == 0:
        raise BadMedia(path, "empty file")
    return path


def open_container(path: str) -> Any:
    """A PyAV container. Raises BadMedia."""
    import av

    try:
        return av.open(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadMedia(path, "unreadable container", first_line(error)) from error


def video_stream(container: Any, path: str) -> Any:
    """The first stream of moving pictures; cover art is none. Raises BadMedia."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise BadMedia(path, "no video stream", f"{len(container.streams)} streams of other kinds")


def _packet_table(container: Any, stream: Any, path: str) -> _Table | None:
    """The table from packets alone; None if packets do not name one shown frame each."""
    import av

    packets, hidden = [], 0
    try:
        for packet in container.demux(stream):
            if packet.size and packet.is_discard:
                hidden += 1
            elif packet.size and not packet.is_corrupt:
                packets.append((packet.pts, packet.is_keyframe, packet.duration or 0))
    except av.FFmpegError as error:
        # Else the file is cut off; what came before can be shown.
        if not packets:
            raise BadMedia(path, "unreadable container", first_line(error)) from error
    if not packets:
        raise BadMedia(path, "no frames")
    stamps = {stamp for stamp, _, _ in packets}
    ambiguous = None in stamps or len(stamps) < len(packets)
    # VP8 has packets of reference frames that are never shown.
    if ambiguous or stream.codec_context.name == "vp8":
        return None
    # Packets come in the order of decoding, which differs where pictures refer to later ones.
    packets.sort(key=lambda packet: packet[0])
    ticks = [stamp for stamp, _, _ in packets]
    keys = [place for place, (_, is_key, _) in enumerate(packets) if is_key]
    last = packets[-1][2]
    return _Table(ticks, len(ticks), keys, last, hidden)


def _decoded_table(path: str) -> _Table:
    """The table by decoding all frames."""
    stamps, keys, last = [], [], 0
    with open_container(path) as container:
        for frame in decoded_frames(container, video_stream(container, path)):
            if frame.key_frame:
                keys.append(len(stamps))
            stamps.append(frame.pts)
            last = frame.duration or 0
    if not stamps:
        raise BadMedia(path, "undecodable frames", "not one frame can be decoded")
    if None in stamps or any(later <= first for first, later in itertools.pairwise(stamps)):
        return _Table(None, len(stamps), keys, 0)
    return _Table(stamps, len(stamps), keys, last)


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


def _first_frame(path: str) -> tuple[int, int, int]:
    """Stored width and height, and the rotation of the first frame that decodes."""
    with open_container(path) as container:
        for frame in decoded_frames(container, video_stream(container, path)):
            quarter_turns = round(frame.rotation / 90)
            return frame.width, frame.height, quarter_turns * 90 % 360
    raise BadMedia(path, "undecodable frames", "not one frame can be decoded")
