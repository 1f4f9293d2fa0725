"""VMR's rows: requests with a preferred and a rejected answer, put as choices while they are read.

`ChoicePrompts` converts each row (`mmrl.data.rows.choices`) and keeps its pictures. `DrawnPairs` brings pairs about
drawn look-ups: what a cell holds, and what it does not. The tiny model of the look-ups learns, supervised, to answer
with a letter (`warm_choices`), in a minute, once: four in ten of its lessons have a random letter, so that it is left
unsure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.drawn.scenes import NAMES
from mmrl.data.rows import choices
from mmrl.data.rows.choices import LETTERS, VMR, choice_of
from mmrl.ground.seeds import philox
from mmrl.recipes.shared.embedded import WarmUp, warm_model
from mmrl.recipes.shared.opening import EMBEDDED, Data, open_data
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.rewards.judged_answer import asked
from mmrl.rollouts.rewording import instead
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

Put = Callable[[str, Mapping[str, Any]], str]
"""(question, the row's columns) -> how it is put, `Template.fill`."""
BARE = VMR(bare=True)


class ChoicePrompts(Prompts):
    """Rows as choices; the same index always gives the same one. A row that cannot be one raises `Fault`."""

    def __init__(self, prompts: Prompts, vmr: VMR, put: Put, seed: int = 0) -> None:
        self.prompts, self.vmr, self.put = prompts, vmr, put
        self.seed, self.size = seed, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.prompts[index]
        choice = choice_of(asked(prompt.messages), prompt.extra, prompt.id, self.vmr, self.seed)
        made = instead(prompt, self.put(choice.text, prompt.extra), prompt.id)
        extra = {**prompt.extra, "option_texts": list(choice.options)}
        return replace(made, answer=choice.answer, extra=extra)

    def drain(self) -> Mapping[str, int]:
        """What the rows counted."""
        return self.prompts.drain()


class DrawnPairs(Prompts):
    """Drawn look-ups with `extra["chosen"]`, what the cell holds, and `extra["rejected"]`, something else."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.size = prompts, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.prompts[index]
        right = str(prompt.answer)
        others = [name for name in NAMES if name != right]
        lost = others[int(philox("drawn pair", prompt.id).integers(len(others)))]
        return replace(prompt, extra={**prompt.extra, "chosen": right, "rejected": lost})


def open_choices(
    dataset: str, data: Data, vmr: VMR, seed: int, *, convert: bool = True
) -> tuple[Prompts, Prompts]:
    """Training and held-out choices, put in the words of `data.style`. Raises ValueError as `open_data` does."""
    if not convert:
        return open_data(dataset, data, seed)
    # Plain: the style's instructions go behind the choice. Rows of pairs have no answer of their own.
    named = any(pair.startswith("answer=") for pair in data.columns)
    columns = (
        data.columns if named or dataset.startswith("drawn:") else (*data.columns, "answer=")
    )
    opened = open_data(dataset, replace(data, style="plain", columns=columns), seed)
    put = data.template().fill
    sides = [DrawnPairs(one) if isinstance(one, Drawn) else one for one in opened]
    train, heldout = (ChoicePrompts(one, vmr, put, seed) for one in sides)
    return train, heldout


def choice_model(model: str) -> str:
    """The folder of the model that was taught choices for "embedded", else the model itself."""
    return str(warm_choices()) if model == EMBEDDED else model


@dataclass(frozen=True)
class ChoiceWarmUp:
    """Supervised warm-up on choices about look-ups."""

    steps: int = 80
    batch: int = 48
    lr: float = 2e-3
    lookups: float = 0.2
    """Share of look-ups, so that they are not forgotten."""
    noise: float = 0.4
    """Share of targets with a random letter."""
    seed: int = 4000


class ChoiceLessons(Prompts):
    """Look-ups and choices about them, whose letters are partly random."""

    def __init__(self, settings: ChoiceWarmUp) -> None:
        self.settings, self.size = settings, None
        scene = WarmUp()
        self.lookups = Drawn(
            "lookup", seed=settings.seed, cells=scene.cells, size_px=scene.size_px, swapped=0.0
        )
        self.choices = ChoicePrompts(DrawnPairs(self.lookups), BARE, alone, settings.seed)

    def __getitem__(self, index: int) -> Prompt:
        rng = philox("choice lesson", self.settings.seed, index)
        if rng.random() < self.settings.lookups:
            return self.lookups[index]
        prompt = self.choices[index]
        letter = str(prompt.answer)
        if rng.random() < self.settings.noise:
            letter = LETTERS[int(rng.integers(BARE.options))]
        target = f"<answer> {letter} </answer>"
        return replace(prompt, extra={**prompt.extra, "target": target})


def alone(text: str, columns: Mapping[str, Any]) -> str:
    """The choice without instructions."""
    return text


def warm_choices(settings: ChoiceWarmUp = ChoiceWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    parts: list[Any] = [ChoiceLessons, ChoicePrompts, DrawnPairs, choices, supervised]
    sources = [inspect.getsource(part) for part in parts]
    lessons = partial(_lessons, settings)
    return published("choices", warm_model(), lessons, settings, sources)


def _lessons(settings: ChoiceWarmUp, run: Run) -> Prompts:
    return ChoiceLessons(settings)
