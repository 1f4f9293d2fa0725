"""Benchmarks by name: `benchmark:mathvista`, or `benchmark:mathvista=FILE` for rows that lie here."""

from __future__ import annotations

import difflib

from mmrl.data.benchmarks.clips import CLIPS
from mmrl.data.benchmarks.pictures import PICTURES
from mmrl.data.benchmarks.record import Benchmark

PREFIX = "benchmark:"
BENCHMARKS: dict[str, Benchmark] = {**PICTURES, **CLIPS}


def is_benchmark(dataset: str) -> bool:
    """Does the text name a benchmark?"""
    return dataset.startswith(PREFIX)


def find(dataset: str) -> Benchmark:
    """The record behind `benchmark:NAME` or `benchmark:NAME=FILE`. Raises ValueError."""
    name = dataset.removeprefix(PREFIX).partition("=")[0]
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    close = difflib.get_close_matches(name, BENCHMARKS, 1)
    hint = f" Did you mean {PREFIX}{close[0]}?" if close else ""
    raise ValueError(f"There is no benchmark {name!r}.{hint} All: {', '.join(BENCHMARKS)}.")


def place_of(
    dataset: str, split: str | None = None, subset: str | None = None
) -> tuple[str, str | None, str | None]:
    """Where the rows lie: (file or hub name, split, subset); what is not given is the record's. Raises ValueError."""
    benchmark = find(dataset)
    name, _, file = dataset.removeprefix(PREFIX).partition("=")
    if benchmark.form == "span":
        raise ValueError(
            f"{benchmark.title} asks for spans of clips: give its annotations themselves, --dataset FILE --video-root "
            "FOLDER; their format is recognised."
        )
    if file:
        return file, split, subset
    if not benchmark.hub:
        raise ValueError(
            f"{benchmark.title} lies in no data set of the hub that is known here; name its file: "
            f"{PREFIX}{name}=FILE.jsonl, with the columns {', '.join(benchmark.read)}."
        )
    if benchmark.subsets and subset not in benchmark.subsets:
        given = "none is given" if subset is None else f"--data.subset is {subset!r}"
        raise ValueError(
            f"{benchmark.title} is measured by subset, and {given}; choose with --data.subset among "
            f"{', '.join(benchmark.subsets)}."
        )
    return benchmark.hub, split or benchmark.split, subset or benchmark.subset
