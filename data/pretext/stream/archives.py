"""Media inside archives: webdataset tars, parquet files, data sets of the `datasets` library.

Tars are indexed by their headers only, shard after shard as needed, and members are read by offset. Parquet files are
read by row group. Columns are found by their content: a binary column or a struct with `bytes` (the way `datasets`
stores media); a list of such structs gives its first entry. Compressed tars are refused: they have no random access.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.pretext.contract import Kind, Medium
from mmrl.data.pretext.stream.media import clip_from_bytes, content_id, image_medium
from mmrl.data.pretext.stream.sources import KINDS, Opened, Source, classified
from mmrl.ground.faults import BadMedia, Fault, first_line
from mmrl.ground.tables import (
    ArrowTable,
    ChainTable,
    GroupCache,
    ParquetTable,
    Table,
    one_split,
)

Part = tuple[int, int, int]
"""Shard, offset, size."""


def open_archive(path: Path) -> Source | None:
    """The source in a file or a folder of shards; None for a plain folder of media."""
    if path.is_file():
        if path.suffix == ".tar":
            return TarSource([path])
        if path.suffix == ".parquet":
            return parquet_source([path])
        raise ValueError(f"{path} is not a source; give a folder, a .tar or a .parquet file.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return saved_source(path)
    shards = (
        sorted(path.glob("*.tar"))
        or sorted(path.glob("*.parquet"))
        or sorted(path.glob("data/*.parquet"))
    )
    if not shards:
        return None
    return TarSource(shards) if shards[0].suffix == ".tar" else parquet_source(shards)


class TarSource:
    """Webdataset shards: members named <key>.<suffix>."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards, self.name = list(shards), _name_of(shards)
        self._pending: Iterator[int] = iter(range(len(self.shards)))
        self._entries: dict[Kind, list[tuple[str, Part, Part | None]]] = {
            kind: [] for kind in KINDS
        }

    def known(self, kind: Kind, need: int) -> int:
        entries = self._entries.get(kind, [])
        while kind in self._entries and len(entries) < need:
            shard = next(self._pending, None)
            if shard is None:
                break
            self._index(shard)
        return len(entries)

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        name, part, depth = self._entries[kind][position]
        where = f"{self.shards[part[0]]}:{name}"
        content = self._read(part, where)
        beside = None if depth is None else self._read(depth, where)
        return opened_bytes(kind, content, where, os.path.splitext(name)[1], beside)

    def _index(self, shard: int) -> None:
        parts: dict[str, Part] = {}
        try:
            with tarfile.open(self.shards[shard], "r:") as archive:
                for member in archive:
                    if member.isreg():
                        parts[member.name] = (shard, member.offset_data, member.size)
        except (tarfile.TarError, OSError) as error:
            # A tar that is cut off still gives what lies before the cut.
            if not parts:
                raise ValueError(
                    f"{self.shards[shard]} cannot be read as an uncompressed tar ({error})."
                ) from None
        for kind, names in classified(list(parts)).items():
            for entry in names:
                name, _, depth = entry.partition("\0")
                beside = parts[depth] if depth else None
                self._entries[kind].append((name, parts[name], beside))

    def _read(self, part: Part, where: str) -> bytes:
        shard, offset, size = part
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise BadMedia(where, "truncated archive", f"{len(content)} of {size} bytes")
        return content


class TableSource:
    """Rows of a table, with an image or a video column."""

    def __init__(self, table: Table, columns: Mapping[Kind, str]) -> None:
        self.table, self.columns, self.name = table, columns, table.name

    def known(self, kind: Kind, need: int) -> int:
        return len(self.table) if kind in self.columns else 0

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        column = self.columns[kind]
        try:
            cell = self.table.row(position, [column]).get(column)
        except Fault as fault:
            raise BadMedia(fault.where, "broken archive", fault.found[:200]) from None
        return opened_cell(kind, cell, self.table.where(position), self.table.base(position))


