"""A frozen data set on disk: parquet shards that `datasets.load_dataset(folder)` reads, with TRL's column names.

Columns: `prompt` (a chat), `images` (PNG, lossless), `videos` (lists of PNG frames) and `video_times` in the order of
the chat's visual parts; `answer` and `solution` (the true answer bare and as a full reply); `task`, `truth` and
`surface` (JSON, what `scoring` needs); `id`, `knobs`, `recipe`, `source` (JSON, what rebuilds the sample). Beside the
shards: README.md (the card), manifest.json, hashes.npy (uint64 perceptual hashes of the media, to keep
near-duplicates out of training), quarantine.jsonl if media were skipped.

The rows are the stream's samples in order, whatever the number of workers. The folder appears only when it is complete,
with a marker of ours (`mmrl/ground/outputs.py`). Overwriting replaces our own files in such a folder and nothing else.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count as counting
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Array, Sample
from mmrl.data.pretext.stream.media import perceptual_hash
from mmrl.data.pretext.stream.stream import GIVE_UP, SampleStream
from mmrl.ground import outputs
from mmrl.ground.outputs import Kind, OutputError
from mmrl.ground.progress import with_progress
from mmrl.ground.scratch import draft_beside, scratch_folder

FILES = (
    *("data/train-?????-of-?????.parquet", "data/test-?????-of-?????.parquet"),
    *("README.md", "manifest.json", "hashes.npy", "quarantine.jsonl"),
)
DATA_SET = Kind("data set", "--output", "--overwrite", FILES)
CHUNK = 16
"""Indices that one worker makes at a time."""
ROWS_PER_GROUP, GROUPS_PER_SHARD = 50, 40
IMAGE = {"_type": "Image"}
TEXT = {"dtype": "string", "_type": "Value"}
NUMBER = {"dtype": "float64", "_type": "Value"}
TEXT_COLUMNS = (
    *("answer", "solution", "task", "truth"),
    *("surface", "knobs", "recipe", "source"),
)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    rows: int
    counts: Mapping[str, int]


def export(
    make_stream: Callable[[], SampleStream],
    folder: Path,
    count: int,
    *,
    split: str = "train",
    workers: int = 1,
    overwrite: bool = False,
    start: int = 0,
    about: Mapping[str, Any] | None = None,
    quarantine: Path | None = None,
) -> Exported:
    """Write `count` samples from index `start`. `make_stream` must give the same stream in every process.

    `quarantine`: a file that lists skipped media, which moves into the data set. Raises ValueError if the folder is not
    empty (unless `overwrite`, and then if it is none of ours), or if the stream gets stuck.
    """
    _refuse_unfit(folder, overwrite)
    # Before the workers are forked, so that all share it: those that are ended do not clean up.
    scratch_folder()
    # Written beside the folder and renamed at the end: a killed export leaves no half data set behind.
    with draft_beside(folder) as draft:
        outputs.claim(draft, DATA_SET)
        (draft / "data").mkdir()
        counts: Counter[str] = Counter()
        hashes: list[int] = []
        rows = islice(_rows(make_stream, start, workers, counts, hashes), count)
        shards = _write_shards(with_progress(rows, count, "rows written"), draft / "data")
        # The number of shards is part of their names, and known only now.
        for place, shard in enumerate(shards):
            shard.rename(shard.with_name(f"{split}-{place:05d}-of-{len(shards):05d}.parquet"))
        np.save(draft / "hashes.npy", np.unique(np.array(hashes, dtype=np.uint64)))
        manifest = {
            "rows": count,
            "split": split,
            "start": start,
            "counts": dict(counts),
            **(about or {}),
        }
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str))
        (draft / "README.md").write_text(_card(manifest))
        _write_quarantine(quarantine, draft)
        draft.chmod(0o755)  # hidden from others until it is whole
        _publish(draft, folder, overwrite)
    return Exported(folder, count, counts)


def _refuse_unfit(folder: Path, overwrite: bool) -> None:
    """See that the folder may be written, before hours go into it. Raises `OutputError`."""
    outputs.refuse_place(folder, DATA_SET.output)
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not overwrite):
        raise OutputError(f"{folder} is not empty; give another --output or pass --overwrite.")
    outputs.refuse_overwriting(folder, DATA_SET)


def _publish(draft: Path, folder: Path, overwrite: bool) -> None:
    """Give the draft its name; in an old folder of ours its files take the place of the old ones."""
    _refuse_unfit(folder, overwrite)  # once more: hours have passed
    if not folder.exists():
        os.replace(draft, folder)
        return
    with outputs.alone(folder, DATA_SET.output):
        # File by file, since those of others stay where they are.
        outputs.clear(folder, DATA_SET)
        for file in sorted(file for file in draft.rglob("*") if file.is_file()):
            place = folder / file.relative_to(draft)
            place.parent.mkdir(exist_ok=True)
            os.replace(file, place)


def _write_quarantine(file: Path | None, draft: Path) -> None:
    """List the skipped media in the data set, each once."""
    if file is not None and file.is_file():
        # Each worker lists what it met: the same file may stand there several times.
        lines = dict.fromkeys(file.read_text(encoding="utf-8").splitlines())
        text = "".join(f"{line}\n" for line in lines)
        (draft / "quarantine.jsonl").write_text(text, encoding="utf-8")


def row_of(sample: Sample) -> dict[str, Any]:
    """One row, media encoded."""
    task = find(sample.task)
    images = [visual for visual in sample.visuals if not visual.is_video]
    clips = [visual for visual in sample.visuals if visual.is_video]
    answer = task.format(sample.truth)
    return {
        "id": sample.id,
        "prompt": [_message(message) for message in sample.messages],
        "images": [_png(visual.pixels) for visual in images],
        "videos": [[_png(frame) for frame in visual.pixels] for visual in clips],
        "video_times": [visual.times.tolist() for visual in clips if visual.times is not None],
        "answer": answer,
        "solution": sample.surface.wrap(answer),
        "task": sample.task,
        "truth": json.dumps(sample.truth),
        "surface": json.dumps(asdict(sample.surface)),
        "knobs": json.dumps(dict(sample.knobs)),
        "recipe": json.dumps(dict(sample.recipe)),
        "source": json.dumps(sample.meta.get("source", {})),
    }


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    # Visual parts have no text; in a table of fixed columns they need an empty one.
    content = [{"text": None, **part} for part in message["content"]]
    return {"role": message["role"], "content": content}


def _rows(
    make_stream: Callable[[], SampleStream],
    start: int,
    workers: int,
    counts: Counter[str],
    hashes: list[int],
) -> Iterator[dict[str, Any]]:
    """Rows in the order of the indices, without end; `counts` and `hashes` are filled on the way."""
    chunks = (range(first, first + CHUNK) for first in counting(start, CHUNK))
    pool = None
    if workers > 1:
        # Forked: `make_stream` and an open source need not be pickled.
        context = multiprocessing.get_context("fork")
        pool = context.Pool(workers, _start, (make_stream,))
        made = _in_order(pool, chunks, workers)
    else:
        _start(make_stream)
        made = map(_make, chunks)
    failed = 0
    try:
        for rows, seen, change in made:
            counts.update(change)
            hashes.extend(seen)
            failed = 0 if rows else failed + CHUNK
            if failed >= GIVE_UP:
                reasons = ", ".join(f"{key} ({n})" for key, n in counts.most_common(6))
                raise ValueError(
                    f"{failed} indices in a row gave no sample. Most frequent: {reasons}. Use other media."
                )
            yield from rows
    finally:
        # Also when the reader stops early: the workers would go on with chunks that nobody wants.
        if pool is not None:
            pool.terminate()


def _in_order(pool: Any, chunks: Iterator[range], workers: int) -> Iterator[Any]:
    """Results in the order of the chunks, at most two chunks per worker ahead of the reader."""
    waiting = [pool.apply_async(_make, (next(chunks),)) for _ in range(2 * workers)]
    while True:
        done = waiting.pop(0).get()
        waiting.append(pool.apply_async(_make, (next(chunks),)))
        yield done


_STREAM: list[SampleStream] = []
"""The stream of this process; set by `_start`, read by `_make`: a pool hands its workers no object of their own."""


def _start(make_stream: Callable[[], SampleStream]) -> None:
    _STREAM[:] = [make_stream()]


def _make(indices: range) -> tuple[list[dict[str, Any]], list[int], Counter[str]]:
    """Rows, media hashes and what changed in the counts, for some indices."""
    stream = _STREAM[0]
    before, rows, hashes = Counter(stream.counts), [], []
    for index in indices:
        sample = stream.sample(index)
        if sample is not None:
            rows.append(row_of(sample))
            hashes.extend(perceptual_hash(picture) for picture in stream.pictures(sample))
    return rows, hashes, stream.counts - before


def _write_shards(rows: Iterator[dict[str, Any]], folder: Path) -> list[Path]:
    import pyarrow
    import pyarrow.parquet as parquet

    schema, shards = _schema(pyarrow), []
    while first := list(islice(rows, ROWS_PER_GROUP)):
        shards.append(folder / f"part-{len(shards):05d}.parquet")
        # Not compressed: pictures are PNG already.
        with parquet.ParquetWriter(shards[-1], schema, compression="none") as writer:
            writer.write_table(pyarrow.Table.from_pylist(first, schema=schema))
            for _ in range(GROUPS_PER_SHARD - 1):
                if group := list(islice(rows, ROWS_PER_GROUP)):
                    writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
    return shards


def _schema(pyarrow: Any) -> Any:
    text, real, list_of = pyarrow.string(), pyarrow.float64(), pyarrow.list_
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    part = pyarrow.struct([("type", text), ("text", text)])
    message = pyarrow.struct([("role", text), ("content", list_of(part))])
    fields = [
        ("id", text),
        ("prompt", list_of(message)),
        ("images", list_of(image)),
        ("videos", list_of(list_of(image))),
        ("video_times", list_of(list_of(real))),
        *((name, text) for name in TEXT_COLUMNS),
    ]
    # What `datasets` reads instead of guessing: without it the PNG bytes would stay bytes.
    message_feature = {"role": TEXT, "content": _list_feature({"type": TEXT, "text": TEXT})}
    features = {
        "id": TEXT,
        "prompt": _list_feature(message_feature),
        "images": _list_feature(IMAGE),
        "videos": _list_feature(_list_feature(IMAGE)),
        "video_times": _list_feature(_list_feature(NUMBER)),
        **dict.fromkeys(TEXT_COLUMNS, TEXT),
    }
    info = json.dumps({"info": {"features": features}})
    return pyarrow.schema(fields, metadata={"huggingface": info})


def _list_feature(feature: Mapping[str, Any]) -> dict[str, Any]:
    return {"feature": dict(feature), "_type": "List"}


def _png(pixels: Array) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _card(manifest: Mapping[str, Any]) -> str:
    made = {}
    for key, number in manifest["counts"].items():
        if key.startswith("made/"):
            made[key.removeprefix("made/")] = number
    lines = [f"| {task} | {number} |" for task, number in sorted(made.items())]
    return "\n".join(
        [
            "---",
            "configs:",
            "- config_name: default",
            "  data_files:",
            f"  - split: {manifest['split']}",
            f"    path: data/{manifest['split']}-*.parquet",
            "---",
            "# Pretext tasks",
            "",
            f"{manifest['rows']} self-supervised questions with verifiable answers: preset",
            f"`{manifest.get('preset', '')}`, seed {manifest.get('seed', 0)}, split `{manifest['split']}`.",
            "",
            "Load with `datasets.load_dataset(<this folder>)`; mark answers with",
            "`mmrl.data.pretext.stream.scoring.score_row` or, in TRL,",
            "`mmrl.data.pretext.stream.scoring.trl_reward`.",
            "",
            "| task | made (all indices tried) |",
            "| --- | --- |",
            *lines,
            "",
        ]
    )
