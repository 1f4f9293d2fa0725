"""How far do cheap tricks get? Eight auditors per task of a preset, against chance. CPU only, no model.

Per task, half of the samples are labelled (auditors may learn from them), the other half are answered. An auditor's
lift is accuracy − chance, or reward − chance reward where no guess is ever exactly right (boxes). A task passes if no
auditor outside `Task.intended` and `Ingredient.intended` has a lift above `LIMIT` that is also more than three standard
errors above chance. Rewards of partly right answers are shown beside the accuracy.

`gap_curve` shows the known leak: a 3×3 jigsaw whose tiles touch is solved by matching borders; with a gap it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmrl.data.pretext.audit.shortcut_answers import boundary
from mmrl.data.pretext.audit.shortcut_audit import Auditor, auditors
from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Sample, Score, Task
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.stream.sources import Source
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.pretext.surface import Surface
from mmrl.ground.progress import with_progress

LIMIT = 0.10
"""Largest lift over chance of an auditor that is not intended."""
AGAIN = 4
"""How many times more samples a row gets in which a leak was seen, before it counts."""


@dataclass(frozen=True)
class Finding:
    """One auditor on one task."""

    task: str
    auditor: str
    accuracy: float
    reward: float
    chance: float
    chance_reward: float
    answered: int
    """Samples to which the auditor had an answer; the others count as 0."""
    samples: int
    intended: bool

    @property
    def lift(self) -> float:
        """Accuracy above chance; reward above chance where `chance` is 0."""
        if self.chance > 0:
            return self.accuracy - self.chance
        return self.reward - self.chance_reward

    @property
    def error(self) -> float:
        """Standard error of the lift if it were chance, at most that of a coin."""
        level = self.chance or self.chance_reward
        # Not 0, whatever is declared: with few samples a single hit would be infinitely many errors.
        level = min(max(level, 1.0 / (self.samples + 2)), 0.5)
        return float(np.sqrt(level * (1.0 - level) / self.samples))

    @property
    def leaks(self) -> bool:
        """Is this an undeclared shortcut?"""
        return not self.intended and self.lift > max(LIMIT, 3.0 * self.error)


@dataclass(frozen=True)
class Report:
    """An audit of a preset."""

    preset: str
    findings: tuple[Finding, ...]

    @property
    def leaks(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.leaks)

    def table(self) -> str:
        """Text: one line per task, accuracy (reward) per auditor; * intended, ! leak."""
        names = self.auditors
        heads = " ".join(f"{name:>11s}" for name in names)
        lines = [
            f"{self.preset}: accuracy/reward in percent; * intended cue, ! undeclared shortcut",
            f"{'task':20s} {'chance':>10s} {heads}",
        ]
        for task, row in self.rows():
            one = row[names[0]]
            chance = f"{100 * one.chance:4.0f}/{100 * one.chance_reward:4.0f}"
            cells = " ".join(f"{_cell(row[name]):>11s}" for name in names)
            lines.append(f"{task:20s} {chance}  {cells}")
        found = (
            f"{len(self.leaks)} undeclared shortcut(s)"
            if self.leaks
            else "no undeclared shortcut"
        )
        return "\n".join([*lines, found])

    @property
    def auditors(self) -> list[str]:
        """Names of the auditors, in their order."""
        return list(dict.fromkeys(finding.auditor for finding in self.findings))

    def rows(self) -> Iterator[tuple[str, dict[str, Finding]]]:
        """Each task with its findings by auditor."""
        for task in dict.fromkeys(finding.task for finding in self.findings):
            of_task = [finding for finding in self.findings if finding.task == task]
            yield task, {finding.auditor: finding for finding in of_task}

    def json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        rows = [
            asdict(finding) | {"lift": finding.lift, "leaks": finding.leaks}
            for finding in self.findings
        ]
        return {
            "preset": self.preset,
            "passes": not self.leaks,
            "limit": LIMIT,
            "findings": rows,
        }


def audit(source: Source, preset: TaskMix, samples: int = 200, seed: int = 0) -> Report:
    """Audit every ingredient of a preset on a source, with `samples` samples each (half of them labelled).

    With eight auditors on forty tasks a few lifts are luck: a row with a leak is made again from more samples."""
    findings: list[Finding] = []
    for ingredient in preset.ingredients:
        alone = TaskMix(preset.name, (ingredient,), preset.surface)
        try:
            stream = SampleStream(source, alone, seed)
        except ValueError:
            continue  # the source has no media of this kind; a stream of the whole preset says which
        task = find(ingredient.task)
        name, intended = _named(ingredient), task.intended + ingredient.intended
        row = examine(task, collect(stream, samples), name, intended=intended)
        if any(finding.leaks for finding in row):
            row = examine(task, collect(stream, AGAIN * samples), name, intended=intended)
        findings += row
    if not findings:
        raise ValueError(
            f"{source.name} has no media for any task of preset {preset.name!r}; nothing to audit."
        )
    return Report(preset.name, tuple(findings))


def collect(stream: SampleStream, samples: int) -> list[Sample]:
    """The first `samples` samples of a stream."""
    return list(
        with_progress(stream.first(samples), samples, f"samples of {stream.preset.name}")
    )


def examine(
    task: Task,
    samples: Sequence[Sample],
    name: str = "",
    ways: Sequence[Auditor] = (),
    intended: Sequence[str] | None = None,
) -> list[Finding]:
    """Every auditor on samples of one task and one set of knobs: first half labelled, second half answered."""
    half = len(samples) // 2
    known, asked = samples[:half], samples[half:]
    knobs = samples[0].knobs
    declared = task.intended if intended is None else intended
    findings = []
    for auditor in ways or auditors():
        auditor.fit(task, known)
        scores = _scores(task, auditor, asked)
        findings.append(
            Finding(
                task=name or task.name,
                auditor=auditor.name,
                # Over all samples: where an auditor has no answer, it earns nothing.
                accuracy=sum(score.correct for score in scores) / len(asked),
                reward=sum(score.reward for score in scores) / len(asked),
                chance=task.chance(knobs),
                chance_reward=task.chance_reward(knobs),
                answered=len(scores),
                samples=len(asked),
                intended=auditor.name in declared,
            )
        )
    return findings


def _scores(task: Task, auditor: Auditor, asked: Sequence[Sample]) -> list[Score]:
    """What the auditor's answers earn; nothing for the samples that it does not answer."""
    scores = []
    for sample in asked:
        body = auditor.answer(task, sample)
        if body is not None:
            scores.append(task.score(Surface().wrap(body), sample.truth))
    return scores


