"""The report of one run, or of several side by side, from the files in their folders.

write_run_report(folder)            RUN/report.html of one run
write_report(folders, output)       one run, or several compared
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.ground.outputs import refuse_file
from mmrl.report import curves, evaluation, failures, samples
from mmrl.report.page import is_page, render, write_page
from mmrl.report.run_files import Row, RunFiles, mapping, read_run, text

FILE = "report.html"
"""Name of a run's own report in its folder."""


def write_run_report(folder: Path) -> Path:
    """Write the report of one run into its folder; returns the file."""
    file = folder / FILE
    page = report_page([read_run(folder)])
    try:
        write_page(file, page)
    except OSError:
        # On a full disk, half a page would take the room that a checkpoint needs.
        (folder / f".{FILE}.draft").unlink(missing_ok=True)
        raise
    return file


def write_report(folders: Sequence[Path], output: Path | None) -> Path:
    """Write the report of a run, or of several compared; returns the file.

    Without `output` a single run's lies in its folder. Raises ValueError for a folder without a run, for several
    without `output`, and for an output that is a file of somebody else.
    """
    runs = [read_run(folder) for folder in folders]
    if output is None:
        if len(runs) != 1:
            raise ValueError(
                f"{len(runs)} runs are compared on one page; say where it goes: --output compared.html."
            )
        output = folders[0] / FILE
    refuse_file(output, lambda page: is_page(page, "report"), "report of mmrl")
    write_page(output, report_page(runs))
    return output


@dataclass(frozen=True)
class Shown:
    """One run on the page."""

    label: str
    colour: int
    run: RunFiles
    evaluations: Sequence[evaluation.Evaluation]
    failures: failures.Failures

    @property
    def state(self) -> str:
        """Finished, or how far it came and when."""
        if self.run.finished:
            return "finished"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.run.changed))
        return f"not finished; step {self.run.last_step} at {when}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What was run, in a few words."""
        settings, machine = self.run.settings, self.run.environment
        policy = mapping(settings.get("policy"))
        told = {
            "command": _command(text(machine.get("command", ""))),
            "started": machine.get("started"),
            "steps": self.run.last_step,
            "duration": self.duration,
            "model": policy.get("source"),
            "data": _data(mapping(settings.get("prompts"))),
            "folder": str(self.run.folder),
            "versions": _versions(machine),
        }
        return [(name, text(value)) for name, value in told.items() if value]

    @property
    def duration(self) -> str:
        """Time in steps and evaluations, as logged."""
        names = ("time/total", "time/evaluate", "time/probe")
        seconds = sum(value for name in names for _, value in self.run.curve(name))
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02} h" if seconds else ""

    @property
    def tiles(self) -> list[dict[str, Any]]:
        """The numbers that are looked at first: how they began, and how they are now."""
        shown = []
        for name, title in TILES.items():
            curve = self.run.curve(name)
            # An evaluation is a measurement of its own; single steps are noisy, so a tenth stands for each end.
            pair = curves.ends(curve)
            if pair is None:
                continue
            if name.startswith("eval/"):
                pair = curve[0][1], curve[-1][1]
            before, after = pair
            shown.append({"title": title, "before": before, "after": after})
        return shown

    @property
    def branches(self) -> list[dict[str, Any]]:
        """Means of every metric of a branch, at both ends of the run."""
        found = []
        for name in self.run.names():
            prefix, _, rest = name.partition("/")
            pair = curves.ends(self.run.curve(name))
            if prefix != "branch" or pair is None:
                continue
            branch, _, metric = rest.partition("/")
            before, after = pair
            row = {"branch": branch, "metric": metric}
            found.append({**row, "before": before, "after": after})
        return found

    @property
    def judge_prompts(self) -> list[tuple[str, Row]]:
        """Name and version, digest, text of each prompt that a judge was asked with."""
        told = mapping(self.run.settings.get(JUDGE_PROMPTS))
        return [(name, mapping(told[name])) for name in sorted(told)]

    @property
    def probes(self) -> list[Mapping[str, Any]]:
        """Every blind probe."""
        return [row for row in self.run.metrics if row.get("probe/accuracy") is not None]


JUDGE_PROMPTS = "judge_prompts"
"""Setting of a run with the prompts of its judges; they have a place of their own on the page."""
TILES = {
    "eval/accuracy": "held-out accuracy",
    "reward/total": "reward",
    "answer/length": "tokens of an answer",
    "reward/even_groups": "groups without signal",
}
"""Metric -> what the page calls it."""


