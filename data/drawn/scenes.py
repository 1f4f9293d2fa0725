"""Drawn pictures and clips: grids of coloured shapes, one big shape for puzzles, moving shapes. numpy only.

A scene is an integer grid [rows, columns] of codes: 0 is an empty cell, 1 + colour * 3 + shape a filled one.
Held-out scenes are known by their content: a hash of something that the pixels determine (the grid, the background tint
of a puzzle, the places of a clip's shapes in each frame; not the question, the seed or the index) falls into one bucket
of eight, and scenes of the other side are drawn again. Equal pixels therefore always lie on the same side: the splits
are disjoint by construction, for every seed, and shared by all tasks that draw the same kind of picture.

The background is light, never black, so that a cell blacked out by a masked view differs from an empty one. In a grid
it is tinted by row and column: a tiny vision tower with relative positions could hardly tell places apart otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 200, 30),
}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = 232
TINT = 100
"""How much darker red and blue become over a grid's rows and columns."""
NAMES = ("nothing", *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES))
"""Code -> words."""

T = TypeVar("T")
Split = Literal["train", "heldout"]
HELDOUT_BUCKETS = 8
"""One scene in eight is held out."""
MAX_REDRAWS = 2000

Pixels = NDArray[np.uint8]
Grid = NDArray[np.int8]
Floats = NDArray[np.float64]
INKS: Pixels = np.array(list(COLOURS.values()), dtype=np.uint8)
"""Colours by their index, [4, 3]."""


@dataclass(frozen=True)
class MovingShape:
    """One moving shape of a clip."""

    code: int
    """1 to 12, an index of `NAMES`."""
    start: int
    """First second in which it is shown."""
    end: int
    """Second from which it is gone; larger than `start`."""
    place: int
    """Column of its left edge in the first frame of the clip, pixels."""
    speed: int
    """Pixels per frame to the right; it stops at the border."""


@dataclass(frozen=True)
class Puzzle:
    """One big shape cut into four pieces."""

    code: int
    """1 to 12, an index of `NAMES`."""
    tint: tuple[int, int, int]
    """Background colour."""
    radius: float
    """Half the width of the shape as a share of the side, 0.3 to 0.42."""
    centre: tuple[float, float]
    """(x, y) of the shape's centre as a share of the side, near (0.5, 0.5)."""
    order: tuple[int, int, int, int]
    """`order[j]` is the true place (0 to 3, reading order) of the piece shown at place j."""


def is_heldout(content: bytes) -> bool:
    """Whether a scene with this content belongs to the held-out split."""
    digest = hashlib.blake2b(content, digest_size=8, salt=b"drawn").digest()
    return digest[0] % HELDOUT_BUCKETS == 0


def redraw(draw: Callable[[], T], content: Callable[[T], bytes], split: Split) -> T:
    """Draw until the scene lies on the asked side of the split."""
    for _ in range(MAX_REDRAWS):
        scene = draw()
        if is_heldout(content(scene)) == (split == "heldout"):
            return scene
    raise ValueError(
        f"No {split} scene among {MAX_REDRAWS} draws: the task has too few different scenes; use more cells."
    )


def draw_grid(rng: np.random.Generator, split: Split, cells: int, fill: float) -> Grid:
    """A grid [cells, cells] whose cells are filled with probability `fill`."""

    def draw() -> Grid:
        codes = rng.integers(1, len(NAMES), size=(cells, cells))
        filled = rng.random((cells, cells)) < fill
        return np.where(filled, codes, 0).astype(np.int8)

    return redraw(draw, grid_content, split)


def grid_content(grid: Grid) -> bytes:
    """What decides the split of a grid; empty grids of any size look the same and count as one."""
    return grid.tobytes() if grid.any() else b""


def draw_puzzle(rng: np.random.Generator, split: Split) -> Puzzle:
    """A puzzle whose shape reaches into all four pieces, so that each piece has one right place."""

    def draw() -> Puzzle:
        # The order of the draws is part of every published seed.
        red, green, blue = rng.integers(190, 246, size=3).tolist()
        first, second, third, fourth = rng.permutation(4).tolist()
        right, down = rng.integers(-6, 7, size=2).tolist()
        radius = float(rng.integers(30, 43)) / 100
        code = int(rng.integers(1, len(NAMES)))
        centre = (0.5 + right / 100, 0.5 + down / 100)
        order = (first, second, third, fourth)
        return Puzzle(code, (red, green, blue), radius, centre, order)

    return redraw(draw, _tint_content, split)


def _tint_content(puzzle: Puzzle) -> bytes:
    """The tint decides the split: it covers all pieces, so that no other order or shape shows the same picture."""
    return bytes(puzzle.tint)


