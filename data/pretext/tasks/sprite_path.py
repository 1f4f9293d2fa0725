"""Path tracking: identical objects move over the cells of a grid. Where does the marked one end, and on which way?

One object wears a white ring in the first frames. "sprite-path" asks for its final cell (1 or 0); "sprite-moves" for
the list of its moves (1, else gamma times the share of right moves).

Defences: all objects look the same once the ring is gone; every object moves by the same rule; a cell is entered only
if it was free before the step, so that paths never cross or touch and identity can always be followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    Medium,
    Proposal,
    RawMedia,
    Reject,
    Visual,
)
from mmrl.data.pretext.craft import clips
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, WordsTask
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.procedural import COLOURS, SHAPES
from mmrl.data.pretext.craft.sprites import sprite, stamp
from mmrl.ground.seeds import Streams

MOVES = {
    "up": (-1, 0),
    "down": (1, 0),
    "left": (0, -1),
    "right": (0, 1),
}
"""Rows down, columns to the right."""
Cell = tuple[int, int]
Place = tuple[float, float]
"""Row and column, also between two cells."""
Walk = list[list[Cell]]
"""Cells of all objects after each step; the marked one is first."""

TRACK_KNOBS = {
    "grid": Knob(3, (2, 3, 3, 4), help="Rows and columns of the grid."),
    "objects": Knob(2, (1, 2, 3), help="Identical objects."),
    "moves": Knob(4, (2, 3, 4, 6), help="Steps of every object."),
    "per_move": Knob(3, help="Frames per step; at least 2."),
    "side": Knob(256, help="Longest side of a frame in pixels."),
}
HOLD = 2
"""Frames with the ring before the first step."""


@dataclass(frozen=True)
class TrackedClip:
    """A painted clip and what moves in it."""

    walk: Walk
    video: Visual
    name: str
    """Of the moving objects."""
    evidence: tuple[Evidence, ...]
    """Where the marked object is, frame by frame."""


class SpritePathTask(ChoiceTask):
    name = "sprite-path"
    kinds = ("video",)
    avoid = ("flat-shapes",)
    knobs: ClassVar = TRACK_KNOBS
    wordings = (
        "The {name} with the white ring moves over a {grid}×{grid} grid whose cells count from 1 in reading order. In"
        " which cell does it end?",
        "Follow the {name} that wears a ring at the start. The grid has {grid} rows and {grid} columns, numbered from"
        " 1, row by row. Where is it in the last frame?",
        "Keep your eye on the ringed {name}. Give the number of its final cell ({grid}×{grid} cells, reading order,"
        " from 1).",
    )
    hint = "the number of the cell"

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["grid"]) ** 2

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        track = _tracked(media[0], knobs, rng)
        if isinstance(track, Reject):
            return track
        row, column = track.walk[-1][0]
        grid = int(knobs["grid"])
        answer = str(row * grid + column + 1)
        truth = {"answer": answer, "options": [str(i + 1) for i in range(grid * grid)]}
        return Draft(
            (track.video,), truth, answer, {"name": track.name, "grid": grid}, track.evidence
        )


class SpriteMovesTask(WordsTask):
    name = "sprite-moves"
    kinds = ("video",)
    avoid = ("flat-shapes",)
    knobs: ClassVar = {**TRACK_KNOBS, "gamma": Knob(0.2, help="Pay for partly right lists.")}
    wordings = (
        "The {name} with the white ring makes {moves} moves on the grid. List them in order (up, down, left, right).",
        "Follow the {name} that wears a ring at the start and name each of its {moves} moves: up, down, left or right.",
        "Which {moves} moves does the ringed {name} make? Answer with up, down, left and right, in order.",
    )
    hint = "the moves in order, separated by commas"

    def length(self, knobs: Knobs) -> int:
        return int(knobs["moves"])

    def names(self, knobs: Knobs) -> Sequence[str]:
        return tuple(MOVES)

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        track = _tracked(media[0], knobs, rng)
        if isinstance(track, Reject):
            return track
        way = [cells[0] for cells in track.walk]
        answer = [_move(before, after) for before, after in pairwise(way)]
        truth = {"answer": answer, "names": list(MOVES), "gamma": float(knobs["gamma"])}
        fields = {"name": track.name, "moves": len(answer)}
        return Draft((track.video,), truth, tuple(answer), fields, track.evidence)


def _walk(knobs: Knobs, rng: Generator) -> Walk | None:
    """Random steps into cells that were free; the marked object always moves, None if it cannot.

    Drawn from the end backwards (the rule is its own reverse), so that every final cell is equally likely."""
    grid, objects = int(knobs["grid"]), int(knobs["objects"])
    cells: list[Cell] = [(row, column) for row in range(grid) for column in range(grid)]
    now = some_of(cells, objects, rng)
    walk = [now]
    for _ in range(int(knobs["moves"])):
        # Cells that are left in this step stay taken: paths never touch, and nobody can be mistaken.
        taken, after = set(now), []
        for index, here in enumerate(now):
            steps = [(here[0] + down, here[1] + right) for down, right in MOVES.values()]
            free = [cell for cell in steps if cell in cells and cell not in taken]
            if not free and index == 0:
                return None
            chosen = one_of(free, rng) if free else here
            taken.add(chosen)
            after.append(chosen)
        now = after
        walk.append(now)
    return walk[::-1]


def _move(before: Cell, after: Cell) -> str:
    step = (after[0] - before[0], after[1] - before[1])
    return next(word for word, move in MOVES.items() if move == step)


def _tracked(medium: Medium, knobs: Knobs, rng: Streams) -> TrackedClip | Reject:
    """Draw a walk and paint it on the clip, with the grid."""
    walk = _walk(knobs, rng.geometry)
    if walk is None:
        return Reject("stuck")
    clip, grid = medium.video(), int(knobs["grid"])
    per_move = max(2, int(knobs["per_move"]))
    frames = HOLD + per_move * (len(walk) - 1)
    units = np.arange(frames, dtype=np.float64)
    indices = clips.spread_indices(clip, units)
    if indices is None:
        return Reject("too-few-frames")
    shown = clips.read_frames(clip, indices, int(knobs["side"])).copy()
    if clips.too_small(shown, clips.PAINTABLE):
        return Reject("too-small")
    height, width = shown.shape[1:3]
    shape = one_of(SHAPES, rng.appearance)
    colour = one_of(list(COLOURS), rng.appearance)
    size = int(0.55 * min(height, width) / grid)
    what = sprite(shape, colour, size, rng.appearance)
    ring = _ring(what.fill.shape[0] + 8)
    marked = []
    for frame, places in enumerate(_places(walk, frames, per_move)):
        _draw_grid(shown[frame], grid)
        for index, (row, column) in enumerate(places):
            x = (column + 0.5) * width / grid
            y = (row + 0.5) * height / grid
            # The ring lies under its object and goes before anything moves.
            if index == 0 and frame < HOLD:
                _put(shown[frame], ring, x, y)
            box = stamp(shown[frame], what, x, y)
            if index == 0:
                marked.append(Evidence(0, (box,), (frame,)))
    video = clips.timed(shown, clips.shown_step(clip, indices, units))
    return TrackedClip(walk, video, what.name, tuple(marked))


def _places(walk: Walk, frames: int, per_move: int) -> list[list[Place]]:
    """(row, column) of every object in every frame, gliding evenly from cell to cell."""
    out: list[list[Place]] = []
    for frame in range(frames):
        move, part = divmod(max(0, frame - HOLD + 1), per_move)
        # The last frame stands on the last cells, after which there is no further step.
        before, after = walk[move], walk[min(move + 1, len(walk) - 1)]
        places = []
        for start, end in zip(before, after, strict=True):
            places.append(_between(start, end, part / per_move))
        out.append(places)
    return out


def _between(start: Cell, end: Cell, share: float) -> Place:
    row = start[0] + share * (end[0] - start[0])
    column = start[1] + share * (end[1] - start[1])
    return row, column


def _draw_grid(frame: Array, grid: int) -> None:
    """Grey lines between the cells, half transparent, in place."""
    height, width = frame.shape[:2]
    for i in range(1, grid):
        row, column = i * height // grid, i * width // grid
        across = frame[row - 1 : row + 1]
        across[:] = across // 2 + 100
        down = frame[:, column - 1 : column + 1]
        down[:] = down // 2 + 100


def _ring(side: int) -> Array:
    """float32 [side, side, 1] in [0, 1]: a thick white ring."""
    # Drawn at twice the size and reduced, which smooths its edges.
    mask = Image.new("L", (2 * side, 2 * side))
    box = (2, 2, 2 * side - 3, 2 * side - 3)
    ImageDraw.Draw(mask).ellipse(box, outline=255, width=max(6, side // 6))
    return np.asarray(mask.reduce(2), dtype=np.float32)[..., None] / 255


def _put(frame: Array, ring: Array, x: float, y: float) -> None:
    """Blend the ring around (x, y) into the frame, in place, cut off at its borders."""
    side = ring.shape[0]
    left, top = round(x - side / 2), round(y - side / 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + side, frame.shape[1])
    y1 = min(top + side, frame.shape[0])
    part = ring[y0 - top : y1 - top, x0 - left : x1 - left]
    under = frame[y0:y1, x0:x1]
    frame[y0:y1, x0:x1] = under * (1 - part) + 255 * part
