"""Media inside archives: webdataset tars, parquet files, data sets of the `datasets` library.

Tars are indexed by their headers only, shard after shard as needed, and members are read by offset. Parquet files are
read by row group. Columns are found by their content: a binary column or a struct with `bytes` (the way `datasets`
stores media); a list of such structs gives its first entry. Compressed tars are refused: they have no random access.
"""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.pretext.contract import Kind
from mmrl.data.pretext.stream.media import clip_from_bytes, content_id, image_medium
from mmrl.data.pretext.stream.sources import KINDS, Opened, Source, classified
from mmrl.ground.faults import BadMedia

Part = tuple[int, int, int]
"""Shard, offset, size."""


def open_archive(path: Path) -> Source | None:
    """The source in a file or a folder of shards; None for a plain folder of media."""
    if path.is_file():
        if path.suffix == ".tar":
            return TarSource([path])
        if path.suffix == ".parquet":
            return ParquetSource([path])
        raise ValueError(f"{path} is not a source; give a folder, a .tar or a .parquet file.")
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return HubSource.saved(path)
    shards = (
        sorted(path.glob("*.tar"))
        or sorted(path.glob("*.parquet"))
        or sorted(path.glob("data/*.parquet"))
    )
    if not shards:
        return None
    return TarSource(shards) if shards[0].suffix == ".tar" else ParquetSource(shards)


class TarSource:
    """Webdataset shards: members named <key>.<suffix>."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards, self.name = (
            list(shards),
            str(shards[0].parent if len(shards) > 1 else shards[0]),
        )
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
            if not parts:
                raise ValueError(
                    f"{self.shards[shard]} cannot be read as an uncompressed tar ({error})."
                ) from None
        for kind, names in classified(list(parts)).items():
            for entry in names:
                name, _, depth = entry.partition("\0")
                self._entries[kind].append((name, parts[name], parts[depth] if depth else None))

    def _read(self, part: Part, where: str) -> bytes:
        shard, offset, size = part
        with open(self.shards[shard], "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise BadMedia(where, "truncated archive", f"{len(content)} of {size} bytes")
        return content


class ParquetSource:
    """Rows of parquet files with an image or a video column."""

    def __init__(self, files: Sequence[Path], column: str | None = None) -> None:
        import pyarrow.parquet as parquet

        self.files, self.name = (
            list(files),
            str(files[0].parent if len(files) > 1 else files[0]),
        )
        self._groups: list[tuple[int, int]] = []
        self._starts = [0]
        for place, path in enumerate(self.files):
            with parquet.ParquetFile(path) as file:
                self.columns = (
                    media_columns(file.schema_arrow, column, str(path))
                    if place == 0
                    else self.columns
                )
                for group in range(file.metadata.num_row_groups):
                    self._groups.append((place, group))
                    self._starts.append(
                        self._starts[-1] + file.metadata.row_group(group).num_rows
                    )
        self._held: tuple[tuple[int, str], Any] | None = None

    def known(self, kind: Kind, need: int) -> int:
        return self._starts[-1] if kind in self.columns else 0

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        number, column = bisect_right(self._starts, position) - 1, self.columns[kind]
        where = f"{self.files[self._groups[number][0]]}:row {position}"
        if self._held is None or self._held[0] != (number, column):
            self._held = ((number, column), self._group(number, column))
        cell = self._held[1][position - self._starts[number]].as_py()
        return opened_cell(kind, cell, where, self.files[0].parent)

    def _group(self, number: int, column: str) -> Any:
        import pyarrow
        import pyarrow.parquet as parquet

        place, group = self._groups[number]
        try:
            with parquet.ParquetFile(self.files[place]) as file:
                return file.read_row_group(group, columns=[column]).column(0)
        except (pyarrow.ArrowException, OSError) as error:
            raise BadMedia(
                f"{self.files[place]}:row group {group}", "broken archive", str(error)[:200]
            ) from None


class HubSource:
    """A data set of the `datasets` library, read undecoded."""

    def __init__(self, table: Any, name: str) -> None:
        self.name = name
        self.columns = media_columns(table.features.arrow_schema, None, name)
        self._raw = table.with_format("arrow")

    @classmethod
    def load(cls, spec: str) -> HubSource:
        """ "owner/name", "owner/name:split" or "owner/name:subset:split" (default: train, else the first split).

        Raises ValueError if it cannot be loaded."""
        import datasets

        name, *middle, split = spec.split(":") if ":" in spec else (spec, "")
        try:
            loaded = datasets.load_dataset(name, middle[0] if middle else None)
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{name} could not be loaded from the hub ({type(error).__name__}: {first}). Check the name, and the "
                "subset in owner/name:subset:split; without a connection, give a local folder or file."
            ) from error
        return cls(_one_split(loaded, split, spec), spec)

    @classmethod
    def saved(cls, path: Path) -> HubSource:
        """A folder written by `save_to_disk`."""
        import datasets

        return cls(_one_split(datasets.load_from_disk(str(path)), "", str(path)), str(path))

    def known(self, kind: Kind, need: int) -> int:
        return len(self._raw) if kind in self.columns else 0

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        cell = self._raw[position : position + 1].column(self.columns[kind])[0].as_py()
        return opened_cell(kind, cell, f"{self.name}:row {position}", None)


def media_columns(schema: Any, wanted: str | None, where: str) -> dict[Kind, str]:
    """Kind to column name. Columns whose name says video are clips, the others images."""
    import pyarrow

    found: dict[Kind, str] = {}
    for field in schema:
        inner = field.type.value_type if pyarrow.types.is_list(field.type) else field.type
        parts = (
            [inner.field(i).name for i in range(inner.num_fields)]
            if pyarrow.types.is_struct(inner)
            else []
        )
        binary = pyarrow.types.is_binary(inner) or pyarrow.types.is_large_binary(inner)
        if ("bytes" in parts or binary) and (wanted is None or field.name == wanted):
            lowered = field.name.lower()
            found.setdefault(
                "video" if "video" in lowered or "clip" in lowered else "image", field.name
            )
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
        suffix = os.path.splitext(path)[1] if path else suffix
        if cell is None and path:
            try:
                cell = (base / path if base is not None else Path(path)).read_bytes()
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
    if kind == "video":
        return Opened(
            identity, where, lambda: clip_from_bytes(content, where, identity, suffix or ".mp4")
        )
    return Opened(identity, where, lambda: image_medium(content, where, identity, depth))


def _one_split(loaded: Any, split: str, where: str) -> Any:
    if not hasattr(loaded, "keys"):
        return loaded
    name = split or ("train" if "train" in loaded else next(iter(loaded.keys())))
    if name not in loaded:
        raise ValueError(f"{where} has no split {name!r}; it has {list(loaded.keys())}.")
    return loaded[name]
