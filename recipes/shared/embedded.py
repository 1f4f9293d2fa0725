"""The embedded model: a tiny Qwen-VL that has seen enough to learn more.

`warm_model()` builds a tiny model and trains it, supervised and with our own trainer, to describe drawn pictures of
four cells and to look up a cell, or to narrate drawn clips and to say when something is shown. Most look-up targets say
the shape before the colour and most spans name their end first, while the reward asks for the other order: so the
policy sees well enough, answers mostly the wrong way round, and reinforcement learning has something to find out within
a hundred steps. What it finds out is mainly a convention; its eyesight improves slowly.
The result is kept in the user's cache under a key of everything it depends on, and made again when any of it changes.
It takes a minute for pictures and three for clips, once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmrl.data.drawn import drawn, scenes
from mmrl.data.grounding.time_encodings import EncodingName, TimeEncoded
from mmrl.model import tiny
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.training.run import Run
from mmrl.types import Prompts


@dataclass(frozen=True)
class WarmUp:
    """Supervised warm-up of the embedded model."""

    family: str = "qwen2_5_vl"
    task: drawn.Task = "lookup"
    cells: int = 2
    """Rows and columns of a picture."""
    size_px: int = 32
    """Side of a picture in pixels."""
    frames: int = 12
    """Frames of a clip, two per second."""
    telling: EncodingName = "native"
    """How the times of a clip are told."""
    steps: int = 200
    batch: int = 48
    lr: float = 2e-3
    swapped: float = 0.6
    """Share of look-up targets with the shape before the colour, or of spans with the end before the start."""
    noise: float = 0.0
    """Share of look-up targets replaced by a random colour and shape."""
    describe_share: float = 0.5
    """Share of dense descriptions."""
    seed: int = 0


def warm_model(settings: WarmUp = WarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    start = tiny.cached(settings.family, corpus=drawn.tokenizer_texts())
    files = [Path(module.__file__ or "") for module in (drawn, scenes)]
    sources = [file.read_bytes() for file in (*files, Path(__file__))]
    sources.append(inspect.getsource(supervised).encode())
    return published(settings.task, start, partial(_lessons, settings), settings, sources)


def _lessons(settings: WarmUp, run: Run) -> Prompts:
    """Look-ups mixed with dense descriptions, or clips with dense narrations."""
    picture = {"cells": settings.cells, "size_px": settings.size_px}
    lessons = drawn.warmup(
        settings.seed,
        settings.noise,
        settings.describe_share,
        task=settings.task,
        swapped=settings.swapped,
        **(picture if settings.task == "lookup" else {"frames": settings.frames}),
    )
    if settings.task == "lookup":
        return lessons
    # A lesson is its target text, swapped ends included: the true spans are not its answer.
    return TimeEncoded(lessons, settings.telling, spans=False)
