"""Pretext data for the recipes: a mix of tasks over raw media as prompts, the held-out side, and the tiny mixes.

`open_pretext` reads whatever `data/pretext/stream/open.py` reads ("drawn" needs nothing) and splits it by content: a
picture that is asked about in training is never in the evaluation. Media that cannot be used are skipped, counted
under `pretext/skipped` and listed in `quarantine.jsonl` of the run's folder.

The miniature mixes are what a model of half a million parameters can read: few pieces, few frames, pixels reduced to
`shown`, one wording.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.difficulty import DefaultKnobs, FixedLevel, LevelController
from mmrl.data.pretext.mixture import LearningProgress
from mmrl.data.pretext.presets import NP_SIZES, Ingredient, TaskMix, preset
from mmrl.data.pretext.prompts import PretextPrompts
from mmrl.data.pretext.stream.open import open_source
from mmrl.data.pretext.stream.sources import DrawnSource, Source, SplitSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.ground.quarantine import Quarantine
from mmrl.ground.require import require
from mmrl.recipes.shared.launch import Preset
from mmrl.recipes.shared.miniature import miniature
from mmrl.training.run import planned_steps
from mmrl.types import Media, Prompt, Prompts

if TYPE_CHECKING:
    from mmrl.training.run import Run

CLIP = {"frames": 8, "side": 128}
TASKS: Mapping[str, Ingredient] = {
    "jigsaw": Ingredient(
        "jigsaw", 1.0, {"rows": 2, "columns": 1, "unit": 16, "side": 64, "gap": 0.1}
    ),
    "rotation": Ingredient("rotation", 1.0, {"side": 32}),
    "position": Ingredient(
        "relative-position", 1.0, {"directions": 4, "unit": 16, "side": 128}
    ),
    "quality": Ingredient(
        "quality-order", 1.0, {"copies": 2, "kind": "brightness", "side": 32, "ratio": 2.0}
    ),
    "odd": Ingredient(
        "odd-tile", 1.0, {"rows": 2, "columns": 2, "change": "recolour", "unit": 16, "side": 64}
    ),
    "anomaly": Ingredient(
        "anomaly-grounding", 1.0, {**CLIP, "kind": "zoom-out", "fill": "black", "decoys": 0}
    ),
    "needle": Ingredient("needle-clip", 1.0, {**CLIP, "decoys": 0}),
    "counting": Ingredient(
        "video-count", 1.0, {**CLIP, "asked": 1, "most": 3, "distractors": 0}
    ),
    "hops": Ingredient("hop-chain", 1.0, {"hops": 2, "objects": 3, "most": 3, "trace": True}),
}
"""Tasks at settings that the tiny model can read."""
SMALL_NP = tuple(
    Ingredient(task, 1.0, {"show": "text", "size": 3 if task == "np-meetings" else 4})
    for task in NP_SIZES
)
DRAWN_NP = tuple(
    replace(part, weight=0.25, knobs={**part.knobs, "show": "picture"}) for part in SMALL_NP
)
"""NP-Engine's ten problems at their smallest, in words, and as pictures, which the tiny model hardly reads."""


SMALL_BRICKS = tuple(
    Ingredient("brick-stack", 1.0, {"bricks": bricks, "others": 0, "show": "text"})
    for bricks in (2, 3)
)
SMALL_CAUSES = (
    Ingredient(
        "causal-query",
        1.0,
        {"variables": 3, "parents": 1, "level": "intervention", "show": "text"},
    ),
)
"""In words; of the second the tiny model learns the form alone, for it cannot calculate."""


def _miniature_mix(name: str, *tasks: str) -> TaskMix:
    return TaskMix(name, tuple(TASKS[task] for task in tasks))


MINIATURES = {
    mix.name: mix
    for mix in (
        _miniature_mix("miniature", "jigsaw", "rotation", "position", "quality"),
        _miniature_mix("miniature-jigsaw", "jigsaw"),
        _miniature_mix("miniature-puzzles", "jigsaw", "rotation"),
        _miniature_mix("miniature-clips", "anomaly"),
        _miniature_mix("miniature-hard", "odd", "needle", "counting"),
        _miniature_mix("miniature-hops", "hops"),
        TaskMix("miniature-bricks", SMALL_BRICKS),
        TaskMix("miniature-causes", SMALL_CAUSES),
        TaskMix("miniature-reasoning", (*SMALL_BRICKS, *SMALL_CAUSES)),
        TaskMix("miniature-np-words", SMALL_NP),
        TaskMix("miniature-np-both", (*SMALL_NP, *DRAWN_NP)),
        TaskMix(
            "miniature-np",
            (*SMALL_NP, *DRAWN_NP),
            stages=("miniature-np-words", "miniature-np-both"),
        ),
    )
}
"""Tiny mixes; those of `miniature-hard` the tiny model does not learn."""
MINIATURE: Mapping[str, Any] = {
    "tags": "answer", "thinking": "none", "wording": 0, "bare": True, "shown": 32, "drawn_side": 192,
}  # fmt: skip


