"""Decoded frames on disk, so that a clip is decoded once however often it is shown. Imports no torch.

An entry is keyed by the file's content and by everything that decides the pixels (frame numbers, size, back-end and its
version); the parameters are stored with it and compared on loading, so an entry made under other parameters is never
returned. A checksum of the pixels is compared as well: an entry that a disk has damaged is a miss, and written again.
Frames are uint8 and are mapped: workers on one machine share the pages. When the limit is passed, the entries that were
used longest ago go first. Writers may race: files appear whole, by renaming. A disk that takes no more is said once
and counted; clips are then decoded each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

WHOLE = 8 << 20
"""Files up to this many bytes are hashed whole; larger ones at 16 places, with their size and time of change."""
PLACES, BLOCK = 16, 1 << 16
STALE = 3600.0
"""Seconds after which an unfinished entry is taken for abandoned."""


class FrameCache:
    """A folder of frames with a size limit in bytes. Safe to share between processes."""

    def __init__(self, folder: str | os.PathLike[str], limit: int = 20 << 30) -> None:
        if limit < 1:
            raise ValueError(
                f"The cache limit is {limit} bytes; it must be positive. Use no cache to switch it off."
            )
        self.folder, self.limit = Path(folder), limit
        self.counts: Counter[str] = Counter()
        """hits, misses, damaged, evicted, refused (entries larger than the limit), unwritable."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"The folder for decoded frames, {self.folder}, cannot be made ({error.strerror}); name another, or "
                "use no cache."
            ) from error

    def get(self, parameters: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
        """uint8 [F, 3, h, w] and float64 [F] seconds, or None. Writing to the array does not change the entry."""
        path = self._path(parameters)
        try:
            with open(path, "rb") as file:
                header = json.loads(file.readline())
                offset = file.tell()
            # The name is a hash of the parameters; comparing them too makes a collision a miss.
            if header["parameters"] != _as_json(parameters):
                raise ValueError("made under other parameters")
            shape, seconds = (
                tuple(header["shape"]),
                np.array(header["seconds"], dtype=np.float64),
            )
            # "c": what the caller writes stays in its memory and never reaches the shared file.
            frames = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=shape)
            # All pixels are needed in a moment anyway, so this only reads them earlier.
            if zlib.crc32(frames.data) != header["crc32"]:
                raise ValueError("other pixels than were written")
        # An entry that was evicted meanwhile is a miss. So is a damaged one, which will be written again.
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            self.counts["misses"] += 1
            self.counts["damaged"] += not isinstance(error, FileNotFoundError)
            return None
        # `_trim` goes by this time; a cache that may only be read has none.
        with contextlib.suppress(OSError):
            os.utime(path)
        self.counts["hits"] += 1
        return np.asarray(frames), seconds

    def put(
        self, parameters: Mapping[str, Any], frames: np.ndarray, seconds: np.ndarray
    ) -> None:
        """Keep frames, uint8 [F, 3, h, w], with their float64 [F] seconds. What the disk does not take is not kept."""
        if frames.nbytes > self.limit:
            self.counts["refused"] += 1
            return
        try:
            self._write(parameters, frames, seconds)
            self._trim()
        except OSError as error:
            if not self.counts["unwritable"]:
                warnings.warn(
                    f"Decoded frames cannot be kept in {self.folder} ({error.strerror}); clips are decoded each time. "
                    "Free space there or name another folder.",
                    stacklevel=2,
                )
            self.counts["unwritable"] += 1

    def _write(
        self, parameters: Mapping[str, Any], frames: np.ndarray, seconds: np.ndarray
    ) -> None:
        checksum = 0
        for frame in frames:
            checksum = zlib.crc32(np.ascontiguousarray(frame).data, checksum)
        header = {
            "parameters": _as_json(parameters),
            "shape": frames.shape,
            "seconds": seconds.tolist(),
            "crc32": checksum,
        }
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".new-", delete=False) as file:
            try:
                file.write(json.dumps(header).encode() + b"\n")
                # One frame at a time: the array may be a transposed view, and a copy of all of it would be large.
                for frame in frames:
                    file.write(np.ascontiguousarray(frame).data)
            except BaseException:
                os.unlink(file.name)
                raise
        _replace(file.name, self._path(parameters))

    def _path(self, parameters: Mapping[str, Any]) -> Path:
        text = json.dumps(_as_json(parameters), sort_keys=True)
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        return self.folder / f"{name}.frames"

    def _trim(self) -> None:
        for stale in self.folder.glob(".new-*"):
            # Left by a writer that was killed; younger ones are still being written.
            if stale.exists() and time.time() - stale.stat().st_mtime > STALE:
                stale.unlink(missing_ok=True)
        entries = []
        for entry in self.folder.glob("*.frames"):
            try:
                state = entry.stat()
            except FileNotFoundError:  # another process trims at the same time
                continue
            entries.append((state.st_mtime_ns, state.st_size, entry))
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self.limit:
                return
            entry.unlink(missing_ok=True)
            self.counts["evicted"] += 1
            total -= size


def _replace(draft: str, path: Path) -> None:
    """Give a draft its name; what else has the name, a folder even, is no entry and goes."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise


def file_key(path: str | os.PathLike[str]) -> str:
    """A hash of what the file holds: copies under other names share it."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        state = os.fstat(file.fileno())
        digest.update(str(state.st_size).encode())
        if state.st_size <= WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        # Blocks alone could miss a change between them, hence the time of change; copies then no longer share a key.
        digest.update(str(state.st_mtime_ns).encode())
        for place in range(PLACES):
            file.seek(place * (state.st_size - BLOCK) // (PLACES - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _as_json(parameters: Mapping[str, Any]) -> Any:
    """Parameters as JSON gives them back: tuples become lists, keys strings."""
    return json.loads(json.dumps(dict(parameters), sort_keys=True))
