"""RRVF's miniature: a tiny drawing language, who draws what, and the embedded model that half knows the language.

The language names the cells of a square grid in reading order, "red circle, nothing, blue square, green triangle"; a
cell that it does not know stays empty. It is no program of anybody's, so it needs no sandbox. The tiny model is taught
to describe pictures like this, but names the shape before the colour in half of the cells, which draws nothing there:
so it writes lists that often draw, seldom the same, and reinforcement learning has something to find out.
"""

from __future__ import annotations

import inspect
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.drawn.scenes import NAMES, render_grid
from mmrl.ground.seeds import philox
from mmrl.perception.likeness import Likeness
from mmrl.perception.rendering import Drawing, Renderer
from mmrl.perception.rrvf import RRVF, Form, JudgedDrawing, Pen, Similarity
from mmrl.perception.rrvf_rounds import Showing, Shown
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.paying import StyleName, style_of
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.rewards.pay import Rewards
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

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
LONGEST_STEP = 7200.0
"""Seconds after which the drawings of a step count as an outage."""
CELLS_A_SIDE = 2
"""Rows and columns of the miniature's pictures."""
SIDE = 32
"""Pixels of the miniature's pictures."""


@dataclass(frozen=True)
class DrawingWarmUp:
    """Supervised warm-up on lists of cells."""

    steps: int = 40
    batch: int = 48
    lr: float = 1e-3
    swapped: float = 0.5
    """Share of cells with the shape before the colour."""
    seed: int = 4000


class DrawingLessons(Prompts):
    """Pictures with lists of their cells, some named the wrong way round."""

    def __init__(self, settings: DrawingWarmUp) -> None:
        self.settings, self.size = settings, None
        self.pictures = Drawn("describe", seed=settings.seed, cells=CELLS_A_SIDE, size_px=SIDE)

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.pictures[index]
        rng = philox("drawing lesson", self.settings.seed, index)
        named: list[str] = []
        for cell in prompt.extra["cells"]:
            words = cell.split()
            named.append(
                " ".join(words[::-1] if rng.random() < self.settings.swapped else words)
            )
        target = f"<answer> {', '.join(named)} </answer>"
        return replace(prompt, extra={**prompt.extra, "target": target})


def warm_drawings(settings: DrawingWarmUp = DrawingWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    sources = [inspect.getsource(part) for part in (DrawingLessons, supervised)]
    lessons = partial(_lessons, settings)
    return published("drawings", warm_model(), lessons, settings, sources)


def _lessons(settings: DrawingWarmUp, run: Run) -> Prompts:
    return DrawingLessons(settings)


def drawing_model(model: str) -> str:
    """The folder of the model that was taught lists of cells for "embedded", else the model itself."""
    return str(warm_drawings()) if model == EMBEDDED else model


class Cells:
    """Draws lists of cells."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __repr__(self) -> str:
        return "Cells()"

    def begin(self, source: str) -> Future[Drawing]:
        """The drawing, at once."""
        drawn, done = draw_cells(source), Future[Drawing]()
        self.counts[drawn.fault or "drawn"] += 1
        done.set_result(drawn)
        return done

    def blanks(self, picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The empty grids of up to three cells a side."""
        empty = [np.zeros((cells, cells), dtype=np.int8) for cells in (1, 2, 3)]
        return [_picture(grid) for grid in empty]


def draw_cells(source: str) -> Drawing:
    """A list of cells as a picture, uint8 [32, 32, 3]; no picture if it is not square, or holds no cell."""
    named = [" ".join(cell.split()) for cell in source.split(",")]
    side = isqrt(len(named))
    if side * side != len(named) or side > 4:
        return Drawing(
            fault="error", detail=f"{len(named)} cells are no square of at most 4 x 4"
        )
    if not set(named) & set(NAMES):
        return Drawing(fault="error", detail=f"{named[0][:80]!r} is nothing to draw")
    codes = np.array([NAMES.index(name) if name in NAMES else 0 for name in named], np.int8)
    return Drawing(_picture(codes.reshape(side, side)))


def pen_for(language: LanguageName) -> Pen:
    """Who draws a language. Raises ValueError if its packages are missing."""
    return Cells() if language == CELLS else Renderer(language)


def drawing_rewards(
    rrvf: RRVF,
    pen: Pen,
    likeness: Likeness,
    judge: JudgeServer,
    prompts: Prompts,
    style: StyleName,
    shown: Shown | None = None,
) -> Rewards:
    """What a drawing is paid for: the judge's points or the likeness, and the form.

    Drawn rows know what they show: whether that was said, `accuracy`, is logged and pays nothing.
    `shown`: what rounds are paid; None without them.
    """
    parts: dict[str, Any] = {"form": (rrvf.form, Form(pen))}
    seen = Similarity(pen, likeness)
    if judge.url:
        parts["vision"] = (rrvf.vision, JudgedDrawing(judge.judge(), pen))
    else:
        parts["similarity"] = (rrvf.vision, seen)
    if shown is not None:
        parts["showing"] = (shown.each, Showing(seen, shown))
    if isinstance(prompts, Drawn):
        parts["accuracy"] = (0.0, style_of(style).accuracy)
    judged = "vision" if judge.url else "similarity"
    # Many programs of a step wait for their turn: that is no outage of anything.
    return Rewards(correct=(judged, rrvf.right_above), async_time_limit=LONGEST_STEP, **parts)


def asked(language: LanguageName, suffix: str) -> str:
    """What stands below a question: what was said, or the language's own words."""
    # Drawn rows are asked in the words that the embedded model knows.
    if suffix or language == CELLS:
        return suffix
    return f"{ASK[language]} {FORM}"


def _picture(grid: NDArray[np.int8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(render_grid(grid, SIDE).transpose(1, 2, 0))
