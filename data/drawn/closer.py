"""Drawn tasks that cannot be solved as they are shown: what is asked for can only be read in a crop of the picture.

zoom      "What is at row 1 column 2?" about a picture                  -> "red circle"
pages     "What is at row 1 column 2 of the green page?" about one of several pages that must be found first

Each cell holds a shape made of a chessboard of single pixels: its colour, and as much beyond the background's on the
other side. Any two neighbouring pixels together have the background's colour, so at half the size or less nothing of
the shape is left (`tests/data/drawn/test_closer.py` measures it), while a crop in the picture's own size shows it. The
background tells rows and columns apart at any size.

`prompt.answer`, `extra["cells"]`, `["row"]`, `["column"]` and `["depends_on"]` are as in `drawn.py`, and so are splits
and generators; `extra["evidence"]` has the cell's box. Pages also have `extra["reference_pages"]` and `extra["pages"]`,
the names of all pages of the question, from which `library` draws them again: nothing is kept between questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch

from mmrl.data.drawn.scenes import (
    COLOURS,
    INKS,
    NAMES,
    SHAPES,
    Floats,
    Grid,
    Pixels,
    Split,
    cell_box,
    draw_grid,
    sprites,
)
from mmrl.ground.require import require
from mmrl.ground.seeds import derive_seed
from mmrl.types import Media, Prompt, Prompts

CloserTask = Literal["zoom", "pages"]
GREY = 128
"""Level round which backgrounds lie: far from both ends, so that there is room on both sides."""
TINT = 30
"""How much redder (bluer) the background becomes over the rows (columns)."""
CONTRAST = 0.75
"""Share of the way from grey to a shape's colour that its pixels go."""
SOFT = 3
"""Passes of a small blur over the edges of shapes."""
PAGES = tuple(COLOURS)
"""What pages of a question are called."""


@dataclass(frozen=True)
class Closer(Prompts):
    """A task as `Prompts`. Index i always gives the same prompt; without `size` it is endless."""

    task: CloserTask = "zoom"
    split: Split = "train"
    seed: int = 0
    size: int | None = None
    """Number of prompts; None is endless."""
    cells: int = 2
    """Rows and columns of a picture."""
    cell_px: int = 32
    """Side of a cell in pixels."""
    pages: int = 4
    """Pages of a question; for the task pages."""

    def __post_init__(self) -> None:
        require(
            self,
            task=(self.task in get_args(CloserTask), f"one of {', '.join(get_args(CloserTask))}"),
            split=(self.split in get_args(Split), "'train' or 'heldout'"),
            size=(self.size is None or self.size >= 1, "at least 1, or None for an endless stream"),
            cells=(2 <= self.cells <= 9, "2 to 9"),
            cell_px=(self.cell_px >= 8 and self.cell_px % 2 == 0, "even and at least 8"),
            pages=(1 <= self.pages <= len(PAGES), f"1 to {len(PAGES)}"),
        )  # fmt: skip

    @property
    def side(self) -> int:
        """Side of a picture in pixels."""
        return self.cells * self.cell_px

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("This drawn task is endless and has no length; set Closer.size.")
        return self.size

    def __iter__(self) -> Iterator[Prompt]:
        index = 0
        while self.size is None or index < self.size:
            yield self[index]
            index += 1

    def __getitem__(self, index: int) -> Prompt:
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(
                f"Index {index} lies outside drawn:{self.task} with size {self.size}."
            )
        key = derive_seed("closer", self.task, self.split, self.seed, index)
        rng = np.random.default_rng(key)
        name = f"drawn:{self.task}:{self.split}:{self.seed}:{index}"
        return self._zoom(rng, name) if self.task == "zoom" else self._pages(rng, name)

    def page(self, name: str) -> Media:
        """A page of a question, by its name."""
        return _picture(render_hidden(self._page_grid(name), self.cell_px))

    def cells_of(self, name: str) -> list[str]:
        """What the cells of a page hold, in reading order."""
        return [NAMES[code] for code in self._page_grid(name).ravel()]

    def captions(self, names: list[str]) -> Mapping[str, str]:
        """Name of a page -> what its caption says."""
        return {name: f"the {name.rpartition(':')[2]} page" for name in names}

    def _zoom(self, rng: np.random.Generator, name: str) -> Prompt:
        grid = draw_grid(rng, self.split, self.cells, 1.0)
        row, column = rng.integers(self.cells, size=2).tolist()
        text = f"What is at row {row + 1} column {column + 1}?"
        content = [{"type": "image"}, {"type": "text", "text": text}]
        box = cell_box(self.side, self.cells, row, column)
        extra = {**self._extra(grid, row, column), "evidence": {"visual": 0, "boxes": [box]}}
        return Prompt(
            id=name,
            messages=({"role": "user", "content": content},),
            media=(_picture(render_hidden(grid, self.cell_px)),),
            answer=NAMES[grid[row, column]],
            source=f"drawn:{self.task}",
            extra=extra,
        )

    def _pages(self, rng: np.random.Generator, name: str) -> Prompt:
        colours = [PAGES[place] for place in rng.permutation(len(PAGES))[: self.pages]]
        names = [f"{name}:{colour}" for colour in colours]
        row, column, asked = (
            int(rng.integers(n)) for n in (self.cells, self.cells, self.pages)
        )
        grid = self._page_grid(names[asked])
        text = f"What is at row {row + 1} column {column + 1} of the {colours[asked]} page?"
        own = {"pages": names, "reference_pages": [names[asked]]}
        return Prompt(
            id=name,
            messages=({"role": "user", "content": text},),
            answer=NAMES[grid[row, column]],
            source=f"drawn:{self.task}",
            extra={**self._extra(grid, row, column), **own},
        )

    def _page_grid(self, name: str) -> Grid:
        # By its name alone, so that whoever holds the name can draw it.
        rng = np.random.default_rng(derive_seed("closer page", name))
        return draw_grid(rng, self.split, self.cells, 1.0)

    def _extra(self, grid: Grid, row: int, column: int) -> dict[str, Any]:
        return {
            "task": self.task,
            "target": f"<answer> {NAMES[grid[row, column]]} </answer>",
            "row": row + 1,
            "column": column + 1,
            "cells": [NAMES[code] for code in grid.ravel()],
            "depends_on": ("geometry",),
        }


