"""The embedded models of the tool recipes: tiny ones that were taught to call a tool and to read what it shows.

`drawn:zoom` and `drawn:pages` (`data/drawn/closer.py`) cannot be solved as they are shown. The lessons teach the form
of calls, and to name the shape of a crop; which part to look at, and that looking is worth it, they teach by halves:

    silent    answer at once, with any shape: there is nothing to see
    lost      look somewhere, and say what is there (pages: on any page)
    found     look where the question says

So the policy calls in some answers, looks in the right place in some of these, and reads well: what reinforcement
learning has to find out is to look, and where. Made in some minutes, once, and kept in the user's cache.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

from numpy.random import Generator

from mmrl.data.drawn import closer, scenes
from mmrl.data.drawn.closer import Closer, CloserTask, closer_texts
from mmrl.data.drawn.scenes import NAMES, cell_box
from mmrl.ground.require import require
from mmrl.ground.seeds import philox
from mmrl.model import observing, tiny
from mmrl.model.processing import Processing
from mmrl.recipes.shared import tool_labels
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.recipes.shared.tool_boxes import Pages, VisualTools
from mmrl.recipes.shared.tool_labels import TURNS, Script
from mmrl.tools.reading import Form
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

SIZE = tiny.TinySize(merges=400, max_image_tokens=4)
"""Pictures are shown with four visual tokens, 32 by 32 pixels; one token per word of the calls."""
HALF = 2
"""How much larger a drawn picture is than it is shown."""
TAG = "bbox"
ZOOM = VisualTools(
    frames=False, coordinates="shown", padding=0.0, tag=TAG, said="<image>", told=False
)
PAGES = Pages(told=False)
USE = ToolUse(max_turns=3, turns="raw")
"""Short, and as the lessons have them: the tiny model knows no others."""
CALL = Form("bbox_2d", TAG)


@dataclass(frozen=True)
class CloserWarmUp:
    """Supervised warm-up on both tasks."""

    steps: int = 400
    batch: int = 24
    lr: float = 2e-3
    pages: float = 0.5
    """Share of lessons on pages."""
    silent: float = 0.25
    """Share of answers without a call."""
    found: float = 0.5
    """Share of the others that look where the question says."""
    seed: int = 4000

    def __post_init__(self) -> None:
        shares = {"pages": self.pages, "silent": self.silent, "found": self.found}
        allowed = {
            name: (0 <= share <= 1, "a share, in [0, 1]") for name, share in shares.items()
        }
        require(self, **allowed)


class CloserLessons(Prompts):
    """Questions with the turns that the model shall learn to say."""

    def __init__(self, settings: CloserWarmUp) -> None:
        self.settings, self.size = settings, None
        self.zoom, self.pages = (
            Closer(task, seed=settings.seed) for task in get_args(CloserTask)
        )

    def __getitem__(self, index: int) -> Prompt:
        rng = philox("closer lesson", self.settings.seed, index)
        of_pages = rng.random() < self.settings.pages
        prompt = (self.pages if of_pages else self.zoom)[index]
        if rng.random() < self.settings.silent:
            guess = NAMES[int(rng.integers(1, len(NAMES)))]
            return replace(prompt, extra={**prompt.extra, "target": _tagged(guess)})
        turns = self._page_turns(prompt, rng) if of_pages else self._zoom_turns(prompt, rng)
        script = Script(turns, page_box if of_pages else zoom_box)
        return replace(prompt, extra={**prompt.extra, TURNS: script})

    def _zoom_turns(self, prompt: Prompt, rng: Generator) -> tuple[str, ...]:
        """Look somewhere, and say what is there."""
        row, column = self._place(prompt, rng)
        return call_at(row, column), _tagged(prompt.extra["cells"][CELLS * row + column])

    def _page_turns(self, prompt: Prompt, rng: Generator) -> tuple[str, ...]:
        """Search a page, look at some place of it, and say what is there."""
        pages = prompt.extra["pages"]
        page = pages[int(rng.integers(len(pages)))]
        if rng.random() < self.settings.found:
            (page,) = prompt.extra["reference_pages"]
        row, column = self._place(prompt, rng)
        named = self.pages.cells_of(page)[CELLS * row + column]
        return search_for(page.rpartition(":")[2]), call_at(row, column), _tagged(named)

    def _place(self, prompt: Prompt, rng: Generator) -> tuple[int, int]:
        """Row and column, from 0: those of the question, or any."""
        row, column = rng.integers(CELLS, size=2).tolist()
        if rng.random() < self.settings.found:
            return prompt.extra["row"] - 1, prompt.extra["column"] - 1
        return row, column


CELLS = Closer().cells


def call_at(row: int, column: int) -> str:
    """The call that shows a cell, in pixels as the picture is shown."""
    return CALL.example("", str(cell_box(Closer().side // HALF, CELLS, row, column)))


def search_for(page: str) -> str:
    """The call that finds a page."""
    return f"<search>{page} page</search>"


def zoom_box(processing: Processing) -> Toolbox:
    """The tool of the lessons on `drawn:zoom`."""
    return ZOOM.toolbox(processing, USE)


def page_box(processing: Processing) -> Toolbox:
    """The tools of the lessons on `drawn:pages`."""
    return PAGES.toolbox(processing, USE, Closer("pages"))


def warm_closer(settings: CloserWarmUp = CloserWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    start = tiny.cached(size=SIZE, corpus=lesson_texts())
    modules = (closer, scenes, tool_labels, observing)
    sources = [Path(module.__file__ or "").read_bytes() for module in modules]
    parts = (CloserLessons, call_at, search_for, VisualTools, Pages, supervised)
    sources += [inspect.getsource(part).encode() for part in parts]
    lessons = partial(_lessons, settings)
    return published("closer", start, lessons, settings, (ZOOM, PAGES, USE, sources))


def closer_model(model: str) -> str:
    """The folder of the model that was taught both tasks for "embedded", else the model itself."""
    return str(warm_closer()) if model == EMBEDDED else model


def lesson_texts() -> list[str]:
    """Texts with all words of the lessons, to train a tokenizer on."""
    calls = [call_at(row, column) for row in range(CELLS) for column in range(CELLS)]
    calls += [search_for(page) for page in closer.PAGES]
    return [*closer_texts(CELLS), *calls * 4]


def _lessons(settings: CloserWarmUp, run: Run) -> Prompts:
    return CloserLessons(settings)


def _tagged(answer: str) -> str:
    return f"<answer> {answer} </answer>"
