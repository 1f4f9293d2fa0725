"""Prompts from anywhere: `load_prompts(dataset)` for files, folders, saved and hub data sets, benchmarks, drawn tasks.

    load_prompts("train.jsonl", columns={"question": "ask", "images": ["left", "right"]})
    load_prompts("PAPOGalaxy/PAPO_ViRL39K_train", template=THINK_THEN_BOX)
    load_prompts("drawn:lookup", split="heldout", limit=512)
    load_prompts("benchmark:mathvista")

Loading checks what is cheap and decodes nothing (`data/rows/row_prompts.py`). Decided elsewhere: columns by
convention or by name (`data/rows/columns.py`), chat and placeholders (`data/rows/templates.py`), pictures
(`data/rows/images.py`), files (`data/rows/tables.py`, `mmrl/ground/tables.py`, `data/rows/folders.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from mmrl.data.benchmarks.record import BenchmarkTable
from mmrl.data.benchmarks.registry import find, is_benchmark, place_of
from mmrl.data.drawn.closer import Closer, CloserTask
from mmrl.data.drawn.drawn import Drawn, Task
from mmrl.data.drawn.scenes import Split
from mmrl.data.rows.columns import ColumnMap
from mmrl.data.rows.folders import READERS, is_saved, missing_path, open_file, open_folder
from mmrl.data.rows.row_prompts import OnBad, RowPrompts
from mmrl.data.rows.templates import PLAIN, Template
from mmrl.ground.contents import Content, content_of
from mmrl.ground.faults import BadRow, first_line
from mmrl.ground.roots import hub_caches
from mmrl.ground.seeds import derive_seed
from mmrl.ground.tables import ArrowTable, Table, one_split
from mmrl.types import Prompt, Prompts

DRAWN = "drawn:"


def load_prompts(
    dataset: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    limit: int | None = None,
    template: Template = PLAIN,
    columns: Mapping[str, Any] | ColumnMap | None = None,
    image_root: str | Path | None = None,
    on_bad: OnBad = "skip",
    seed: int = 0,
    clip: Mapping[str, Any] | None = None,
    allow_outside: bool = False,
) -> RowPrompts | Drawn | Closer:
    """Prompts from a file, a folder, a data set of the hub, or a drawn task (`drawn:lookup`).

    `limit` takes the first usable rows. `image_root` is where relative media paths start (default: the data file's
    folder); no path may lead out of it unless `allow_outside` is set. `seed` concerns drawn tasks; `clip` holds
    keyword arguments of `video.read_clip`.
    """
    if dataset.startswith(DRAWN):
        return _drawn(dataset, split, limit, seed)
    place = dataset, split, subset
    table = open_table(*(place_of(*place) if is_benchmark(dataset) else place))
    downloaded = isinstance(table, ArrowTable) and table.base(0) is None
    trusted = hub_caches() if downloaded else ()
    if is_benchmark(dataset):
        table = BenchmarkTable(table, find(dataset))
    return RowPrompts(
        table,
        template,
        columns,
        image_root,
        on_bad,
        limit=limit,
        clip=clip,
        allow_outside=allow_outside,
        trusted=trusted,
    )


def open_table(dataset: str, split: str | None = None, subset: str | None = None) -> Table:
    """The table behind a path or a hub name."""
    path = Path(dataset).expanduser()
    if path.is_file():
        if split is not None or subset is not None:
            raise ValueError(
                f"{path} is one file and has no split or subset; leave them out, or name another file."
            )
        return open_file(path)
    if path.is_dir():
        if subset is not None and is_saved(path / subset):
            path, subset = path / subset, None
        return _saved(path, split) if is_saved(path) else open_folder(path, split, subset)
    if path.exists():
        raise ValueError(
            f"{path} is neither a file nor a folder, but a device, FIFO or socket; give a data file or a folder."
        )
    # What can only be a path is not asked of the hub: a typo would end in an error about a connection.
    is_file = path.suffix.lower() in READERS
    is_path = dataset.startswith((".", "/", "~")) or dataset.count("/") != 1
    if is_file or is_path:
        raise missing_path(path)
    return _hub(dataset, split, subset)


class Subset(Prompts):
    """Some rows of other prompts, in a given order."""

    def __init__(self, prompts: Prompts, indices: Sequence[int]) -> None:
        self.prompts, self.indices = prompts, tuple(indices)
        self.size: int | None = len(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def drain(self) -> Mapping[str, int]:
        """Counts of the prompts below since this was last asked."""
        return self.prompts.drain()

    def left_out(self) -> Sequence[BadRow]:
        """Bad rows of the prompts below; a collection of the user's need not know any."""
        return getattr(self.prompts, "left_out", tuple)()

    def __getitem__(self, index: int) -> Prompt:
        if not 0 <= index < len(self.indices):
            raise IndexError(
                f"Index {index} lies outside a subset of {len(self.indices)} prompts."
            )
        return self.prompts[self.indices[index]]

    def content(self, index: int) -> Content:
        """Digests of what a prompt asks and shows (`mmrl.ground.contents`)."""
        return content_of(self.prompts, self.indices[index])


