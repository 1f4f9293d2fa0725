"""Mazes: which exit can be reached, or which way leads to the goal?

"maze-exit": the maze falls into as many separate parts as it has exits; one exit is in the part of the start (1 or 0).
"maze-path": a list of steps from start to goal; any walk through open passages that ends at the goal earns 1, otherwise
`gamma` times the share of the shortest way that is right from its start. The way has exactly `steps` steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
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
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import LETTERS, ChoiceTask, listed
from mmrl.data.pretext.craft.draws import one_of, repeatedly, some_of
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams

STEPS = {
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
}
"""Rows down, columns to the right."""
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

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        size, exits, cell = int(knobs["size"]), int(knobs["exits"]), int(knobs["cell"])
        passages = _grown(size, exits, rng.geometry)
        parts = _parts(passages)
        if len(parts) != exits or min(map(len, parts)) < max(4, size):
            return Reject("part-too-small")
        letters = some_of(LETTERS[:exits], exits, rng.selection)
        ends = [_farthest(passages, one_of(part, rng.geometry)) for part in parts]
        # The first part is that of the start. The letters are shuffled, so the right one is any of them.
        start = _farthest(passages, ends[0])
        marks = {start: "S"} | dict(zip(ends, letters, strict=True))
        picture = _draw(passages, size, cell, marks)
        boxes = (_box(start, cell), _box(ends[0], cell))
        truth = {"answer": letters[0], "options": sorted(letters)}
        evidence = (Evidence(0, boxes),)
        return Draft((Visual(picture),), truth, letters[0], evidence=evidence)


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

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
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
        # Passages are kept in the truth, each once: any walk can then be checked without the picture.
        open_pairs = sorted([*a, *b] for a in passages for b in passages[a] if a < b)
        truth = {
            "answer": answer,
            "start": list(start),
            "open": open_pairs,
            "gamma": float(knobs["gamma"]),
        }
        picture = _draw(passages, size, cell, {start: "S", goal: "G"})
        boxes = tuple(_box(place, cell) for place in way)
        evidence = (Evidence(0, boxes),)
        return Draft((Visual(picture),), truth, tuple(answer), evidence=evidence)

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.words(body.replace(" ", ",") if "," not in body else body)

    def verify(self, value: Any, truth: Truth) -> Score:
        start, answer = truth["start"], truth["answer"]
        # Longer walks are not looked at: a random walk would reach the goal in the end.
        if not set(value) <= set(STEPS) or len(value) > 4 * len(answer):
            return Score(0.0, parts={"valid": 0.0})
        passages = {tuple(line) for line in truth["open"]}
        if _end(start, value, passages) == _end(start, answer, passages):
            return Score(1.0, True, {"valid": 1.0}, tuple(answer))
        right = 0
        while right < min(len(value), len(answer)) and value[right] == answer[right]:
            right += 1
        # The whole way with more steps behind it did not end at the goal: its last step is not paid.
        share = min(right, len(answer) - 1) / len(answer)
        parts = {"valid": 1.0, "prefix": share}
        return Score(truth["gamma"] * share, False, parts, tuple(value))

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return listed(repeatedly(tuple(STEPS), len(truth["answer"]), rng))

    def chance(self, knobs: Knobs) -> float:
        return 4.0 ** -int(knobs["steps"])

    def chance_reward(self, knobs: Knobs) -> float:
        steps = int(knobs["steps"])
        # Expected length of the right beginning, without the right answer itself, which is paid 1.
        reached = sum(4.0**-place for place in range(1, steps))
        prefix = reached - (steps - 1) * 4.0**-steps
        return self.chance(knobs) + float(knobs["gamma"]) * prefix / steps


def _grown(size: int, seeds: int, rng: Generator) -> Open:
    """Random trees that grow from `seeds` cells until all cells belong to one: no loops, one way between two cells."""
    cells: list[Cell] = [(row, column) for row in range(size) for column in range(size)]
    passages: Open = {cell: [] for cell in some_of(cells, seeds, rng)}
    active = [[seed] for seed in passages]
    while any(active):
        # In turns, so that the parts become about equally large.
        for tree in active:
            _grow(tree, passages, size, rng)
    return passages


def _grow(tree: list[Cell], passages: Open, size: int, rng: Generator) -> None:
    """Open one more cell from a growing tip: mostly the newest (long corridors), sometimes any (branches)."""
    while tree:
        newest = len(tree) - 1
        place = newest if rng.random() < 0.7 else int(rng.integers(len(tree)))
        here = tree[place]
        free = [cell for cell in _beside(here, size) if cell not in passages]
        if free:
            there = one_of(free, rng)
            passages[here].append(there)
            passages[there] = [here]
            tree.append(there)
            return
        # Nothing can grow from here any more.
        tree.pop(place)


def _beside(cell: Cell, size: int) -> list[Cell]:
    """The up to four neighbours inside the maze."""
    around = [(cell[0] + down, cell[1] + right) for down, right in STEPS.values()]
    return [(row, column) for row, column in around if 0 <= row < size and 0 <= column < size]


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
    # A breadth-first search reaches the farthest cell last.
    return list(_search(passages, start))[-1]


def _way(came: Mapping[Cell, Cell], end: Cell) -> list[Cell]:
    way = [end]
    while came[way[-1]] != way[-1]:
        way.append(came[way[-1]])
    return way[::-1]


def _step(a: Cell, b: Cell) -> str:
    move = (b[0] - a[0], b[1] - a[1])
    return next(word for word, step in STEPS.items() if step == move)


def _end(
    start: Sequence[int], moves: Sequence[str], passages: set[tuple[int, ...]]
) -> Cell | None:
    """Where the walk ends; None if it crosses a wall."""
    row, column = start
    here = (row, column)
    for move in moves:
        down, right = STEPS[move]
        there = (here[0] + down, here[1] + right)
        # A passage is listed once, from its smaller cell to its larger one.
        if (*min(here, there), *max(here, there)) not in passages:
            return None
        here = there
    return here


def _box(cell: Cell, side: int) -> tuple[int, int, int, int]:
    left = EDGE + cell[1] * side
    top = EDGE + cell[0] * side
    return left, top, left + side, top + side


def _draw(passages: Open, size: int, side: int, marks: Mapping[Cell, str]) -> Array:
    """uint8: black walls on white, marks in the cells."""
    edge = size * side + 2 * EDGE
    picture = Image.new("RGB", (edge, edge), "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((EDGE, EDGE, edge - EDGE, edge - EDGE), outline="black", width=3)
    for row, column in product(range(size), repeat=2):
        x0, y0, x1, y1 = _box((row, column), side)
        right, below = (row, column + 1), (row + 1, column)
        # Each wall is drawn by the cell above it or to its left.
        if column + 1 < size and right not in passages[row, column]:
            pen.line((x1, y0, x1, y1), fill="black", width=3)
        if row + 1 < size and below not in passages[row, column]:
            pen.line((x0, y1, x1, y1), fill="black", width=3)
    face = font(int(0.7 * side))
    for cell, text in marks.items():
        x0, y0, x1, y1 = _box(cell, side)
        middle = ((x0 + x1) / 2, (y0 + y1) / 2)
        colour = (200, 30, 30) if text == "S" else (20, 60, 200)
        pen.text(middle, text, fill=colour, font=face, anchor="mm")
    return np.asarray(picture)