def render_hidden(grid: Grid, cell: int) -> Pixels:
    """The grid as a picture, uint8 [3, rows * cell, columns * cell], whose shapes vanish where it is shown smaller."""
    rows, columns = grid.shape
    ground = np.full((3, rows, columns), GREY, dtype=np.float64)
    ground[0] += TINT * np.linspace(-1, 1, rows)[:, None]
    ground[2] += TINT * np.linspace(-1, 1, columns)[None]
    ground = ground.repeat(cell, axis=1).repeat(cell, axis=2)
    tiles = _patterns(cell)[grid]  # [rows, columns, 3, cell, cell]
    marks = tiles.transpose(2, 0, 3, 1, 4).reshape(ground.shape)
    return np.clip(np.round(ground + marks), 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _patterns(cell: int) -> Floats:
    """What each code adds to the background, float64 [13, 3, cell, cell]: up and down in turn. Read-only."""
    drawn = sprites(cell).astype(np.float64)
    inside = (drawn != drawn[0, :, 0, 0][:, None, None]).any(axis=1, keepdims=True)
    signs = np.where(np.indices((cell, cell)).sum(axis=0) % 2 == 0, 1.0, -1.0)
    # The ink of a code, whatever of it the soft edge needs.
    inks = np.zeros((len(NAMES), 3, 1, 1))
    inks[1:, :, 0, 0] = np.repeat(INKS, len(SHAPES), axis=0) - float(GREY)
    # Whole levels, so that what goes up in one pixel comes down in the next.
    found = np.round(CONTRAST * inks * _soft(inside.astype(np.float64))) * signs
    found.flags.writeable = False
    return found


def _soft(inside: Floats) -> Floats:
    """Shapes whose edges fade over some pixels: a hard edge of a chessboard would leave a trace in smaller pictures."""
    for axis in (2, 3):
        for _ in range(SOFT):
            before, behind = np.roll(inside, 1, axis), np.roll(inside, -1, axis)
            inside = (before + 2 * inside + behind) / 4
    return inside


def closer_texts(cells: int = 2) -> list[str]:
    """Texts with all words of these tasks, to train a tokenizer on."""
    places = [(row, column) for row in range(1, cells + 1) for column in range(1, cells + 1)]
    asked = [f"What is at row {row} column {column}" for row, column in places]
    texts = [f"{one}?" for one in asked]
    texts += [f"{one} of the {page} page?" for one in asked for page in PAGES]
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    return texts + [f"<answer> {name} </answer>" for name in names]


def _picture(pixels: Pixels) -> Media:
    return Media(torch.from_numpy(pixels)[None])
