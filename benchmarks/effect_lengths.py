"""A drawn task where length is free: look-ups whose answer may be thought of several times first.

    <answer> red circle </answer>
    <think> red circle red circle </think> <answer> red circle </answer>

The warm start says what it sees none to three times before it answers, each as often, and is as often right however
long it speaks. So whoever prefers short answers can have them without losing a right one.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.seeds import philox
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

MOST = 3
"""Most repetitions in a thought."""


def spoken(answer: str, times: int) -> str:
    """An answer that was thought of so many times."""
    thought = f"<think> {' '.join([answer] * times)} </think> " if times else ""
    return f"{thought}<answer> {answer} </answer>"


@dataclass(frozen=True)
class LengthsWarmUp:
    """Supervised warm-up on answers of all lengths, from the model of the look-ups."""

    steps: int = 60
    batch: int = 32
    lr: float = 2e-3
    seed: int = 4000


class LengthLessons(Prompts):
    """Look-ups with thoughts of any length."""

    def __init__(self, settings: LengthsWarmUp) -> None:
        self.settings, self.size = settings, None
        self._questions = Drawn("lookup", seed=settings.seed, cells=2, size_px=32)

    def __getitem__(self, index: int) -> Prompt:
        prompt = self._questions[index]
        times = int(philox("length lesson", self.settings.seed, index).integers(MOST + 1))
        target = spoken(str(prompt.answer), times)
        return replace(prompt, extra={**prompt.extra, "target": target})


def lengths_start(place: Path, settings: LengthsWarmUp = LengthsWarmUp()) -> Path:
    """Folder of a model whose answers have all lengths, from the cache if it is there."""
    sources = [inspect.getsource(part) for part in (LengthLessons, spoken, supervised)]

    def lessons(run: Run) -> Prompts:
        return LengthLessons(settings)

    return published("lengths", warm_model(), lessons, settings, sources)
