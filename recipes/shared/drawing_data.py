"""RRVF's miniature: a tiny drawing language, that of the embedded model's own descriptions, and who draws what.

The language names the cells of a square grid in reading order, "red circle, nothing, blue square, green triangle": the
tiny model was warmed up to describe drawn pictures like this, so it writes programs that often draw, seldom the same.
It is no program of anybody's, so it needs no sandbox.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from math import isqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmrl.data.drawn.scenes import NAMES, render_grid
from mmrl.perception.rendering import Drawn, Renderer
from mmrl.perception.rrvf import Pen

CELLS = "cells"
"""Name of the miniature's language."""
LanguageName = Literal["matplotlib", "svg", "html", "cells"]
ASK = {
    "matplotlib": "Write Python code with Matplotlib that draws this picture again, as exactly as you can.",
    "svg": "Write an SVG that shows this picture again, as exactly as you can.",
    "html": "Write HTML with CSS that shows this page again, as exactly as you can.",
}
"""What is asked for, by language."""
FORM = (
    "Look at it closely and plan first, inside <think> </think>. Then give all of the code inside <answer> </answer>, "
    "in one fenced block (```)."
)
SIDE = 32
"""Pixels of the miniature's pictures."""


class Cells:
    """Draws lists of cells."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return "Cells()"

    def begin(self, source: str) -> Future[Drawn]:
        """The drawing, at once."""
        drawn, done = draw_cells(source), Future[Drawn]()
        self.counts[drawn.fault or "drawn"] += 1
        done.set_result(drawn)
        return done

    def blanks(self, picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The empty grids of up to three cells a side."""
        empty = [np.zeros((cells, cells), dtype=np.int8) for cells in (1, 2, 3)]
        return [_picture(grid) for grid in empty]


def draw_cells(source: str) -> Drawn:
    """A list of cells as a picture, uint8 [32, 32, 3]; one that is not square, or names no shape, draws nothing."""
    named = [" ".join(cell.split()) for cell in source.split(",")]
    side = isqrt(len(named))
    if side * side != len(named) or side > 4:
        return Drawn(fault="error", detail=f"{len(named)} cells are no square of at most 4 x 4")
    if unknown := [name for name in named if name not in NAMES]:
        return Drawn(fault="error", detail=f"{unknown[0][:80]!r} is nothing to draw")
    codes = np.array([NAMES.index(name) for name in named], dtype=np.int8)
    return Drawn(_picture(codes.reshape(side, side)))


def pen_for(language: LanguageName) -> Pen:
    """Who draws a language. Raises ValueError if its packages are missing."""
    return Cells() if language == CELLS else Renderer(language)


def asked(language: LanguageName, suffix: str) -> str:
    """What stands below a question: what was said, or the language's own words."""
    if (
        suffix or language == CELLS
    ):  # drawn rows are asked in the words that the embedded model knows
        return suffix
    return f"{ASK[language]} {FORM}"


def _picture(grid: NDArray[np.int8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(render_grid(grid, SIDE).transpose(1, 2, 0))