def report_page(runs: Sequence[RunFiles]) -> str:
    """The page about one run, or several."""
    labels = labelled(runs)
    shown = [
        Shown(
            name,
            place % curves.COLOURS,
            run,
            evaluation.evaluations(run),
            failures.collect(run),
        )
        for place, (name, run) in enumerate(zip(labels, runs, strict=True))
    ]
    groups = curves.chart_groups(runs, labels)
    charts = [chart for group in groups for chart in group.charts]
    # The room on the page is shared.
    taken = [samples.collect(run, 1 / len(runs)) for run in runs]
    heat, offsets = [], []
    for found in taken:
        offsets.append(len(heat))
        heat += found.heat
    title = " · ".join(labels[:4])
    return render(
        "report.html",
        kind="report",
        title=f"{title} – mmrl report",
        heading=title,
        runs=shown,
        groups=groups,
        chart_data=[chart.payload() for chart in charts],
        heat_data=heat,
        samples=list(zip(shown, taken, offsets, strict=True)),
        settings=settings_table(runs),
        questions=_over_time(runs[0]) if len(runs) == 1 else None,
        pairs=compared(shown) if len(runs) > 1 else [],
        format=curves.label,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
    )


def labelled(runs: Sequence[RunFiles]) -> list[str]:
    """A name for each run that no other has."""
    names = [run.name for run in runs]
    labels: list[str] = []
    for run, name in zip(runs, names, strict=True):
        label = str(run.folder) if names.count(name) > 1 else name
        again = labels.count(label)
        labels.append(f"{label} ({again + 1})" if again else label)
    return labels


def settings_table(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Every setting by its full name, with its value in each run, those that differ first."""
    flat = [dict(flattened(_short(run.settings))) for run in runs]
    names = sorted({name for values in flat for name in values})
    rows = []
    for name in names:
        values = [settings.get(name, "–") for settings in flat]
        differs = len(set(values)) > 1
        rows.append({"name": name, "values": values, "differs": differs})
    return sorted(rows, key=lambda row: not row["differs"])


def _short(settings: Row) -> Row:
    """Settings without the texts that stand elsewhere on the page."""
    prompts = mapping(settings.get(JUDGE_PROMPTS))
    short = {
        name: {key: value for key, value in mapping(told).items() if key != "text"}
        for name, told in prompts.items()
    }
    return {**settings, JUDGE_PROMPTS: short} if short else settings


def flattened(value: object, path: str = "") -> list[tuple[str, str]]:
    """Settings inside settings as (full name, value) pairs; records of a list stand under their classes."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        names = [str(part.get("class", number)) for number, part in enumerate(value)]
        if len(set(names)) < len(names):  # two of one class are told apart by their places
            names = [str(number) for number in range(len(value))]
        value = dict(zip(names, value, strict=True))
    if isinstance(value, dict) and value:
        inside = [
            flattened(part, f"{path}.{name}" if path else str(name))
            for name, part in value.items()
        ]
        return [pair for pairs in inside for pair in pairs]
    return [(path, text(value))]


def compared(shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The first run with each other one, paired by question."""
    first, *others = shown
    asked = _asked([each.run for each in shown])
    before = evaluation.scores_at(first.run)
    pairs = []
    for other in others:
        after = evaluation.scores_at(other.run)
        pairs.append(
            {
                "first": first,
                "second": other,
                "change": evaluation.change(before, after),
                "flips": evaluation.flips(before, after, asked),
            }
        )
    return pairs


def _over_time(run: RunFiles) -> dict[str, Any] | None:
    """The first evaluation of a run against its last, question by question."""
    steps = sorted({row["step"] for row in run.evaluations})
    if len(steps) < 2:
        return None
    first, last = steps[0], steps[-1]
    before = evaluation.scores_at(run, first)
    after = evaluation.scores_at(run, last)
    found = evaluation.change(before, after)
    if found is None:
        return None
    flips = evaluation.flips(before, after, _asked([run]))
    return {"steps": (first, last), "change": found, "flips": flips}


def _asked(runs: Sequence[RunFiles]) -> dict[str, str]:
    """Question -> its text, where a run kept it."""
    found: dict[str, str] = {}
    for run in runs:
        for row in [*run.evaluations, *run.samples]:
            if "question" in row:
                found[text(row.get("prompt"))] = samples.cut(text(row["question"]))
    return found


def _command(line: str) -> str:
    """A command line as it was typed, rather than with the whole path of what it ran."""
    program, space, rest = line.partition(" ")
    recipe = re.search(r"[/\\]recipes[/\\](\w+)\.py$", program)
    if recipe:
        return f"python -m recipes.{recipe[1]}{space}{rest}"
    return f"{Path(program).name}{space}{rest}" if line else ""


def _data(prompts: Row) -> str:
    """A collection of prompts in a few words."""
    names = [prompts[key] for key in ("name", "task", "class") if prompts.get(key)]
    if not names:
        return ""
    name = names[0]
    size = prompts.get("size")
    return f"{text(name)}, {size} rows" if size else f"{text(name)}, endless"


def _versions(machine: Mapping[str, Any]) -> str:
    names = ("mmrl", "torch", "transformers", "python")
    return ", ".join(f"{name} {text(machine[name])}" for name in names if name in machine)
