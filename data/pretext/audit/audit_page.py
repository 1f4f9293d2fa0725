"""The published audit: one Markdown page about every preset and every task, made by `audit --all --markdown`.

Per preset a table of the auditors (accuracy, or reward where no guess is ever exactly right, in percent), the tasks
that are in no preset with their default knobs, the leak of touching jigsaw tiles and its fall with the gap, and per
task what a random policy earns: declared chance levels, simulated ones, and the histogram of its rewards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.data.pretext.audit.audit import LIMIT, Finding, Report, audit, collect, gap_curve
from mmrl.data.pretext.catalogue import TASKS
from mmrl.data.pretext.contract import Task
from mmrl.data.pretext.presets import PRESETS, Ingredient, TaskMix
from mmrl.data.pretext.stream.sources import Source
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.pretext.surface import Surface
from mmrl.ground.seeds import philox

BINS = 5
"""Bars of a histogram of rewards, equally wide over [0, 1]."""
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class RandomPolicy:
    """What uniform guesses earn on one task."""

    task: str
    chance: float
    chance_reward: float
    """As the task declares them."""
    correct: float
    reward: float
    """As simulated."""
    histogram: tuple[float, ...]
    """Share of the rewards per bin."""

    @property
    def bars(self) -> str:
        """The histogram as characters; the height is the square root of the share, so that rare rewards show."""
        return "".join(_bar(share) for share in self.histogram)


def _bar(share: float) -> str:
    if not share:
        return "·"
    height = float(np.sqrt(share)) * (len(BARS) - 1)
    return BARS[round(height)]


def random_policy(
    task: Task, source: Source, samples: int = 40, guesses: int = 50
) -> RandomPolicy:
    """`guesses` random answers to each of `samples` samples with the task's default knobs."""
    alone = TaskMix(task.name, (Ingredient(task.name),))
    found = collect(SampleStream(source, alone), samples)
    rng, surface = philox("random-policy", task.name), Surface()
    scores = []
    for sample in found:
        for _ in range(guesses):
            reply = surface.wrap(task.guess(sample.truth, rng))
            scores.append(task.score(reply, sample.truth))
    counts, _ = np.histogram([score.reward for score in scores], BINS, (0.0, 1.0))
    return RandomPolicy(
        task=task.name,
        chance=task.chance(found[0].knobs),
        chance_reward=task.chance_reward(found[0].knobs),
        correct=float(np.mean([score.correct for score in scores])),
        reward=float(np.mean([score.reward for score in scores])),
        histogram=tuple(float(count) / len(scores) for count in counts),
    )


def everything() -> list[TaskMix]:
    """Every preset, and last the tasks that none of them holds."""
    used = {part.task for entry in PRESETS for part in entry.ingredients}
    rest = tuple(Ingredient(task.name) for task in TASKS if task.name not in used)
    return [*PRESETS, TaskMix("in no preset", rest, note="Default knobs.")]


def page_sections(
    source: Source, presets: Sequence[TaskMix], samples: int, seed: int = 0
) -> Iterator[tuple[str, bool]]:
    """The page in pieces, each with whether it holds an undeclared shortcut."""
    yield (
        f"# What cheap tricks reach\n\nMade by `python -m data.pretext audit --all --markdown --count {samples}`"
        f" on {source.name}; half of the {samples} samples per row are labelled, the other half answered; a row"
        " in which a shortcut is seen is made again from four times as many. Cells:"
        " accuracy in percent (reward where no guess is ever exactly right); `*` a cue"
        f" that is declared, **bold** an undeclared shortcut (lift above {100 * LIMIT:.0f} points and three standard"
        " errors); – does not apply.\n",
        False,
    )
    for preset in presets:
        try:
            report = audit(source, preset, samples, seed)
        except ValueError as error:
            yield f"## {preset.name}\n\nNot audited: {error}\n", False
            continue
        yield f"## {preset.name}\n\n{preset.note}\n\n{markdown(report)}\n", bool(report.leaks)
    yield _gaps(source), False
    yield _guesses(source), False


def markdown(report: Report) -> str:
    """The table of one preset."""
    names = report.auditors
    lines = [
        f"| task | chance | {' | '.join(names)} |",
        f"| --- | --- |{' --- |' * len(names)}",
    ]
    for task, row in report.rows():
        one = row[names[0]]
        chance = f"{100 * one.chance:.0f}"
        # Where no guess is ever exactly right, the cells show rewards, and so does this one.
        if not one.chance > 0:
            chance = f"reward {100 * one.chance_reward:.0f}"
        cells = " | ".join(_cell(row[name]) for name in names)
        lines.append(f"| {task} | {chance} | {cells} |")
    verdict = "No undeclared shortcut."
    if report.leaks:
        verdict = f"{len(report.leaks)} undeclared shortcut(s)."
    return "\n".join([*lines, "", verdict])


def _cell(finding: Finding) -> str:
    if not finding.answered:
        return "–"
    value = 100 * (finding.accuracy if finding.chance > 0 else finding.reward)
    if finding.leaks:
        return f"**{value:.0f}**"
    return f"{value:.0f}{'*' if finding.intended else ''}"


def _gaps(source: Source) -> str:
    lines = [
        "## The known leak: a 3×3 jigsaw whose tiles touch\n",
        "Matching the borders of the tiles, without and with the jitter of colours. Shares of 40 jigsaws and of places"
        " (chance 0.00 and 0.11).\n",
        "| gap, share of the tile | solved | places | solved, jitter | places, jitter |",
        "| --- | --- | --- | --- | --- |",
    ]
    plain, jittered = gap_curve(source), gap_curve(source, jitter=True)
    for one, two in zip(plain, jittered, strict=True):
        values = (one["gap"], one["solved"], one["placed"], two["solved"], two["placed"])
        cells = " | ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {cells} |")
    return "\n".join(lines) + "\n"


def _guesses(source: Source) -> str:
    lines = [
        "## A random policy\n",
        "Default knobs, 50 uniform guesses on each of 40 samples: declared and simulated chance levels, and the"
        f" histogram of rewards in {BINS} bins from 0 to 1 (height: square root of the share; · is none).\n",
        "| task | correct, declared | simulated | reward, declared | simulated | rewards |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        row = random_policy(task, source)
        values = (row.chance, row.correct, row.chance_reward, row.reward)
        numbers = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {row.task} | {numbers} | `{row.bars}` |")
    return "\n".join(lines) + "\n"
