"""What a table holds that the prompts do not show: columns with media, or paths to media, that nobody reads.

A model that is trained on questions about pictures which it never sees learns to guess, and no number says so. So the
first rows of every table are looked at, and what they hold beside the columns that are read is named, with the flag
that maps it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmrl.data.rows.columns import mapping_flag
from mmrl.data.rows.containers import is_empty, kind_of, media_in
from mmrl.ground.faults import Fault, shown
from mmrl.ground.tables import Row, Table

ROWS = 32
"""How many rows are looked at."""


@dataclass(frozen=True)
class Unread:
    """A column that holds media and is not read."""

    column: str
    """Its name, with dots for a nested one."""
    kind: str
    """"image" or "video"."""
    example: str
    """One value, for messages."""
    exists: bool
    """Is it there: embedded, or a file that a path leads to?"""

    @property
    def field(self) -> str:
        """The entry of `ColumnMap` that would read it."""
        return f"{self.kind}s"

    def __str__(self) -> str:
        return f"{self.column!r} ({self.example})"


def unread_media(table: Table, read: Collection[str], root: Path | None = None) -> list[Unread]:
    """The columns with media besides those that are `read`; paths start at `root`, else at the row's folder."""
    light = table.light()
    others = [name for name in table.columns() if name not in read]
    found: dict[str, Unread] = {}
    for base, row in _first_rows(table):
        for name in others:
            if name in light:
                _note(found, name, row.get(name), root or base)
    heavy = [name for name in others if name not in light]
    if heavy and len(table):
        # Embedded files are dear to read: one row shows what a column holds.
        row = _row(table, 0, heavy)
        for name in heavy:
            _note(found, name, row.get(name), root)
    return list(found.values())


def said(unread: Sequence[Unread], source: str, shows_nothing: bool) -> str:
    """The notice about columns that are not read; "" if there is nothing to say.

    Paths that lead nowhere are mentioned only if the rows show nothing else: beside embedded pictures they are names.
    """
    named = [one for one in unread if one.exists or shows_nothing]
    if not named:
        return ""
    columns = ", ".join(map(str, named))
    flags = " or ".join(mapping_flag(one.field, one.column) for one in named)
    lost = [one for one in named if not one.exists]
    where = (
        " The files are not found there: give their folder as --data.image-root."
        if lost
        else ""
    )
    return (
        f"{source}: not shown to the model, although media: {columns}. Map with {flags}.{where}"
    )


def remedy(kind: str, unread: Sequence[Unread]) -> str:
    """What to do about a placeholder in a table that has no column for such media."""
    fitting = [one for one in unread if one.kind == kind] or list(unread)
    column = fitting[0].column if fitting else "THE_COLUMN"
    hint = f"Column {fitting[0]} looks like it. " if fitting else ""
    field = f"{kind}s"
    return (
        f"{hint}Name the column that holds the {field}: {mapping_flag(field, column)}; "
        f"if <{kind}> is only a word in these texts: --data.columns {field}= ."
    )


def _first_rows(table: Table) -> Iterator[tuple[Path | None, Row]]:
    """The first rows that can be read, light columns only, each with its folder."""
    for number, row in enumerate(islice(table.scan(), ROWS)):
        if not isinstance(row, Fault):
            yield table.base(number), row


def _row(table: Table, number: int, columns: Sequence[str]) -> Row:
    try:
        return table.row(number, columns)
    except Fault:
        return {}


def _note(found: dict[str, Unread], name: str, value: Any, base: Path | None) -> None:
    """Remember a column, or the part of a nested one, if its value is a medium; one that is there wins."""
    for path, cell in _cells(name, value):
        kind = kind_of(cell)
        if kind is None or (path in found and found[path].exists):
            continue
        found[path] = Unread(path, kind, _example(cell), _is_there(cell, base))


def _cells(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """The media of a value, and of the fields of a record, with their names."""
    if kind_of(value) is None and isinstance(value, Mapping):
        for key, part in value.items():
            yield from ((f"{name}.{key}", cell) for cell in media_in(part)[:1])
        return
    # One is enough: what a column holds, all its entries hold.
    yield from ((name, cell) for cell in media_in(value)[:1] if not is_empty(cell))


def _example(cell: Any) -> str:
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path") or "a record"
    embedded = isinstance(cell, bytes | bytearray) or str(cell).startswith("data:")
    return "embedded" if embedded else f"for example {shown(cell, 60)}"


def _is_there(cell: Any, base: Path | None) -> bool:
    if isinstance(cell, Mapping):
        if not is_empty(cell.get("bytes")):
            return True
        cell = cell.get("path")
    if not isinstance(cell, str) or cell.startswith("data:"):
        return cell is not None
    if "://" in cell:
        return False
    try:
        return ((base or Path()) / cell).is_file()
    except (OSError, ValueError):
        return False