@dataclass(frozen=True)
class Puzzles:
    """Which questions are made of the media, and how they are put."""

    mix: str = "mmrl-mix-v1"
    """A preset of data.pretext, the name of one task, or "miniature", "miniature-puzzles", …"""
    tags: Literal["preset", "answer", "boxed", "plain"] = "preset"
    """Where the answer stands; the preset's own choice by default."""
    thinking: Literal["preset", "none", "think"] = "preset"
    """Ask for reasoning before the answer; the preset's own choice by default."""
    wording: int | None = None
    """Always this wording; None varies it."""
    bare: bool = False
    """Only the question, without what the answer looks like; for a model that was taught the form."""
    heldout_share: float = 0.1
    """Share of the media, by content, that is set aside for evaluation."""
    shown: int | None = None
    """Longest side of shown pictures and frames in pixels; None keeps the size the task gives."""
    drawn_side: int = 384
    """Height of drawn pictures in pixels; drawn clips are half as high."""
    frames: int | None = None
    """Shown frames of a clip, in every task of the mix that has their number; None: the preset's."""
    fps: float | None = None
    """Frames per second, in every task of the mix that has a rate; None: the preset's."""

    def __post_init__(self) -> None:
        require(
            self,
            heldout_share=(0 < self.heldout_share < 1, "between 0 and 1"),
            frames=(self.frames is None or self.frames >= 1, "at least 1, or None"),
            fps=(self.fps is None or self.fps > 0, "positive, or None"),
        )

    def task_mix(self) -> TaskMix:
        """The mix by its name, with frames and rate of one's own. Raises ValueError where no task has such a thing."""
        mix = MINIATURES.get(self.mix) or preset(self.mix)
        for name in ("frames", "fps"):
            if getattr(self, name) is not None:
                mix = self._with_own(mix, name)
        return mix

    def _with_own(self, mix: TaskMix, name: Literal["frames", "fps"]) -> TaskMix:
        """The mix with one knob of its tasks set to the field of this name."""
        value = getattr(self, name)
        parts: list[Ingredient] = []
        for part in mix.ingredients:
            has_it = name in find(part.task).knobs
            parts.append(replace(part, knobs={**part.knobs, name: value}) if has_it else part)
        if not any(name in part.knobs for part in parts):
            raise ValueError(
                f"--puzzles.{name} is {value}, but no task of the mix {mix.name} has {name}. Leave it out, or "
                "take another --puzzles.mix. Sizes of frames are --load.max-frame-pixels and --puzzles.shown."
            )
        return replace(mix, ingredients=tuple(parts))


@dataclass(frozen=True)
class LevelSettings:
    """How the difficulty of each task moves."""

    move: bool = True
    """Keep success near the target; False keeps the tasks' default settings."""
    start: float = 0.3
    """Level of a task that has not been seen, in [0, 1]."""
    target: float = 0.5
    """Wanted mean success above chance."""
    band: float = 0.1
    """Half width of the zone in which nothing changes."""
    step: float = 0.05
    """Size of one move."""
    window: int = 64
    """Answers of a task between two decisions."""

    def __post_init__(self) -> None:
        require(self)

    def controller(self) -> LevelController | None:
        """A fresh controller with these numbers."""
        if not self.move:
            return None
        return LevelController(self.start, self.target, self.band, self.step, self.window)


@dataclass(frozen=True)
class MixtureSettings:
    """How the shares of the tasks move."""

    follow: bool = True
    """Ask more of what is being learned; False keeps the preset's weights."""
    floor: float = 0.02
    """Least share of every task."""
    quick: float = 0.1
    """Rate of the quick running mean of the success, per step."""
    slow: float = 0.02
    """Rate of the slow one; their distance is the learning progress."""

    def __post_init__(self) -> None:
        require(self)

    def bandit(self) -> LearningProgress | None:
        """A fresh bandit with these numbers."""
        return LearningProgress(self.floor, self.quick, self.slow) if self.follow else None


@dataclass(frozen=True)
class PretextSides:
    """Both sides of the data."""

    train: Prompts
    heldout: Prompts
    stream: SampleStream
    """Of the training side, or of its last stage; a curriculum moves its levels and weights."""


class PretextQuestions(Prompts):
    """Prompts as `puzzles` wants them shown; tells the trainer how many media were skipped."""

    def __init__(self, stream: SampleStream, puzzles: Puzzles) -> None:
        self.prompts, self.puzzles, self.size = PretextPrompts(stream), puzzles, None
        self._told = 0

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.prompts[index]
        if self.puzzles.bare:
            prompt = bare(prompt)
        if self.puzzles.shown is not None:
            prompt = smaller(prompt, self.puzzles.shown)
        return prompt

    def drain(self) -> dict[str, int]:
        """Media skipped since the last call."""
        total = sum(self.prompts.stream.quarantine.counts.values())
        new, self._told = total - self._told, total
        return {"pretext/skipped": new} if new else {}


