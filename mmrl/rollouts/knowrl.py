"""KnowRL's rollout: questions are asked with the fewest knowledge points that answer them best.

When a question comes for the first time, the policy answers it with all its points, with each left out, and then with
the sets that the strategy compares (`knowledge_points.py`), `KnowRL.samples` times each. How these answers fared is
remembered by `Prompt.id`; the answers themselves are thrown away. Whenever the question comes it is asked with the
points that were chosen, and trained like that. Held-out questions are asked without points.

The memory is the run's: saved with it, the same on all ranks. It can be written as a table, one JSON object a line,
which another run reads in place of measuring:

    {"id": "q7", "points": ["…", "…"], "accuracy": [[[0, 1], 3, 8], [[0], 5, 8]]}

that is [points given, right answers, judged answers]. A question whose points are not those of its line is measured
anew; sets that a line lacks are measured, and only those.

Counts: `knowrl/measured` questions that were measured in this step, in `knowrl/answers` answers; `knowrl/points` points
of the step's questions, `knowrl/given` of them given; `knowrl/missing` rows without points, `knowrl/too_long` questions
without room for theirs (both are asked plainly), `knowrl/unmeasured` questions whose answers nobody could judge (asked
with all points), `knowrl/left_alone` points that were kept because `KnowRL.subsets` had no room for them,
`knowrl/outdated` lines about other points.

Departures from the paper
1. There points are chosen before the training, by the untrained model; here when a question comes for the first time,
   by the policy as it is then. A table of a run that trains nothing (`--optim.lr 0`) gives the paper's order.
2. Reconstructed strategies: see `knowledge_points.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from mmrl.ground.contents import digest
from mmrl.ground.faults import BadMedia
from mmrl.ground.files import read_regular
from mmrl.ground.outputs import refuse_file, write_whole
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay
from mmrl.rollouts.knowledge_points import Given, KnowRL, Score, chosen, left_alone, wanted
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.rewording import Check, behind, fits, with_text
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.types import Now, Prompt, Rollout, Sampling

__all__ = [
    "GIVEN",
    "AccuracyTable",
    "KnowRLRollout",
    "Measured",
    "TableFile",
    "points_of",
    "text_of",
]

GIVEN = "given_points"
"""Column of a prompt that was asked with points: their numbers."""
AT_ONCE = 256
"""Questions with points that are answered together while they are measured."""


class Measured:
    """How questions fared with some of their points. A rollout function's memory."""

    def __init__(self) -> None:
        self.of_prompts: dict[str, Line] = {}
        """Prompt id -> what is known of it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"lines": [line.plain(name) for name, line in self.of_prompts.items()]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.of_prompts = dict(map(_line, state["lines"]))

    def write(self, file: Path) -> None:
        """Write the table, in one go; by id, so that equal memories make equal files."""
        lines = [line.plain(name) for name, line in sorted(self.of_prompts.items())]
        write_whole(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))


@dataclass(frozen=True)
class Line:
    """What is known of a question."""

    points: tuple[str, ...]
    table: Mapping[Given, Score]

    def plain(self, name: str) -> dict[str, Any]:
        """As it stands in a file."""
        accuracy = [[list(given), *score] for given, score in sorted(self.table.items())]
        return {"id": name, "points": list(self.points), "accuracy": accuracy}


@dataclass(frozen=True)
class AccuracyTable:
    """A table that another run wrote, or somebody's own."""

    digest: str
    """Of the file, by which a run that goes on knows that it is the same one."""
    known: Measured
    """What the file says; never changed."""

    @staticmethod
    def read(file: Path | str, flag: str = "--table") -> AccuracyTable:
        """Read a table. Raises ValueError for a file or a line that is none; `flag` named it."""
        try:
            content = read_regular(file)
            # Only these end a line: others may stand inside a text.
            lines = content.decode("utf-8").rstrip("\n").split("\n")
        except (BadMedia, UnicodeDecodeError) as error:
            raise ValueError(f"{flag} {file} cannot be read: {error}") from None
        table = Measured()
        for number, text in enumerate(lines, 1):
            try:
                name, line = _line(json.loads(text))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{flag} {file}, line {number}: no line of a table of knowledge points ({error!r}). It holds "
                    '{"id": text, "points": [texts], "accuracy": [[[numbers of the points given, from 0, rising], '
                    "right answers, judged answers], …]}."
                ) from None
            if name in table.of_prompts:
                raise ValueError(
                    f"{flag} {file}, line {number}: the id {name!r} stands there twice. Keep one of the lines."
                )
            table.of_prompts[name] = line
        return AccuracyTable(digest(content).hex(), table)


