"""KnowRL's embedded model: the tiny model of the look-ups after it was taught, supervised, to read with points.

A point says what one cell of the picture holds. Without these lessons any words behind the question put the tiny model
off, so that no point ever helps it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.seeds import philox
from mmrl.recipes.shared.embedded import WarmUp, warm_model
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.solution_data import OBSERVED, Observed
from mmrl.recipes.shared.supervised import published, supervised
from mmrl.rollouts.knowledge_points import KnowRL
from mmrl.rollouts.knowrl import text_of
from mmrl.rollouts.rewording import with_text
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts


@dataclass(frozen=True)
class PointWarmUp:
    """Supervised warm-up on look-ups with points behind them."""

    steps: int = 80
    batch: int = 48
    lr: float = 1e-3
    plain: float = 0.25
    """Share of look-ups without points, so that they are not forgotten."""
    seed: int = 3000


class PointLessons(Prompts):
    """Look-ups with none, some or all of the points of their pictures."""

    def __init__(self, settings: PointWarmUp) -> None:
        self.settings, self.size = settings, None
        scene = WarmUp()
        lookups = Drawn(
            "lookup",
            seed=settings.seed,
            cells=scene.cells,
            size_px=scene.size_px,
            swapped=scene.swapped,
        )
        self.lookups = Observed(lookups)

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.lookups[index]
        rng = philox("point lesson", self.settings.seed, index)
        if rng.random() < self.settings.plain:
            return prompt
        points = prompt.extra[OBSERVED].splitlines()
        given = sorted(rng.permutation(len(points))[: int(rng.integers(1, len(points) + 1))])
        return with_text(prompt, text_of([points[place] for place in given], KnowRL()))


def warm_points(settings: PointWarmUp = PointWarmUp()) -> Path:
    """Folder of the warmed-up model, from the cache if it is there."""
    parts = [PointLessons, Observed, KnowRL, text_of, supervised]
    sources = [inspect.getsource(part) for part in parts]
    lessons = partial(_lessons, settings)
    return published("points", warm_model(), lessons, settings, sources)


def _lessons(settings: PointWarmUp, run: Run) -> Prompts:
    return PointLessons(settings)


def point_model(model: str) -> str:
    """The folder of the model that was taught points for "embedded", else the model itself."""
    return str(warm_points()) if model == EMBEDDED else model
