"""Do mixture weights and reweighted objectives pay, on drawn data sets? Seed mixtures, fit, proposal; RECAP on and off.

    python benchmarks/mixture_effects.py --output runs/mixtures         a quarter of an hour on one core

1. MoDoMoDo: each data set alone, all but one, and all, one run each; `mmrl mixture` proposes the next weights; these
   and the uniform ones are run with further seeds, and compared seed by seed.
2. RECAP with and without its weights (`--recap.window 0`), seed by seed, on the same uniform mixture.

Scores are mean greedy accuracy over three data sets of held-out questions. A claim needs a mean difference above its
95 % interval over the seeds. Runs that are there are not run again.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import tyro

from mmrl.recipes.__main__ import main as command
from mmrl.report.mixture_fit import seed_mixtures
from mmrl.rewards.functions import answer_format, tagged_accuracy
from mmrl.rewards.parts import in_process

NAMES = ("shapes", "gaps", "counts")
REWARDED = """\
shapes='drawn:lookup?cells=2&size_px=32'
gaps='drawn:lookup?cells=2&size_px=32&ask_empty=1'
counts='drawn:counting?cells=2&size_px=32'"""
EQUAL = ("--run.prompts-per-step", "6", "--run.eval-prompts", "120", "--monitor.probe-every", "0",
         "--run.save-every", "0", "--run.sample-every", "0")  # fmt: skip
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
"""Number of seeds -> 97.5 % quantile of Student's t."""


def main(output: Path, steps: int = 24, seeds: int = 5) -> None:
    """Run what is missing and print the table.

    Args:
        output: Folder of the runs.
        steps: Of each run.
        seeds: Of each side of a comparison, 2 to 8.
    """
    torch.set_num_threads(1)
    for paid in (tagged_accuracy, answer_format):
        in_process(paid)  # ours, which end by themselves
    length = ("--run.steps", str(steps))
    first: list[Path] = []
    for number, row in enumerate(seed_mixtures(len(NAMES))):
        first.append(trained("modomodo", output / f"seed{number}", (*weights(row), *length)))
    report = output / "next.json"
    called("mixture", *map(str, first), "--output", str(report))
    found = json.loads(report.read_text(encoding="utf-8"))
    best = np.array([found["proposal"]["weights"][name] for name in NAMES])
    uniform = np.full(len(NAMES), 1 / len(NAMES))
    print(
        "| comparison | score | without | difference | verdict |\n| --- | --- | --- | --- | --- |"
    )
    sides: list[list[float]] = []
    for name, row in (("best", best), ("uniform", uniform)):
        runs = [
            trained("modomodo", output / f"{name}{seed}", (*weights(row), *length), seed)
            for seed in range(1, seeds + 1)
        ]
        sides.append([score(run) for run in runs])
    print(line("MoDoMoDo: proposed weights above uniform ones", *sides))
    recap = []
    for window in ("5", "0"):
        given = ("--dataset", REWARDED, "--recap.window", window, *length)
        recap.append(scores("recap", output / f"recap{window}", given, seeds))
    print(line("RECAP: weighted objectives above plain ones", *recap))
    fitted = f"{found['leave_one_out_error']:.4f} (mean of the others: {found['error_of_the_mean']:.4f})"
    print(
        f"\nerror of the surrogate on unseen mixtures {fitted}; proposed {found['proposal']['flag']}"
    )


def scores(recipe: str, folder: Path, given: Sequence[str], seeds: int) -> list[float]:
    """The score of each seed, from 1 on; runs lie in FOLDER-SEED."""
    places = [folder.with_name(f"{folder.name}-{seed}") for seed in range(1, seeds + 1)]
    return [score(trained(recipe, place, given, n)) for n, place in enumerate(places, 1)]


def weights(row: np.ndarray) -> tuple[str, ...]:
    """The flag of a mixture."""
    return (
        "--mix.weights",
        *(f"{name}={share:.4g}" for name, share in zip(NAMES, row, strict=True)),
    )


def trained(recipe: str, folder: Path, given: Sequence[str], seed: int = 0) -> Path:
    """A finished run; made if it is not there."""
    if not (folder / "finished.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Named, for a --dataset of its own would otherwise mean a published preset.
        called(
            recipe,
            "embedded",
            *given,
            *EQUAL,
            "--run.seed",
            str(seed),
            "--run.output",
            str(folder),
        )
    return folder


def called(*args: str) -> None:
    """A command of mmrl; ends this script if it fails.

    In this process: a start takes longer than several steps.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        command(list(args))
    print("mmrl", *args[:1], args[-1], "done", file=sys.stderr, flush=True)


def score(folder: Path) -> float:
    """Mean accuracy over the data sets at the end."""
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(rows[-1])
    return mean(last[f"eval/{name}/accuracy"] for name in NAMES)


def line(claim: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    """A row of the table: means, paired difference with its interval, and what that shows."""
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    middle, count = mean(differences), len(differences)
    half = STUDENT[count] * stdev(differences) / math.sqrt(count)
    verdict = "shown" if middle > half else "opposite" if -middle > half else "not shown"
    return f"| {claim} | {mean(ours):.3f} | {mean(theirs):.3f} | {middle:+.3f} ± {half:.3f} | {verdict} |"


if __name__ == "__main__":
    tyro.cli(main)
