"""MR-RLVR's first stage (arXiv 2511.17473): questions made of the worked solutions that rows bring along.

`SolutionQuestions` turns each row into one question, fill in what is hidden or put the steps in order, behind the row's
own question and media. Rows whose solution gives neither are bad rows: skipped and counted. The rewards are those of
the tasks masked-fill and step-reorder (`data/pretext/tasks/`).

For the embedded preset `Observed` writes solutions of drawn look-ups: what each cell holds. The tiny model of the
look-ups learns, supervised, how such questions are answered (`warm_solutions`), in two minutes, once.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from numpy.random import Generator

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.pretext.contract import Draft, Task
from mmrl.data.pretext.craft import solution_text
from mmrl.data.pretext.craft.solution_text import hide, shuffle, split_steps
from mmrl.data.pretext.prompts import to_prompt
from mmrl.data.pretext.stream.samples import render_sample
from mmrl.data.pretext.surface import Surface
from mmrl.data.pretext.tasks.masked_fill import MaskedFillTask
from mmrl.data.pretext.tasks.step_reorder import StepReorderTask
from mmrl.ground.faults import BadRow
from mmrl.ground.require import require
from mmrl.ground.seeds import philox
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.opening import EMBEDDED, Data, open_data
from mmrl.recipes.shared.paying import StyleName
from mmrl.recipes.shared.pretext_data import bare
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts


class SolutionFillTask(MaskedFillTask):
    """`masked-fill` in words for anybody's solution."""

    wordings = (
        "Parts of this worked solution are hidden.{steps}Fill in every mask.",
        "What stands in place of the masks in this solution?{steps}",
        "Restore the hidden parts of the solution.{steps}Give the content of each mask.",
    )


class SolutionOrderTask(StepReorderTask):
    """`step-reorder` in words for anybody's solution."""

    wordings = (
        "The steps of a worked solution were shuffled.{steps}Put them in a logical order.",
        "Restore the order in which these steps solve the question.{steps}",
        "Sort the steps of this worked solution.{steps}Each step builds on those before it.",
    )


FILL, REORDER = SolutionFillTask(), SolutionOrderTask()
SURFACES: Mapping[str, Surface] = {
    "tag": Surface(),
    "plain": Surface(tags="plain"),
    "answer": Surface(thinking="think"),
    "answer-open": Surface(thinking="think"),
    "box": Surface(tags="boxed", thinking="think"),
    "box-inline": Surface(tags="boxed", thinking="think"),
    "box-system": Surface(tags="boxed", thinking="think"),
    "choice": Surface(tags="boxed", thinking="think"),
}
"""Style of the rows -> the same tags for the questions about solutions."""
OBSERVED = "observed"


@dataclass(frozen=True)
class Solutions:
    """The self-supervised stage: questions about the worked solutions of the rows."""

    column: str = "solution"
    """Column with the worked solutions."""
    share: float = 0.2
    """Share of the run's steps that this stage takes; 0 leaves it out."""
    fill: float = 0.5
    """Share of questions that hide spans; the others shuffle the steps."""
    masks: int = 3
    """Most spans hidden in one solution."""
    gamma: float = 0.5
    """Pay of a partly right order, times the share of pairs in the right order."""
    order: Literal["written", "needs"] = "written"
    """Right is the order as written, or any in which letters are introduced before they are used."""
    bare: bool = False
    """Only the question, without what the answer looks like; for a model that was taught the form."""

    def __post_init__(self) -> None:
        require(
            self,
            column=(bool(self.column.strip()), "the name of a column"),
            share=(0 <= self.share < 1, "0 (no such stage) or a share below 1"),
            fill=(0 <= self.fill <= 1, "in [0, 1]"),
            masks=(self.masks >= 1, "at least 1"),
            gamma=(0 <= self.gamma < 1, "in [0, 1)"),
        )


class SolutionQuestions(Prompts):
    """One question about the solution of each row; the same index always gives the same question."""

    def __init__(
        self, prompts: Prompts, solutions: Solutions, surface: Surface, seed: int = 0
    ) -> None:
        self.prompts, self.solutions = prompts, solutions
        self.surface, self.seed, self.size = surface, seed, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt, column = self.prompts[index], self.solutions.column
        solution = prompt.extra.get(column)
        if not isinstance(solution, str):
            raise BadRow(
                f"{prompt.id}: column {column!r} holds {type(solution).__name__} in place of a worked solution; name "
                f"the column by --solutions.column. The row has {sorted(prompt.extra)}."
            )
        steps = split_steps(solution)
        if steps is None:
            raise BadRow(
                f"{prompt.id}: the solution has fewer than {solution_text.LEAST} steps, or more than "
                f"{solution_text.LONGEST} characters."
            )
        rng = philox("solution", self.seed, index)
        made = self._made(steps, _question_of(prompt), rng)
        if made is None:
            raise BadRow(
                f"{prompt.id}: nothing in the solution can be hidden, nor its steps be put in order."
            )
        asked = self._asked(prompt, index, *made)
        return bare(asked) if self.solutions.bare else asked

    def drain(self) -> Mapping[str, int]:
        """What the rows counted."""
        return self.prompts.drain()

    def _made(
        self, steps: Sequence[str], question: str, rng: Generator
    ) -> tuple[Task, Draft] | None:
        """A task and its draft: the drawn kind, or the other where the solution does not suit it."""
        # The other kind second, so that a row is lost only if it suits neither.
        fill_first = rng.random() < self.solutions.fill
        kinds = (_filled, _reordered) if fill_first else (_reordered, _filled)
        for kind in kinds:
            made = kind(steps, question, self.solutions, rng)
            if made is not None:
                return made
        return None

    def _asked(
        self,
        prompt: Prompt,
        index: int,
        task: Task,
        draft: Draft,
    ) -> Prompt:
        """The puzzle behind the row's own media and question."""
        recipe = {"row": prompt.id, "seed": self.seed, "index": index}
        knobs = task.complete({"steps": len(draft.meta["lines"])})
        made = to_prompt(render_sample(task, draft, knobs, self.surface, recipe))
        # The puzzle itself has no picture: its only part is the text.
        words = made.messages[-1]["content"][-1]["text"]
        text = {"type": "text", "text": f"\n\nAbout the question above:\n{words}"}
        *before, last = prompt.messages
        asked = [*_parts(last["content"]), text]
        return replace(
            made,
            id=f"{prompt.id}-{task.name}",
            messages=[*before, {**last, "content": asked}],
            media=prompt.media,
        )