def draw_tracks(
    rng: np.random.Generator, split: Split, side: int, frames: int, fps: float
) -> tuple[MovingShape, ...]:
    """One or two shapes with different names; the first is the one to ask about and may be in either half."""
    seconds = int(frames / fps)

    def track(code: int) -> MovingShape:
        length = int(rng.integers(1, seconds - 1))
        start = int(rng.integers(0, seconds - length + 1))
        place = int(rng.integers(0, side // 2 + 1))
        speed = int(rng.integers(-1, 2))
        return MovingShape(code, start, start + length, place, speed)

    def draw() -> tuple[MovingShape, ...]:
        # A permutation of all codes, because two shapes of a clip must not have one name.
        codes = rng.permutation(np.arange(1, len(NAMES)))
        count = 2 if rng.random() < 0.75 else 1
        return tuple(track(int(code)) for code in codes[:count])

    def content(tracks: tuple[MovingShape, ...]) -> bytes:
        """What the pixels show, frame by frame: other speeds may give the same clip at the border."""
        shown = []
        for track in tracks:
            places = lefts(track, side, frames, fps)
            shown.append((track.code, sorted(places.items())))
        # Sorted, because which of both runs in the upper half is drawn later and must not matter.
        return repr(sorted(shown)).encode()

    return redraw(draw, content, split)


def render_grid(grid: Grid, side: int) -> Pixels:
    """The grid as a picture, uint8 [3, side, side]; what `cells` does not divide is margin."""
    rows, columns = grid.shape
    cell = side // max(rows, columns)
    tiles = sprites(cell)[grid]  # [rows, columns, 3, cell, cell]
    board = tiles.transpose(2, 0, 3, 1, 4).reshape(3, rows * cell, columns * cell)
    # Only what is background in all three colours is tinted: shapes keep their colour.
    empty = (board == BACKGROUND).all(0)
    board = np.where(empty, _tints(rows, columns, cell), board)
    if board.shape[1:] == (side, side):
        return np.ascontiguousarray(board)
    canvas = _blank(3, side, side)
    height, width = rows * cell, columns * cell
    top, left = (side - height) // 2, (side - width) // 2
    canvas[:, top : top + height, left : left + width] = board
    return canvas


@lru_cache(maxsize=32)
def _tints(rows: int, columns: int, cell: int) -> Pixels:
    """Background of a grid, uint8 [3, rows * cell, columns * cell]: less red further down, less blue further right."""
    levels = np.full((3, rows, columns), BACKGROUND, dtype=np.float64)
    levels[0] -= TINT * np.linspace(0.0, 1.0, rows)[:, None]
    levels[2] -= TINT * np.linspace(0.0, 1.0, columns)[None]
    return levels.astype(np.uint8).repeat(cell, axis=1).repeat(cell, axis=2)


def cell_box(side: int, cells: int, row: int, column: int) -> list[int]:
    """[x0, y0, x1, y1] in pixels, end exclusive, of a cell of a square grid; row and column count from 0."""
    cell = side // cells
    margin = (side - cells * cell) // 2
    x, y = margin + column * cell, margin + row * cell
    return [x, y, x + cell, y + cell]


def render_puzzle(puzzle: Puzzle, side: int) -> Pixels:
    """The shuffled picture, uint8 [3, side, side]; `side` is even."""
    colour, shape = divmod(puzzle.code - 1, len(SHAPES))
    axis = (np.arange(side) + 0.5) / side
    x, y = puzzle.centre
    inside = _inside(SHAPES[shape], axis[None] - x, axis[:, None] - y, puzzle.radius)
    ink, tint = INKS[colour], np.array(puzzle.tint, dtype=np.uint8)
    whole = np.where(inside[None], ink[:, None, None], tint[:, None, None])  # [3, side, side]
    return shuffle_pieces(whole, puzzle.order)


def shuffle_pieces(picture: Pixels, order: tuple[int, int, int, int]) -> Pixels:
    """Show at place j the piece whose true place is `order[j]`; places are numbered in reading order."""
    half = picture.shape[1] // 2
    quarters = picture.reshape(3, 2, half, 2, half).transpose(1, 3, 0, 2, 4)
    pieces = quarters.reshape(4, 3, half, half)
    shown = pieces[list(order)].reshape(2, 2, 3, half, half)
    return np.ascontiguousarray(shown.transpose(2, 0, 3, 1, 4).reshape(picture.shape))


def render_tracks(
    tracks: tuple[MovingShape, ...], side: int, frames: int, fps: float, swap: bool
) -> Pixels:
    """A clip, uint8 [frames, 3, side, side]: one shape moves in the upper half, the other in the lower (`swap`ped)."""
    clip = _blank(frames, 3, side, side)
    size = side // 2
    for lane, track in enumerate(tracks):
        top = size if (lane == 1) != swap else 0
        stamp = sprites(size)[track.code]
        for frame, left in lefts(track, side, frames, fps).items():
            clip[frame, :, top : top + size, left : left + size] = stamp
    return clip


def lefts(track: MovingShape, side: int, frames: int, fps: float) -> dict[int, int]:
    """Frame -> left edge in pixels, for the frames in which the shape is shown."""
    furthest = side - side // 2
    found = {}
    for frame in range(frames):
        if track.start <= frame / fps < track.end:
            # Counted from the first frame of the clip, not of the event: a late shape appears further on.
            left = track.place + track.speed * frame
            found[frame] = min(max(left, 0), furthest)
    return found


@lru_cache(maxsize=32)
def sprites(cell: int) -> Pixels:
    """One tile per code, uint8 [13, 3, cell, cell]; tile 0 is empty. Read-only."""
    tiles = _blank(len(NAMES), 3, cell, cell)
    axis = (np.arange(cell) + 0.5) / cell - 0.5
    for code in range(1, len(NAMES)):
        colour, shape = divmod(code - 1, len(SHAPES))
        inside = _inside(SHAPES[shape], axis[None], axis[:, None], 0.4)
        tiles[code][:, inside] = INKS[colour][:, None]
    # Cached and shared by all callers.
    tiles.flags.writeable = False
    return tiles


def _blank(*shape: int) -> Pixels:
    return np.full(shape, BACKGROUND, dtype=np.uint8)


def _inside(shape: str, x: Floats, y: Floats, radius: float) -> NDArray[np.bool_]:
    """Which points lie in the shape round (0, 0); x to the right, y down, broadcast to [H, W]."""
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        # A little smaller, so that its area is nearer to that of the circle.
        return np.maximum(np.abs(x), np.abs(y)) <= radius * 0.9
    # A triangle that stands on its base: its half width grows from 0 at the top to the radius at the bottom.
    narrow = np.abs(x) <= (y + radius) / 2
    return narrow & (np.abs(y) <= radius)