class Stages(Prompts):
    """Collections without end that follow one another: `each` prompts of every one, the last goes on.

    The stage follows from the index, so that a run that was stopped goes on where it was.
    """

    follows_length = "the stages of the questions"
    """What a run that is extended says to have moved."""

    def __init__(self, stages: Sequence[Prompts], each: int) -> None:
        self.stages, self.each, self.size = stages, each, None

    def __getitem__(self, index: int) -> Prompt:
        return self.stages[min(index // self.each, len(self.stages) - 1)][index]

    def drain(self) -> dict[str, int]:
        """What was counted in any stage."""
        total: Counter[str] = Counter()
        for stage in self.stages:
            total.update(stage.drain())
        return dict(total)


def open_stages(dataset: str, puzzles: Puzzles, run: Run, follow: bool = True) -> PretextSides:
    """`open_pretext`, with the mix's stages one after another in training, in equal parts of the run.

    The evaluation asks the whole mix at any time. A mix without stages, or `follow` off, is asked as it is.
    """
    sides = open_pretext(dataset, puzzles, run)
    names = sides.stream.preset.stages
    if not follow or not names:
        return sides
    stages = [open_pretext(dataset, replace(puzzles, mix=name), run) for name in names]
    questions = planned_steps(run, sides.train) * run.prompts_per_step
    # Rounded up: rounded down, the last stage would be longer than the others.
    each = -(-questions // len(stages))
    return replace(
        sides, train=Stages([stage.train for stage in stages], each), stream=stages[-1].stream
    )


def open_pretext(
    dataset: str, puzzles: Puzzles, run: Run, levels: LevelController | None = None
) -> PretextSides:
    """Training and held-out prompts, the latter at the first levels of a controller if one is given.

    Raises ValueError for unknown mixes and unfit media.
    """
    mix = puzzles.task_mix()
    wanted = {"tags": puzzles.tags, "thinking": puzzles.thinking, "variant": puzzles.wording}
    changes = {name: value for name, value in wanted.items() if value not in ("preset", None)}
    surface = replace(mix.surface, **changes)
    # One for both sides: what is broken is counted and listed once, whoever meets it.
    quarantine = Quarantine(run.folder / "quarantine.jsonl")

    def stream(side: str, settings: DefaultKnobs | FixedLevel) -> SampleStream:
        source = open_media(dataset, puzzles.drawn_side, quarantine)
        # By content: the same picture under two names stands on one side.
        split = SplitSource(source, side, puzzles.heldout_share)
        return SampleStream(
            split, mix, run.seed, surface=surface, levels=settings, quarantine=quarantine
        )

    train = stream("train", DefaultKnobs())
    # The evaluation stays at the first level, so that its numbers can be compared over a run.
    heldout = stream("heldout", DefaultKnobs() if levels is None else FixedLevel(levels.start))
    return PretextSides(
        PretextQuestions(train, puzzles), PretextQuestions(heldout, puzzles), train
    )


def open_media(dataset: str, drawn_side: int, quarantine: Quarantine | None = None) -> Source:
    """`open_source`, with drawn media of the wanted size."""
    source = open_source(dataset, quarantine)
    if not isinstance(source, DrawnSource):
        return source
    picture = (drawn_side, drawn_side * 4 // 3)  # height, width
    clip = (picture[0] // 2, picture[1] // 2)
    return DrawnSource(source.seed, picture, clip)


def bare(prompt: Prompt) -> Prompt:
    """The prompt without the sentences on the form of the answer."""
    *others, last = prompt.messages
    parts = []
    for part in last["content"]:
        if part["type"] == "text":
            # The question comes first in every wording; what follows only describes the form.
            question = part["text"].split(" The answer is ")[0].strip()
            part = {**part, "text": question}
        parts.append(part)
    return replace(prompt, messages=[*others, {**last, "content": parts}])


def miniature_pretext(mix: str, **changes: Any) -> Preset:
    """The embedded preset of a pretext recipe: what all recipes share, with a miniature mix. `changes` as in
    `miniature`."""
    shared = {
        "dataset": "drawn",
        "data": None,
        "puzzles": {"mix": mix, **MINIATURE},
        "sampling": {"max_tokens": 12},
        "optim": {"lr": 1.5e-4},
    }
    return miniature("tiny model, drawn pictures and clips, CPU, minutes", **shared | changes)


def smaller(prompt: Prompt, longest: int) -> Prompt:
    """The prompt with its pictures reduced to `longest` pixels on their longer side."""
    return replace(prompt, media=tuple(_reduced(medium, longest) for medium in prompt.media))


def _reduced(medium: Media, longest: int) -> Media:
    height, width = medium.frames.shape[-2:]
    scale = longest / max(height, width)
    if scale >= 1.0:
        return medium
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # In float: bytes cannot be interpolated with antialiasing.
    frames = torch.nn.functional.interpolate(
        medium.frames.float(), size, mode="bilinear", antialias=True
    )
    return replace(medium, frames=frames.round().clamp(0, 255).to(torch.uint8))