class TableFile:
    """Where a run writes its table; no dataclass, for a run that goes on may write elsewhere."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @staticmethod
    def at(path: str | None, flag: str = "--write-table") -> TableFile:
        """At this path, or nowhere. Raises `OutputError` if something else is there, before hours are spent."""
        if path is None:
            return TableFile(None)
        refuse_file(Path(path), _is_table, "table of knowledge points", flag)
        return TableFile(Path(path))


@dataclass(frozen=True)
class KnowRLRollout(StagedRollout):
    """Questions with the points that they need, in place of the questions."""

    knowrl: KnowRL = field(default_factory=KnowRL)
    column: str = "points"
    """Column of the row that holds the points: a list of texts, or a text with one a line."""
    check: Check | None = None
    """Raises `BadRow` for a prompt that cannot be shown to the model, `Policy.encode`."""
    table: AccuracyTable | None = None
    """What is known before the run."""
    written: TableFile = field(default_factory=lambda: TableFile(None))
    """Where the table goes after each step that measured something."""

    needs: ClassVar[Collection[Ability]] = ()
    needs_correct: ClassVar[bool] = True

    def remembers_prompts(self) -> bool:
        """Accuracies are kept by prompt id."""
        return self._measures

    def start_memory(self) -> Measured | None:
        """What the table says."""
        if not self._measures:
            return None
        memory = Measured()
        if self.table is not None:
            memory.of_prompts.update(self.table.known.of_prompts)
        return memory

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks, or ""."""
        none = self.knowrl.choose == "none" or points_of(prompt, self.column)
        return "" if none else self.column

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        if self.knowrl.choose == "none":
            return self.inner(engine, pay, supply, sampling, now)
        memory = supply.memory(self) or Measured()
        asking = _Asking(self.inner, owner=self, memory=memory, forget=supply.drop)
        found = asking(engine, pay, supply, sampling, now)
        # Another rank may meet a question when it comes again.
        everybodys = supply.ranks.gathered(asking.learned)
        for theirs in everybodys:
            memory.of_prompts.update(theirs)
        file = self.written.path
        if file is not None:
            new = any(everybodys)
            # A run that goes on may have nothing left to measure, and yet another file to fill.
            supply.ranks.by_first(
                lambda: memory.write(file) if new or not file.exists() else None
            )
        return found

    @property
    def _measures(self) -> bool:
        return self.knowrl.choose not in ("all", "none")


