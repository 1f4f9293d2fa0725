"""Opening a clip: regular files of listed containers, and never another file. Imports no torch.

Which demuxer reads a file is decided here, by the file's first bytes, and given to the library by name. Nothing is
guessed from the name of the file, and what the library would also take for a clip (playlists, concat scripts, patterns
of picture names, stage directions of streaming) never reaches a demuxer. Of protocols only `file` is allowed, so that a
container which points elsewhere leads nowhere.

Raw streams without a container (.h264, .m4v) are refused: they have no times. A container that is not listed can be
changed into one that is, without encoding it anew: ffmpeg -i clip -c copy clip.mkv
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

from mmrl.ground.faults import BadMedia, first_line

READ = "mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, gif, nut"
"""The containers in the words of file names."""
MAX_FRAME = 8192 * 4352
"""Pixels of a frame, 8K; what claims more is not decoded."""
HEAD = 8192
"""Bytes by which a container is recognised."""
_STARTS = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"\x00\x00\x01\xba": "mpeg",
    b"FLV": "flv",
    b"OggS": "ogg",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"GIF8": "gif",
    b"nut/multimedia container": "nut",
}
_MOV_BOXES = tuple(b"ftyp moov mdat free skip wide pnot styp moof sidx emsg prft uuid".split())
_TS_PACKETS = (188, 192, 204)
"""Lengths of the packets of a transport stream: plain, with time codes, with error correction."""
_TS_SYNC = 0x47


def local_path(path: str | os.PathLike[str]) -> str:
    """A regular local file that is not empty, without a file:// prefix. Raises BadMedia."""
    path = os.fspath(path).removeprefix("file://")
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        raise BadMedia(path, "missing file", "only local files are read") from error
    # Devices and pipes have no end, and opening one may wait for ever.
    if not stat.S_ISREG(state.st_mode):
        raise BadMedia(path, "not a file", "a folder, a pipe or a device; name a regular file")
    if state.st_size == 0:
        raise BadMedia(path, "empty file")
    return path


def container_kind(head: bytes) -> str | None:
    """The demuxer for a file that starts like this; None if it is none of ours."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVI\x19"):
        return "avi"
    if head[4:8] in _MOV_BOXES:
        return "mov"
    return "mpegts" if _is_transport_stream(head) else None


def open_container(path: str) -> Any:
    """A PyAV container of a `local_path`. Raises BadMedia."""
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        with open(path, "rb") as file:
            kind = container_kind(file.read(HEAD))
    except OSError as error:
        raise BadMedia(path, "unreadable file", error.strerror or "") from error
    if kind is None:
        raise BadMedia(path, "unreadable container", f"its start is that of none of {READ}")
    try:
        return av.open(
            os.path.abspath(path),  # a relative name with a colon would be taken for a protocol
            format=kind,
            container_options={"protocol_whitelist": "file"},
            metadata_errors="replace",  # a title in another alphabet is no reason to refuse a clip
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadMedia(path, "unreadable container", what_failed(error)) from error


def video_stream(container: Any, path: str) -> Any:
    """The first stream of moving pictures; cover art is none. Raises BadMedia."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.disposition & Disposition.attached_pic:
            continue
        codec = stream.codec_context
        if codec is None:
            raise BadMedia(path, "unknown codec", "no decoder is installed for its pictures")
        check_frame(codec.width, codec.height, path)
        return stream
    raise BadMedia(path, "no video stream", f"{len(container.streams)} streams of other kinds")


def check_frame(width: int, height: int, path: str) -> None:
    """Raises BadMedia for frames larger than `MAX_FRAME`."""
    if width * height > MAX_FRAME:
        raise BadMedia(
            path, "frames too large", f"{width} x {height}; at most {MAX_FRAME} pixels"
        )


def what_failed(error: BaseException) -> str:
    """A decoder's error in one line, without what its log may quote from the file."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


@contextlib.contextmanager
def decoder_faults(path: str) -> Iterator[None]:
    """Whatever a decoder raises over a damaged file becomes a BadMedia."""
    try:
        yield
    except BadMedia:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise BadMedia(path, "decoder error", said) from error


def _is_transport_stream(head: bytes) -> bool:
    """Is there a sync byte at every packet's start, wherever the first one is?"""
    for length in _TS_PACKETS:
        for first in range(min(length, len(head))):
            syncs = head[first::length]
            if len(syncs) >= 3 and all(byte == _TS_SYNC for byte in syncs):
                return True
    return False
