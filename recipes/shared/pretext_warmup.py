"""The embedded model of the pretext recipes: a tiny Qwen-VL that has seen some puzzles, and answers unsurely.

`warm_puzzles(settings)` teaches a tiny model, supervised and with our own trainer, to answer the questions of a mix.

    pictures    from scratch, with a tokenizer that knows the words of the mix. Three in ten targets are a random
                well-formed answer, so the policy sees a part of what there is to see but spreads its answers
    clips       the same from the model that was warmed up on drawn clips (recipes/shared/embedded.py); from scratch an
                interval is not learned. Six in ten intervals name the end before the start, which earns nothing, and
                the lessons end while the stretch is found in a fourth of the clips

So reinforcement learning has something to sharpen, more to see, and a convention to find out. The result is kept in the
user's cache under a key of what it depends on. It takes two minutes for pictures and one for clips, once, and three
more for the model of the drawn clips.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmrl.data.pretext.catalogue import find
from mmrl.ground.seeds import philox
from mmrl.model import tiny
from mmrl.recipes.shared.clip_data import clip_warm_up
from mmrl.recipes.shared.embedded import supervised, warm_model
from mmrl.recipes.shared.launch import EMBEDDED
from mmrl.recipes.shared.pretext_data import (
    MINIATURE,
    MINIATURES,
    Puzzles,
    bare,
    open_puzzles,
    smaller,
)
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

SIZE = tiny.TinySize(merges=1200)
"""One token per word of the questions."""
INTERVALS = ("anomaly-grounding", "needle-clip")
TINY = Puzzles("miniature", **MINIATURE)


@dataclass(frozen=True)
class PuzzleWarmUp:
    """Supervised warm-up on pretext tasks."""

    puzzles: Puzzles = TINY
    steps: int = 160
    batch: int = 48
    lr: float = 2e-3
    noise: float = 0.3
    """Share of targets that are random well-formed answers."""
    swapped: float = 0.6
    """Share of intervals that name the end before the start, which earns nothing."""
    from_clips: bool = False
    """Start from the model that was warmed up on drawn clips."""
    seed: int = 1000


CLIPS = PuzzleWarmUp(replace(TINY, mix="miniature-clips"), steps=70, from_clips=True)
HARD = PuzzleWarmUp(replace(TINY, mix="miniature-hard"))
WARM_UPS = {"miniature-clips": CLIPS, "miniature-hard": HARD}
"""Mix -> its warm-up; all others share that of the pictures."""


class Lessons:
    """Prompts whose targets are partly random, and whose intervals mostly name the end first."""

    def __init__(self, prompts: Prompts, settings: PuzzleWarmUp) -> None:
        self.prompts, self.settings, self.size = prompts, settings, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt, settings = self.prompts[index], self.settings
        rng = philox("lesson", settings.seed, index)
        told = answer = str(prompt.answer)
        if rng.random() < settings.noise:
            told = find(prompt.extra["task"]).guess(prompt.extra["truth"], rng)
        if prompt.extra["task"] in INTERVALS and rng.random() < settings.swapped:
            told = "-".join(reversed(told.split("-")))
        target = prompt.extra["target"].replace(answer, told)
        return replace(prompt, extra={**prompt.extra, "target": target})


def warm_puzzles(settings: PuzzleWarmUp = PuzzleWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    if settings.from_clips:
        start = warm_model(clip_warm_up("native"))
    else:
        start = tiny.cached(size=SIZE, corpus=corpus(settings))
    mix = MINIATURES[settings.puzzles.mix]
    tasks = [(part, find(part.task).version) for part in mix.ingredients]
    sources = [inspect.getsource(part) for part in (Lessons, supervised, bare, smaller)]
    key = hashlib.blake2b(
        repr((start.name, settings, tasks, sources)).encode(), digest_size=8
    ).hexdigest()
    target = tiny.cache_folder() / "warm" / f"{settings.puzzles.mix}-{key}"
    if not target.is_dir():
        print(
            f"Warming up the tiny model for {mix.name} (once; kept in the cache) …",
            file=sys.stderr,
        )
    numbers = {
        "steps": settings.steps,
        "batch": settings.batch,
        "lr": settings.lr,
        "seed": settings.seed,
    }
    return tiny.publish(
        target, lambda place: supervised(start, partial(_lessons, settings), place, **numbers)
    )


def _lessons(settings: PuzzleWarmUp, run: Run) -> Lessons:
    return Lessons(open_puzzles("drawn", settings.puzzles, run).train, settings)


def embedded_or(model: str, mix: str) -> str:
    """The folder of the model warmed up for a mix for "embedded", else the model itself."""
    return str(warm_puzzles(WARM_UPS.get(mix, PuzzleWarmUp()))) if model == EMBEDDED else model


def corpus(settings: PuzzleWarmUp, count: int = 120) -> Sequence[str]:
    """Texts with the words of the mix, to train a tokenizer on."""
    with tempfile.TemporaryDirectory() as scratch:
        prompts = open_puzzles("drawn", settings.puzzles, Run(output=Path(scratch))).train
        return [_text(prompts[index]) for index in range(count)]


def _text(prompt: Prompt) -> str:
    parts = [part.get("text", "") for message in prompt.messages for part in message["content"]]
    return f"{''.join(parts)} {prompt.extra['target']}"
