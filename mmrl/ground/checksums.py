"""Checksums of a folder, kept inside it: what a disk has lost, cut or changed is noticed before it is used.

`seal(folder)` writes `mmrl-checksums.json` with the size and the SHA-256 of every other file; `damage(folder)` says
what no longer agrees. A flipped bit, a cut file, a missing one: all are found, and so is a torn list.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

LIST = "mmrl-checksums.json"


def seal(folder: Path) -> None:
    """Write down the checksums of all files below a folder, and see everything on the disk."""
    found: dict[str, dict[str, Any]] = {}
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        state = file.stat()
        digest = _sha256(file, state.st_size, state.st_mtime_ns)
        found[name] = {"bytes": state.st_size, "sha256": digest}
    (folder / LIST).write_text(json.dumps(found, indent=1), encoding="utf-8")
    # Before the folder gets its name, or a power cut could leave the final name on empty files.
    for file in [*_files(folder), folder / LIST]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def is_sealed(folder: Path) -> bool:
    """Does the folder carry a list of checksums?"""
    return (folder / LIST).is_file()


def listed(folder: Path) -> list[str]:
    """Names of the files in a folder's list; none if there is no list that can be read."""
    try:
        return [*_expected(folder)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def damage(folder: Path) -> str:
    """What no longer agrees with the checksums, in words; "" for a whole folder."""
    try:
        expected = _expected(folder)
    except FileNotFoundError:
        return f"{LIST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{LIST} cannot be read"
    for name, (size, digest) in sorted(expected.items()):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        try:
            # The size first: a cut file need not be read.
            state = file.stat()
            if state.st_size != size:
                return f"{name} has {state.st_size:,} bytes instead of {size:,}"
            if _sha256(file, size, state.st_mtime_ns) != digest:
                return f"{name} does not hold the bytes that were written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def _files(folder: Path) -> list[Path]:
    """All files below a folder but the list itself, in a fixed order."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != LIST)


def _expected(folder: Path) -> dict[str, tuple[int, str]]:
    """Name -> (bytes, SHA-256) as written down."""
    found = json.loads((folder / LIST).read_text(encoding="utf-8"))
    return {name: (each["bytes"], each["sha256"]) for name, each in found.items()}


@lru_cache(maxsize=256)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Of the file's content, read once while size and time of change stay: a model may be looked at twice."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
