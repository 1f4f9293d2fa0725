"""What can be wrong with data, and how it is said: `BadRow` and `Fault` for rows, `BadMedia` for files of media.

Each carries a short constant reason, so that faults can be counted; the rest of the message says where, what was found
and, for rows, how to mend it. All of them survive pickling, since they are raised in worker processes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


class BadRow(ValueError):
    """A row that cannot become a prompt. The message says where, what was found and how to mend it."""


class Fault(BadRow):
    """A `BadRow` whose reason can be counted. `where` is empty until the table that holds the row adds it."""

    def __init__(self, reason: str, found: str, fix: str, where: str = "") -> None:
        self.reason, self.found, self.fix, self.where = reason, found, fix, where
        place = f"{where}: " if where else ""
        super().__init__(encodable(f"{place}{reason}: {found}. {fix}"))

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
        more = f" ({detail})" if detail else ""
        super().__init__(encodable(f"{self.where}: {reason}{more}"))

    def __reduce__(self) -> tuple[type[BadMedia], tuple[str, str, str]]:
        return type(self), (self.where, self.reason, self.detail)


def shown(value: object, limit: int = 80) -> str:
    """A short repr for messages; bytes and long texts are cut."""
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        value = value[: limit + 1]  # a text may be megabytes long
    try:
        text = repr(value)
    except (RecursionError, ValueError, MemoryError):  # nested too deeply, an endless number
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters; some decoders add pages of native stack."""
    lines = str(error).strip().splitlines()
    return (lines or [type(error).__name__])[0][:300]


def encodable(text: str) -> str:
    """The text with half characters written as escapes, so that every file and terminal takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def refuse_half_characters(values: Mapping[str, Any], what: str = "column") -> None:
    """Raises `Fault` if a text holds half of a surrogate pair (half an emoji): no tokenizer and no file takes it.

    Looked at are names and values of all columns, and what is nested in them.
    """
    for name, value in values.items():
        if any(map(is_broken, _texts_in([name, value]))):
            found = f"{what} {shown(name)} holds half of a surrogate pair, or bytes that are no UTF-8"
            fix = "Save the file as UTF-8, with both halves of every emoji, or drop the row."
            raise Fault("broken text", found, fix)


def _texts_in(value: Any) -> list[str]:
    texts: list[str] = []
    left = [value]
    # No recursion: a row may be nested more deeply than Python's calls.
    while left:
        inner = left.pop()
        if isinstance(inner, str):
            texts.append(inner)
        elif isinstance(inner, Mapping):
            left.extend(inner)
            left.extend(inner.values())
        elif isinstance(inner, Sequence) and not isinstance(
            inner, bytes | bytearray | memoryview
        ):
            left.extend(inner)
    return texts


def is_broken(text: str) -> bool:
    """Does the text hold half of a surrogate pair?"""
    if text.isascii():  # nearly always, and quick to see
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
