"""Results of the effects benchmark: what is asked for, and one file per run, with a value per number and question."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from effect_methods import SUITES, Suite, Trained, method_run, reference_run
from effect_tasks import TASKS, Marks

START = "start"
"""Name of the result file of a task's warm start."""


@dataclass(frozen=True)
class Plan:
    """What is run, and how it is measured."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    questions: int
    place: Path
    suite: Suite = SUITES["visual"]

    @property
    def options(self) -> tuple[str, ...]:
        """Of every run."""
        steps = ("--run.steps", str(self.steps))
        common = ("--run.eval-prompts", "0", "--run.save-every", "0")
        return (*steps, *common, *self.suite.options)

    def pairs(self, task: str) -> dict[str, tuple[Trained, Trained]]:
        """Method -> its run on this task and its reference."""
        known = {name: self.suite.methods[name] for name in self.methods}
        options = (*self.options, *(TASKS[task].options or self.suite.paid))
        asked = [
            n for n, m in known.items() if m.exists and any(c.task == task for c in m.claims)
        ]
        runs = {name: method_run(name, options) for name in asked}
        return {name: (run, reference_run(run)) for name, run in runs.items()}

    def file(self, task: str, name: str, seed: int | None = None) -> Path:
        """Where a result lies."""
        return self.place / task / (f"{name}.json" if seed is None else f"{name}-{seed}.json")

    def settings(self, trained: Trained | None) -> dict[str, object]:
        """What a result must have been made with to be used."""
        made = {"steps": self.steps, "questions": self.questions}
        return {**made, "key": trained.key if trained else START}


def each_once(pairs: Mapping[str, tuple[Trained, Trained]]) -> Iterator[Trained]:
    """References and methods; a shared reference once."""
    seen = set()
    for run, reference in pairs.values():
        for trained in (reference, run):
            if trained.name not in seen:
                seen.add(trained.name)
                yield trained


def keep(file: Path, settings: Mapping[str, object], marks: Marks) -> None:
    """Write a result in one move: a file that exists is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: [round(value, 5) for value in values] for name, values in marks.items()}
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps({"settings": dict(settings), "marks": rounded}))
    part.replace(file)


def stored(file: Path, settings: Mapping[str, object]) -> Marks | None:
    """A finished result; None if there is none. Ends the benchmark at one that was made with other settings."""
    if not file.is_file():
        return None
    found = json.loads(file.read_text())
    if found["settings"] != settings:
        raise SystemExit(
            f"{file} was made with {found['settings']}, now {dict(settings)} is asked for; "
            "give another --output, or delete the file."
        )
    return found["marks"]
