"""`mmrl mixture RUN ...`: which weights of the data sets to try next, from runs that are finished (MoDoMoDo).

A run tells its weights in `config.json` and its scores in `metrics.jsonl`. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrl.ground.outputs import refuse_report, write_report
from mmrl.ground.printable import printable, show
from mmrl.report.mixture_fit import (
    LEAST,
    Numbers,
    Proposal,
    Surrogate,
    fit,
    left_out_means,
    left_out_predictions,
    missing_seeds,
    noise,
    propose,
    same_mixtures,
    terms,
)
from mmrl.report.run_files import RunFiles, mapping, number, read_run

REPORT = "mixture"
SCORE = "eval/accuracy"
HELP = """usage: mmrl mixture RUN RUN RUN ... [--score NAME] [--step N] [--output FILE]

Which weights of the data sets to try next. A quadratic surrogate of the score is fitted on runs of `mmrl modomodo` or
`mmrl recap` that differ in --mix.weights, and the weights with the best prediction are proposed, with the error that
the surrogate has on runs which it has not seen. Begin with each data set alone, all but one, and all.

  --score NAME      metric that is fitted (eval/accuracy; of one data set eval/NAME/accuracy); given several times,
                    the mean of them
  --step N          scores of this step instead of the last one that was evaluated
  --output FILE     also write the numbers to this JSON file; an earlier report is replaced, no other file"""
TELLING = 0.9
"""A surrogate whose error is above this share of the mean's error tells nothing."""


@dataclass(frozen=True)
class Tried:
    """One run: its weights, by name and summing to 1, and its score."""

    name: str
    weights: dict[str, float]
    score: float
    step: int
    prompts: float | None
    """Prompts that were asked in training, where the log has them all."""


def mixture(args: Sequence[str]) -> None:
    """The command; errors of the user end it with their message."""
    if not args or {"-h", "--help"} & set(args):
        show(HELP)
        return
    try:
        folders, scores, step, output = _read(args)
        refuse_report(output, REPORT)
        tried, left_out = read_tried(folders, scores, step)
        found = proposed(tried, left_out, scores)
        if output is not None:
            write_report(output, REPORT, found)
        show(table(found))
    except (ValueError, OSError) as error:
        sys.exit(printable(f"mmrl mixture: {error}"))


def read_tried(
    folders: Sequence[Path], scores: Sequence[str], step: int | None = None
) -> tuple[list[Tried], list[str]]:
    """The runs that can be compared, and why others cannot. Raises ValueError for runs that do not belong together."""
    runs = [read_run(folder) for folder in dict.fromkeys(folders)]
    tried: list[Tried] = []
    left_out: list[str] = []
    for run in runs:
        weights = _weights(run)
        if not run.finished and step is None:
            left_out.append(
                f"{run.folder}: it is not finished (--step N compares runs before their end)"
            )
            continue
        row = _evaluated(run, scores, step)
        if row is None:
            at = "no step" if step is None else f"other steps than {step}"
            left_out.append(f"{run.folder}: {' and '.join(scores)} logged at {at}")
            continue
        values = [number(row[name]) or 0.0 for name in scores]
        tried.append(
            Tried(run.name, weights, sum(values) / len(values), row["step"], _prompts(run))
        )
    _refuse_strangers(runs)
    return tried, left_out


