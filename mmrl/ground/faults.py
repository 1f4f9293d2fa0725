"""One kind of error for everything that is wrong with a row: what, where, why it matters and how to mend it."""

from __future__ import annotations


class BadRow(ValueError):
    """A row that cannot become a prompt. The message says where, what was found and how to mend it."""


class Fault(BadRow):
    """A `BadRow` whose reason can be counted. `where` is empty until the table that holds the row adds it."""

    def __init__(self, reason: str, found: str, fix: str, where: str = "") -> None:
        self.reason, self.found, self.fix, self.where = reason, found, fix, where
        super().__init__(f"{where + ': ' if where else ''}{reason}: {found}. {fix}")

    def at(self, where: str) -> Fault:
        """The same fault with its place, for example `train.jsonl, line 12`."""
        return self if self.where else Fault(self.reason, self.found, self.fix, where)

    def __reduce__(self) -> tuple[type[Fault], tuple[str, str, str, str]]:
        return Fault, (self.reason, self.found, self.fix, self.where)


def shown(value: object, limit: int = 80) -> str:
    """A short repr for messages; bytes and long texts are cut."""
    text = f"{len(value)} bytes" if isinstance(value, bytes | bytearray) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
