"""The curriculum inside a training run: it listens to the paid answers of each step and rides in the checkpoint.

    curriculum = Curriculum(stream, LevelController(), LearningProgress())
    Trainer(..., prompts=PretextPrompts(stream), objectives=[FollowCurriculum(curriculum)])

It is an objective that leaves the advantage alone: `shape` is called once a step with all paid answers, so the levels
and weights move there, before the next step draws its questions. The curriculum is its memory, which the trainer
carries through a checkpoint.
A run that was killed draws the same questions as one that was not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from mmrl.data.pretext.prompts import Curriculum
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class FollowCurriculum(Objective):
    """Moves the curriculum by what the answers earned; the training is untouched."""

    moves_prompts: ClassVar[bool] = True

    curriculum: Curriculum = field(repr=False)

    def start_memory(self) -> Curriculum:
        """The curriculum itself: its levels and weights are what outlives a step, and what draws the questions."""
        return self.curriculum

    def shape(
        self, advantage: Tensor, batch: Batch, now: Now, memory: Curriculum | None = None
    ) -> Shaped:
        """The advantage as it is. Logs success above chance and level of each task seen, and every task's new share."""
        curriculum = self.curriculum if memory is None else memory
        moved = curriculum.apply(curriculum.observe(batch.rollouts), now.progress)
        log: dict[str, float] = {}
        for name, value in moved.items():
            log[name.removeprefix("pretext/").replace("/", "_")] = value
        stream = curriculum.stream
        for fit, share in zip(stream.fits, stream.shares(), strict=True):
            name = f"share_{fit.task.name}"
            log[name] = log.get(name, 0.0) + share
        return Shaped(advantage, logged=log)