def proposed(
    tried: Sequence[Tried], left_out: Sequence[str] = (), scores: Sequence[str] = (SCORE,)
) -> dict[str, Any]:
    """What the report holds: runs, fit, its errors, the proposal. Raises ValueError for too few different mixtures."""
    names = list(tried[0].weights) if tried else []
    weights = np.array([[run.weights[name] for name in names] for run in tried])
    values = np.array([run.score for run in tried])
    mixtures = int(same_mixtures(weights).max()) + 1 if tried else 0
    if mixtures <= LEAST:
        raise ValueError(
            f"{len(tried)} runs with {mixtures} different mixtures can be compared; a fit needs {LEAST + 1} or more."
            + "".join(f"\n  left out: {reason}" for reason in left_out)
            + _next_seeds(names, weights)
        )
    surrogate = fit(weights, values)
    guesses = left_out_predictions(weights, values)
    plain = left_out_means(weights, values)
    best = propose(surrogate, weights)
    error, of_mean = _rmse(guesses - values), _rmse(plain - values)
    return {
        "score": list(scores),
        "data_sets": names,
        "runs": [
            {**vars(run), "fitted": float(surrogate(row)), "predicted_unseen": float(guess)}
            for run, row, guess in zip(tried, weights, guesses, strict=True)
        ],
        "left_out": list(left_out),
        "mixtures": mixtures,
        "terms": terms(len(names)),
        "ridge": surrogate.ridge,
        "leave_one_out_error": error,
        "error_of_the_mean": of_mean,
        "noise": noise(weights, values),
        "matrix": surrogate.matrix.tolist(),
        "mean": surrogate.mean,
        "proposal": _told(best, names, surrogate),
        "warnings": _warnings(tried, names, mixtures, error, of_mean, noise(weights, values)),
        "missing_seeds": [_flag(names, row) for row in missing_seeds(weights)],
    }


def table(found: dict[str, Any]) -> str:
    """The report as text."""
    names, best = found["data_sets"], found["proposal"]
    width = max(len("proposed"), *(len(run["name"]) for run in found["runs"]))
    head = f"{'run':<{width}}  " + "  ".join(f"{name:>8}" for name in names)
    lines = [f"{head}     score  unseen", ""]
    for run in sorted(found["runs"], key=lambda run: -run["score"]):
        lines.append(
            _row(run["name"], run["weights"], run["score"], width)
            + f"  {run['predicted_unseen']:.4f}"
        )
    lines.append(_row("proposed", best["weights"], best["predicted"], width) + "  (predicted)")
    spread = (
        "unknown, no mixture was run twice"
        if found["noise"] is None
        else f"{found['noise']:.4f}"
    )
    lines += [
        "",
        f"error on unseen mixtures   {found['leave_one_out_error']:.4f}   (of the mean of the others "
        f"{found['error_of_the_mean']:.4f})",
        f"noise between equal runs   {spread}",
        f"surrogate                  {found['terms']} terms on {found['mixtures']} mixtures, ridge {found['ridge']:g}",
        f"distance to the nearest    {best['distance']:.3f}   (0: a mixture that was run, 1: nothing in common)",
        *(f"beware: {warning}" for warning in found["warnings"]),
        *(f"left out: {reason}" for reason in found["left_out"]),
        f"next: {best['flag']}",
    ]
    return "\n".join(lines)


def _row(name: str, weights: dict[str, float], score: float, width: int) -> str:
    shares = "  ".join(f"{weight:>8.3f}" for weight in weights.values())
    return f"{name:<{width}}  {shares}    {score:.4f}"


def _told(best: Proposal, names: Sequence[str], surrogate: Surrogate) -> dict[str, Any]:
    shares = [round(float(weight), 4) for weight in best.weights]
    return {
        "weights": dict(zip(names, shares, strict=True)),
        "predicted": best.predicted,
        "predicted_uniform": float(surrogate(np.full(len(names), 1 / len(names)))),
        "distance": best.distance,
        "flag": _flag(names, best.weights),
    }


def _warnings(
    tried: Sequence[Tried],
    names: Sequence[str],
    mixtures: int,
    error: float,
    of_mean: float,
    spread: float | None,
) -> list[str]:
    """What keeps the proposal from being trusted."""
    found: list[str] = []
    if mixtures < terms(len(names)):
        found.append(
            f"{mixtures} mixtures do not determine {terms(len(names))} terms; the ridge decides between them"
        )
    if error >= TELLING * of_mean:
        found.append(
            "on unseen mixtures the surrogate is hardly better than the mean of the others"
        )
    if spread is None:
        found.append(
            "how much one mixture varies from seed to seed is unknown; run the uniform one three times"
        )
    elif spread >= max(run.score for run in tried) - min(run.score for run in tried):
        found.append("equal runs differ as much as different mixtures")
    if len({run.step for run in tried}) > 1:
        steps = [run.step for run in tried]
        found.append(
            f"the runs were measured after {min(steps)} to {max(steps)} steps; --step N compares one"
        )
    return found


