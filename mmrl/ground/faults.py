"""What can be wrong with data, and how it is said: `BadRow` and `Fault` for rows, `BadMedia` for files of media.

Each carries a short constant reason, so that faults can be counted; the rest of the message says where, what was found
and, for rows, how to mend it. All of them survive pickling, since they are raised in worker processes.
"""

from __future__ import annotations

import os


class BadRow(ValueError):
    """A row that cannot become a prompt. The message says where, what was found and how to mend it."""


class Fault(BadRow):
    """A `BadRow` whose reason can be counted. `where` is empty until the table that holds the row adds it."""

    def __init__(self, reason: str, found: str, fix: str, where: str = "") -> None:
        self.reason, self.found, self.fix, self.where = reason, found, fix, where
        super().__init__(f"{where + ': ' if where else ''}{reason}: {found}. {fix}")

    def at(self, where: str) -> Fault:
        """The same fault with its place, for example `train.jsonl, line 12`."""
        if self.where:  # the table that knew better spoke first
            return self
        return Fault(self.reason, self.found, self.fix, where)

    # Exceptions are pickled as their class and message; these classes take something else than a message.
    def __reduce__(self) -> tuple[type[Fault], tuple[str, str, str, str]]:
        return Fault, (self.reason, self.found, self.fix, self.where)


class BadMedia(ValueError):
    """An image or a clip that cannot give what was asked. `where` is its file, or its place in an archive."""

    def __init__(self, where: str | os.PathLike[str], reason: str, detail: str = "") -> None:
        self.where, self.reason, self.detail = os.fspath(where), reason, detail
        super().__init__(f"{self.where}: {reason}" + (f" ({detail})" if detail else ""))

    def __reduce__(self) -> tuple[type[BadMedia], tuple[str, str, str]]:
        return type(self), (self.where, self.reason, self.detail)


def shown(value: object, limit: int = 80) -> str:
    """A short repr for messages; bytes and long texts are cut."""
    text = f"{len(value)} bytes" if isinstance(value, bytes | bytearray) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters; some decoders add pages of native stack."""
    lines = str(error).strip().splitlines()
    return (lines or [type(error).__name__])[0][:300]
