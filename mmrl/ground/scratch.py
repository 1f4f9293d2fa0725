"""Temporary files that disappear however the process ends.

`scratch_folder()` is this process's own folder in the system's place for temporary files, named by process id and start
time. It is removed at the end of the process. One that was killed cannot do that; so whoever makes a folder next
removes those of the dead. `draft_beside(target)` does the same for what is written beside its target and renamed.

Who is dead is told by a lock on the folder, which the system drops with the process; a number of a process may belong
to somebody else by now, and one in another container cannot be seen. Where there are no locks, nothing is swept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None


@dataclass(eq=False)
class _Own:
    """The folder of the process that made it; a fork shares it, and leaves it alone at its end."""

    folder: Path
    owner: int
    lock: int | None


_own: list[_Own] = []
"""At most one: the folder of this process."""


def scratch_folder() -> Path:
    """This process's folder for temporary files, made at the first call."""
    if not _own or not _own[0].folder.is_dir():
        _own[:] = [_made()]
        weakref.finalize(_own[0], _removed, _own[0].folder, os.getpid())
    return _own[0].folder


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder for the time of a `with`, inside this process's own."""
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=scratch_folder()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_scratch() -> None:
    """Remove this process's folder now, for one that ends without the interpreter's own end."""
    for own in _own:
        _removed(own.folder, own.owner)


@contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, to be filled and renamed to it; removed at the end if it is still there."""
    # Beside its target, for a rename over the border of a disk is a copy and can be seen half done.
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent, f".{target.name}.draft-*")
    draft, lock = _appear(target.parent, f".{target.name}.draft-{_stamp()}")
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        _let_go(lock)


def _made() -> _Own:
    """A fresh folder of this process, after those of dead ones were removed."""
    home = _home()
    _sweep(home, "*")
    folder, lock = _appear(home, _stamp())
    return _Own(folder, os.getpid(), lock)


def _stamp() -> str:
    return f"{os.getpid()}-{time.time_ns() // 1000}"


def _home() -> Path:
    """The folder that holds one folder per process of this user."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    home = Path(tempfile.gettempdir()) / f"mmrl-{user}"
    home.mkdir(mode=0o700, exist_ok=True)
    # Everybody may write into the system's folder: one that another user put there is not trusted.
    mine = not home.is_symlink() and home.stat().st_uid == user
    return home if mine else Path(tempfile.mkdtemp(prefix=f"mmrl-{user}-"))


def _appear(home: Path, name: str) -> tuple[Path, int | None]:
    """A new folder and the lock on it. It gets its name when it is locked: without a lock it would look dead."""
    draft = Path(tempfile.mkdtemp(prefix=".mmrl-new-", dir=home))
    lock = _lock(draft)
    folder = home / name
    os.rename(draft, folder)
    return folder, lock


def _sweep(home: Path, pattern: str) -> None:
    """Remove the folders of processes that are gone."""
    for folder in home.glob(pattern):
        if folder.is_dir() and not folder.name.startswith(".mmrl-new-"):
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                _let_go(lock)


def _removed(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """A handle with a lock on a folder; None if somebody else has it, or there are no locks here."""
    if fcntl is None:
        return None
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _let_go(handle)
        return None
    return handle


def _let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
