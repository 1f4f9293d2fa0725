"""Charts and tables from our own generator: numbers are drawn, a question about them is asked.

"chart-reading": bars or lines with a value axis and grid lines, one or two series; "table-reading": a table with row
and column names. Questions: the value of one entry, the difference of two, how many entries of a series (or row)
exceed a bound, and the largest entry of a series (or row). Answer: one whole number between 0 and `top`; reward 1 or
0.

The answer of every question kind is uniform over its range (0 to `top`; 0 to the number of rows for counts), and so are
the kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Visual,
)
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.craft.number_form import NumberTask
from mmrl.ground.seeds import Streams

NAMES = (
    *("Oslo", "Lima", "Cairo", "Delhi", "Quito", "Tunis", "Perth", "Seoul"),
    *("Paris", "Accra", "Hanoi", "Bern", "Riga", "Doha", "Kyiv", "Rome"),
    *("Suva", "Baku", "Lagos", "Minsk"),
)
SERIES = (
    *("apples", "books", "cars", "doors", "eggs"),
    *("flags", "goats", "hats", "inks", "jars"),
)
PALETTE = (
    (214, 48, 49),
    (45, 100, 220),
    (46, 160, 67),
    (235, 130, 30),
    (142, 68, 173),
    (40, 150, 160),
)
LINE = (120, 120, 120)
ASKS = ("value", "difference", "above", "largest")

Box = tuple[int, int, int, int]
Boxes = dict[tuple[int, int], Box]
"""Where the entry (row, column) stands in the picture."""


@dataclass(frozen=True)
class NumberGrid:
    """A named grid of numbers."""

    rows: tuple[str, ...]
    """Categories of a chart, rows of a table."""
    columns: tuple[str, ...]
    """Series of a chart, columns of a table."""
    values: Array
    """int64 [rows, columns]."""


@dataclass(frozen=True)
class ChartQuestion:
    """Words, answer, and the entries (row, column) that must be read."""

    text: str
    answer: int
    most: int
    """Largest possible answer."""
    entries: tuple[tuple[int, int], ...]


class ChartReadingTask(NumberTask):
    name = "chart-reading"
    kinds = ("none",)
    knobs: ClassVar = {
        "categories": Knob(5, (3, 5, 7, 9), help="Places on the horizontal axis."),
        "series": Knob(1, (1, 1, 2), help="Values per place.", allowed=(1, 2, 3)),
        "top": Knob(20, (10, 20, 40), help="End of the value axis and largest answer."),
        "style": Knob("any", help="Kind of chart.", allowed=("any", "bars", "lines")),
        "ask": Knob("any", help="Kind of question.", allowed=("any", *ASKS)),
    }
    wordings = (
        "Look at the chart. {question}",
        "{question} Read it from the chart.",
        "The chart shows some numbers per city. {question}",
    )

    def span(self, knobs: Knobs) -> tuple[int, int]:
        return 0, int(knobs["top"])

    def chance(self, knobs: Knobs) -> float:
        return guess_right(str(knobs["ask"]), int(knobs["top"]), int(knobs["categories"]))

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        top, style = int(knobs["top"]), str(knobs["style"])
        numbers = draw_numbers(int(knobs["categories"]), int(knobs["series"]), top, rng)
        kind = chosen(str(knobs["ask"]), rng.selection)
        numbers, question = pose(numbers, kind, top, "in", rng.selection)
        # No coin is tossed where the style is given.
        bars = style == "bars" or (style == "any" and rng.appearance.random() < 0.5)
        picture, boxes = _chart(numbers, top, bars, rng.appearance)
        return _draft(picture, boxes, question)


class TableReadingTask(NumberTask):
    name = "table-reading"
    kinds = ("none",)
    knobs: ClassVar = {
        "rows": Knob(5, (3, 5, 8, 11), help="Rows of numbers."),
        "columns": Knob(4, (2, 3, 4, 6), help="Columns of numbers."),
        "top": Knob(50, (20, 50, 99), help="Largest number in the table and largest answer."),
        "ask": Knob("any", help="Kind of question.", allowed=("any", *ASKS)),
    }
    wordings = (
        "Look at the table. {question}",
        "{question} Take it from the table.",
        "The table lists some numbers per city. {question}",
    )

    def span(self, knobs: Knobs) -> tuple[int, int]:
        return 0, int(knobs["top"])

    def chance(self, knobs: Knobs) -> float:
        return guess_right(str(knobs["ask"]), int(knobs["top"]), int(knobs["rows"]))

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        top = int(knobs["top"])
        numbers = draw_numbers(int(knobs["rows"]), int(knobs["columns"]), top, rng)
        kind = chosen(str(knobs["ask"]), rng.selection)
        numbers, question = pose(numbers, kind, top, "in row", rng.selection)
        picture, boxes = _table(numbers, rng.appearance)
        return _draft(picture, boxes, question)


def draw_numbers(rows: int, columns: int, top: int, rng: Streams) -> NumberGrid:
    """Uniform numbers under random names."""
    draw = rng.selection
    names = tuple(some_of(NAMES, rows, draw))
    series = tuple(some_of(SERIES, columns, draw))
    return NumberGrid(names, series, draw.integers(0, top + 1, size=(rows, columns)))


def pose(
    numbers: NumberGrid, kind: str, top: int, where: str, rng: Generator
) -> tuple[NumberGrid, ChartQuestion]:
    """One question, with the asked series drawn again such that every answer is equally likely."""
    column = int(rng.integers(len(numbers.columns)))
    first, second = some_of(range(len(numbers.rows)), 2, rng)
    what, count = numbers.columns[column], len(numbers.rows)
    values, names = numbers.values.copy(), numbers.rows
    asked = values[:, column]  # a view: what is drawn into it is shown
    whole = tuple((row, column) for row in range(count))
    if kind == "value":
        text = f"How many {what} are there {where} {names[first]}?"
        # Uniform as it was drawn.
        question = ChartQuestion(text, int(asked[first]), top, ((first, column),))
    elif kind == "difference":
        # The answer comes first and the two values are made to fit: differences of uniform values would be small.
        apart = int(rng.integers(top + 1))
        asked[first] = int(rng.integers(top - apart + 1))
        asked[second] = asked[first] + apart
        text = f"By how much do the {what} {where} {names[first]} and {where} {names[second]} differ?"
        question = ChartQuestion(text, apart, top, ((first, column), (second, column)))
    elif kind == "above":
        bound, over = int(rng.integers(1, top)), int(rng.integers(count + 1))
        asked[:] = rng.integers(0, bound + 1, size=count)
        asked[rng.permutation(count)[:over]] = rng.integers(bound + 1, top + 1, size=over)
        text = f"How many cities have more than {bound} {what}?"
        question = ChartQuestion(text, over, count, whole)
    else:
        # The maximum first: that of uniform values would mostly be near the top.
        largest = int(rng.integers(top + 1))
        asked[:] = rng.integers(0, largest + 1, size=count)
        asked[first] = largest
        text = f"What is the largest number of {what} of any city?"
        question = ChartQuestion(text, largest, top, whole)
    return NumberGrid(numbers.rows, numbers.columns, values), question


def chosen(kind: str, rng: Generator) -> str:
    """The kind of question; "any" draws one."""
    return one_of(ASKS, rng) if kind == "any" else kind


def guess_right(kind: str, top: int, rows: int) -> float:
    """Probability of a uniform guess between 0 and the largest answer of the question's kind."""
    kinds = ASKS if kind == "any" else (kind,)
    most = [rows if one == "above" else top for one in kinds]
    return sum(1.0 / (largest + 1) for largest in most) / len(kinds)


