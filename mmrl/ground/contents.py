"""What a collection of rows holds, as digests: a continued run must see the same questions, answers and pictures.

    contents(prompts)["texts"]    questions, answers and further columns, in whatever order
    contents(prompts)["media"]    pictures and clips, in whatever order
    contents(prompts)["order"]    both, row by row
    contents(prompts)["read"]     which rows were read for it, in words

Rows are read through `content_of`: a collection that can tell its content without decoding has a method
`content(index) -> (text, media)`, two short digests; of any other the prompt itself is read. Up to `WHOLE_ROWS` rows
are all read; of more, `SAMPLE` in runs of neighbours over the whole length, so a single changed row of a huge set may
go unnoticed. Files and embedded bytes above `WHOLE_BYTES` count with their size and `PLACES` blocks. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.ground.faults import BadRow

WHOLE_ROWS, SAMPLE, RUN = 10_000, 2_000, 50
"""Rows that are all read; rows read of a larger collection; neighbours among these, since tables are read in groups."""
DECODED = 256
"""Rows read of a collection that has to decode them."""
SAMPLED = ", a sample"
"""How `read` ends if rows were left out."""
ENDLESS = 8
"""First rows read of an endless collection."""
WHOLE_BYTES, PLACES = 1 << 18, 16
"""Bytes up to which a file is read whole; blocks read of a larger one."""
LONGEST_PATH = 1024
"""Characters; a longer text is not taken for the name of a file."""

Content = tuple[bytes, bytes]
"""(digest of the text, digest of the media) of one row."""


def contents(prompts: Any) -> dict[str, str]:
    """Digests of what a collection of prompts holds, and what was read for them."""
    rows = _chosen_rows(prompts)
    order = hashlib.blake2b(digest_size=8)
    texts = media = 0
    for index in rows:
        text, shown = content_of(prompts, index)
        order.update(text + shown)
        # Sums do not depend on the order, so that rows which only moved can be told from rows that changed.
        texts += int.from_bytes(text, "big")
        media += int.from_bytes(shown, "big")
    return {
        "texts": f"{texts % 2**64:016x}",
        "media": f"{media % 2**64:016x}",
        "order": order.hexdigest(),
        "read": _in_words(prompts.size, len(rows)),
    }


def content_of(prompts: Any, index: int) -> Content:
    """Digests of one row's text and media. A row that cannot be read has a digest of its own."""
    try:
        if hasattr(prompts, "content"):
            return prompts.content(index)
        prompt = prompts[index]
    except BadRow:
        # Without the reason, which may name folders of this machine.
        return digest("bad row"), digest("bad row")
    text = digest((prompt.messages, prompt.answer, prompt.extra))
    return text, digest([(medium.frames, medium.times) for medium in prompt.media])


def digest(value: Any, base: Path | None = None, *, files: bool = False) -> bytes:
    """Eight bytes that change with the value; with `files`, texts that name files below `base` stand for these."""
    running = hashlib.blake2b(digest_size=8)
    _feed(running, value, base, files)
    return running.digest()


def file_digest(path: Path) -> bytes:
    """Eight bytes that change with the file's content, and with nothing else of it."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        running = hashlib.blake2b(str(size).encode(), digest_size=8)
        if size <= WHOLE_BYTES:
            running.update(file.read())
            return running.digest()
        block = WHOLE_BYTES // PLACES
        for place in range(PLACES):
            file.seek(place * (size - block) // (PLACES - 1))
            running.update(file.read(block))
    return running.digest()


def _chosen_rows(prompts: Any) -> list[int]:
    size = prompts.size
    if size is None:
        return list(range(ENDLESS))
    if not hasattr(prompts, "content"):
        return sorted(
            {number * size // DECODED for number in range(DECODED)}
            if size > DECODED
            else range(size)
        )
    if size <= WHOLE_ROWS:
        return list(range(size))
    runs = SAMPLE // RUN
    starts = [number * (size - RUN) // (runs - 1) for number in range(runs)]
    return [start + place for start in starts for place in range(RUN)]


def _in_words(size: int | None, read: int) -> str:
    if size is None:
        return f"the first {read} rows of an endless collection"
    return f"all {size:,} rows" if read == size else f"{read:,} of {size:,} rows{SAMPLED}"


def _feed(running: Any, value: Any, base: Path | None, files: bool) -> None:
    """Add a value to a digest, with its kind and length, so that no two values look alike."""
    if isinstance(value, Mapping):
        running.update(f"map {len(value)};".encode())
        for key in sorted(value, key=str):
            # A column without a value and no such column are the same to a reader of rows.
            _feed(running, str(key), None, False)
            _feed(running, value[key], base, files)
    elif isinstance(value, list | tuple):
        running.update(f"list {len(value)};".encode())
        for part in value:
            _feed(running, part, base, files)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(
            running,
            {each.name: getattr(value, each.name) for each in fields(value)},
            base,
            files,
        )
    elif isinstance(value, str | Path):
        _feed_text(running, str(value), base, files)
    elif isinstance(value, bytes | bytearray | memoryview):
        _feed_bytes(running, bytes(value))
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        running.update(f"array {array.dtype} {array.shape};".encode())
        _feed_bytes(running, np.ascontiguousarray(array).tobytes())
    else:
        # Numbers, None, truth values; other objects by their kind, since their text may hold an address.
        plain = value is None or isinstance(value, bool | int | float | complex)
        running.update(f"{repr(value) if plain else type(value).__qualname__};".encode())


def _feed_text(running: Any, text: str, base: Path | None, files: bool) -> None:
    if files and 0 < len(text) <= LONGEST_PATH and "\n" not in text and "\0" not in text:
        try:
            # As the readers of rows take it.
            file = Path(os.path.expanduser(text.removeprefix("file://")))
            if base is not None:
                file = base / file  # an absolute one stays as it is
            if file.is_file():
                running.update(b"file;" + file_digest(file))
                return
        except OSError:
            pass  # not a name that this system could have
    data = text.encode("utf-8", "surrogatepass")
    running.update(f"text {len(data)};".encode() + data)


def _feed_bytes(running: Any, data: bytes) -> None:
    running.update(f"bytes {len(data)};".encode())
    if len(data) <= WHOLE_BYTES:
        running.update(data)
        return
    block = WHOLE_BYTES // PLACES
    for place in range(PLACES):
        start = place * (len(data) - block) // (PLACES - 1)
        running.update(data[start : start + block])
