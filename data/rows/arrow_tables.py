"""Tables over Arrow: parquet files, and data sets of the `datasets` library read raw, so that nothing is decoded."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmrl.data.rows.tables import Row
from mmrl.ground.faults import Fault

CACHE_BYTES = 1 << 30
"""Parquet row groups kept in memory; the last one is always kept."""


class ParquetTable:
    """One parquet file, read by row group; the groups read last stay in memory up to `CACHE_BYTES`.

    A row group is the smallest piece that parquet can read: files with few huge groups are slow at random access.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        self.path, self.name = path, path.name
        try:
            with parquet.ParquetFile(path) as file:
                schema, meta = file.schema_arrow, file.metadata
                self._starts = [0]
                for group in range(meta.num_row_groups):
                    self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} cannot be read as parquet ({error}); check that it is complete."
            ) from None
        self._columns = list(schema.names)
        self._light = frozenset(entry.name for entry in schema if not embeds_bytes(entry.type))
        self._cache: OrderedDict[tuple[int, tuple[str, ...]], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {
            key: value for key, value in self.__dict__.items() if key not in ("_cache", "_lock")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _cache=OrderedDict(), _lock=threading.Lock())

    def columns(self) -> list[str]:
        return self._columns

    def light(self) -> frozenset[str]:
        return self._light

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[Row | Fault]:
        wanted = [name for name in self._columns if name in self._light]
        for group in range(len(self._starts) - 1):
            rows = self._read(group, wanted)
            if wanted:
                yield from rows.to_pylist()
            else:
                yield from ({} for _ in range(self._starts[group + 1] - self._starts[group]))

    def row(self, index: int, columns: Sequence[str]) -> Row:
        group = bisect.bisect_right(self._starts, index) - 1
        return (
            self._cached(group, tuple(columns))
            .slice(index - self._starts[group], 1)
            .to_pylist()[0]
        )

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def base(self, index: int) -> Path | None:
        return self.path.parent

    def _cached(self, group: int, columns: tuple[str, ...]) -> Any:
        with self._lock:
            key = (group, columns)
            if key not in self._cache:
                self._cache[key] = self._read(group, columns)
            self._cache.move_to_end(key)
            while (
                len(self._cache) > 1
                and sum(held.nbytes for held in self._cache.values()) > CACHE_BYTES
            ):
                self._cache.popitem(last=False)
            return self._cache[key]

    def _read(self, group: int, columns: Sequence[str]) -> Any:
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                return file.read_row_group(group, columns=list(columns))
        except (pyarrow.ArrowException, OSError) as error:
            found = f"row group {group} cannot be read ({error})"
            raise Fault(
                "broken file", found, "Check that the file is complete.", str(self.path)
            ) from None


class ArrowTable:
    """A `datasets.Dataset`, read as raw Arrow: media stay undecoded, class labels become their names."""

    def __init__(self, dataset: Any, name: str, base: Path | None = None) -> None:
        self.name, self._base = name, base
        self._raw = dataset.with_format("arrow")
        self._names = {
            key: feature.names
            for key, feature in dataset.features.items()
            if hasattr(feature, "names")
        }
        schema = dataset.features.arrow_schema
        self._light = frozenset(entry.name for entry in schema if not embeds_bytes(entry.type))

    def columns(self) -> list[str]:
        return list(self._raw.column_names)

    def light(self) -> frozenset[str]:
        return self._light

    def __len__(self) -> int:
        return len(self._raw)

    def scan(self) -> Iterator[Row | Fault]:
        wanted = [name for name in self.columns() if name in self._light]
        if not wanted:
            yield from ({} for _ in range(len(self)))
            return
        for chunk in self._raw.select_columns(wanted).iter(batch_size=1000):
            yield from (self._named(row) for row in chunk.to_pylist())

    def row(self, index: int, columns: Sequence[str]) -> Row:
        return self._named(self._raw[[index]].select(list(columns)).to_pylist()[0])

    def where(self, index: int) -> str:
        return f"{self.name}, row {index}"

    def base(self, index: int) -> Path | None:
        return self._base

    def _named(self, row: dict[str, Any]) -> Row:
        for key, names in self._names.items():
            if isinstance(row.get(key), int) and 0 <= row[key] < len(names):
                row[key] = names[row[key]]
        return row


def embeds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type carry bytes (embedded media), at any depth."""
    import pyarrow
    import pyarrow.types as types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return embeds_bytes(kind.storage_type)
    if types.is_struct(kind):
        return any(embeds_bytes(kind.field(at).type) for at in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return embeds_bytes(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
