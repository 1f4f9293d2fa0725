"""The embedded model of the pretext recipes: a tiny Qwen-VL that has seen some puzzles, and answers unsurely.

`warm_pretext(settings)` trains a tiny model, supervised and with our own trainer, to answer the questions of a mix.

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

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mmrl.data.pretext.catalogue import find
from mmrl.ground.scratch import temporary_folder
from mmrl.ground.seeds import philox
from mmrl.model import tiny
from mmrl.recipes.shared.clip_data import clip_warm_up
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.pretext_data import (
    MINIATURE,
    MINIATURES,
    Puzzles,
    bare,
    open_pretext,
    smaller,
)
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

SIZE = tiny.TinySize(merges=1200)
"""One token per word of the questions."""
INTERVALS = ("anomaly-grounding", "needle-clip")
TINY = Puzzles("miniature", **MINIATURE)


@dataclass(frozen=True)
class PretextWarmUp:
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


CLIPS = PretextWarmUp(replace(TINY, mix="miniature-clips"), steps=70, from_clips=True)
HARD = PretextWarmUp(replace(TINY, mix="miniature-hard"))
HOPS = PretextWarmUp(replace(TINY, mix="miniature-hops", shown=64), noise=0.6)
PROBLEMS = PretextWarmUp(replace(TINY, mix="miniature-np"))
REASONING = PretextWarmUp(replace(TINY, mix="miniature-reasoning"))
WARM_UPS = {
    "miniature-clips": CLIPS,
    "miniature-hard": HARD,
    "miniature-hops": HOPS,
    "miniature-np": PROBLEMS,
    "miniature-bricks": REASONING,
    "miniature-causes": REASONING,
}
"""Mix -> its warm-up; all others share that of the pictures."""


class Lessons(Prompts):
    """Prompts whose targets are partly random, and whose intervals mostly name the end first."""

    def __init__(self, prompts: Prompts, settings: PretextWarmUp) -> None:
        self.prompts, self.settings, self.size = prompts, settings, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt, settings = self.prompts[index], self.settings
        task, answer = prompt.extra["task"], str(prompt.answer)
        rng = philox("lesson", settings.seed, index)
        label = answer
        # A wrong label in places: the policy must be left unsure, or there is nothing for RL to sharpen.
        if rng.random() < settings.noise:
            label = find(task).guess(prompt.extra["truth"], rng)
        # Drawn for intervals only, so that the other tasks' lessons do not depend on `swapped`.
        if task in INTERVALS and rng.random() < settings.swapped:
            label = "-".join(reversed(label.split("-")))
        target = prompt.extra["target"].replace(answer, label)
        return replace(prompt, extra={**prompt.extra, "target": target})


def warm_pretext(settings: PretextWarmUp = PretextWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    if settings.from_clips:
        start = warm_model(clip_warm_up("native"))
    else:
        start = tiny.cached(size=SIZE, corpus=mix_texts(settings))
    mix = MINIATURES[settings.puzzles.mix]
    tasks = [(part, find(part.task).version) for part in mix.ingredients]
    sources = [inspect.getsource(part) for part in (Lessons, supervised, bare, smaller)]
    lessons = partial(_lessons, settings)
    return published(mix.name, start, lessons, settings, (tasks, sources))


def _lessons(settings: PretextWarmUp, run: Run) -> Lessons:
    return Lessons(open_pretext("drawn", settings.puzzles, run).train, settings)


def warmed_up_for(model: str, mix: str) -> str:
    """The folder of the model warmed up for a mix for "embedded", else the model itself."""
    if model != EMBEDDED:
        return model
    return str(warm_pretext(WARM_UPS.get(mix, PretextWarmUp())))


def mix_texts(settings: PretextWarmUp, count: int = 120) -> Sequence[str]:
    """Texts with the words of the mix, to train a tokenizer on."""
    with temporary_folder("texts") as scratch:
        prompts = open_pretext("drawn", settings.puzzles, Run(output=scratch)).train
        return [_whole_text(prompts[index]) for index in range(count)]


def _whole_text(prompt: Prompt) -> str:
    """Question and target."""
    texts = [part.get("text", "") for message in prompt.messages for part in message["content"]]
    return f"{''.join(texts)} {prompt.extra['target']}"
