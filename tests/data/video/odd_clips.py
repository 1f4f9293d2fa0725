"""The conformance table: clips of many codecs, containers and structures, each frame carrying its number as bars.

    path = write(clip, folder)      number(frame, clip) -> which frame a decoded picture is

A `OddClip` says how its file is written and what is right: the numbers of the frames it shows and their seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH, BARS = 64, 96, 10
EVEN = tuple(i / 30 for i in range(60))
UNEVEN = (*EVEN[:30], *(1 + i / 5 for i in range(20)))
GAP = (*EVEN[:30], *(60 + t for t in EVEN[:30]))
SLOW = tuple(60.0 * i for i in range(12))
LATE = tuple(5 + t for t in EVEN)
EARLY = tuple(t - 0.5 for t in EVEN)
"""Half a second before zero: an edit list hides it."""


@dataclass(frozen=True)
class OddClip:
    """One row of the table."""

    name: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    times: Sequence[float] = EVEN
    pix_fmt: str = "yuv420p"
    container: dict[str, str] = field(default_factory=dict)
    rotation: int = 0
    sound: float = 0.0
    """Seconds of silence beside the pictures."""
    base: Fraction = Fraction(1, 9000)
    """The unit of presentation times; 1 / 30 where the container or the codec counts frames."""
    change: Callable[[Path], None] | None = None
    """What is done to the finished file."""
    shown: Sequence[int] | None = None
    """Numbers of the frames that a player shows; None: all whose time is not negative."""
    joined: bool = False
    """What is shown are several parts of the clip, one after the other at 30 frames per second."""

    @property
    def numbers(self) -> list[int]:
        """The frames that are shown, in order."""
        if self.shown is not None:
            return list(self.shown)
        return [i for i, time in enumerate(self.times) if time >= 0]

    @property
    def seconds(self) -> np.ndarray:
        """float64 [n]: their times from the first one."""
        if self.joined:
            return np.arange(len(self.numbers)) / 30
        times = np.array([self.times[i] for i in self.numbers])
        return times - times[0]


def picture(number: int) -> np.ndarray:
    """uint8 [H, W, 3]: the number in binary, as bright and dark bars."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    for bar in range(BARS):
        image[:, bar * 9 : bar * 9 + 9] = 235 if number >> bar & 1 else 16
    return image


