"""Rows of a data set, read one by one: the interface, parquet files, `datasets` read raw, and chains of tables.

Opening a table reads what is cheap (line offsets, schemas); `scan` passes once over the light columns, without image
bytes; `row` reads one row with everything that is asked for. Nothing holds an open file, so a table can be sent to a
worker process. Media stay undecoded.
"""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from mmrl.ground.class_labels import label_names, parquet_label_names, with_names
from mmrl.ground.faults import Fault, first_line

CACHE_BYTES = 1 << 30
"""Parquet row groups kept in memory; the last one is always kept."""

Row = Mapping[str, Any]


class Table(Protocol):
    """Rows with random access."""

    name: str
    """The same on every machine."""

    def columns(self) -> list[str]:
        """Names of all columns."""
        ...

    def light(self) -> frozenset[str]:
        """The columns that `scan` gives: all but embedded media."""
        ...

    def __len__(self) -> int: ...

    def scan(self) -> Iterator[Row | Fault]:
        """All rows in order, light columns only; a row that cannot be read is a `Fault`."""
        ...

    def row(self, index: int, columns: Sequence[str]) -> Row:
        """One row with (at least) these columns. Raises `Fault`."""
        ...

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        ...

    def base(self, index: int) -> Path | None:
        """The folder from which relative media paths of this row start."""
        ...


class ChainTable:
    """Several tables one after the other, for example the shards of a data set."""

    def __init__(self, tables: Sequence[Table], name: str) -> None:
        self.name, self._tables = name, list(tables)
        self._starts = [0, *itertools.accumulate(map(len, self._tables))]

    def columns(self) -> list[str]:
        names: dict[str, None] = {}  # a set that keeps the order
        for table in self._tables:
            names.update(dict.fromkeys(table.columns()))
        return list(names)

    def light(self) -> frozenset[str]:
        heavy: set[str] = set()
        for table in self._tables:
            heavy |= set(table.columns()) - table.light()
        # What is heavy in one table is not scanned in the others either.
        return frozenset(self.columns()) - heavy

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[Row | Fault]:
        for table in self._tables:
            yield from table.scan()

    def row(self, index: int, columns: Sequence[str]) -> Row:
        table, inner = self._at(index)
        present = [name for name in columns if name in table.columns()]
        return table.row(inner, present)

    def where(self, index: int) -> str:
        table, inner = self._at(index)
        return table.where(inner)

    def base(self, index: int) -> Path | None:
        table, inner = self._at(index)
        return table.base(inner)

    def _at(self, index: int) -> tuple[Table, int]:
        which = bisect.bisect_right(self._starts, index) - 1
        return self._tables[which], index - self._starts[which]