def parquet_source(files: Sequence[Path], column: str | None = None) -> TableSource:
    """Parquet files with a media column, found in the first of them unless it is named."""
    # One group for all: media are read in order, and every worker has a cache of its own.
    cache = GroupCache(limit=0)
    tables = [ParquetTable(path, cache) for path in files]
    columns = media_columns(tables[0].schema, column, str(files[0]))
    return TableSource(ChainTable(tables, _name_of(files)), columns)


def saved_source(path: Path) -> TableSource:
    """A folder written by `save_to_disk` of `datasets`."""
    import datasets

    return _arrow_source(datasets.load_from_disk(str(path)), "", str(path))


def hub_source(spec: str) -> TableSource:
    """A data set of the hub: "owner/name", "owner/name:split" or "owner/name:subset:split" (default: train, else the
    first split). Raises ValueError if it cannot be loaded."""
    import datasets

    name, *middle, split = spec.split(":") if ":" in spec else (spec, "")
    try:
        loaded = datasets.load_dataset(name, middle[0] if middle else None)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} could not be loaded from the hub ({type(error).__name__}: {first_line(error)}). Check the name, "
            "and the subset in owner/name:subset:split; without a connection, give a local folder or file."
        ) from error
    return _arrow_source(loaded, split, spec)


def _name_of(shards: Sequence[Path]) -> str:
    """The one file, or the folder of several."""
    return str(shards[0].parent if len(shards) > 1 else shards[0])


def _arrow_source(loaded: Any, split: str, name: str) -> TableSource:
    table = ArrowTable(one_split(loaded, split, name, guess=True), name)
    return TableSource(table, media_columns(table.schema, None, name))


def media_columns(schema: Any, wanted: str | None, where: str) -> dict[Kind, str]:
    """Kind to column name. Columns whose name says video are clips, the others images."""
    import pyarrow

    types = pyarrow.types
    found: dict[Kind, str] = {}
    for field in schema:
        if wanted is not None and field.name != wanted:
            continue
        # A list stands for several views of one thing; the first will do.
        inner = field.type.value_type if types.is_list(field.type) else field.type
        holds_bytes = types.is_binary(inner) or types.is_large_binary(inner)
        if types.is_struct(inner):
            parts = [inner.field(place).name for place in range(inner.num_fields)]
            holds_bytes = "bytes" in parts
        if holds_bytes:
            lowered = field.name.lower()
            kind: Kind = "video" if "video" in lowered or "clip" in lowered else "image"
            found.setdefault(kind, field.name)
    if not found:
        raise ValueError(
            f"{where} has no column with media bytes among {list(schema.names)}; "
            "store files as binary or as a struct with 'bytes'."
        )
    return found


def opened_cell(kind: Kind, cell: Any, where: str, base: Path | None) -> Opened:
    """A cell: bytes, {"bytes", "path"}, or a list of them. Raises BadMedia."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    suffix = ".mp4"
    if isinstance(cell, dict):
        path, cell = cell.get("path"), cell.get("bytes")
        if path:
            suffix = os.path.splitext(path)[1]
        if cell is None and path:
            try:
                cell = Path(base or "", path).read_bytes()
            except OSError as error:
                raise BadMedia(where, "unreadable file", f"{path}: {error.strerror}") from None
    if not isinstance(cell, bytes) or not cell:
        raise BadMedia(where, "empty file")
    return opened_bytes(kind, cell, where, suffix, None)


def opened_bytes(
    kind: Kind, content: bytes, where: str, suffix: str, depth: bytes | None
) -> Opened:
    """A medium from the bytes of its file."""
    identity = content_id(content)

    def decode() -> Medium:
        if kind == "video":
            # Decoders guess the container by the suffix of the file's name.
            return clip_from_bytes(content, where, identity, suffix or ".mp4")
        return image_medium(content, where, identity, depth)

    return Opened(identity, where, decode)