def number(frame: np.ndarray, clip: OddClip) -> int:
    """Which frame a decoded picture uint8 [H, W, 3] is."""
    stored = np.rot90(frame, -clip.rotation // 90)
    bright = [stored[20:44, bar * 9 + 2 : bar * 9 + 7].mean() > 125 for bar in range(BARS)]
    return sum(int(bit) << bar for bar, bit in enumerate(bright))


def requests(n: int) -> Iterator[list[int]]:
    """Ways to ask for frames: all, single ones after a seek, spread ones, a run, and out of order."""
    yield list(range(n))
    yield from ([single] for single in sorted({0, 1 % n, n // 3, n // 2, n - 1}))
    yield list(range(0, n, 5))
    yield list(range(n // 3, 2 * n // 3 + 1))
    yield [n - 1, n // 2, 0, n // 2]


def write(clip: OddClip, folder: Path) -> Path:
    """Write the clip; a file that is there already is taken as it is."""
    import av

    path = folder / clip.name
    if path.exists():
        return path
    with av.open(str(path), "w", options=dict(clip.container)) as output:
        stream: Any = output.add_stream(clip.codec, rate=30, options=dict(clip.options))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, clip.pix_fmt
        stream.time_base = stream.codec_context.time_base = clip.base
        if clip.rotation:
            stream.set_display_rotation(clip.rotation)
        track: Any = output.add_stream("aac", rate=16000) if clip.sound else None
        for index, time in enumerate(clip.times):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = round(time / clip.base), clip.base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if track is not None:
            _write_silence(output, track, clip.sound)
    if clip.change is not None:
        clip.change(path)
    return path


def _write_silence(output: Any, track: Any, seconds: float) -> None:
    import av

    silence = np.zeros((1, 1024), np.float32)
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        output.mux(track.encode(frame))
    output.mux(track.encode())


def edited(*segments: tuple[float, float]) -> Callable[[Path], None]:
    """Give an mp4 an edit list that shows (first second, seconds), ..., as editors cut without encoding anew."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        movie = content.index(b"mvhd") + 4
        media = content.index(b"mdhd") + 4
        # Version 0 of both boxes: version and flags, two dates, then the time scale.
        (movie_scale,) = struct.unpack_from(">I", content, movie + 12)
        (media_scale,) = struct.unpack_from(">I", content, media + 12)
        edit = content.index(b"elst") + 4
        version, entries = struct.unpack_from(">II", content, edit)
        assert version >> 24 == 0 and entries == 1 and content.index(b"mdat") < movie
        _, start, speed = struct.unpack_from(">IiI", content, edit + 8)
        listed = b"".join(
            struct.pack(
                ">IiI",
                round(seconds * movie_scale),
                start + round(first * media_scale),
                speed,
            )
            for first, seconds in segments
        )
        struct.pack_into(">I", content, edit + 4, len(segments))
        for box in (b"elst", b"edts", b"trak", b"moov"):
            at = content.index(box) - 4
            (size,) = struct.unpack_from(">I", content, at)
            struct.pack_into(">I", content, at, size + len(listed) - 12)
        content[edit + 8 : edit + 20] = listed
        path.write_bytes(bytes(content))

    return change


Stamped = list[Any]
"""Packets of a clip in the order of decoding."""


def rewritten(change: Callable[[Stamped], Stamped]) -> Callable[[Path], None]:
    """Write the packets anew, some left out or with other times, as broken or hasty muxers do."""

    def rewrite(path: Path) -> None:
        import av

        good = path.with_name(f"before-{path.name}")
        path.rename(good)
        with av.open(str(good)) as source, av.open(str(path), "w") as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            for packet in change([packet for packet in source.demux(stream) if packet.size]):
                packet.stream = copy
                target.mux(packet)
        good.unlink()

    return rewrite


def from_second_key(packets: Stamped) -> Stamped:
    """A cut without encoding anew: what refers to pictures before the cut cannot be shown."""
    keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
    return packets[keys[1] :]


def after_first_key(packets: Stamped) -> Stamped:
    """A recording that starts between two key frames."""
    return packets[5:]


def times_of_decoding(packets: Stamped) -> Stamped:
    """Presentation times made from decoding times: they belong to other frames."""
    times = sorted(packet.pts for packet in packets)
    for packet, time in zip(packets, times, strict=True):
        packet.pts = packet.dts = time
    return packets


def two_swapped(packets: Stamped) -> Stamped:
    """Two frames bear each other's time."""
    first, second = sorted(packets, key=lambda packet: packet.pts)[30:32]
    first.pts, second.pts = second.pts, first.pts
    return packets


def x264(**params: object) -> dict[str, str]:
    """Options of x264 with groups of 20 frames."""
    chosen = {"keyint": 20, "min-keyint": 20, "scenecut": 0, "bframes": 3} | params
    listed = ":".join(f"{name.replace('_', '-')}={value}" for name, value in chosen.items())
    return {"crf": "15", "preset": "veryfast", "x264-params": listed}


def x265(**params: object) -> dict[str, str]:
    """Options of x265 with groups of 20 frames; open unless told otherwise, as is its default."""
    chosen = {"keyint": 20, "min-keyint": 20, "scenecut": 0, "log-level": "none"} | params
    listed = ":".join(f"{name.replace('_', '-')}={value}" for name, value in chosen.items())
    return {"crf": "15", "preset": "veryfast", "x265-params": listed}


COUNTED = Fraction(1, 30)
TWO_PARTS, IN_PARTS = ((0.5, 0.5), (1.4, 0.4)), (*range(15, 30), *range(42, 54))
B_FRAMES = {"g": "12", "bf": "2", "qscale": "2", "flags": "qscale"}
NO_B_FRAMES = {"g": "12", "bf": "0", "qscale": "2", "flags": "qscale"}
ALT_REF = {"g": "20", "lag-in-frames": "16", "auto-alt-ref": "1", "crf": "10", "b": "1M"}

TABLE = [
    # H.264: groups, open groups, references among B-frames, no key frames at all.
    OddClip("h264_closed.mp4", options=x264()),
    OddClip("h264_pyramid.mkv", options=x264(bframes=8, b_pyramid="normal", b_adapt=2)),
    OddClip("h264_open.mp4", options=x264(open_gop=1)),
    OddClip("h264_open.mkv", options=x264(open_gop=1)),
    OddClip("h264_open.ts", options=x264(open_gop=1)),
    OddClip("h264_open.flv", options=x264(open_gop=1)),
    OddClip("h264_one_group.mp4", options=x264(keyint=250)),
    OddClip("h264_all_keys.mov", options=x264(keyint=1)),
    OddClip("h264_refresh.mkv", options=x264(intra_refresh=1, bframes=0)),
    OddClip("h264_interlaced.ts", options=x264(interlaced=1)),
    OddClip("h264_444_10bit.mkv", options=x264(), pix_fmt="yuv444p10le"),
    OddClip("h264_fragments.mp4", options=x264(), container={"movflags": "frag_keyframe+empty_moov"}),
    OddClip("h264_b.avi", options=x264(), base=COUNTED),
    OddClip("h264_no_b.avi", options=x264(bframes=0), base=COUNTED),
    # HEVC: open groups are x265's default.
    OddClip("hevc_open.mp4", "libx265", x265()),
    OddClip("hevc_open.mkv", "libx265", x265()),
    OddClip("hevc_open.ts", "libx265", x265()),
    OddClip("hevc_closed.mp4", "libx265", x265(open_gop=0)),
    OddClip("hevc_radl.mp4", "libx265", x265(open_gop=0, radl=2, bframes=4)),
    OddClip("hevc_layers.mp4", "libx265", x265(temporal_layers=3, bframes=7, b_adapt=0)),
    # MPEG-4 part 2, MPEG-1 and MPEG-2.
    OddClip("mpeg4_b.mp4", "mpeg4", B_FRAMES, base=COUNTED),
    OddClip("mpeg4_b.mkv", "mpeg4", B_FRAMES, base=COUNTED),
    OddClip("mpeg4_b.avi", "mpeg4", B_FRAMES, base=COUNTED),
    OddClip("mpeg4_no_b.avi", "mpeg4", NO_B_FRAMES, base=COUNTED),
    OddClip("mpeg2_b.mpg", "mpeg2video", B_FRAMES, base=COUNTED),
    OddClip("mpeg2_b.ts", "mpeg2video", B_FRAMES, base=COUNTED),
    OddClip("mpeg2_b.mkv", "mpeg2video", B_FRAMES, base=COUNTED),
    OddClip("mpeg1_b.mpg", "mpeg1video", B_FRAMES, base=COUNTED),
    OddClip("mpeg1_b.avi", "mpeg1video", B_FRAMES, base=COUNTED),
    OddClip("mpeg2_b.wmv", "mpeg2video", B_FRAMES, base=COUNTED),
    # Codecs of the web.
    OddClip("vp8_hidden.webm", "libvpx", ALT_REF),
    OddClip("vp9_hidden.webm", "libvpx-vp9", ALT_REF),
    OddClip("vp9_hidden.mp4", "libvpx-vp9", ALT_REF),
    OddClip("vp9_alpha.webm", "libvpx-vp9", ALT_REF, pix_fmt="yuva420p"),
    OddClip("av1.mp4", "libsvtav1", {"preset": "10", "crf": "20", "g": "20", "svtav1-params": "lp=1"}),
    OddClip("av1.webm", "libsvtav1", {"preset": "10", "crf": "20", "g": "20", "svtav1-params": "lp=1"}),
    # Each picture by itself, and older ones.
    OddClip("mjpeg.avi", "mjpeg", {"qscale": "2", "flags": "qscale"}, pix_fmt="yuvj420p", base=COUNTED),
    OddClip("mjpeg.mov", "mjpeg", {"qscale": "2", "flags": "qscale"}, pix_fmt="yuvj420p", base=COUNTED),
    OddClip("prores.mov", "prores_ks", pix_fmt="yuv422p10le", base=COUNTED),
    OddClip("ffv1.mkv", "ffv1", base=COUNTED),
    OddClip("msmpeg4.avi", "msmpeg4v3", NO_B_FRAMES, base=COUNTED),
    OddClip("wmv2.wmv", "wmv2", NO_B_FRAMES, base=COUNTED),
    OddClip("flv1.flv", "flv", NO_B_FRAMES, base=COUNTED),
    OddClip("animated.gif", "gif", pix_fmt="rgb8", base=Fraction(1, 100), times=tuple(i / 10 for i in range(60))),
    # Times.
    OddClip("offset.mp4", options=x264(), times=LATE),
    OddClip("offset.mkv", options=x264(), times=LATE),
    OddClip("offset.ts", options=x264(), times=LATE),
    OddClip("uneven.mp4", options=x264(), times=UNEVEN),
    OddClip("uneven.mkv", options=x264(), times=UNEVEN),
    OddClip("gap.mkv", options=x264(), times=GAP),
    OddClip("slow.mp4", options=x264(), times=SLOW),
    OddClip("sound.mp4", options=x264(), sound=6.0),
    OddClip("sound.mkv", options=x264(), sound=6.0),
    # Edit lists: a hidden start, with and without a key frame in what is shown, and a cut on both sides.
    OddClip("hidden.mp4", options=x264(), times=EARLY),
    OddClip("hidden_open_hevc.mp4", "libx265", x265(), times=EARLY),
    OddClip("hidden_key.mp4", options=x264(keyint=250), times=EARLY),
    OddClip("cut.mp4", options=x264(), change=edited((0.5, 1.0)), shown=range(15, 45)),
    OddClip("cut_hevc.mp4", "libx265", x265(), change=edited((0.5, 1.0)), shown=range(15, 45)),
    OddClip("cut_twice.mp4", options=x264(), change=edited(*TWO_PARTS), shown=IN_PARTS, joined=True),
    OddClip("cut_twice_no_b.mp4", options=x264(bframes=0), change=edited(*TWO_PARTS), shown=IN_PARTS, joined=True),
    OddClip("cut_twice_b.mov", "mpeg4", B_FRAMES, change=edited(*TWO_PARTS), shown=IN_PARTS, joined=True, base=COUNTED),
    # Packets written anew.
    OddClip("start_open.mp4", options=x264(open_gop=1), change=rewritten(from_second_key), shown=range(20, 60)),
    OddClip("start_open.mkv", options=x264(open_gop=1), change=rewritten(from_second_key), shown=range(20, 60)),
    OddClip("start_open_hevc.mp4", "libx265", x265(), change=rewritten(from_second_key), shown=range(20, 60)),
    OddClip("start_inside.ts", options=x264(), change=rewritten(after_first_key), shown=range(20, 60)),
    OddClip("start_inside.mkv", options=x264(), change=rewritten(after_first_key), shown=range(20, 60)),
    OddClip("decoding_times.mp4", options=x264(), change=rewritten(times_of_decoding)),
    OddClip("decoding_times.mkv", options=x264(), change=rewritten(times_of_decoding)),
    OddClip("decoding_times_hevc.mp4", "libx265", x265(), change=rewritten(times_of_decoding)),
    # One frame.
    OddClip("one.mp4", options=x264(), times=(0.0,)),
    OddClip("one.mkv", options=x264(), times=(0.0,)),
    OddClip("one.avi", options=x264(), times=(0.0,), base=COUNTED),
    OddClip("one.ts", "mpeg2video", B_FRAMES, times=(0.0,), base=COUNTED),
    # Turned.
    OddClip("turned90.mp4", options=x264(), rotation=90),
    OddClip("turned180.mp4", "libx265", x265(), rotation=180),
    OddClip("turned270.mov", options=x264(), rotation=-90),
]  # fmt: skip

SWAPPED = OddClip("swapped.mkv", options=x264(), change=rewritten(two_swapped))
"""Not in the table: which time is whose can only be seen when both frames are read."""
LOST = OddClip(
    "lost.mp4", "libx265", x265(), change=edited(*TWO_PARTS), shown=IN_PARTS, joined=True
)
"""Of its second part, which starts between two key frames, no reader shows anything."""
