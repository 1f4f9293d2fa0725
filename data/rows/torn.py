"""Tables of text with torn places: what is damaged costs itself, and every row that went with it is listed.

CSV           a quote that never closes swallows the lines behind it; each of them becomes a bad row
JSON lines    a line that was cut off, and the next one glued to it: the next one is still a row
JSON lists    an entry that cannot be read; reading goes on at the next one that begins a line as the first did
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from io import TextIOBase
from typing import Any

from mmrl.ground.faults import Fault
from mmrl.ground.tables import Row

GLUED = 8
"""Most places in a damaged line at which another object is looked for."""
_LONGEST_CELL = 2**31 - 1
"""Characters; what a 32-bit C long holds."""
_QUOTE_FIX = 'Close the quote, or write "" for a quote inside a cell.'
_LIST_FIX = "Each row must be one complete JSON object."


def csv_rows(file: TextIOBase, separator: str) -> Iterator[tuple[int, Row | Fault]]:
    """(line, row) of a table with a header; empty cells are missing values, blank lines are left out.

    Raises csv.Error for a header that cannot be read.
    """
    taken: list[str] = []  # the lines of the record that is being read

    def lines() -> Iterator[str]:
        for line in file:
            taken.append(line)
            yield line

    # Python ends a table at a cell of 128 KiB, less than one picture as base64.
    csv.field_size_limit(_LONGEST_CELL)
    # Strict: otherwise the end of the file closes every quote.
    reader = csv.reader(lines(), delimiter=separator, strict=True)
    header = next(reader, [])
    while True:
        first = reader.line_num + 1
        taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield from _swallowed(taken, first, str(error))
            continue
        if len(cells) == len(header) or (cells and len(taken) == 1):
            yield first, _csv_row(header, cells)
        elif cells:
            # A quote that opens by mistake is closed by the next one, somewhere below.
            found = f"{len(cells)} cells where the header has {len(header)}"
            yield from _swallowed(taken, first, found)


def _swallowed(lines: Sequence[str], first: int, found: str) -> Iterator[tuple[int, Fault]]:
    """A bad row for each line of a record that cannot be read."""
    if len(lines) == 1:
        yield first, Fault("bad row", found, _QUOTE_FIX)
        return
    last = first + len(lines) - 1
    opened = f"a quote that opens here swallows the lines to {last} ({found})"
    yield first, Fault("bad row", opened, _QUOTE_FIX)
    for line, text in enumerate(lines[1:], first + 1):
        if text.strip():
            inside = f"it lies in a quote that opens in line {first}"
            yield line, Fault("bad row", inside, _QUOTE_FIX)


def _csv_row(header: Sequence[str], cells: Sequence[str]) -> Row | Fault:
    if len(cells) > len(header):
        found = f"it has more cells than the header ({len(cells)} and {len(header)})"
        return Fault("bad row", found, "Quote cells that contain the separator.")
    missing = [None] * (len(header) - len(cells))
    return dict(zip(header, [*(cell or None for cell in cells), *missing], strict=True))


def glued_at(line: bytes, keys: frozenset[str]) -> int | None:
    """Where in a damaged line a whole object with these keys begins, as the bytes up to it; None without one."""
    if not keys:
        return None
    found = re.finditer(rb'\{\s*"', line[1:])
    for place, _ in zip(found, range(GLUED), strict=False):
        at = place.start() + 1
        try:
            row = json.loads(line[at:].decode("utf-8"))
        except (ValueError, RecursionError):
            continue
        # An object inside of the damaged one is no row.
        if isinstance(row, dict) and keys <= row.keys():
            return at
    return None


def list_items(text: str, at: int) -> Iterator[tuple[int, Any]]:
    """(line, item) of a JSON list whose text begins at `at`; what cannot be read is a `Fault`."""
    decoder, line, counted = json.JSONDecoder(), 1, 0
    entry: re.Pattern[str] | None = None
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        # Lines are counted as they are passed: from the start each time it would be quadratic.
        line += text.count("\n", counted, at)
        counted = at
        if text[at : at + 1] == "]":
            return
        if entry is None:
            entry = _next_entry(text, at)
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            found = "the list ends without ]" if at == len(text) else _reason(error)
            yield line, Fault("bad JSON", found, _LIST_FIX)
            after = entry.search(text, at + 1)
            if after is None:
                return
            at = after.end() - 1
            continue
        yield line, item


def _next_entry(text: str, at: int) -> re.Pattern[str]:
    """What the beginning of an entry looks like: as far into its line as the first one is."""
    indent = text[text.rfind("\n", 0, at) + 1 : at]
    return re.compile(rf"^{re.escape(indent)}\{{", re.MULTILINE)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