def _draft(picture: Array, boxes: Boxes, question: ChartQuestion) -> Draft:
    return Draft(
        visuals=(Visual(picture),),
        truth={"answer": question.answer, "least": 0, "most": question.most},
        key=question.answer,
        fields={"question": question.text},
        evidence=(Evidence(0, tuple(boxes[entry] for entry in question.entries)),),
    )


def _chart(numbers: NumberGrid, top: int, bars: bool, rng: Generator) -> tuple[Array, Boxes]:
    """The picture and the box of every entry. One unit of value is a whole number of pixels."""
    unit = max(2, 240 // top)
    left, high, wide = 44, unit * top, max(56, 300 // len(numbers.rows))
    base = 34 + high
    width = left + wide * len(numbers.rows) + 14
    picture = Image.new("RGB", (width, base + 34), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    _draw_axes(pen, numbers.rows, top, (left, base, wide, unit), width)
    boxes: Boxes = {}
    for column, colour in enumerate(some_of(PALETTE, len(numbers.columns), rng)):
        x = left + 60 * column + 4
        pen.rectangle((x, 8, x + 10, 18), fill=colour)
        _text(pen, (x + 14, 13), numbers.columns[column], 12, "lm")
        spots = _series(numbers, column, (left, base, wide, unit), bars)
        if not bars:
            points = [((x0 + x1) / 2, y0 + 3.0) for x0, y0, x1, _ in spots]
            pen.line(points, fill=colour, width=2)
        for row, (x0, y0, x1, _) in enumerate(spots):
            if bars:
                pen.rectangle(spots[row], fill=colour)
            else:
                pen.ellipse((x0, y0, x1, y0 + 6), fill=colour)
            # At least eight pixels high, so that a value of 0 has a place too.
            boxes[row, column] = (x0, min(y0, base - 8), x1 + 1, base + 1)
    return np.asarray(picture), boxes


def _draw_axes(
    pen: ImageDraw.ImageDraw, names: Sequence[str], top: int, frame: Box, width: int
) -> None:
    """Grid lines, the numbers at every other one, both axes and the names below."""
    left, base, wide, unit = frame
    tick = max(1, top // 10) if top <= 20 else 5
    for value in range(0, top + 1, tick):
        y = base - unit * value
        pen.line((left, y, width - 10, y), fill=(215, 215, 215))
        if value % (2 * tick) == 0:
            _text(pen, (left - 6, y), str(value), 13, "rm")
    pen.line((left, base, width - 10, base), fill="black", width=2)
    pen.line((left, base - unit * top, left, base), fill="black", width=2)
    for row, name in enumerate(names):
        _text(pen, (left + (row + 0.5) * wide, base + 14), name, 14)


def _text(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str = "mm"
) -> None:
    pen.text(at, text, fill="black", font=font(size), anchor=anchor)


def _series(numbers: NumberGrid, column: int, frame: Box, bars: bool) -> list[Box]:
    """Where the bars (or the points) of one series are: x0, top, x1, base."""
    left, base, wide, unit = frame
    own = (wide - 16) // len(numbers.columns) if bars else 6
    spots = []
    for row, value in enumerate(numbers.values[:, column]):
        y = base - unit * int(value)
        start = left + row * wide
        if bars:
            x = start + 8 + column * own
            spots.append((x, y, x + own - 2, base))
        else:
            # A point is centred on its value, a bar ends at it.
            x = start + wide // 2 - 3
            spots.append((x, y - 3, x + own, base))
    return spots


def _table(numbers: NumberGrid, rng: Generator) -> tuple[Array, Boxes]:
    wide, tall, first = 66, 28, 74
    rows, columns = len(numbers.rows), len(numbers.columns)
    width = first + wide * columns + 1
    height = tall * (rows + 1) + 1
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(picture)
    shade = tuple(int(v) for v in rng.integers(205, 245, size=3))
    pen.rectangle((0, 0, width, tall), fill=shade)
    if rng.random() < 0.5:
        for row in range(1, rows, 2):
            top = (row + 1) * tall
            pen.rectangle((0, top, width, top + tall), fill=(244, 244, 244))
    for row in range(rows + 2):
        pen.line((0, row * tall, width, row * tall), fill=LINE)
    lefts = [first + column * wide for column in range(columns + 1)]
    for x in lefts:
        pen.line((x, 0, x, height), fill=LINE)
    for x, name in zip(lefts[:-1], numbers.columns, strict=True):
        _text(pen, (x + wide / 2, tall / 2), name, 14)
    boxes: Boxes = {}
    for row, name in enumerate(numbers.rows):
        y = (row + 1) * tall
        _text(pen, (8, y + tall / 2), name, 14, "lm")
        for column, x in enumerate(lefts[:-1]):
            value = str(int(numbers.values[row, column]))
            _text(pen, (x + wide / 2, y + tall / 2), value, 14)
            boxes[row, column] = (x, y, x + wide, y + tall)
    return np.asarray(picture), boxes