class Observed(Prompts):
    """Drawn look-ups with `extra["observed"]`: what each cell holds, one step each."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.size = prompts, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.prompts[index]
        cells = list(prompt.extra.get("cells", ()))
        side = round(len(cells) ** 0.5)
        lines = []
        for place, cell in enumerate(cells):
            row, column = divmod(place, side)
            lines.append(f"row {row + 1} column {column + 1} = {cell}")
        return replace(prompt, extra={**prompt.extra, OBSERVED: "\n".join(lines)})


def open_solutions(
    dataset: str, data: Data, solutions: Solutions, seed: int
) -> SolutionQuestions:
    """Questions about the solutions of the training rows, put with the tags of `data.style`.

    Raises ValueError where no row has a usable solution, or the style has other tags.
    """
    surface = surface_of(data.style)
    # Plain: the instructions of the style ask for the answer of the row.
    rows, _ = open_data(dataset, replace(data, style="plain"), seed)
    # Drawn look-ups bring no solution along.
    if isinstance(rows, Drawn):
        rows = Observed(rows)
    return SolutionQuestions(rows, solutions, surface, seed)


def solution_model(model: str) -> str:
    """The folder of the warmed-up model for "embedded", else the model itself."""
    return str(warm_solutions()) if model == EMBEDDED else model


def surface_of(style: StyleName) -> Surface:
    """The tags of a style, for questions about solutions. Raises ValueError for styles that ask for something else."""
    if style not in SURFACES:
        raise ValueError(
            f"--data.style is {style!r}, which the questions about solutions do not have; take one of {list(SURFACES)}."
        )
    return SURFACES[style]


@dataclass(frozen=True)
class SolutionWarmUp:
    """Supervised warm-up on questions about drawn solutions, beside the look-ups."""

    steps: int = 160
    batch: int = 48
    lr: float = 2e-3
    lookups: float = 0.3
    """Share of look-ups, so that they are not forgotten."""
    noise: float = 0.2
    """Share of targets that are random well-formed answers."""
    seed: int = 2000


class SolutionLessons(Prompts):
    """Look-ups and questions about their solutions, whose targets are partly random."""

    def __init__(self, settings: SolutionWarmUp) -> None:
        self.settings, self.size = settings, None
        self.lookups = Drawn("lookup", seed=settings.seed, cells=2, size_px=32, swapped=0.6)
        self.questions = SolutionQuestions(
            Observed(self.lookups), Solutions(OBSERVED, bare=True), Surface(), settings.seed
        )

    def __getitem__(self, index: int) -> Prompt:
        rng = philox("solution lesson", self.settings.seed, index)
        if rng.random() < self.settings.lookups:
            return self.lookups[index]
        prompt = self.questions[index]
        if rng.random() >= self.settings.noise:
            return prompt
        # A wrong label in places: the policy must be left unsure, or there is nothing for RL to sharpen.
        task = FILL if prompt.extra["task"] == FILL.name else REORDER
        wrong = Surface().wrap(task.guess(prompt.extra["truth"], rng))
        return replace(prompt, extra={**prompt.extra, "target": wrong})


def warm_solutions(settings: SolutionWarmUp = SolutionWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    parts: list[Any] = [
        *(SolutionLessons, SolutionQuestions, SolutionFillTask, SolutionOrderTask, Observed),
        *(solution_text, supervised),
    ]
    sources = [inspect.getsource(part) for part in parts]
    versions = (FILL.version, REORDER.version)
    return published(
        "solutions", warm_model(), partial(_lessons, settings), settings, (versions, sources)
    )


def _lessons(settings: SolutionWarmUp, run: Run) -> Prompts:
    return SolutionLessons(settings)


def _filled(
    steps: Sequence[str], question: str, solutions: Solutions, rng: Generator
) -> tuple[Task, Draft] | None:
    hidden = hide(steps, solutions.masks, question, rng)
    if hidden is None:
        return None
    lines, answer = hidden
    return FILL, _draft(lines, {"answer": answer})


def _reordered(
    steps: Sequence[str], question: str, solutions: Solutions, rng: Generator
) -> tuple[Task, Draft] | None:
    shuffled = shuffle(steps, solutions.order == "needs", rng)
    if shuffled is None:
        return None
    lines, answer, needs = shuffled
    return REORDER, _draft(lines, {"answer": answer, "needs": needs, "gamma": solutions.gamma})


def _draft(lines: Sequence[str], truth: Mapping[str, Any]) -> Draft:
    shown = "\n" + "\n".join(lines) + "\n"
    return Draft((), truth, tuple(truth["answer"]), {"steps": shown}, meta={"lines": lines})


def _question_of(prompt: Prompt) -> str:
    """The words of the last turn."""
    return " ".join(part.get("text", "") for part in _parts(prompt.messages[-1]["content"]))


def _parts(content: Any) -> list[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
