"""The embedded models of the tool recipes: tiny ones that were taught to call a tool and to read what it shows.

`drawn:zoom` and `drawn:pages` (`data/drawn/closer.py`) cannot be solved as they are shown. The lessons teach the form
of calls, and to name the shape of a crop; which part to look at, and that looking is worth it, they teach by halves:

    silent    answer at once, with any shape: there is nothing to see
    lost      look somewhere, and say what is there (pages: on any page)
    found     look where the question says

So the policy calls in some answers, looks in the right place in some of these, and reads well: what reinforcement
learning has to find out is to look, and where. Made in two minutes, once, and kept in the user's cache.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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
ZOOM = VisualTools(frames=False, coordinates="shown", padding=0.0, said="<image>", told=False)
PAGES = Pages(told=False)
USE = ToolUse(max_turns=3)
CROP, BOX = Form("bbox_2d"), Form("bbox_2d", "bbox")


@dataclass(frozen=True)
class CloserWarmUp:
    """Supervised warm-up on a task that wants tools."""

    task: CloserTask = "zoom"
    steps: int = 240
    batch: int = 32
    lr: float = 2e-3
    silent: float = 0.4
    """Share of answers without a call."""
    found: float = 0.5
    """Share of the others that look where the question says."""
    seed: int = 4000

    def __post_init__(self) -> None:
        require(
            self,
            silent=(0 <= self.silent <= 1, "a share, in [0, 1]"),
            found=(0 <= self.found <= 1, "a share, in [0, 1]"),
        )


class CloserLessons(Prompts):
    """Questions with the turns that the model shall learn to say."""

    def __init__(self, settings: CloserWarmUp) -> None:
        self.settings, self.size = settings, None
        self.rows = Closer(settings.task, seed=settings.seed)

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.rows[index]
        rng = philox("closer lesson", self.settings.seed, index)
        if rng.random() < self.settings.silent:
            guess = NAMES[int(rng.integers(1, len(NAMES)))]
            return replace(prompt, extra={**prompt.extra, "target": _tagged(guess)})
        row, column = prompt.extra["row"] - 1, prompt.extra["column"] - 1
        cells = self.rows.cells
        if rng.random() >= self.settings.found:
            row, column = rng.integers(cells, size=2).tolist()
        side = self.rows.side // HALF
        box = str(cell_box(side, cells, row, column))
        named = prompt.extra["cells"]
        first: tuple[str, ...] = ()
        if self.settings.task == "pages":
            page = self._page(prompt, rng)
            first = (f"<search>{page.rpartition(':')[2]} page</search>",)
            named = self.rows.cells_of(page)
        call = (
            CROP.example("crop_image", box)
            if self.settings.task == "zoom"
            else BOX.example("", box)
        )
        turns = (*first, call, _tagged(named[row * cells + column]))
        script = Script(turns, TOOLBOXES[self.settings.task])
        return replace(prompt, extra={**prompt.extra, TURNS: script})

    def _page(self, prompt: Prompt, rng: Generator) -> str:
        """The page that is asked about, or any."""
        if rng.random() < self.settings.found:
            return prompt.extra["reference_pages"][0]
        pages = prompt.extra["pages"]
        return pages[int(rng.integers(len(pages)))]


def zoom_box(processing: Processing) -> Toolbox:
    """The tool of the lessons on `drawn:zoom`."""
    return ZOOM.toolbox(processing, USE)


def page_box(processing: Processing) -> Toolbox:
    """The tools of the lessons on `drawn:pages`."""
    return PAGES.toolbox(processing, USE, Closer("pages"))


TOOLBOXES = {"zoom": zoom_box, "pages": page_box}


def warm_closer(settings: CloserWarmUp = CloserWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    start = tiny.cached(size=SIZE, corpus=lesson_texts(settings.task))
    modules = (closer, scenes, tool_labels, observing)
    sources = [Path(module.__file__ or "").read_bytes() for module in modules]
    parts = (CloserLessons, VisualTools, Pages, supervised)
    sources += [inspect.getsource(part).encode() for part in parts]
    return published(settings.task, start, partial(_lessons, settings), settings, sources)


def closer_model(model: str, task: CloserTask) -> str:
    """The folder of the model that was taught a task for "embedded", else the model itself."""
    return str(warm_closer(CloserWarmUp(task))) if model == EMBEDDED else model


def lesson_texts(task: CloserTask) -> list[str]:
    """Texts with all words of the lessons, to train a tokenizer on."""
    rows = Closer(task)
    boxes = [
        str(cell_box(rows.side // HALF, rows.cells, row, column))
        for row in range(rows.cells)
        for column in range(rows.cells)
    ]
    calls = [CROP.example("crop_image", box) for box in boxes]
    if task == "pages":
        calls = [BOX.example("", box) for box in boxes]
        calls += [f"<search>{page} page</search>" for page in closer.PAGES]
    return [*closer_texts(rows.cells), *calls * 4]


def _lessons(settings: CloserWarmUp, run: Run) -> Prompts:
    return CloserLessons(settings)


def _tagged(answer: str) -> str:
    return f"<answer> {answer} </answer>"