def gap_curve(
    source: Source,
    gaps: Sequence[float] = (0.0, 0.03, 0.06, 0.09, 0.12),
    samples: int = 40,
    jitter: bool = False,
) -> list[dict[str, float]]:
    """How well matching borders solves a 3×3 jigsaw, by gap: share of right places and of solved ones."""
    task, curve = find("jigsaw"), []
    for gap in gaps:
        # A gamma of 1 makes the reward the share of right places.
        knobs = {"rows": 3, "columns": 3, "gap": gap, "gamma": 1.0, "jitter": jitter}
        mix = TaskMix("gap", (Ingredient("jigsaw", 1.0, knobs),))
        found = collect(SampleStream(source, mix), samples)
        scores = []
        for sample in found:
            body = boundary(task, sample) or ""
            scores.append(task.score(Surface().wrap(body), sample.truth))
        curve.append(
            {
                "gap": gap,
                "placed": sum(score.reward for score in scores) / len(scores),
                "solved": sum(score.correct for score in scores) / len(scores),
                "chance_placed": task.chance_reward(found[0].knobs),
            }
        )
    return curve


def _named(ingredient: Ingredient) -> str:
    short = {"rows", "columns", "kind", "decoys", "clips", "motion", "size", "hops"}
    knobs = "x".join(str(value) for name, value in ingredient.knobs.items() if name in short)
    return f"{ingredient.task}:{knobs}" if knobs else ingredient.task


def _cell(finding: Finding) -> str:
    if not finding.answered:
        return "–"
    mark = "!" if finding.leaks else "*" if finding.intended else ""
    return f"{100 * finding.accuracy:.0f}/{100 * finding.reward:.0f}{mark}"
