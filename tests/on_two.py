"""A recipe through its command line in one process and in several that are ranks of one run, and what differs.

Tests run a few recipes, `benchmarks/every_recipe_on_two.py` all of them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrl.recipes.shared.launch import launch
from mmrl.training.tracking import read_metrics
from tests.several import Outcome, several

MAY_DIFFER = ("time/", "memory/", "rollout/pieces", "rollout/refills")
"""What is measured, and into how many pieces each process cuts its own sampling."""
NEAR = 1e-4
"""Adam makes of the last bits of a first update a little more in the second; by relation, above 1 by size."""
FLAGS = {
    "run.steps": 2,
    # Neither even nor few: one process has more than the other, and both have some that learn.
    "run.prompts-per-step": 5,
    "run.eval-prompts": 3,
    "run.save-every": 0,
    "sampling.group-size": 4,
    "sampling.max-tokens": 8,
    "monitor.probe-every": 1,
}
Row = Mapping[str, float]


def flags_of(given: Mapping[str, object]) -> list[str]:
    """As on a command line; what is None is left to the preset."""
    named = {**FLAGS, **given}
    return [
        word
        for flag, value in named.items()
        if value is not None
        for word in (f"--{flag}", str(value))
    ]


def trained(
    name: str, world: int, output: Path, given: Mapping[str, object], limit: float = 240.0
) -> tuple[list[Row], list[Outcome]]:
    """A recipe's embedded preset on so many processes: its metrics, step by step, and how each process ended."""
    argv = ["embedded", *flags_of(given), "--run.output", str(output)]
    ended = several(world, launched, name, argv, limit=limit)
    rows = read_metrics(output) if (output / "metrics.jsonl").is_file() else []
    return rows, ended


def launched(name: str, argv: Sequence[str]) -> None:
    """A recipe in this process, as from its command line."""
    recipe = importlib.import_module(f"mmrl.recipes.{name}")
    launch(recipe.main, recipe.PRESETS, argv)


def differences(one: Sequence[Row], other: Sequence[Row], near: float = NEAR) -> list[str]:
    """What is not the same in two runs, in words; nothing if all steps and metrics are."""
    found = [] if len(one) == len(other) else [f"{len(one)} rows, {len(other)} rows"]
    for ours, theirs in zip(one, other, strict=False):
        for name in sorted(ours.keys() | theirs.keys()):
            if name.startswith(MAY_DIFFER):
                continue
            first, second = ours.get(name), theirs.get(name)
            if not _close(first, second, near):
                found.append(f"step {ours['step']}: {name} {first} and {second}")
    return found


def _close(one: object, other: object, near: float) -> bool:
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return one == other
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return abs(one - other) <= near * max(1.0, abs(one))