def _next_seeds(names: Sequence[str], weights: Numbers) -> str:
    if not names:
        return ""
    flags = [_flag(names, row) for row in missing_seeds(weights)]
    return "\nMixtures to begin with that were not run:" + "".join(
        f"\n  {flag}" for flag in flags
    )


def _flag(names: Sequence[str], weights: Numbers) -> str:
    pairs = [f"{name}={float(weight):.4g}" for name, weight in zip(names, weights, strict=True)]
    return f"--mix.weights {' '.join(pairs)}"


def _weights(run: RunFiles) -> dict[str, float]:
    """Share of each data set of a run. Raises ValueError for a run of one data set."""
    told = mapping(run.settings.get("domains"))
    weights = {name: number(weight) for name, weight in told.items()}
    shares = {name: weight for name, weight in weights.items() if weight is not None}
    if not shares or len(shares) < len(weights):
        raise ValueError(
            f"{run.folder} says nothing about weights of data sets; name runs of mmrl modomodo or mmrl recap."
        )
    return shares


def _evaluated(run: RunFiles, scores: Sequence[str], step: int | None) -> Any:
    """The row of metrics that has all scores: of a step, or the last one."""
    rows = [
        row for row in run.metrics if all(number(row.get(name)) is not None for name in scores)
    ]
    rows = [row for row in rows if step is None or row["step"] == step]
    known = {
        name for name in run.names() if name.startswith("eval/") and name.endswith("accuracy")
    }
    unknown = [name for name in scores if run.metrics and name not in run.names()]
    if unknown:
        raise ValueError(
            f"{run.folder} logged no {unknown[0]!r}; --score names a metric such as {', '.join(sorted(known))}."
        )
    return rows[-1] if rows else None


def _prompts(run: RunFiles) -> float | None:
    """Prompts of all data sets together, over the whole run; None for a log without."""
    counts = [
        value
        for name in run.names()
        if name.startswith("domain/") and name.endswith("/prompts")
        for _, value in run.curve(name)
    ]
    return sum(counts) if counts else None


def _refuse_strangers(runs: Sequence[RunFiles]) -> None:
    """Raise ValueError for runs of other data sets or another model than the first one."""
    for name in ("model", "dataset"):
        told = [
            mapping(mapping(run.config.get("recipe")).get("arguments")).get(name)
            for run in runs
        ]
        for run, value in zip(runs, told, strict=True):
            if value != told[0]:
                raise ValueError(
                    f"{run.folder} has another --{name} than {runs[0].folder}; scores compare only between runs that "
                    "differ in their weights."
                )
    for run in runs:
        if set(_weights(run)) != set(_weights(runs[0])):
            raise ValueError(
                f"{run.folder} mixes {sorted(_weights(run))}, and {runs[0].folder} {sorted(_weights(runs[0]))}; name "
                "runs of the same data sets (weight 0 leaves one out)."
            )


def _rmse(errors: Numbers) -> float:
    return float(np.sqrt((errors**2).mean()))


def _read(args: Sequence[str]) -> tuple[list[Path], list[str], int | None, Path | None]:
    folders: list[Path] = []
    given: dict[str, list[str]] = {"--score": [], "--step": [], "--output": []}
    left = list(args)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name in given and (equals or left):
            given[name].append(value if equals else left.pop(0))
        elif word.startswith("-"):
            what = "needs a value" if name in given else "is no flag"
            raise ValueError(f"{word} {what}.\n\n{HELP}")
        else:
            folders.append(Path(word))
    for name in ("--step", "--output"):
        if len(given[name]) > 1:
            raise ValueError(f"{name} is given {len(given[name])} times; give it once.")
    if given["--step"] and not given["--step"][0].isdigit():
        raise ValueError(f"--step is {given['--step'][0]!r}; it must be a number of a step.")
    step = int(given["--step"][0]) if given["--step"] else None
    output = Path(given["--output"][0]) if given["--output"] else None
    return folders, given["--score"] or [SCORE], step, output
