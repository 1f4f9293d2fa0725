"""Redraw: write the program that draws the picture; it is drawn and compared.

A board of cells holds shapes in named colours and two sizes. Answer: one entry "small red circle 2 3" per shape (size,
colour, shape, column, row; counted from 1 at the left and the top), entries separated by semicolons in any order.
Reward: 1 for the same drawing, else the similarity of the two drawings (`rewards.render_similarity`; an empty board and
anything worse than it earn 0), below 1. Several shapes in one cell, cells off the board, unknown words: no solution.

Defences: cells, shapes, colours and their number are drawn independently and uniformly, so no answer is more frequent
than another; the number of shapes may be withheld (`told`); grid lines can be left out, which asks for measuring.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.draws import one_of
from mmrl.data.pretext.craft.procedural import COLOURS, SHAPES, Shape, ShapeName, coverage
from mmrl.data.pretext.craft.scene_objects import HUES
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import render_similarity
from mmrl.ground.seeds import Streams, philox

SIZES = {"small": 0.45, "large": 0.85}
"""Diameter as a share of a cell."""
GROUND, LINE = 56, 84
MOST = 16
"""Most entries of a program that is drawn."""
UNIT = 8
"""Pixels per cell in the drawings that are compared."""

Entry = tuple[str, str, ShapeName, int, int]
"""Size, colour, shape, column, row; from 1."""


class RedrawTask(Task):
    name = "redraw"
    kinds = ("none",)
    knobs: ClassVar = {
        "shapes": Knob(
            3, (1, 2, 3, 4, 6), help="Shapes on the board, at most half of the cells."
        ),
        "cells": Knob(4, (3, 4, 5, 6), help="Columns and rows of the board, 2 to 9."),
        "lines": Knob(True, (True, True, True, False), help="Show the borders of the cells."),
        "told": Knob(True, (True, True, False), help="Say how many shapes there are."),
    }
    wordings = (
        "The picture is a board of {cells} columns and {cells} rows that holds {count}. Write the program that draws"
        " it.",
        "Describe this board of {cells} by {cells} cells ({count}) so exactly that it can be drawn again.",
        "What must be drawn on an empty board with {cells} columns and {cells} rows to get this picture ({count})?",
    )
    hint = (
        "one entry per shape, made of size (small or large), colour, shape, column and row, counted from 1 at the left"
        " and the top; entries are separated by semicolons"
    )

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        cells, count = int(knobs["cells"]), int(knobs["shapes"])
        if not 2 <= cells <= 9 or not 1 <= count <= min(MOST, cells**2 // 2):
            return Reject("no-room")
        answer = _program(count, cells, rng.selection)
        unit = max(32, 224 // cells)
        words = f"{count} shape{'s' if count > 1 else ''}" if knobs["told"] else "some shapes"
        return Draft(
            visuals=(Visual(drawing(answer, cells, unit, bool(knobs["lines"]))),),
            truth={"answer": [list(entry) for entry in answer], "cells": cells},
            key=tuple(answer),
            fields={"cells": cells, "count": words},
            evidence=(Evidence(0, tuple(_box(entry, unit) for entry in answer)),),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        parts = [part.split() for part in body.lower().replace(",", " ").split(";")]
        parts = [part for part in parts if part]
        if not 0 < len(parts) <= MOST:
            return ParseError("length", body[:40])
        entries = [_entry(part) for part in parts]
        known = [entry for entry in entries if entry is not None]
        if len(known) < len(entries):
            return ParseError("malformed", body[:40])
        # Sorted: the order of the entries is no part of the drawing.
        return tuple(sorted(known))

    def verify(self, value: Any, truth: Truth) -> Score:
        cells = truth["cells"]
        places = {entry[3:] for entry in value}
        if len(places) < len(value) or any(max(place) > cells for place in places):
            return Score(0.0, parts={"valid": 0.0})
        wanted = tuple(tuple(entry) for entry in truth["answer"])
        if value == wanted:
            return Score(1.0, True, {"valid": 1.0}, value)
        alike = render_similarity(drawing(value, cells, UNIT), _wanted(wanted, cells))
        # In few pixels two colours may look almost alike; only the same program earns 1.
        return Score(min(alike, 0.99), False, {"valid": 1.0}, value)

    def format(self, truth: Truth) -> str:
        return _written(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return _written(_program(len(truth["answer"]), truth["cells"], rng))

    def chance(self, knobs: Knobs) -> float:
        count, cells = int(knobs["shapes"]), int(knobs["cells"])
        kinds_of_shape = len(SIZES) * len(HUES) * len(SHAPES)
        return 1.0 / (comb(cells**2, count) * float(kinds_of_shape) ** count)

    def chance_reward(self, knobs: Knobs) -> float:
        return _expected(int(knobs["shapes"]), int(knobs["cells"]))


def drawing(program: Sequence[Entry], cells: int, unit: int, lines: bool = False) -> Array:
    """uint8 [cells·unit, cells·unit, 3]: the board with these shapes, with grid lines on request."""
    edge = cells * unit
    board = np.full((edge, edge, 3), GROUND, np.uint8)
    if lines:
        board[unit::unit] = board[:, unit::unit] = LINE
    for size, colour, shape, column, row in program:
        top, left = (row - 1) * unit, (column - 1) * unit
        place = np.s_[top : top + unit, left : left + unit]
        board[place] = board[place] + _stamp(size, colour, shape, unit)
    return board


@lru_cache(maxsize=512)
def _stamp(size: str, colour: str, shape: ShapeName, unit: int) -> Array:
    """uint8 [unit, unit, 3], to be added modulo 256 to the ground; lines touch no shape."""
    body = Shape(shape, COLOURS[colour], unit / 2, unit / 2, SIZES[size] * unit)
    inside = np.asarray(coverage(body, unit, unit), dtype=np.float32)[..., None] / 255
    change = (np.array(COLOURS[colour]) - GROUND) * inside
    # By way of int16: a negative change becomes its complement, and the sum wraps around to the right value.
    return change.round().astype(np.int16).astype(np.uint8)


@lru_cache(maxsize=64)
def _wanted(program: tuple[Entry, ...], cells: int) -> Array:
    return drawing(program, cells, UNIT)


def _program(count: int, cells: int, rng: Generator) -> list[Entry]:
    program: list[Entry] = []
    for place in rng.permutation(cells**2)[:count]:
        row, column = divmod(int(place), cells)
        size, colour = one_of(list(SIZES), rng), one_of(HUES, rng)
        shape = one_of(SHAPES, rng)
        program.append((size, colour, shape, column + 1, row + 1))
    return sorted(program)


def _written(program: Sequence[Sequence[object]]) -> str:
    return "; ".join(" ".join(str(word) for word in entry) for entry in program)


def _entry(words: Sequence[str]) -> Entry | None:
    """An entry of the answer; None unless it is made of known words and two digits from 1 to 9."""
    if len(words) != 5:
        return None
    size, colour, shape, column, row = words
    if size not in SIZES or colour not in HUES or shape not in SHAPES:
        return None
    # Listed, since `isdigit` accepts digits of other scripts and superscripts too.
    if not all(len(digit) == 1 and digit in "123456789" for digit in (column, row)):
        return None
    return size, colour, shape, int(column), int(row)


def _box(entry: Entry, unit: int) -> tuple[int, int, int, int]:
    column, row = entry[3:]
    left, top = (column - 1) * unit, (row - 1) * unit
    return left, top, left + unit, top + unit


@lru_cache(maxsize=64)
def _expected(count: int, cells: int, draws: int = 1500) -> float:
    """Mean reward of random programs, by simulation with fixed random numbers."""
    rng, total = philox("expected-drawing", count, cells), 0.0
    for _ in range(draws):
        first, second = (drawing(_program(count, cells, rng), cells, UNIT) for _ in "12")
        total += min(render_similarity(first, second), 0.99)
    return total / draws