def split_prompts(
    prompts: Prompts, heldout: float | int = 0.05, seed: int = 0
) -> tuple[Subset, Subset]:
    """Divide prompts at random into (training, held-out); `heldout` is a share below 1 or a number of prompts.

    The same prompts and seed give the same split. Rows are divided, not pictures: a data set that asks several
    questions about one picture needs its own split.
    """
    if prompts.size is None:
        raise ValueError(
            "Endless prompts cannot be split; drawn tasks have their own: Drawn(split='heldout')."
        )
    count = heldout if isinstance(heldout, int) else max(1, round(heldout * prompts.size))
    if not 1 <= count < prompts.size:
        raise ValueError(
            f"heldout={heldout} of {prompts.size} prompts would hold out {count}; at least one must be on either side."
        )
    rng = np.random.default_rng(derive_seed("split", seed))
    order = rng.permutation(prompts.size).tolist()
    # Sorted again: either side keeps the order of the file.
    held, kept = sorted(order[:count]), sorted(order[count:])
    return Subset(prompts, kept), Subset(prompts, held)


def _drawn(dataset: str, split: str | None, limit: int | None, seed: int) -> Drawn | Closer:
    """A drawn task by name, with fields of its class behind a question mark: drawn:lookup?cells=2&size_px=32."""
    if split not in (None, "train", "heldout"):
        raise ValueError(f"{dataset} has the splits 'train' and 'heldout', not {split!r}.")
    name, _, query = dataset.removeprefix(DRAWN).partition("?")
    closer = name in get_args(CloserTask)
    # These four have arguments of their own.
    numbers = {entry.name: str(entry.type) for entry in fields(Closer if closer else Drawn)}
    for elsewhere in ("task", "split", "seed", "size"):
        del numbers[elsewhere]
    options: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in numbers:
            raise ValueError(
                f"{dataset} sets {key!r}; a drawn task has the fields {', '.join(sorted(numbers))}."
            )
        # Annotations are texts here, such as "float | None".
        number = float if "float" in numbers[key] else int
        try:
            options[key] = number(value)
        except ValueError:
            raise ValueError(
                f"{dataset} sets {key} to {value!r}; it must be a number, as in {key}=2."
            ) from None
    side: Split = "heldout" if split == "heldout" else "train"
    if closer:
        return Closer(cast(CloserTask, name), side, seed, limit, **options)
    return Drawn(cast(Task, name), side, seed, limit, **options)


def _saved(folder: Path, split: str | None) -> Table:
    """A data set that `datasets` saved."""
    import datasets

    loaded = datasets.load_from_disk(str(folder))
    return ArrowTable(one_split(loaded, split, str(folder)), folder.name, folder)


def _hub(name: str, split: str | None, subset: str | None) -> Table:
    """A data set of the hub, or from its local cache."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        # The library's errors are pages long and begin with the reason.
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(
            f"{name} is neither a local path nor could it be loaded from the hub ({reason}). "
            "Check the name, split and subset; without a connection, pass a local file or folder."
        ) from error
    return ArrowTable(one_split(loaded, split, name), name)
