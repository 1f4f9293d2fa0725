"""Tables of text files: JSON lines, JSON lists, CSV, and tables whose columns go by other names.

JSON is read here rather than by `datasets`, which loses line numbers and refuses answers of mixed type.
"""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.rows.torn import csv_rows, glued_at, list_items
from mmrl.ground.class_labels import with_names
from mmrl.ground.faults import Fault, first_line
from mmrl.ground.tables import Row, Table

_JSON_FIX = "Each row must be one complete JSON object."


class LinesTable:
    """JSON lines; blank lines are skipped, a byte order mark is allowed."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        # Arrays of machine integers: 16 bytes a row, where lists would take 72.
        self._offsets, self._lines = array("Q"), array("Q")
        names: dict[str, None] = {}
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip() not in (b"", b"\xef\xbb\xbf"):
                    self._offsets.append(offset)
                    self._lines.append(number)
                    row = _parsed(line)
                    if isinstance(row, Fault):
                        row = self._glued(line, offset, number, names)
                    if not isinstance(row, Fault):
                        names.update(dict.fromkeys(row))
                offset += len(line)
        self._columns = [name for name in names if isinstance(name, str)]

    def _glued(
        self, line: bytes, offset: int, number: int, names: Mapping[str, None]
    ) -> Row | Fault:
        """Take in the row that is glued to the end of a torn line, if there is one."""
        at = glued_at(line, frozenset(names))
        if at is None:
            return _parsed(line)
        self._offsets.append(offset + at)
        self._lines.append(number)
        return _parsed(line[at:])

    def columns(self) -> list[str]:
        return self._columns

    def light(self) -> frozenset[str]:
        return frozenset(self._columns)

    def __len__(self) -> int:
        return len(self._offsets)

    def scan(self) -> Iterator[Row | Fault]:
        with self.path.open("rb") as file:
            for offset in self._offsets:
                file.seek(offset)
                yield _parsed(file.readline())

    def row(self, index: int, columns: Sequence[str]) -> Row:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            row = _parsed(file.readline())
        if isinstance(row, Fault):
            raise row
        return row

    def where(self, index: int) -> str:
        return f"{self.path}, line {self._lines[index]}"

    def base(self, index: int) -> Path | None:
        return self.path.parent


class ListTable:
    """Rows that are held in memory, each with its line (0 if it has none)."""

    def __init__(
        self, path: Path, rows: Sequence[Row | Fault], lines: Sequence[int] = ()
    ) -> None:
        self.path, self.name = path, path.name
        self._rows, self._lines = rows, lines
        names: dict[str, None] = {}  # a set that keeps the order
        for row in rows:
            if not isinstance(row, Fault):
                names.update(dict.fromkeys(row))
        self._columns = list(names)

    def columns(self) -> list[str]:
        return self._columns

    def light(self) -> frozenset[str]:
        return frozenset(self._columns)

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self) -> Iterator[Row | Fault]:
        return iter(self._rows)

    def row(self, index: int, columns: Sequence[str]) -> Row:
        row = self._rows[index]
        if isinstance(row, Fault):
            raise row
        return row

    def where(self, index: int) -> str:
        place = f"line {self._lines[index]}" if self._lines else f"row {index}"
        return f"{self.path}, {place}"

    def base(self, index: int) -> Path | None:
        return self.path if self.path.is_dir() else self.path.parent


class RenamedTable:
    """A table some of whose columns go by other names."""

    def __init__(self, inner: Table, names: Mapping[str, str]) -> None:
        self.name, self._inner, self._names = inner.name, inner, dict(names)

    def columns(self) -> list[str]:
        return [self._new(name) for name in self._inner.columns()]

    def light(self) -> frozenset[str]:
        return frozenset(map(self._new, self._inner.light()))

    def __len__(self) -> int:
        return len(self._inner)

    def scan(self) -> Iterator[Row | Fault]:
        for row in self._inner.scan():
            yield row if isinstance(row, Fault) else self._renamed(row)

    def row(self, index: int, columns: Sequence[str]) -> Row:
        old = {new: name for name, new in self._names.items()}
        wanted = [old.get(name, name) for name in columns]
        return self._renamed(self._inner.row(index, wanted))

    def where(self, index: int) -> str:
        return self._inner.where(index)

    def base(self, index: int) -> Path | None:
        return self._inner.base(index)

    def _new(self, name: str) -> str:
        return self._names.get(name, name)

    def _renamed(self, row: Row) -> Row:
        return {self._new(name): value for name, value in row.items()}


class LabelledTable:
    """A table with class labels whose names stand on the card of its folder."""

    def __init__(self, inner: Table, names: Mapping[str, Any]) -> None:
        self.name, self._inner, self._names = inner.name, inner, dict(names)

    def columns(self) -> list[str]:
        return self._inner.columns()

    def light(self) -> frozenset[str]:
        return self._inner.light()

    def __len__(self) -> int:
        return len(self._inner)

    def scan(self) -> Iterator[Row | Fault]:
        for row in self._inner.scan():
            yield row if isinstance(row, Fault) else with_names(row, self._names)

    def row(self, index: int, columns: Sequence[str]) -> Row:
        return with_names(self._inner.row(index, columns), self._names)

    def where(self, index: int) -> str:
        return self._inner.where(index)

    def base(self, index: int) -> Path | None:
        return self._inner.base(index)


def read_json(path: Path) -> Table:
    """A JSON list of objects, with the line of each; a file of JSON lines under this name is read as such."""
    # Bytes that are no UTF-8 become half characters, which cost their row and no other.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] == "{":
        table = LinesTable(path)
        # One good line says that lines are meant; a single object over several lines has none.
        if any(not isinstance(row, Fault) for row in table.scan()):
            return table
    if text[start : start + 1] != "[":
        raise ValueError(
            f"{path} holds no list of rows; a .json file must be a list of objects (or JSON lines)."
        )
    return ListTable(path, *_json_items(path, text, start + 1))


def read_csv(path: Path) -> Table:
    """A CSV or TSV file with a header; empty cells are missing values."""
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        # As in `read_json`: what is no UTF-8 costs its row.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            found = list(csv_rows(file, separator))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV ({error}).") from None
    return ListTable(path, [row for _, row in found], [line for line, _ in found])


def _parsed(line: bytes) -> dict[str, Any] | Fault:
    """One line as an object."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Fault("bad JSON", first_line(error), _JSON_FIX)
    if isinstance(row, dict):
        return row
    return Fault("bad JSON", f"the line holds a {type(row).__name__}, not an object", _JSON_FIX)


def _json_items(path: Path, text: str, at: int) -> tuple[list[Row | Fault], list[int]]:
    """The items of a JSON list whose text begins at `at`, and the line of each."""
    rows: list[Row | Fault] = []
    lines: list[int] = []
    for line, item in list_items(text, at):
        if not isinstance(item, dict | Fault):
            item = Fault("bad JSON", f"found a {type(item).__name__}, not an object", _JSON_FIX)
        rows.append(item)
        lines.append(line)
    if rows and all(isinstance(row, Fault) for row in rows):
        raise ValueError(f"{path}, line {lines[0]}: {rows[0]}")
    return rows, lines
