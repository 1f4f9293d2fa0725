"""What mmrl writes, and what it may delete: folders with a marker of ours, the lock on them, and single files.

A folder that mmrl fills holds `.mmrl.json`, written before anything else: what the folder is, a random id that tells it
from all others, and the version that wrote it. Overwriting deletes in such a folder the names that its `Kind` lists,
and nothing else: other files stay and are named. A folder without the marker is never emptied, and one that already
holds a name we would write is refused. The home folder, the working folder and what they lie in are no outputs.

A single file is replaced in one go, and only if it is one of ours (or empty).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmrl.ground.progress import Progress
from mmrl.ground.version import __version__

MARKER = ".mmrl.json"
"""Name of the file that says that a folder is ours."""
NAMED = 5
"""Most files that a message lists."""


class OutputError(ValueError):
    """The output cannot be used, or holds what must not be lost."""


@dataclass(frozen=True)
class Kind:
    """What a folder is, and what mmrl writes into it."""

    name: str
    """As it stands in the marker and in messages: "run", "data set"."""
    output: str
    """The flag that names the folder."""
    overwrite: str
    """The flag that allows to delete what is in it."""
    ours: tuple[str, ...]
    """Patterns of all files, below the folder, by "/"; "**" at an end is everything below."""


@dataclass(frozen=True)
class Marker:
    """Which folder this is."""

    kind: str
    id: str
    """Random; a checkpoint or a metric that bears another one is of another run."""
    version: str
    """Of mmrl, when the folder was begun."""


def marker_of(folder: Path) -> Marker | None:
    """The folder's marker, None without one. Raises `OutputError` for one that cannot be read."""
    file = folder / MARKER
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return Marker(str(found["kind"]), str(found["id"]), str(found["version"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{file} is damaged ({error!r}), so nobody knows whose folder this is; restore it, choose another folder, "
            "or delete it yourself."
        ) from None


def prepare(folder: Path, kind: Kind) -> None:
    """See that the folder may be used and written to, and make it. Writes nothing. Raises `OutputError`."""
    refuse_place(folder, kind.output)
    _refuse_strangers(folder, kind)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".mmrl-probe-{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"The output folder {folder} cannot be written to ({error}); choose another with {kind.output}."
        ) from error


def refuse_place(folder: Path, flag: str) -> None:
    """Refuse the home and the working folder, and what they lie in. Raises `OutputError`."""
    place = folder.expanduser().resolve()
    for forbidden, called in ((Path.cwd(), "working"), (Path.home(), "home")):
        # The root of the disk is among the parents of either.
        if place == forbidden or place in forbidden.resolve().parents:
            relation = "is" if place == forbidden else "contains"
            raise OutputError(
                f"{flag} is {str(folder)!r}, which {relation} the {called} folder {forbidden}; name a folder of its "
                f"own, for example {flag} runs/mine."
            )


def claim(folder: Path, kind: Kind, identity: str | None = None) -> Marker:
    """The folder's marker, written if there is none. Raises `OutputError` for a folder that is not ours.

    `identity`: the id of what lies in the folder, where that is known from elsewhere (a checkpoint).
    """
    _refuse_strangers(folder, kind)
    marker = marker_of(folder)
    if marker is None:
        marker = _write_marker(folder, kind, identity)
    return marker


def clear(folder: Path, kind: Kind) -> Marker:
    """Delete our own files and begin anew under another id; what else lies there stays, and is named.

    Raises `OutputError` for a folder that has things in it and no marker of ours.
    """
    refuse_overwriting(folder, kind)
    # First: if we die half way, what is left bears another id than the folder and is not continued.
    marker = _write_marker(folder, kind, None)
    left = _delete_ours(folder, kind.ours)
    if left:
        Progress.say(
            f"{folder} also holds files that are not ours, which stay: {listed(left)}."
        )
    return marker


def refuse_overwriting(folder: Path, kind: Kind) -> None:
    """Refuse to empty a folder that has things in it and no marker of this kind. Raises `OutputError`."""
    if marker_of(folder) is None and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"{kind.overwrite} would delete {folder}, but that is no folder of a {kind.name} of mmrl (it has no "
            f"{MARKER}); choose another {kind.output}, or delete it yourself."
        )
    _refuse_strangers(folder, kind)


@contextmanager
def alone(folder: Path, flag: str = "--run.output") -> Iterator[None]:
    """Keep other processes from writing the same folder. Raises `OutputError` if one does; ends with the process.

    Where the system or the disk has no such locks, nothing is kept.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise OutputError(
            f"Another process is writing to {folder}; wait for it or stop it, or choose another {flag}."
        ) from error
    except OSError:
        pass  # a network disk without locks
    # The lock lives as long as the handle, and the system closes that for a process that is killed.
    try:
        yield
    finally:
        os.close(handle)


def release(folder: Path) -> None:
    """Take back the marker of a folder in which nothing else was written."""
    with suppress(OSError):
        if [entry.name for entry in folder.iterdir()] == [MARKER]:
            (folder / MARKER).unlink()
            folder.rmdir()


def write_whole(file: Path, text: str) -> None:
    """Write a file in one go: a process that dies leaves the old one or the new one, never half of it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)


