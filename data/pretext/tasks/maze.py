"""Mazes: which exit can be reached, or which way leads to the goal?

"maze-exit": the maze falls into as many separate parts as it has exits; one exit is in the part of the start (1 or 0).
"maze-path": a list of steps from start to goal; any walk through open passages that ends at the goal earns 1, otherwise
`gamma` times the share of the shortest way that is right from its start. The way has exactly `steps` steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Medium,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import LETTERS, ChoiceTask
from mmrl.data.pretext.craft.draws import one_of
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.craft.rng import Streams
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError

STEPS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
EDGE = 12
"""White pixels around the maze."""
Cell = tuple[int, int]
Open = dict[Cell, list[Cell]]
"""Cell -> cells that it is open to."""


class MazeExitTask(ChoiceTask):
    name = "maze-exit"
    kinds = ("none",)
    knobs: ClassVar = {
        "size": Knob(8, (5, 7, 9, 12), help="Rows and columns."),
        "exits": Knob(4, (2, 3, 4, 5), help="Lettered exits."),
        "cell": Knob(28, help="Side of a cell in pixels."),
    }
    wordings = (
        "Starting at S and never crossing a wall, which of the lettered cells can be reached?",
        "The maze is walled into separate parts. Which letter lies in the same part as S?",
        "Find the only letter that a path from S leads to.",
    )
    hint = "one letter"

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["exits"])

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        size, exits, cell = int(knobs["size"]), int(knobs["exits"]), int(knobs["cell"])
        passages = _grown(size, exits, rng.geometry)
        parts = _parts(passages)
        if len(parts) != exits or min(map(len, parts)) < max(4, size):
            return Reject("part-too-small")
        letters = [LETTERS[int(i)] for i in rng.selection.permutation(exits)]
        ends = [_farthest(passages, one_of(part, rng.geometry)) for part in parts]
        start = _farthest(passages, ends[0])
        marks = {start: "S"} | dict(zip(ends, letters, strict=True))
        box = _box(start, cell), _box(ends[0], cell)
        truth = {"answer": letters[0], "options": sorted(letters)}
        return Draft(
            (Visual(_draw(passages, size, cell, marks)),),
            truth,
            letters[0],
            evidence=(Evidence(0, box),),
        )


class MazePathTask(Task):
    name = "maze-path"
    kinds = ("none",)
    knobs: ClassVar = {
        "size": Knob(5, (4, 5, 6, 8), help="Rows and columns."),
        "steps": Knob(6, (3, 5, 8, 12), help="Length of the way."),
        "gamma": Knob(0.2, help="Pay for a right beginning."),
        "cell": Knob(36, help="Side of a cell in pixels."),
    }
    wordings = (
        "List the steps from S to G without crossing a wall: up, down, left, right.",
        "How do you walk from S to G? Name every step from cell to cell (up, down, left or right).",
        "Solve the maze: give the moves that lead from S to G, one cell each.",
    )
    hint = "the steps in order, separated by commas"

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        size, steps, cell = int(knobs["size"]), int(knobs["steps"]), int(knobs["cell"])
        passages = _grown(size, 1, rng.geometry)
        start = int(rng.geometry.integers(size)), int(rng.geometry.integers(size))
        came = _search(passages, start)
        ends = [end for end in came if len(_way(came, end)) == steps + 1]
        if not ends:
            return Reject("no-way-of-this-length")
        goal = one_of(ends, rng.geometry)
        way = _way(came, goal)
        answer = [_step(a, b) for a, b in pairwise(way)]
        truth = {
            "answer": answer,
            "start": list(start),
            "open": sorted([*a, *b] for a in passages for b in passages[a] if a < b),
            "gamma": float(knobs["gamma"]),
        }
        picture = _draw(passages, size, cell, {start: "S", goal: "G"})
        boxes = tuple(_box(place, cell) for place in way)
        return Draft((Visual(picture),), truth, tuple(answer), evidence=(Evidence(0, boxes),))

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.words(body.replace(" ", ",") if "," not in body else body)

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        if not set(value) <= set(STEPS) or len(value) > 4 * len(answer):
            return Score(0.0, parts={"valid": 0.0})
        passages = {tuple(line) for line in truth["open"]}
        if _end(truth["start"], value, passages) == _end(truth["start"], answer, passages):
            return Score(1.0, True, {"valid": 1.0}, tuple(answer))
        right = 0
        while right < min(len(value), len(answer)) and value[right] == answer[right]:
            right += 1
        share = min(right, len(answer) - 1) / len(answer)
        return Score(
            truth["gamma"] * share, False, {"valid": 1.0, "prefix": share}, tuple(value)
        )

    def format(self, truth: Truth) -> str:
        return ", ".join(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return ", ".join(
            tuple(STEPS)[int(i)] for i in rng.integers(4, size=len(truth["answer"]))
        )

    def chance(self, knobs: Knobs) -> float:
        return 4.0 ** -int(knobs["steps"])

    def chance_reward(self, knobs: Knobs) -> float:
        steps = int(knobs["steps"])
        prefix = sum(4.0**-place for place in range(1, steps)) - (steps - 1) * 4.0**-steps
        return self.chance(knobs) + float(knobs["gamma"]) * prefix / steps


def _grown(size: int, seeds: int, rng: Generator) -> Open:
    """Random trees that grow from `seeds` cells until all cells belong to one: no loops, one way between two cells."""
    cells = [(r, c) for r in range(size) for c in range(size)]
    passages: Open = {cells[int(i)]: [] for i in rng.permutation(len(cells))[:seeds]}
    active = [[seed] for seed in passages]
    while any(active):
        for tree in active:
            _grow(tree, passages, size, rng)
    return passages


def _grow(tree: list[Cell], passages: Open, size: int, rng: Generator) -> None:
    """Open one more cell from a growing tip: mostly the newest (long corridors), sometimes any (branches)."""
    while tree:
        place = len(tree) - 1 if rng.random() < 0.7 else int(rng.integers(len(tree)))
        here = tree[place]
        free = [
            n
            for n in _beside(here)
            if n not in passages and 0 <= n[0] < size and 0 <= n[1] < size
        ]
        if free:
            there = one_of(free, rng)
            passages[here].append(there)
            passages[there] = [here]
            tree.append(there)
            return
        tree.pop(place)


def _beside(cell: Cell) -> list[Cell]:
    return [(cell[0] + dr, cell[1] + dc) for dr, dc in STEPS.values()]


def _search(passages: Open, start: Cell) -> dict[Cell, Cell]:
    """Breadth first: every reached cell -> the cell before it (the start -> itself)."""
    came, queue = {start: start}, deque([start])
    while queue:
        here = queue.popleft()
        for there in passages[here]:
            if there not in came:
                came[there] = here
                queue.append(there)
    return came


def _parts(passages: Open) -> list[list[Cell]]:
    parts, seen = [], set[Cell]()
    for cell in passages:
        if cell not in seen:
            part = list(_search(passages, cell))
            seen.update(part)
            parts.append(part)
    return parts


def _farthest(passages: Open, start: Cell) -> Cell:
    return list(_search(passages, start))[-1]


def _way(came: Mapping[Cell, Cell], end: Cell) -> list[Cell]:
    way = [end]
    while came[way[-1]] != way[-1]:
        way.append(came[way[-1]])
    return way[::-1]


def _step(a: Cell, b: Cell) -> str:
    return next(word for word, (dr, dc) in STEPS.items() if (a[0] + dr, a[1] + dc) == b)


def _end(
    start: Sequence[int], moves: Sequence[str], passages: set[tuple[int, ...]]
) -> Cell | None:
    """Where the walk ends; None if it crosses a wall."""
    row, column = start
    for move in moves:
        after = row + STEPS[move][0], column + STEPS[move][1]
        if (*min((row, column), after), *max((row, column), after)) not in passages:
            return None
        row, column = after
    return row, column


def _box(cell: Cell, side: int) -> tuple[int, int, int, int]:
    return (
        EDGE + cell[1] * side,
        EDGE + cell[0] * side,
        EDGE + (cell[1] + 1) * side,
        EDGE + (cell[0] + 1) * side,
    )


def _draw(passages: Open, size: int, side: int, marks: Mapping[Cell, str]) -> Array:
    """uint8: black walls on white, marks in the cells."""
    edge = size * side + 2 * EDGE
    picture = Image.new("RGB", (edge, edge), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((EDGE, EDGE, edge - EDGE, edge - EDGE), outline="black", width=3)
    for row in range(size):
        for column in range(size):
            x0, y0, x1, y1 = _box((row, column), side)
            if column + 1 < size and (row, column + 1) not in passages[row, column]:
                pen.line((x1, y0, x1, y1), fill="black", width=3)
            if row + 1 < size and (row + 1, column) not in passages[row, column]:
                pen.line((x0, y1, x1, y1), fill="black", width=3)
    for (row, column), text in marks.items():
        x0, y0, x1, y1 = _box((row, column), side)
        colour = (200, 30, 30) if text in "S" else (20, 60, 200)
        pen.text(
            ((x0 + x1) / 2, (y0 + y1) / 2),
            text,
            fill=colour,
            font=font(int(0.7 * side)),
            anchor="mm",
        )
    return np.asarray(picture)
