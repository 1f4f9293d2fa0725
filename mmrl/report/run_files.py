"""The files of a run, read as they lie: of a run that is under way, was stopped, or died in the middle of a line.

Nothing here is trusted: a line that is no object is counted and left out, a value of another kind than it should be is
treated as missing, and a folder needs no file but `metrics.jsonl` or `config.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What the folder of one run holds."""

    folder: Path
    config: Row
    metrics: Sequence[Row]
    samples: Sequence[Row]
    closeups: Sequence[Row]
    evaluations: Sequence[Row]
    skipped: Sequence[Row]
    quarantine: Sequence[Row]
    finished: bool
    damaged: Mapping[str, int] = field(default_factory=dict)
    """File -> lines that cannot be read."""
    changed: float = 0.0
    """When metrics were last written, in seconds since 1970."""

    @property
    def name(self) -> str:
        """What the run is called on the page: its folder's name."""
        return self.folder.resolve().name

    @property
    def steps(self) -> list[int]:
        """The steps with metrics, rising."""
        return [row["step"] for row in self.metrics]

    @property
    def last_step(self) -> int:
        """The last step with metrics; 0 for none."""
        return max(self.steps, default=0)

    @property
    def settings(self) -> Row:
        """The settings of `config.json`."""
        return mapping(self.config.get("settings"))

    @property
    def environment(self) -> Row:
        """Versions, command and start, of `config.json`."""
        return mapping(self.config.get("environment"))

    def names(self) -> list[str]:
        """All metrics that were ever logged, sorted."""
        found: set[str] = set()
        for row in self.metrics:
            found.update(row)
        return sorted(found - {"step"})

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) where a metric was logged and is a finite number."""
        found: list[tuple[int, float]] = []
        for row in self.metrics:
            value = number(row.get(name))
            if value is not None:
                found.append((row["step"], value))
        return found


def read_run(folder: Path) -> RunFiles:
    """Read a run's folder. Raises ValueError for one that holds no run."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; name the folder of a run.")
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no run: neither metrics.jsonl nor config.json is in it. Name the folder that a recipe "
            "wrote (--run.output, runs/NAME by default)."
        )
    damaged: dict[str, int] = {}

    def rows(name: str) -> list[Row]:
        found, bad = objects(folder / name)
        if bad:
            damaged[name] = bad
        return found

    stepped = {name: _with_steps(rows(f"{name}.jsonl")) for name in STEPPED}
    config, whole = read_object(folder / "config.json")
    if not whole:
        damaged["config.json"] = 1
    return RunFiles(
        folder=folder,
        config=config,
        metrics=_last_of_each_step(stepped["metrics"]),
        samples=stepped["samples"],
        closeups=stepped["closeups"],
        evaluations=stepped["eval"],
        skipped=rows("skipped.jsonl"),
        quarantine=rows("quarantine.jsonl"),
        finished=(folder / "finished.json").is_file(),
        damaged=damaged,
        changed=metrics.stat().st_mtime if metrics.is_file() else 0.0,
    )


STEPPED = ("metrics", "samples", "closeups", "eval")
"""Files whose rows belong to steps."""


def objects(file: Path) -> tuple[list[Row], int]:
    """The objects of a file of JSON lines, and how many lines are none; a last line without end is being written."""
    if not file.is_file():
        return [], 0
    found: list[Row] = []
    bad = 0
    # Answers may hold any character, so only "\n" ends a line.
    *lines, unfinished = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for line in [*lines, unfinished]:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            bad += line is not unfinished
            continue
        if isinstance(row, dict):
            found.append(row)
        else:
            bad += 1
    return found, bad


def read_object(file: Path) -> tuple[Row, bool]:
    """The object in a JSON file, empty without one; and whether the file is absent or whole."""
    if not file.is_file():
        return {}, True
    try:
        found = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return {}, False
    return (found, True) if isinstance(found, dict) else ({}, False)


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def text(value: object) -> str:
    """A value as text; what is none is written as JSON would write it."""
    return (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    )


def mapping(value: object) -> Row:
    """A mapping, or an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def listing(value: object) -> list[Any]:
    """A list, or an empty one in the place of anything else."""
    return value if isinstance(value, list) else []


def _with_steps(rows: Sequence[Row]) -> list[Row]:
    # Not isinstance: true and false are whole numbers to Python.
    stepped = [row for row in rows if type(row.get("step")) is int]
    return [row for row in stepped if row["step"] >= 0]


def _last_of_each_step(rows: Sequence[Row]) -> list[Row]:
    """One row per step, the one written last, in the order of steps."""
    found = {row["step"]: row for row in rows}
    return [found[step] for step in sorted(found)]
