"""Files that rows, folders and archives name: only regular files, of bounded size, and none is ever waited for.

A name in somebody's table may lead to a FIFO (which blocks for ever), to a device such as /dev/zero (which has no end),
to a socket or to a folder. All of them are `BadMedia` here.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from mmrl.ground.faults import BadMedia

LARGEST_FILE = 400_000_000
"""Bytes of a file that may be one picture or depth map: an uncompressed one of the most pixels allowed."""
NOT_A_FILE, FILE_TOO_LARGE, UNREADABLE = "not a file", "file too large", "unreadable file"
"""Reasons of `BadMedia`."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Whoever opens a FIFO waits for a writer, and a terminal that is opened may become ours.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)


def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """A regular file of at most `limit` bytes, opened for reading. Raises BadMedia."""
    where = os.fspath(path)
    try:
        # Before it is opened: opening alone does something to some devices.
        _refuse_others(os.stat(where), where, limit)
        file = open(where, "rb", opener=lambda name, _: os.open(name, _FLAGS))  # noqa: SIM115
    except BadMedia:  # a ValueError too
        raise
    except (OSError, ValueError) as error:  # a name may hold a zero byte
        raise BadMedia(where, UNREADABLE, _why(error)) from None
    try:
        # Again: another file may have come under this name.
        _refuse_others(os.fstat(file.fileno()), where, limit)
    except BadMedia:
        file.close()
        raise
    return file


def read_regular(path: str | os.PathLike[str], limit: int | None = LARGEST_FILE) -> bytes:
    """All of a regular file of at most `limit` bytes. Raises BadMedia."""
    with open_regular(path, limit) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            # No more than it had: a file that grows all the time would never be read.
            return file.read(size)
        except OSError as error:
            raise BadMedia(path, UNREADABLE, _why(error)) from None


def regular_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a regular file, which is not opened. Raises BadMedia."""
    where = os.fspath(path)
    try:
        state = os.stat(where)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        raise BadMedia(where, UNREADABLE, _why(error)) from None
    _refuse_others(state, where, None)
    return state.st_size


def _refuse_others(state: os.stat_result, where: str, limit: int | None) -> None:
    kind = _kind(state)
    if kind:
        raise BadMedia(where, NOT_A_FILE, kind)
    if limit is not None and state.st_size > limit:
        raise BadMedia(where, FILE_TOO_LARGE, f"{state.st_size} bytes, at most {limit}")


def _kind(state: os.stat_result) -> str:
    for holds, name in _KINDS:
        if holds(state.st_mode):
            return name
    return "" if stat.S_ISREG(state.st_mode) else "no regular file"


def _why(error: OSError | ValueError) -> str:
    said = error.strerror if isinstance(error, OSError) else None
    return said or type(error).__name__