@dataclass(frozen=True)
class _Asking(StagedRollout):
    """One step: what is not known is measured, then questions are asked with their points."""

    owner: KnowRLRollout = field(kw_only=True)
    memory: Measured = field(kw_only=True)
    forget: Callable[[Sequence[Prompt]], None] = field(kw_only=True)
    learned: dict[str, Line] = field(default_factory=dict)
    """Prompt id -> what this step knows of it, by measuring."""

    needs: ClassVar[Collection[Ability]] = ()

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Answers to each question with the points that it needs."""
        self._measure({prompt.id: prompt for prompt in prompts}, stages)
        return stages([self._asked(prompt, stages) for prompt in prompts])

    def _asked(self, prompt: Prompt, stages: Stages) -> Prompt:
        """The question with its points; as it is where it has none, or no room for them."""
        points = points_of(prompt, self.owner.column)
        if not points:
            stages.counters["knowrl/missing"] += 1
            return prompt
        line = self._known(prompt.id, points)
        given = chosen(len(points), line.table, self.owner.knowrl)
        stages.counters["knowrl/unmeasured"] += given is None
        given = tuple(range(len(points))) if given is None else given
        asked = self._with(prompt, points, given)
        if not fits(asked, self.owner.check):
            stages.counters["knowrl/too_long"] += 1
            return prompt
        stages.counters["knowrl/points"] += len(points)
        stages.counters["knowrl/given"] += len(given)
        return asked

    def _measure(self, prompts: Mapping[str, Prompt], stages: Stages) -> None:
        """Learn what the choice needs to know about each question."""
        new = [one for prompt in prompts.values() if (one := self._question(prompt, stages))]
        asked = {one.prompt.id: one for one in new}
        # Two rounds: which sets are compared follows from the first. What nobody could judge is not asked again.
        for _ in range(2):
            due = [(one, given) for one in new for given in one.wanted(self.owner.knowrl)]
            for begin in range(0, len(due), AT_ONCE):
                self._score(due[begin : begin + AT_ONCE], stages)
        for name, one in asked.items():
            known = {given: score for given, score in one.table.items() if score[1]}
            self.learned[name] = Line(one.points, known)
            lost = left_alone(len(one.points), one.table, self.owner.knowrl)
            stages.counters["knowrl/left_alone"] += lost
        stages.counters["knowrl/measured"] += len(new)

    def _question(self, prompt: Prompt, stages: Stages) -> _Question | None:
        """A question of which something is not known; None for others, and those without room for their points."""
        points = points_of(prompt, self.owner.column)
        earlier = self.memory.of_prompts.get(prompt.id)
        stages.counters["knowrl/outdated"] += bool(
            points and earlier and earlier.points != points and prompt.id not in self.learned
        )
        table = dict(self._known(prompt.id, points).table)
        if not points or not wanted(len(points), table, self.owner.knowrl):
            return None
        everything = self._with(prompt, points, tuple(range(len(points))))
        return _Question(prompt, points, table) if fits(everything, self.owner.check) else None

    def _score(self, due: Sequence[tuple[_Question, Given]], stages: Stages) -> None:
        """Answer questions with the points that are told, and note how that went."""
        # As questions of their own, so that what is drawn for them moves no draw of the training.
        asked = [self._measured(one, given) for one, given in due]
        sampling = replace(stages.sampling, group_size=self.owner.knowrl.samples)
        answers = replace(stages, sampling=sampling)(asked)
        for (one, given), group in zip(due, answers, strict=True):
            known = [answer.correct for answer in group if answer.correct is not None]
            one.table[given] = (sum(known), len(known))
        stages.counters["knowrl/answers"] += sum(map(len, answers))
        self.forget(asked)

    def _known(self, name: str, points: tuple[str, ...]) -> Line:
        """What is known of a question with these points."""
        line = self.learned.get(name) or self.memory.of_prompts.get(name)
        return line if line is not None and line.points == points else Line(points, {})

    def _measured(self, one: _Question, given: Given) -> Prompt:
        name = f"{one.prompt.id}~points {','.join(map(str, given))}"
        text = text_of([one.points[number] for number in given], self.owner.knowrl)
        return behind(one.prompt, text, name)

    def _with(self, prompt: Prompt, points: Sequence[str], given: Given) -> Prompt:
        text = text_of([points[number] for number in given], self.owner.knowrl)
        return with_text(prompt, text, **{GIVEN: list(given)})


@dataclass
class _Question:
    """A question that is being measured."""

    prompt: Prompt
    points: tuple[str, ...]
    table: dict[Given, Score]

    def wanted(self, knowrl: KnowRL) -> list[Given]:
        """The sets of points that are measured next."""
        return wanted(len(self.points), self.table, knowrl)


def text_of(points: Sequence[str], knowrl: KnowRL) -> str:
    """What stands behind a question that is asked with these points; nothing without any."""
    return knowrl.sentence.replace("{}", "\n".join(points)) if points else ""


def points_of(prompt: Prompt, column: str) -> tuple[str, ...]:
    """The points of a row, a list of texts or a text with one a line, without empty ones; anything else has none."""
    found = prompt.extra.get(column)
    texts = found.splitlines() if isinstance(found, str) else found
    if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
        return ()
    # Each point is one line of the question.
    return tuple(line for one in texts if (line := " ".join(one.split())))


def _line(plain: Any) -> tuple[str, Line]:
    """Id and contents of a line. Raises ValueError, KeyError or TypeError."""
    points = tuple(plain["points"])
    if not isinstance(plain["id"], str) or not all(isinstance(one, str) for one in points):
        raise ValueError("id and points are texts")
    table: dict[Given, Score] = {}
    for numbers, right, known in plain["accuracy"]:
        given = tuple(numbers)
        if list(given) != sorted(set(given) & set(range(len(points)))):
            raise ValueError(
                f"{list(given)} are no numbers of {len(points)} points, rising from 0"
            )
        counts = all(type(count) is int for count in (right, known, *given))
        if not counts or not 0 <= right <= known or not known:
            raise ValueError(f"{right!r} of {known!r} answers")
        table[given] = (right, known)
    return plain["id"], Line(points, table)


def _is_table(text: str) -> bool:
    try:
        _line(json.loads(text.split("\n", 1)[0]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return True
