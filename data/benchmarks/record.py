"""One published benchmark as a record, and one of its rows as the columns that `mmrl.data.rows` knows.

A row becomes `problem`, `answer`, `images` or `videos`, `options` and `id`, and beside them what grading and the
official number need: `form`, `chance`, `precision`, `category` and a group's name in `group_<name>`. Options that the
question itself lists stay there. The answer of a choice is always the letter, whether the row tells the letter, the
number or the text of the option.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmrl.data.rows.columns import cell_at
from mmrl.data.rows.options import choices_in
from mmrl.ground.faults import Fault, shown
from mmrl.ground.tables import Row, Table

Form = Literal["choice", "letters", "yes_no", "number", "relative", "math", "text", "span"]
"""choice: one letter; letters: a set of them; yes_no; number: within the row's precision; relative: a number, paid by
its relative error (VSI-Bench); math: an expression; text: the same words; span: seconds of a clip."""
LETTERS = string.ascii_uppercase
ABSENT = ("N/A", "")
"""What stands where there is no such option."""


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies, what its columns mean and what its authors report."""

    title: str
    source: str
    """Where the columns are published."""
    hub: str = ""
    """Name on the hub; empty: a file must be named."""
    split: str | None = None
    subset: str | None = None
    subsets: tuple[str, ...] = ()
    """Those to choose from, where the hub has no whole."""
    question: str = "question"
    answer: str = "answer"
    images: tuple[str, ...] = ()
    """Columns of pictures; empty ones are left out."""
    videos: tuple[str, ...] = ()
    """Columns of clips, or their paths with columns in braces: {videoID}.mp4."""
    options: tuple[str, ...] = ()
    """A column that lists them, or one column for each; none where the question lists them."""
    id: str = ""
    form: Form = "math"
    form_column: str = ""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """What `form_column` says -> the form; `form` for everything else."""
    unlisted: Form | None = None
    """The form of rows whose column of options is empty; None: the same."""
    ways: int = 0
    """Options that the question itself lists; 0: not known, or `options` tells."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Answers that are written in another way than a model would: 1 for yes."""
    instead: str = ""
    """What is asked where the question stands in the picture."""
    unit: str = ""
    """A column with the unit that is asked for."""
    precision: str = ""
    """A column with the decimals that a number is compared to."""
    category: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> columns whose values make a group; the official number wants all of a group right."""
    pairs: str = ""
    """A column that numbers the rows from 1 where each two are a pair, a group called `pair`."""
    metric: str = "accuracy"
    """What its authors report, in words."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns of adapted rows."""
        given = {
            "images": self.images,
            "videos": self.videos,
            "options": self.options,
            "id": self.id,
        }
        found = [
            "problem",
            "answer",
            *(name for name, has in given.items() if has),
            "form",
            "chance",
        ]
        found += ["precision"] * bool(self.precision) + ["category"] * bool(self.category)
        return [
            *found,
            *(f"group_{name}" for name in self.groups),
            *["group_pair"] * bool(self.pairs),
        ]

    @property
    def needed(self) -> list[str]:
        """Columns that a row must have."""
        texts = (() if self.instead else (self.question,), (self.answer,), _named(self.videos))
        return [name for names in texts for name in names]

    @property
    def read(self) -> list[str]:
        """All columns that an adapted row is made from."""
        single = (self.question, self.answer, self.id, self.form_column, self.unit)
        single = (*single, self.precision, self.category, self.pairs)
        groups = [name for names in self.groups.values() for name in names]
        several = [*self.images, *_named(self.videos), *self.options, *groups]
        return list(dict.fromkeys(name for name in (*single, *several) if name))


def adapted(benchmark: Benchmark, row: Row) -> dict[str, Any]:
    """A published row in our columns; pictures that the row lacks are left out. Raises `Fault`."""
    form = _form(benchmark, row)
    options = _options(benchmark, row) if form == "choice" else []
    found: dict[str, Any] = {
        "problem": _question(benchmark, row),
        "answer": _answer(benchmark, row, form, options),
        "form": form,
        "chance": _chance(benchmark, form, options),
    }
    if benchmark.images:
        cells = [row[name] for name in benchmark.images if row.get(name) is not None]
        found["images"] = [picture for cell in cells for picture in _pictures(cell)]
    if benchmark.videos:
        found["videos"] = [_clip(pattern, row) for pattern in benchmark.videos]
    if benchmark.options:
        found["options"] = options
    for name in ("id", "precision", "category"):
        column = getattr(benchmark, name)
        if column:
            found[name] = cell_at(row, column)
    for name, columns in benchmark.groups.items():
        found[f"group_{name}"] = "/".join(str(cell_at(row, column)) for column in columns)
    if benchmark.pairs:
        found["group_pair"] = (int(cell_at(row, benchmark.pairs)) - 1) // 2
    return found


