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
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from mmrl.data.rows.cards import card_label_names
from mmrl.data.rows.tables import (
    LabelledTable,
    LinesTable,
    ListTable,
    RenamedTable,
    read_csv,
    read_json,
)
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
NOT_DATA = (
    *("dataset_info.json", "dataset_infos.json", "config.json", "state.json"),
    *("manifest.json", "quarantine.jsonl"),  # beside the shards of our own export
)


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
    names = card_label_names(folder, subset)
    if names:
        return LabelledTable(_open_folder(folder, split, subset), names)
    return _open_folder(folder, split, subset)


def _open_folder(folder: Path, split: str | None, subset: str | None) -> Table:
    if subset is not None:
        folder = _subfolder(folder, subset, "subset")
    named = split
    if split is not None and (folder / split).is_dir():
        # Inside the split's own folder, its files need not bear its name.
        folder, named = folder / split, None
    for file in _files(folder, READERS):
        if file.stem == "metadata":
            return _with_metadata(file)
    shards = _shards(folder, named) or _shards(folder / "data", named)
    if shards:
        tables = [open_file(shard) for shard in shards]
        return tables[0] if len(tables) == 1 else ChainTable(tables, folder.name)
    if named is not None:
        raise ValueError(
            f"{folder} has no split {split!r}: neither a folder nor a data file of that name."
        )
    if split is None and (folder / "train").is_dir():
        return open_folder(folder / "train")
    return _bare_media(folder)


def missing_path(path: Path) -> ValueError:
    """The error for a path that does not exist, with the nearest name in the deepest folder that does."""
    present = next(parent for parent in path.absolute().parents if parent.is_dir())
    entries = sorted(entry.name for entry in present.iterdir())
    names = [name for name in entries if not name.startswith(".")]
    wanted = path.absolute().relative_to(present).parts[0]
    close = difflib.get_close_matches(wanted, names, 1, 0.5)
    hint = f"it holds {', '.join(names[:8]) or 'nothing'}."
    if close:
        hint = f"did you mean {close[0]!r}?"
    return ValueError(
        f"{path} does not exist; {present} has no {wanted!r}: {hint} A data set of the hub is written owner/name."
    )


def _subfolder(folder: Path, name: str, what: str) -> Path:
    if not (folder / name).is_dir():
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ValueError(f"{folder} has no {what} {name!r}; its folders are {names}.")
    return folder / name


def _files(folder: Path, suffixes: Container[str]) -> list[Path]:
    """Visible files with these suffixes, sorted by name; none if there is no such folder."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    visible = [entry for entry in entries if not entry.name.startswith(".")]
    return [file for file in visible if file.suffix.lower() in suffixes and file.is_file()]


def _shards(folder: Path, split: str | None) -> list[Path]:
    """Data files of one kind that belong to the split."""
    files = [file for file in _files(folder, READERS) if file.name not in NOT_DATA]
    chosen = _bearing(split or "train", files)
    if split is None and not chosen:
        chosen = files
    kinds = sorted({file.suffix for file in chosen})
    if len(kinds) > 1:
        raise ValueError(
            f"{folder} holds data files of several kinds ({', '.join(kinds)}); name one file."
        )
    return chosen


def _bearing(name: str, files: Sequence[Path]) -> list[Path]:
    """The files with this word in their name, as in train-00000-of-00002.parquet."""
    return [file for file in files if name in re.split(r"[-_.]", file.name)]


def _with_metadata(metadata: Path) -> Table:
    """A table whose file names are media columns."""
    table = open_file(metadata)
    names = table.columns()
    renamed = {}
    for name in names:
        renamed[name] = name.removesuffix("_file_name").removesuffix("_file_names")
        if name == "file_names":
            renamed[name] = "images"
        elif name == "file_name":
            renamed[name] = "video" if _is_video(_first_name(table)) else "image"
    if all(old == new for old, new in renamed.items()):
        raise ValueError(
            f"{metadata} has no column 'file_name' (or '..._file_name'); it has {names}."
        )
    return RenamedTable(table, renamed)


def _first_name(table: Table) -> str:
    """The first entry of the column `file_name`: one file says what all are."""
    for row in table.scan():
        if isinstance(row, dict) and row.get("file_name"):
            return str(row["file_name"])
    return ""


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEO_SUFFIXES


def _bare_media(folder: Path) -> Table:
    """One row per media file below the folder."""
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    paths: list[Path] = []  # relative to the folder, so that it may be moved
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in path.parts)
        # What is neither file nor folder (a FIFO, a device) is a bad row, and is named as one.
        if file.suffix.lower() in suffixes and not is_hidden and not file.is_dir():
            paths.append(path)
    if not paths:
        raise ValueError(
            f"{folder} holds nothing to read; expected are data files ({', '.join(READERS)}), a data set saved by "
            "datasets, or images and videos."
        )
    # One folder of pictures, or pictures beside it, is a heap rather than a set of classes.
    folders = {path.parent for path in paths}
    labelled = len(folders) > 1 and Path() not in folders
    rows = []
    for path in paths:
        row = {"video" if _is_video(path.name) else "image": str(path)}
        if labelled:
            row["label"] = path.parent.name
        rows.append(row)
    return ListTable(folder, rows)