class GroupCache:
    """The parquet row groups read last, up to `limit` bytes; the last one is always kept. Tables may share one."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self._held: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[GroupCache], tuple[int]]:
        # Empty elsewhere: a gigabyte of rows is read again faster than it is sent.
        return GroupCache, (self.limit,)

    def get(self, key: Any, read: Callable[[], Any]) -> Any:
        """What is held under the key, else what `read` gives."""
        with self._lock:  # also while reading, so that threads do not read one group twice
            if key not in self._held:
                self._held[key] = read()
            self._held.move_to_end(key)
            while len(self._held) > 1 and self._bytes() > self.limit:
                self._held.popitem(last=False)
            return self._held[key]

    def _bytes(self) -> int:
        return sum(group.nbytes for group in self._held.values())


class ParquetTable:
    """One parquet file, read by row group.

    A row group is the smallest piece that parquet can read: files with few huge groups are slow at random access.
    """

    def __init__(self, path: Path, cache: GroupCache | None = None) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        self.path, self.name = path, path.name
        self._cache = GroupCache() if cache is None else cache
        try:
            with parquet.ParquetFile(path) as file:
                self.schema, meta = file.schema_arrow, file.metadata
                sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        # ValueError: names of columns that are no text. MemoryError: a damaged footer may ask for any amount.
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            raise ValueError(
                f"{path} cannot be read as parquet ({first_line(error)}); check that it is complete."
            ) from None
        self._sizes = sizes
        self._starts = [0, *itertools.accumulate(sizes)]
        self._columns = list(self.schema.names)
        self._light = light_columns(self.schema)
        self._names = parquet_label_names(self.schema.metadata)

    def columns(self) -> list[str]:
        return self._columns

    def light(self) -> frozenset[str]:
        return self._light

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self) -> Iterator[Row | Fault]:
        wanted = [name for name in self._columns if name in self._light]
        for group, size in enumerate(self._sizes):
            try:
                # Not through the cache: each group is needed once, and the cache is for rows with their media.
                rows = self._read(group, wanted)
            except Fault as fault:
                yield from itertools.repeat(fault, size)
                continue
            if wanted:
                yield from rows_of(rows, self._names)
            else:  # a table without columns does not know how many rows it has
                yield from ({} for _ in range(size))

    def row(self, index: int, columns: Sequence[str]) -> Row:
        group = bisect.bisect_right(self._starts, index) - 1
        key = (self.path, group, tuple(columns))
        rows = self._cache.get(key, lambda: self._read(group, columns))
        return first_row(rows.slice(index - self._starts[group], 1), self._names)

    def where(self, index: int) -> str:
        return f"{self.path}, row {index}"

    def base(self, index: int) -> Path | None:
        return self.path.parent

    def _read(self, group: int, columns: Sequence[str]) -> Any:
        import pyarrow
        import pyarrow.parquet as parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                return file.read_row_group(group, columns=list(columns))
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            where = f"{self.path}, row group {group}"
            fix = "Check that the file is complete."
            found = f"it cannot be read ({first_line(error)})"
            raise Fault("broken file", found, fix, where) from None


class ArrowTable:
    """A `datasets.Dataset`, read as raw Arrow: media stay undecoded, class labels become their names."""

    def __init__(self, dataset: Any, name: str, base: Path | None = None) -> None:
        self.name, self._base = name, base
        self._raw = dataset.with_format("arrow")
        self._names = label_names(dataset.features.to_dict())
        self.schema = dataset.features.arrow_schema
        self._light = light_columns(self.schema)

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
            yield from rows_of(chunk, self._names)

    def row(self, index: int, columns: Sequence[str]) -> Row:
        return first_row(self._raw[[index]].select(list(columns)), self._names)

    def where(self, index: int) -> str:
        return f"{self.name}, row {index}"

    def base(self, index: int) -> Path | None:
        return self._base


def rows_of(table: Any, names: Mapping[str, Any]) -> Iterator[Row | Fault]:
    """The rows of an Arrow table as Python values, with the names of their labels; a row that has none is a `Fault`,
    and costs no other row."""
    try:
        found = table.to_pylist()
    except Exception:  # see `first_row`
        found = None
    if found is not None:
        yield from (with_names(row, names) for row in found)
        return
    for at in range(table.num_rows):
        try:
            yield first_row(table.slice(at, 1), names)
        except Fault as fault:
            yield fault


def first_row(table: Any, names: Mapping[str, Any]) -> Row:
    """The first row as Python values, with the names of its labels. Raises `Fault`."""
    try:
        return with_names(table.to_pylist()[0], names)
    # Text that is no UTF-8, times beyond the year 9999, damaged offsets: each raises something else.
    except Exception as error:
        unreadable = [name for name in table.column_names if not _is_readable(table, name)]
        found = f"{type(error).__name__} in the columns {unreadable}"
        fix = "Store texts as UTF-8, and times that Python knows."
        raise Fault("bad row", found, fix) from None


def _is_readable(table: Any, name: str) -> bool:
    try:
        table.column(name).to_pylist()
    except Exception:
        return False
    return True


def one_split(loaded: Any, split: str | None, where: str, *, guess: bool = False) -> Any:
    """The asked split of what `datasets` loaded; without a wish `train`, else the only one, or with `guess` the first.

    Raises ValueError with the names of those that are there.
    """
    if not isinstance(loaded, Mapping):
        return loaded
    names = list(loaded)
    chosen = split
    if not split:
        usable = names if guess or len(names) == 1 else []
        chosen = "train" if "train" in names else next(iter(usable), None)
    if chosen not in names:
        asked = f"has no split {split!r}" if split else "has several splits"
        raise ValueError(f"{where} {asked}; choose one of {names}.")
    return loaded[chosen]


def light_columns(schema: Any) -> frozenset[str]:
    """The columns of an Arrow schema without embedded media."""
    return frozenset(entry.name for entry in schema if not embeds_bytes(entry.type))


def embeds_bytes(kind: Any) -> bool:
    """Whether values of an Arrow type carry bytes (embedded media), at any depth."""
    import pyarrow
    import pyarrow.types as types

    if isinstance(kind, pyarrow.BaseExtensionType):
        return embeds_bytes(kind.storage_type)
    if types.is_struct(kind):
        inner = [kind.field(at).type for at in range(kind.num_fields)]
        return any(map(embeds_bytes, inner))
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    if any(is_kind(kind) for is_kind in lists):
        return embeds_bytes(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
