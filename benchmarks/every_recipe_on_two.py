"""Every recipe that trains, on two processes and on one: two steps of its embedded preset, all metrics compared.

    python benchmarks/every_recipe_on_two.py [RECIPE ...]

Processes are forks of this one, connected as torchrun connects them, weights cut over both (gloo, one thread each).
`value` is the number of recipes with a metric that differs by more than 1e-4 (by relation, above 1 by size), or that do
not come to their end; the goal is none. Embedded models are warmed up first if they are not in the cache, which takes
minutes. `recipes.grpo`, which is a step in plain code, runs in one process only.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import ROOT, result, say, versions

from mmrl.recipes.shared.embedded import warm_model
from tests.on_two import differences, trained

FLAGS: dict[str, dict[str, object]] = {
    "seele": {"sampling.group-size": 8},  # two in each round
    "mssr": {"sampling.group-size": None},  # one answer each is the method
    "pearl": {"sampling.group-size": 3},
    "sft": {"sampling.group-size": None, "sampling.max-tokens": None},
}
"""Flags that a recipe does not take like the others."""
ALONE = ("grpo",)
LIMIT = 1800.0
"""Seconds for one run, with the warm-up of a model that nobody needed before."""


def training() -> list[str]:
    """Names of the recipes that train on several processes."""
    found: list[str] = []
    for file in sorted((ROOT / "recipes").glob("[a-z]*.py")):
        recipe = importlib.import_module(f"mmrl.recipes.{file.stem}")
        main = getattr(recipe, "main", None)
        trains = main is not None and "run" in inspect.signature(main).parameters
        if trains and hasattr(recipe, "PRESETS") and file.stem not in ALONE:
            found.append(file.stem)
    return found


def compared(name: str, folder: Path) -> list[str]:
    """What is wrong with a recipe on two processes, in words."""
    given = FLAGS.get(name, {})
    alone, (ended,) = trained(name, 1, folder / "one", given, LIMIT)
    if ended.code:
        return [f"alone it ended with {ended.code}: {ended.said[-2000:]}"]
    both, ends = trained(name, 2, folder / "two", given, LIMIT)
    codes = [end.code for end in ends]
    if any(codes):
        return [f"they ended with {codes}: {ends[0].said[-2000:]}{ends[1].said[-2000:]}"]
    return differences(alone, both)


def main() -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", help="all that train, if none is named")
    names = parser.parse_args().recipes or training()
    torch.set_num_threads(1)
    warm_model()  # and what a model imports when it is first used: once here, not in each fork
    say(versions("torch", "transformers"))
    wrong: dict[str, list[str]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            found = compared(name, Path(scratch))
        say(f"{name}: " + ("the same" if not found else "\n  ".join(found[:8])))
        if found:
            wrong[name] = found[:3]
    more = {"recipes": len(names), "wrong": wrong}
    result("every_recipe_on_two", len(wrong), 0, "recipes that differ on two processes", **more)


if __name__ == "__main__":
    main()
