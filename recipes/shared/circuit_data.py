"""CodeV-R1's miniature: truth tables as pictures, and a tiny model that often writes the wrong formula for them.

A picture of 2 x 2 cells is a function of two bits: a is the row (0 above), b the column (0 left), and the function is 1
where a cell is filled, with whatever shape. The answer is a Verilog expression, "a & ~b": many are right for the same
picture, which only running them shows. Half of the lessons have the expression of another picture, so the model knows
how to write and is unsure what, and reinforcement learning has something to find out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mmrl.data.drawn import drawn, scenes
from mmrl.data.drawn.scenes import Split, draw_grid, render_grid
from mmrl.ground.seeds import derive_seed, philox
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.opening import EMBEDDED, Data, open_data
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.training.run import Run
from mmrl.types import Media, Prompt, Prompts

TABLES = "drawn:truth-tables"
"""Name of the miniature's rows."""
SIDE = 32
"""Pixels of a picture."""
BEFORE, AFTER = "module top(input a, input b, output y);\n  assign y = ", ";\nendmodule\n"
EXPRESSIONS = {
    (0, 0, 0, 0): ("0", "a & ~a"),
    (1, 1, 1, 1): ("1", "a | ~a"),
    (0, 0, 1, 1): ("a", "a & a"),
    (0, 1, 0, 1): ("b", "b & b"),
    (1, 1, 0, 0): ("~a",),
    (1, 0, 1, 0): ("~b",),
    (0, 0, 0, 1): ("a & b", "b & a"),
    (0, 1, 1, 1): ("a | b", "b | a"),
    (0, 1, 1, 0): ("a ^ b", "b ^ a"),
    (1, 1, 1, 0): ("~a | ~b", "~b | ~a"),
    (1, 0, 0, 0): ("~a & ~b", "~b & ~a"),
    (1, 0, 0, 1): ("a ^ ~b", "~a ^ b"),
    (0, 0, 1, 0): ("a & ~b", "~b & a"),
    (0, 1, 0, 0): ("~a & b", "b & ~a"),
    (1, 0, 1, 1): ("a | ~b", "~b | a"),
    (1, 1, 0, 1): ("~a | b", "b | ~a"),
}
"""Function, at (a, b) = 00, 01, 10, 11 -> expressions; the first is the reference."""


@dataclass(frozen=True)
class TruthTables(Prompts):
    """Pictures of functions of two bits. Index i always gives the same prompt."""

    split: Split = "train"
    seed: int = 0
    size: int | None = None

    def __iter__(self) -> Iterator[Prompt]:
        index = 0
        while self.size is None or index < self.size:
            yield self[index]
            index += 1

    def __getitem__(self, index: int) -> Prompt:
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(f"Index {index} lies outside {TABLES} with size {self.size}.")
        rng = np.random.default_rng(derive_seed(TABLES, self.split, self.seed, index))
        grid = draw_grid(rng, self.split, 2, 0.5)
        a, b, c, d = (int(filled) for filled in (grid > 0).ravel())
        picture = Media(torch.from_numpy(render_grid(grid, SIDE))[None])
        table = a, b, c, d
        reference = EXPRESSIONS[table][0]
        said = [{"type": "image"}, {"type": "text", "text": "Write y."}]
        return Prompt(
            id=f"{TABLES}:{self.split}:{self.seed}:{index}",
            messages=[{"role": "user", "content": said}],
            media=(picture,),
            answer=f"{BEFORE}{reference}{AFTER}",
            source=TABLES,
            extra={
                "before": BEFORE,
                "after": AFTER,
                "target": f"<answer> {reference} </answer>",
                "table": table,
                "depends_on": ("geometry",),
            },
        )


@dataclass(frozen=True)
class CircuitWarmUp:
    """Supervised warm-up on truth tables."""

    steps: int = 60
    batch: int = 48
    lr: float = 1e-3
    wrong: float = 0.5
    """Share of lessons with the expression of any function."""
    seed: int = 5000


class CircuitLessons(Prompts):
    """Truth tables with expressions, many of them of another function."""

    def __init__(self, settings: CircuitWarmUp) -> None:
        self.settings, self.size = settings, None
        self.tables = TruthTables(seed=settings.seed)

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.tables[index]
        rng = philox("circuit lesson", self.settings.seed, index)
        table = prompt.extra["table"]
        if rng.random() < self.settings.wrong:
            table = list(EXPRESSIONS)[int(rng.integers(len(EXPRESSIONS)))]
        known = EXPRESSIONS[table]
        target = f"<answer> {known[int(rng.integers(len(known)))]} </answer>"
        return replace(prompt, extra={**prompt.extra, "target": target})


def warm_circuits(settings: CircuitWarmUp = CircuitWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    sources = [inspect.getsource(part) for part in (CircuitLessons, TruthTables, supervised)]
    sources += [inspect.getsource(part) for part in (drawn, scenes)]
    sources.append(repr(EXPRESSIONS))
    lessons = partial(_lessons, settings)
    return published("circuits", warm_model(), lessons, settings, sources)


def _lessons(settings: CircuitWarmUp, run: Run) -> Prompts:
    return CircuitLessons(settings)


def circuit_model(model: str) -> str:
    """The folder of the model that was taught truth tables for "embedded", else the model itself."""
    return str(warm_circuits()) if model == EMBEDDED else model


def open_circuits(dataset: str, data: Data, seed: int) -> tuple[Prompts, Prompts]:
    """Training and held-out prompts: truth tables, or rows whose answers are modules."""
    if dataset == TABLES:
        data.refuse_drawn(dataset)
        return TruthTables(size=data.limit), TruthTables("heldout")
    return open_data(dataset, data, seed)
