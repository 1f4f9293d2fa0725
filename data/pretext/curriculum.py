"""The curriculum inside a training run: it listens to the paid answers of each step and rides in the checkpoint.

    curriculum = Curriculum(stream, LevelController(), LearningProgress())
    Trainer(..., prompts=PretextPrompts(stream), objectives=[FollowCurriculum(curriculum)])

It is an objective that leaves the advantage alone: `shape` is called once a step with all paid answers, so the levels
and weights move there, before the next step draws its questions; `state` and `load` carry them through a checkpoint.
A run that was killed draws the same questions as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmrl.data.pretext.prompts import Curriculum
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Now, Scores


@dataclass(frozen=True)
class FollowCurriculum(Objective):
    """Moves the curriculum by what the answers earned; the training is untouched."""

    curriculum: Curriculum = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_log", {})  # what moved at this step; not a setting

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Tensor:
        """The advantage as it is; [B, T]."""
        moved = self.curriculum.apply(self.curriculum.observe(batch.rollouts), now.progress)
        log: dict[str, float] = self.__dict__["_log"]
        log.clear()
        for name, value in moved.items():
            log[name.removeprefix("pretext/").replace("/", "_")] = value
        stream = self.curriculum.stream
        # A task may be listed with several settings; its shares add up.
        for fit, share in zip(stream.fits, stream.shares(), strict=True):
            name = f"share_{fit.task.name}"
            log[name] = log.get(name, 0.0) + share
        return advantage

    def metrics(self, live: Mapping[str, Scores], batch: Batch, now: Now) -> dict[str, Tensor]:
        """Success above chance and level of each task seen, and the share of each task from now on."""
        return {
            name: torch.full_like(batch.advantage, value)
            for name, value in self.__dict__["_log"].items()
        }

    def state(self) -> dict[str, Any]:
        """Levels, mixture and progress; JSON."""
        return self.curriculum.state()

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.curriculum.load(state)
