"""A drawn task of several steps: look up, then look up what you found.

A picture of four cells, all of them filled, and a question about one place. The colour that stands there says which
place is meant, and what stands there is the answer:

    red, green, blue, yellow in the order of `scenes.COLOURS`    ->    row 1 column 1, row 1 column 2, row 2 column 1, …

    <think> red circle row 1 column 1 </think> <answer> blue square </answer>

The warm start writes both steps, reads cells, and looks in its second step at any place as often as at the one that is
meant: so it is right sometimes, both steps must be right for that, and an answer is twice as long as a look-up's.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.drawn.scenes import COLOURS
from mmrl.ground.seeds import philox
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts

ROWS, HELDOUT_ROWS = 1024, 256
LONGEST = 24
"""Most tokens of an answer."""
TRIES = 16
"""Pictures among which one without an empty cell is looked for."""


def following(thing: str) -> int:
    """The place that a thing's colour stands for, in reading order."""
    return list(COLOURS).index(thing.split()[0])


class TwoSteps(Prompts):
    """Look-ups of what a look-up found; the same index always gives the same question."""

    def __init__(self, split: Any = "train", seed: int = 0, size: int | None = None) -> None:
        self.size, self._places = size, 4
        self._pictures = Drawn(
            "lookup", split=split, seed=seed, cells=2, size_px=32, fill=0.95, ask_empty=0.0
        )

    def __getitem__(self, index: int) -> Prompt:
        prompt = next((p for p in self._near(index) if "nothing" not in p.extra["cells"]), None)
        assert prompt is not None, f"all pictures at {index} have an empty cell"
        cells = prompt.extra["cells"]
        found = cells[2 * (prompt.extra["row"] - 1) + prompt.extra["column"] - 1]
        place = following(found)
        written = {"found": found, "place": place, "target": solved(found, place, cells[place])}
        return replace(
            prompt,
            id=f"steps:{prompt.id}",
            answer=cells[place],
            extra={**prompt.extra, **written},
        )

    def _near(self, index: int) -> Any:
        return (self._pictures[TRIES * index + number] for number in range(TRIES))


def solved(found: str, place: int, answer: str) -> str:
    """Both steps, and the answer."""
    row, column = divmod(place, 2)
    return f"<think> {found} row {row + 1} column {column + 1} </think> <answer> {answer} </answer>"


@dataclass(frozen=True)
class StepsWarmUp:
    """Supervised warm-up on two steps, from the model of the look-ups."""

    steps: int = 120
    batch: int = 32
    lr: float = 2e-3
    anywhere: float = 0.5
    """Share of lessons whose second step looks at any place."""
    seed: int = 3000


class StepLessons(Prompts):
    """Two steps, the second of which often goes astray."""

    def __init__(self, settings: StepsWarmUp) -> None:
        self.settings, self.size = settings, None
        self._questions = TwoSteps(seed=settings.seed)

    def __getitem__(self, index: int) -> Prompt:
        prompt = self._questions[index]
        rng = philox("step lesson", self.settings.seed, index)
        if rng.random() >= self.settings.anywhere:
            return prompt
        cells = prompt.extra["cells"]
        place = int(rng.integers(len(cells)))
        target = solved(prompt.extra["found"], place, cells[place])
        return replace(prompt, extra={**prompt.extra, "target": target})


def steps_start(place: Path, settings: StepsWarmUp = StepsWarmUp()) -> Path:
    """Folder of a model that solves some, from the cache if it is there."""
    sources = [inspect.getsource(part) for part in (TwoSteps, StepLessons, solved, supervised)]

    def lessons(run: Run) -> Prompts:
        return StepLessons(settings)

    return published("steps", warm_model(), lessons, settings, sources)


def steps_rows(place: Path) -> str:
    """A file of questions for a recipe's --dataset, written once; its path."""
    return str(_written(place / "steps" / "rows.jsonl", TwoSteps(), ROWS))


def steps_questions(count: int) -> tuple[Prompt, ...]:
    """Questions of the exam, about pictures that no run has seen."""
    questions = TwoSteps("heldout", seed=1)
    return tuple(questions[index] for index in range(count))


def _written(file: Path, prompts: Prompts, count: int) -> Path:
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [_row(prompts[number], file.parent, number) for number in range(count)]
    # Written under another name first: a file that exists is complete.
    part = file.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    return part.replace(file)


def _row(prompt: Prompt, folder: Path, number: int) -> str:
    """One line of the file, and its picture beside it."""
    name = f"{number}.png"
    pixels = prompt.media[0].frames[0].permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(folder / name)
    row: Mapping[str, Any] = {
        "problem": prompt.messages[0]["content"][1]["text"],
        "images": [name],
        "answer": prompt.answer,
    }
    return json.dumps(row)


Questions = Callable[[int], tuple[Prompt, ...]]
"""Number of questions -> the exam's."""
