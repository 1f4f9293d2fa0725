"""From a local path to a table: single files, folders of shards, folders of media, data sets saved by `datasets`.

A folder is read as, in this order: a saved data set; the subfolder named by `subset` or `split`; media with a
`metadata.jsonl`, `.csv` or `.parquet` (the imagefolder convention of `datasets`: `file_name`, `file_names`,
`<column>_file_name`); data files, of which those with the split's name are taken (without a split those named
`train`, else all); a subfolder `train`; bare media, whose row is the file and, where files lie in
at least two folders, `label`, the folder's name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from mmrl.data.rows.tables import LinesTable, ListTable, RenamedTable, read_csv, read_json
from mmrl.ground.media_names import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmrl.ground.tables import ChainTable, ParquetTable, Table

READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": LinesTable,
    ".ndjson": LinesTable,
    ".json": read_json,
    ".parquet": ParquetTable,
    ".csv": read_csv,
    ".tsv": read_csv,
}
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "config.json", "state.json")


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a data set here."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def open_file(path: Path) -> Table:
    """The table in one file."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path} has the suffix {path.suffix!r}; read are {', '.join(READERS)}, or a folder of media."
        )
    return reader(path)


def open_folder(folder: Path, split: str | None = None, subset: str | None = None) -> Table:
    """The table in a folder that is no saved data set."""
    if subset is not None:
        folder = _subfolder(folder, subset, "subset")
    inner = split is not None and (folder / split).is_dir()
    if inner and split is not None:
        folder = folder / split
    metadata = next((file for file in _files(folder, READERS) if file.stem == "metadata"), None)
    if metadata is not None:
        return _with_metadata(metadata)
    shards = _shards(folder, None if inner else split) or _shards(
        folder / "data", None if inner else split
    )
    if shards:
        tables = [open_file(shard) for shard in shards]
        return tables[0] if len(tables) == 1 else ChainTable(tables, folder.name)
    if split is not None and not inner:
        raise ValueError(
            f"{folder} has no split {split!r}: neither a folder nor a data file of that name."
        )
    if split is None and (folder / "train").is_dir():
        return open_folder(folder / "train")
    return _bare_media(folder)


def missing_path(path: Path) -> ValueError:
    """The error for a path that does not exist, with the nearest name in the deepest folder that does."""
    present = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in present.iterdir() if not entry.name.startswith("."))
    wanted = path.absolute().relative_to(present).parts[0]
    close = difflib.get_close_matches(wanted, names, 1, 0.5)
    hint = (
        f"did you mean {close[0]!r}?"
        if close
        else f"it holds {', '.join(names[:8]) or 'nothing'}."
    )
    return ValueError(
        f"{path} does not exist; {present} has no {wanted!r}: {hint} A data set of the hub is written owner/name."
    )


def _subfolder(folder: Path, name: str, what: str) -> Path:
    if not (folder / name).is_dir():
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ValueError(f"{folder} has no {what} {name!r}; its folders are {names}.")
    return folder / name


def _files(folder: Path, suffixes: object) -> list[Path]:
    """Visible files with these suffixes, sorted by name."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    visible = [entry for entry in entries if entry.is_file() and not entry.name.startswith(".")]
    return [entry for entry in visible if entry.suffix.lower() in suffixes]  # type: ignore[operator]


def _shards(folder: Path, split: str | None) -> list[Path]:
    """Data files of one kind that belong to the split."""
    files = [file for file in _files(folder, READERS) if file.name not in NOT_DATA]
    of = lambda name: [file for file in files if name in re.split(r"[-_.]", file.name)]  # noqa: E731
    chosen = (of("train") or files) if split is None else of(split)
    kinds = sorted({file.suffix for file in chosen})
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} holds data files of several kinds ({', '.join(kinds)}); name one file."
        )
    return chosen


def _with_metadata(metadata: Path) -> Table:
    """A table whose file names are media columns."""
    table = open_file(metadata)
    names = table.columns()
    renamed = {
        name: name.removesuffix("_file_name").removesuffix("_file_names") for name in names
    }
    renamed.update({"file_names": "images"})
    if "file_name" in names:
        row = next(
            (row for row in table.scan() if isinstance(row, dict) and row.get("file_name")), {}
        )
        is_video = Path(str(row.get("file_name", ""))).suffix.lower() in VIDEO_SUFFIXES
        renamed["file_name"] = "video" if is_video else "image"
    if all(old == new for old, new in renamed.items() if old in names):
        raise ValueError(
            f"{metadata} has no column 'file_name' (or '..._file_name'); it has {names}."
        )
    return RenamedTable(table, {old: new for old, new in renamed.items() if old in names})


def _bare_media(folder: Path) -> Table:
    """One row per media file below the folder."""
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and path.is_file()
    ]
    files = [
        path
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise ValueError(
            f"{folder} holds nothing to read; expected are data files ({', '.join(READERS)}), a data set saved by "
            "datasets, or images and videos."
        )
    labelled = len({path.parent for path in files}) > 1 and all(
        path.parent != folder for path in files
    )
    rows = [
        {
            "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image": str(
                path.relative_to(folder)
            ),
            **({"label": path.parent.name} if labelled else {}),
        }
        for path in files
    ]
    return ListTable(folder, rows)