def refuse_file(
    file: Path, ours: Callable[[str], bool], what: str, flag: str = "--output"
) -> None:
    """Refuse a file that is there and is not one of ours, before hours are spent on it. Raises `OutputError`.

    `ours` looks at the text of the file; `what` says what it should be.
    """
    if str(file) in ("", ".") or file.is_dir():
        raise OutputError(f"{flag} is {str(file)!r}, a folder; name a file.")
    if not file.exists():
        return
    text = file.read_text(encoding="utf-8", errors="replace")
    if text.strip() and not ours(text):
        raise OutputError(
            f"{file} is there and is no {what}; it would be lost. Choose another {flag}, or delete it yourself."
        )


def refuse_report(file: Path | None, what: str, flag: str = "--output") -> None:
    """Refuse a file that is there and is no report of this kind. Raises `OutputError`."""

    def ours(text: str) -> bool:
        try:
            return json.loads(text)["mmrl"] == what
        except (ValueError, KeyError, TypeError, RecursionError):
            return False

    if file is not None:
        refuse_file(file, ours, f"report of mmrl ({what})", flag)


def write_report(file: Path, what: str, content: Mapping[str, Any]) -> None:
    """Write a report as JSON; its first entry says what it is."""
    refuse_report(file, what)
    write_whole(file, json.dumps({"mmrl": what, **content}, indent=1))


def _refuse_strangers(folder: Path, kind: Kind) -> None:
    """Refuse a folder of another kind, and one without marker that holds a name we would write over."""
    if not folder.is_dir():
        return
    marker = marker_of(folder)
    if marker is not None and marker.kind != kind.name:
        raise OutputError(
            f"{folder} is the folder of a {marker.kind}, not of a {kind.name}; choose another {kind.output}."
        )
    if marker is not None or of_earlier_version(folder):
        return
    heads = {pattern.split("/")[0] for pattern in kind.ours}
    taken = sorted(entry.name for entry in folder.iterdir() if _any_matches(entry.name, heads))
    if taken:
        raise OutputError(
            f"{folder} holds {listed(taken)}, but no {MARKER}: it is no folder of a {kind.name} of mmrl, and these "
            f"would be lost. Choose another {kind.output}, or move them away."
        )


def of_earlier_version(folder: Path) -> bool:
    """Is this a run of a version that wrote no marker? It can be continued, not overwritten."""
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return "settings" in stored and "mmrl" in stored["environment"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_marker(folder: Path, kind: Kind, identity: str | None) -> Marker:
    marker = Marker(kind.name, identity or secrets.token_hex(8), __version__)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / MARKER, json.dumps(asdict(marker)))
    return marker


def _delete_ours(folder: Path, ours: Sequence[str]) -> list[str]:
    """Delete what the patterns name, and folders of ours that are empty then; returns what is left."""
    left: list[str] = []
    # From the bottom, so that a folder is looked at when it may be empty.
    for base, folders, files in os.walk(folder, topdown=False):
        place = Path(base)
        below = place.relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        for name in files:
            if _is_ours(prefix + name, ours):
                (place / name).unlink()
            elif prefix + name != MARKER:
                left.append(prefix + name)
        for name in folders:
            inside = place / name
            if inside.is_symlink():
                # A link is removed, not what it leads to: checkpoints may lie on another disk.
                if _is_ours(prefix + name, ours) or _leads_to_ours(prefix + name, ours):
                    inside.unlink()
                else:
                    left.append(prefix + name)
            elif _leads_to_ours(prefix + name, ours) and not any(inside.iterdir()):
                inside.rmdir()
    return left


def _is_ours(path: str, ours: Sequence[str]) -> bool:
    return any(_matches(path.split("/"), pattern.split("/")) for pattern in ours)


def _leads_to_ours(path: str, ours: Sequence[str]) -> bool:
    """Does a pattern begin with this folder?"""
    parts = path.split("/")
    for pattern in ours:
        wanted = pattern.split("/")
        if "**" in wanted[: len(parts)] and _matches(parts, wanted):
            return True
        if len(wanted) > len(parts) and _matches(parts, wanted[: len(parts)]):
            return True
    return False


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Does a path fit a pattern, part by part?"""
    if wanted[-1] == "**":
        # Everything below, so the path may be longer than the pattern.
        wanted = wanted[:-1]
        parts = parts[: len(wanted)] if len(parts) > len(wanted) else ()
    pairs = zip(parts, wanted, strict=False)
    return len(parts) == len(wanted) and all(fnmatchcase(*pair) for pair in pairs)


def _any_matches(name: str, patterns: set[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = len(names) - NAMED
    text = ", ".join(names[:NAMED])
    return f"{text} and {more} more" if more > 0 else text