class BenchmarkTable:
    """A table of a benchmark's published rows, seen in our columns."""

    def __init__(self, inner: Table, benchmark: Benchmark) -> None:
        existing = inner.columns()
        missing = [name for name in benchmark.needed if name.split(".")[0] not in existing]
        if missing:
            raise ValueError(
                f"{inner.name} has no column {', '.join(map(repr, missing))}, which the rows of {benchmark.title} have "
                f"({benchmark.source}); it has {existing}. Give the published file, or leave out benchmark: and name "
                "its columns with --data.columns."
            )
        self.name, self._inner, self.benchmark = inner.name, inner, benchmark
        self._read = [name for name in benchmark.read if name.split(".")[0] in existing]

    def columns(self) -> list[str]:
        return self.benchmark.columns

    def light(self) -> frozenset[str]:
        heavy = not {*self.benchmark.images} <= self._inner.light()
        return frozenset(self.benchmark.columns) - ({"images"} if heavy else set())

    def __len__(self) -> int:
        return len(self._inner)

    def scan(self) -> Iterator[Row | Fault]:
        light = self.light()
        for row in self._inner.scan():
            if isinstance(row, Fault):
                yield row
                continue
            try:
                found = adapted(self.benchmark, row)
            except Fault as fault:
                yield fault
                continue
            yield {name: found[name] for name in found if name in light}

    def row(self, index: int, columns: Sequence[str]) -> Row:
        return adapted(self.benchmark, self._inner.row(index, self._read))

    def where(self, index: int) -> str:
        return self._inner.where(index)

    def base(self, index: int) -> Path | None:
        return self._inner.base(index)


def _form(benchmark: Benchmark, row: Row) -> Form:
    if benchmark.unlisted and not choices_in(cell_at(row, benchmark.options[0])):
        return benchmark.unlisted
    said = str(cell_at(row, benchmark.form_column)) if benchmark.form_column else ""
    return benchmark.forms.get(said, benchmark.form)


def _question(benchmark: Benchmark, row: Row) -> str:
    question = cell_at(row, benchmark.question)
    question = question.strip() if isinstance(question, str) else ""
    unit = cell_at(row, benchmark.unit) if benchmark.unit else None
    if question and unit:
        question = f"{question} (unit: {unit})"
    return question or benchmark.instead


def _options(benchmark: Benchmark, row: Row) -> list[str]:
    """The texts of the options, each without its letter where the row writes one; none if the question lists them."""
    if not benchmark.options:
        return []
    if len(benchmark.options) == 1:
        cell = cell_at(row, benchmark.options[0])
        options = _in_one_line(cell) or choices_in(cell)
    else:
        cells = [cell_at(row, name) for name in benchmark.options]
        # An empty number, as tables write it, differs from itself.
        options = [str(cell).strip() for cell in cells if cell is not None and cell == cell]
    options = [option for option in options if option not in ABSENT]
    # Options that are nothing but their letters stand in the picture.
    return [] if options == list(LETTERS[: len(options)]) else options


def _in_one_line(cell: Any) -> list[str]:
    """Options of one line, "A. 3; B. 4" or "(a) open (b) closed"; none if it is no such line."""
    if not isinstance(cell, str) or "\n" in cell.strip():
        return []
    starts: list[tuple[int, int]] = []
    for letter in LETTERS:
        after = starts[-1][1] if starts else 0
        mark = re.compile(rf"(?:^|[\s;,])\(?[{letter}{letter.lower()}][.):]\s").search(
            cell, after
        )
        if mark is None:
            break
        starts.append(mark.span())
    if len(starts) < 2 or starts[0][0] > 0:
        return []
    ends = [start for start, _ in starts[1:]] + [len(cell)]
    return [cell[first:end].strip(" ;,") for (_, first), end in zip(starts, ends, strict=True)]


def _answer(benchmark: Benchmark, row: Row, form: Form, options: Sequence[str]) -> Any:
    answer = cell_at(row, benchmark.answer)
    if isinstance(answer, str):
        answer = answer.strip()
    if benchmark.words:
        return benchmark.words.get(str(answer), answer)
    if form != "choice" or answer in (None, ""):
        return answer
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < (len(options) or len(LETTERS)):
            raise _no_option(answer, options)
        return LETTERS[answer]
    text = str(answer)
    # The text first: an option may itself read "B".
    if text in options:
        return LETTERS[options.index(text)]
    letter = text.lstrip("(")[:1].upper()
    is_marked = len(text) == 1 or text.lstrip("(")[1:2] in (")", ".", ":")
    known = LETTERS[: len(options)] if options else LETTERS
    if not is_marked or letter not in known or not letter:
        raise _no_option(text, options)
    return letter


def _no_option(answer: object, options: Sequence[str]) -> Fault:
    found = f"the answer is {shown(answer)}, and the options are {shown(list(options))}"
    return Fault(
        "bad answer", found, "Give the letter or the text of an option, or drop the row."
    )


def _chance(benchmark: Benchmark, form: Form, options: Sequence[str]) -> float:
    """How often guessing is right."""
    if form == "yes_no":
        return 0.5
    ways = len(options) or benchmark.ways
    return 1 / ways if form == "choice" and ways else 0.0


def _pictures(cell: Any) -> list[Any]:
    """A cell of one picture or several."""
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def _clip(pattern: str, row: Row) -> Any:
    """The path of a clip."""
    if "{" not in pattern:
        return cell_at(row, pattern)
    names = _named((pattern,))
    return pattern.format(**{name: cell_at(row, name) for name in names})


def _named(patterns: Sequence[str]) -> list[str]:
    """The columns that paths are made of."""
    names: list[str] = []
    for pattern in patterns:
        if "{" in pattern:
            parts = string.Formatter().parse(pattern)
            names += [name for _, name, _, _ in parts if name]
        else:
            names.append(pattern)
    return names
