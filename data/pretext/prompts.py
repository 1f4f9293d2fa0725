"""Pretext samples as prompts of the trainer, their rewards, and the curriculum around them.

    stream  = SampleStream(open_source("drawn"), preset("puzzlecraft-mix"))
    prompts = PretextPrompts(stream)                           # endless; index i is the stream's sample i
    rewards = Rewards(pretext=pretext_reward)                  # in [0, 1]; or above_chance_reward for mixes of tasks
    prompts = PretextPrompts(stream, size=512), Curriculum(stream, controller).observe(rollouts)

A prompt carries `extra["evidence"]` (where the answer can be seen), `extra["target"]` (the true reply, for a supervised
warm-up), `extra["chance"]` and `extra["chance_reward"]`, `extra["options"]` (number of options, None for orders), and
what `pretext_reward` needs: `task`, `truth`, `surface`. An index without a sample raises BadRow, as any bad row.

The rest of this folder imports no torch; this module, `curriculum`, `evaluate` and `rac` meet the trainer and do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Sample, Score, Visual
from mmrl.data.pretext.difficulty import LevelController
from mmrl.data.pretext.marking.rewards import above_chance
from mmrl.data.pretext.mixture import LearningProgress
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.pretext.surface import Surface
from mmrl.ground.faults import BadRow
from mmrl.rewards.pay import in_process
from mmrl.types import Media, Prompt, Prompts, Rollout


class PretextPrompts(Prompts):
    """A stream as a collection of prompts; `size` None is endless."""

    def __init__(self, stream: SampleStream, size: int | None = None, start: int = 0) -> None:
        if size is not None and size < 1:
            raise ValueError(
                f"PretextPrompts.size is {size}; give None (endless) or at least 1."
            )
        self.stream, self.size, self.start = stream, size, start

    def __getitem__(self, index: int) -> Prompt:
        sample = self.stream.sample(self.start + index)
        if sample is None:
            raise BadRow(
                f"index {index} of preset {self.stream.preset.name!r}: every medium tried was refused; "
                f"counts: {dict(self.stream.counts.most_common(5))}."
            )
        return to_prompt(sample)


def to_prompt(sample: Sample) -> Prompt:
    """The sample in the trainer's terms."""
    task = find(sample.task)
    options = sample.truth.get("options")
    answer = task.format(sample.truth)
    return Prompt(
        id=f"{sample.task}-{sample.id}",
        messages=[dict(message) for message in sample.messages],
        media=tuple(to_media(visual) for visual in sample.visuals),
        answer=answer,
        source=f"pretext/{sample.task}",
        extra={
            "task": sample.task,
            "truth": dict(sample.truth),
            "surface": asdict(sample.surface),
            "knobs": dict(sample.knobs),
            "target": sample.surface.wrap(answer),
            "evidence": [_region(entry) for entry in sample.evidence],
            "chance": task.chance(sample.knobs),
            "chance_reward": task.chance_reward(sample.knobs),
            "options": len(options) if options else None,
        },
    )


def to_media(visual: Visual) -> Media:
    """uint8 [F, 3, H, W]; a clip keeps its times and lasts one mean step longer than its last frame."""
    pixels = visual.pixels[None] if visual.times is None else visual.pixels
    # Made contiguous: torch would keep the strides of the transposed view, and copy at every use.
    frames = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    if visual.times is None:
        return Media(frames)
    times = torch.from_numpy(np.array(visual.times, dtype=np.float64))
    last = float(times[-1])
    step = last / (len(times) - 1) if len(times) > 1 else 0.0
    return Media(frames, times, last + step)


def score(rollout: Rollout) -> Score:
    """What the task says about an answer."""
    extra = rollout.prompt.extra
    if "truth" not in extra or "task" not in extra:
        raise ValueError(
            f"prompt {rollout.prompt.id!r} has no 'task' and 'truth'; make it by PretextPrompts or to_prompt."
        )
    return find(extra["task"]).score(rollout.text, extra["truth"], Surface(**extra["surface"]))


@in_process
def pretext_reward(rollout: Rollout) -> float:
    """The task's own reward, in [0, 1]."""
    return score(rollout).reward


@in_process
def above_chance_reward(rollout: Rollout) -> float:
    """(r − chance)/(1 − chance), at least 0: rewards of different tasks on one scale."""
    return above_chance(score(rollout).reward, rollout.prompt.extra["chance_reward"])


@in_process
def pretext_correct(rollout: Rollout) -> float:
    """1 if exactly right."""
    return float(score(rollout).correct)


def pretext_part(name: str) -> Callable[[Rollout], float]:
    """A part of the task's score as a reward, e.g. "feasible"; 0 where the reply has none."""

    @in_process
    def part(rollout: Rollout) -> float:
        return float(score(rollout).parts.get(name, 0.0))

    return part


@in_process
def pretext_form(rollout: Rollout) -> float:
    """1 if the answer can be read and, where reasoning was asked for, stands behind it."""
    asked = rollout.prompt.extra["surface"]["thinking"] != "none"
    if asked and "</think>" not in rollout.text:
        return 0.0
    return float(score(rollout).parts.get("parsed", 0.0) == 1.0)


def solution_key(rollout: Rollout) -> Hashable:
    """What two answers share if they are the same solution; "invalid" if unreadable."""
    return score(rollout).key


class Curriculum:
    """Feeds paid answers back into levels and mixture. State is JSON and belongs into the checkpoint."""

    def __init__(
        self,
        stream: SampleStream,
        levels: LevelController | None = None,
        mixture: LearningProgress | None = None,
    ) -> None:
        self.stream, self.levels, self.mixture = stream, levels, mixture
        if levels is not None:
            stream.levels = levels
        if mixture is not None:
            stream.weights = mixture

    def observe(self, rollouts: Sequence[Rollout]) -> dict[str, tuple[float, int]]:
        """(sum of successes, count) per task of these answers. Add them over ranks, then `apply` the same total."""
        totals: dict[str, tuple[float, int]] = {}
        for rollout in rollouts:
            task = rollout.prompt.extra["task"]
            success = above_chance(score(rollout).reward, rollout.prompt.extra["chance_reward"])
            total, count = totals.get(task, (0.0, 0))
            totals[task] = (total + success, count + 1)
        return totals

    def apply(
        self, totals: Mapping[str, tuple[float, int]], progress: float | None = None
    ) -> dict[str, float]:
        """Move levels and weights; returns metrics `pretext/level/<task>` and `pretext/success/<task>`."""
        if progress is not None:
            self.stream.progress = progress
        if self.levels is not None:
            self.levels.apply(totals)
        if self.mixture is not None:
            self.mixture.apply(totals)
        metrics = {}
        for task, (total, count) in totals.items():
            if count:
                metrics[f"pretext/success/{task}"] = total / count
        # Levels after they moved: those of the next step.
        for task in totals:
            level = self.stream.levels(task, self.stream.progress)
            if level is not None:
                metrics[f"pretext/level/{task}"] = level
        return metrics

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {
            "levels": None if self.levels is None else self.levels.state(),
            "mixture": None if self.mixture is None else self.mixture.state(),
            "progress": self.stream.progress,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        if self.levels is not None and state["levels"] is not None:
            self.levels.load(state["levels"])
        if self.mixture is not None and state["mixture"] is not None:
            self.mixture.load(state["mixture"])
        self.stream.progress = float(state["progress"])


def _region(entry: Any) -> dict[str, Any]:
    region: dict[str, Any] = {"visual": entry.visual}
    if entry.boxes:
        region["boxes"] = [list(box) for box in entry.boxes]
    if entry.frames:
        region["frames"] = list(entry.frames)
    return region
