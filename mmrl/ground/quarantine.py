"""Bad media and bad rows: remembered with a reason, and replaced by a counted substitute or left out.

`Quarantine` counts and lists media that failed. A clip that hangs costs its time limit once and not once per epoch,
and a resumed run sees what the first one saw. `Guarded` wraps a collection of prompts: the substitute of a bad row
depends only on the seed and the index, so every rank and every rerun takes the same one; it is counted, logged, and
never silent.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from mmrl.ground.faults import BadMedia, BadRow
from mmrl.ground.printable import logger

log = logger(__name__)

Item = TypeVar("Item", covariant=True)


class Quarantine:
    """Media that failed, one JSON line each in `file` (None keeps them for this process only).

    `add` counts and lists a medium that was passed over. `remember` also makes `check` refuse it from now on, for one
    back-end and for the file as it was: a replaced file, of another size or time of change, is tried again.
    """

    def __init__(self, file: str | os.PathLike[str] | None = None) -> None:
        self.file = None if file is None else Path(file)
        self.counts: Counter[str] = Counter()
        """Reason to how often `add` met it."""
        self.entries: dict[str, BadMedia] = {}
        """What is remembered, by back-end and state of the file."""
        self._listed: set[str] = set()
        if self.file is not None and self.file.exists():
            for line in self.file.read_text().splitlines():
                self._take(line)

    def add(self, bad: BadMedia) -> None:
        """Count a medium that was passed over; it is listed once."""
        self.counts[bad.reason] += 1
        if bad.where in self._listed:
            return
        self._listed.add(bad.where)
        self._write({"where": bad.where, **_said(bad)})

    def remember(self, bad: BadMedia, backend: str = "") -> None:
        """Refuse this file from now on. A missing file is not remembered: it may be on its way."""
        key = _file_state(bad.where, backend)
        if key is None or key in self.entries:
            return
        # A copy: an exception that was raised holds on to all that was alive where it passed, decoded clips included.
        self.entries[key] = BadMedia(bad.where, bad.reason, bad.detail)
        log.warning("quarantined: %s", str(bad))
        self._write({"key": key, "path": bad.where, **_said(bad)})

    def check(self, path: str, backend: str = "") -> None:
        """Raises the remembered BadMedia if the file is known to be bad for this back-end."""
        bad = self.entries.get(_file_state(path, backend) or "")
        if bad is not None:
            detail = f"{bad.detail}; in quarantine" if bad.detail else "in quarantine"
            raise BadMedia(bad.where, bad.reason, detail)

    def _write(self, entry: dict[str, str]) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # One write in append mode: lines of several workers do not mix.
        with open(self.file, "ab", buffering=0) as file:
            file.write(json.dumps(entry).encode() + b"\n")

    def _take(self, line: str) -> None:
        """Remember what a line says; lines of `add` are history, their media are tried again."""
        try:
            entry = json.loads(line)
            if "where" in entry:
                return
            self.entries[entry["key"]] = BadMedia(
                entry["path"], entry["reason"], entry["detail"]
            )
        except (ValueError, KeyError, TypeError):
            log.warning("%s: a line is not an entry and is passed over: %.80s", self.file, line)


class Rows(Protocol[Item]):
    """Items by index; `size` is None if there is no end."""

    @property
    def size(self) -> int | None: ...

    def __getitem__(self, index: int) -> Item: ...


class Guarded(Generic[Item]):
    """Prompts whose bad rows cannot stop a run.

    "substitute" gives another row in the place of a bad one, "drop" raises BadRow for the loader to leave the row out,
    "raise" raises it and counts nothing.
    """

    def __init__(
        self,
        prompts: Rows[Item],
        on_bad: Literal["substitute", "drop", "raise"] = "substitute",
        seed: int = 0,
        attempts: int = 16,
    ) -> None:
        if on_bad not in ("substitute", "drop", "raise"):
            raise ValueError(
                f"on_bad is {on_bad!r}; allowed are 'substitute', 'drop' and 'raise'."
            )
        self.prompts, self.on_bad, self.seed, self.attempts = prompts, on_bad, seed, attempts
        self.size = prompts.size
        self.counts: Counter[str] = Counter()
        """substituted, dropped, and bad/<reason>."""
        self._drained: Counter[str] = Counter()

    def drain(self) -> dict[str, int]:
        """`data/<count>` since this was last asked: own counts, and those of the reader below (decodes, cache hits)."""
        total = Counter({f"data/{name}": value for name, value in self.counts.items()})
        reader = getattr(self.prompts, "reader", None)
        if reader is not None:
            total.update({f"data/{name}": value for name, value in reader.counts.items()})
        new = total - self._drained  # a Counter drops what is 0
        self._drained = total
        return dict(new)

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("These prompts are endless and have no length.")
        return self.size

    def __getitem__(self, index: int) -> Item:
        """The prompt at this index, or its substitute. Raises BadRow if it is dropped or nothing can stand in."""
        place, problem = index, ""
        for attempt in range(self.attempts + 1):
            try:
                prompt = self.prompts[place]
            except (BadRow, BadMedia) as error:
                if self.on_bad == "raise":
                    raise
                self._count(index, error)
                if self.on_bad == "drop":
                    self.counts["dropped"] += 1
                    raise BadRow(f"Row {index} is dropped: {error}") from error
                # The substitute may be bad too; its substitute again follows from the index that was asked for.
                problem, place = str(error), self.substitute(index, attempt)
                continue
            self.counts["substituted"] += place != index
            return prompt
        raise BadRow(
            f"Row {index} and {self.attempts} substitutes for it are bad; the last: {problem}"
        )

    def substitute(self, index: int, attempt: int) -> int:
        """The row that stands in for a bad one; depends on the seed, the index and the attempt only."""
        text = f"{self.seed}:{index}:{attempt}"
        hashed = hashlib.blake2b(text.encode(), digest_size=8).digest()
        number = int.from_bytes(hashed, "big")
        return number % self.size if self.size else index + 1 + attempt

    def _count(self, index: int, error: Exception) -> None:
        # A row of clips is refused with a BadRow whose cause says what is wrong with the file.
        cause = error if isinstance(error, BadMedia) else error.__cause__
        reason = cause.reason if isinstance(cause, BadMedia) else "bad row"
        self.counts[f"bad/{reason}"] += 1
        log.warning("row %d: %s", index, str(error))


def _said(bad: BadMedia) -> dict[str, str]:
    return {"reason": bad.reason, "detail": bad.detail}


def _file_state(path: str, backend: str) -> str | None:
    """Back-end, path, size and time of change; None if there is no such file."""
    # Not a hash of the content: this is asked at every read, and clips are large.
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: no name of a file at all
        return None
    return f"{backend}:{os.path.abspath(path)}:{state.st_size}:{state.st_mtime_ns}"
