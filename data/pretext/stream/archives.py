"""Media inside archives: webdataset tars, parquet files, data sets of the `datasets` library.

Tars are indexed by their headers only, shard after shard as needed, and members are read by offset. Parquet files are
read by row group. Columns are found by their content: a binary column or a struct with `bytes` (the way `datasets`
stores media); a list of such structs gives its first entry. Compressed tars are refused: they have no random access.

Headers are not believed: no entry is read beyond the end of its archive, whatever size it claims, and paths in a table
do not lead out of its folder. One broken shard of several is passed over and counted.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mmrl.data.pretext.contract import Kind, Medium
from mmrl.data.pretext.stream.media import clip_from_bytes, content_id, image_medium
from mmrl.data.pretext.stream.sources import KINDS, Opened, Source, classified
from mmrl.ground.faults import BadMedia, Fault, first_line
from mmrl.ground.files import FILE_TOO_LARGE, LARGEST_FILE, open_regular, read_regular
from mmrl.ground.media_names import VIDEO_SUFFIXES
from mmrl.ground.quarantine import Quarantine
from mmrl.ground.roots import Root, hub_caches
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


def open_archive(path: Path, quarantine: Quarantine | None = None) -> Source | None:
    """The source in a file or a folder of shards; None for a plain folder of media."""
    if path.is_file():
        if path.suffix == ".tar":
            return TarSource([path])
        if path.suffix == ".parquet":
            return parquet_source([path])
        raise ValueError(f"{path} is not a source; give a folder, a .tar or a .parquet file.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return saved_source(path)
    for pattern in ("*.tar", "*.parquet", "data/*.parquet"):
        # Not what only bears such a name: a FIFO would be waited for.
        shards = [shard for shard in sorted(path.glob(pattern)) if shard.is_file()]
        if shards and pattern == "*.tar":
            return TarSource(shards, quarantine)
        if shards:
            return parquet_source(shards)
    return None


class TarSource:
    """Webdataset shards: members named <key>.<suffix>."""

    def __init__(self, shards: Sequence[Path], quarantine: Quarantine | None = None) -> None:
        self.shards, self.name = list(shards), _name_of(shards)
        self.quarantine = quarantine or Quarantine()
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
        # A clip goes to a file of its own; pictures are decoded in memory.
        limit = None if kind == "video" else LARGEST_FILE
        content = self._read(part, where, limit)
        beside = None if depth is None else self._read(depth, where, limit)
        return opened_bytes(kind, content, where, os.path.splitext(name)[1], beside)

    def _index(self, shard: int) -> None:
        """Take in the members of a shard; a broken one among others is passed over."""
        parts: dict[str, Part] = {}
        path = self.shards[shard]
        try:
            with open_regular(path) as file:
                for member in _members(file):
                    parts[member.name] = (shard, member.offset_data, member.size)
        # A tar that is cut off still gives what lies before the cut. Its headers may be anything, and make the
        # library raise anything.
        except Exception as error:
            if not parts:
                why = f"{type(error).__name__}: {first_line(error)}"
                self._pass_over(path, why)
        for kind, names in classified(list(parts)).items():
            for entry in names:
                name, _, depth = entry.partition("\0")
                beside = parts[depth] if depth else None
                self._entries[kind].append((name, parts[name], beside))

    def _pass_over(self, path: Path, why: str) -> None:
        if len(self.shards) == 1:
            raise ValueError(f"{path} cannot be read as an uncompressed tar ({why}).")
        self.quarantine.add(BadMedia(path, "broken archive", why))

    def _read(self, part: Part, where: str, limit: int | None) -> bytes:
        shard, offset, size = part
        with open_regular(self.shards[shard]) as file:
            held = max(0, os.fstat(file.fileno()).st_size - offset)
            # Before anything is read: a header may claim any size.
            if not 0 <= size <= held:
                raise BadMedia(where, "truncated archive", f"{held} of {size} bytes")
            if limit is not None and size > limit:
                raise BadMedia(where, FILE_TOO_LARGE, f"{size} bytes, at most {limit}")
            file.seek(offset)
            return file.read(size)


class _WithinFile:
    """A file as `tarfile` reads it, which never gives or makes room for more than there is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self.tell, self.seek = file.tell, file.seek

    def read(self, count: int) -> bytes:
        if count < 0:
            raise tarfile.ReadError("a header of negative size")
        return self._file.read(min(count, max(0, self._size - self.tell())))


def _members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar, in order. Raises whatever `tarfile` raises."""
    passed = -1
    with tarfile.open(fileobj=_WithinFile(file), mode="r:") as archive:  # type: ignore[arg-type]
        for member in archive:
            # A negative size leads back to a header that was read before, for ever.
            if member.offset_data <= passed:
                raise tarfile.ReadError("headers in a circle")
            passed = member.offset_data
            # The bytes of a sparse file do not lie one behind the other.
            if member.isreg() and not member.issparse():
                yield member


class TableSource:
    """Rows of a table, with an image or a video column."""

    def __init__(
        self, table: Table, columns: Mapping[Kind, str], trusted: Sequence[Path] = ()
    ) -> None:
        self.table, self.columns, self.name = table, columns, table.name
        self.trusted = tuple(trusted)
        """Folders beside the table's own to which paths in it may lead."""

    def known(self, kind: Kind, need: int) -> int:
        return len(self.table) if kind in self.columns else 0

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        column = self.columns[kind]
        try:
            cell = self.table.row(position, [column]).get(column)
        except Fault as fault:
            raise BadMedia(fault.where, "broken archive", fault.found[:200]) from None
        root = Root(self.table.base(position), trusted=self.trusted)
        return opened_cell(kind, cell, self.table.where(position), root)


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

    return _arrow_source(datasets.load_from_disk(str(path)), "", str(path), path)


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


def _arrow_source(
    loaded: Any, split: str, name: str, folder: Path | None = None
) -> TableSource:
    table = ArrowTable(one_split(loaded, split, name, guess=True), name, folder)
    trusted = hub_caches() if folder is None else ()
    return TableSource(table, media_columns(table.schema, None, name), trusted)


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


def opened_cell(kind: Kind, cell: Any, where: str, root: Root) -> Opened:
    """A cell: bytes, {"bytes", "path"}, or a list of them. Raises BadMedia."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    suffix = ".mp4"
    if isinstance(cell, dict):
        path, cell = cell.get("path"), cell.get("bytes")
        if isinstance(path, str) and path:
            suffix = os.path.splitext(path)[1].lower()
            if cell is None:
                cell = _named_file(kind, path, where, root)
    if not isinstance(cell, bytes) or not cell:
        raise BadMedia(where, "empty file")
    # It becomes part of a file's name.
    return opened_bytes(kind, cell, where, suffix if suffix in VIDEO_SUFFIXES else ".mp4", None)


def _named_file(kind: Kind, name: str, where: str, root: Root) -> bytes:
    """The file that a cell names, below the folder of its table. Raises BadMedia."""
    limit = None if kind == "video" else LARGEST_FILE
    try:
        return read_regular(root.path(name), limit)
    except Fault as fault:
        raise BadMedia(where, fault.reason, fault.found) from None
    except BadMedia as bad:
        raise BadMedia(where, bad.reason, f"{bad.where}: {bad.detail}") from None


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
