"""A model's score on a pretext preset: accuracy, score above chance, confidence intervals.

Greedy answers to the first `count` samples of a stream (the command line takes the held-out split). Per task: accuracy
with a Wilson 95 % interval, mean reward, and the score above chance (r − c)/(1 − c), not clipped, with a 95 % bootstrap
interval over samples. The overall score is the mean over tasks, so that frequent tasks do not dominate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np

from mmrl.data.pretext.prompts import score, to_prompt
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.ground.intervals import wilson
from mmrl.ground.progress import with_progress
from mmrl.ground.seeds import philox
from mmrl.rollouts.engine import Engine
from mmrl.types import Now, Rollout, Sampling

BATCH = 16
"""Prompts per call of the engine."""


@dataclass(frozen=True)
class TaskResult:
    """One task."""

    task: str
    samples: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    reward: float
    chance: float
    chance_reward: float
    above_chance: float
    above_chance_interval: tuple[float, float]
    unreadable: float
    """Share of answers that could not be read."""


@dataclass(frozen=True)
class EvalReport:
    """All tasks of a preset."""

    model: str
    preset: str
    results: tuple[TaskResult, ...]

    @property
    def overall(self) -> float:
        """Mean over tasks of the score above chance."""
        return float(np.mean([result.above_chance for result in self.results]))

    def table(self) -> str:
        """Text."""
        head = (
            f"{'task':20s} {'n':>5s} {'accuracy':>22s} {'chance':>7s} {'reward':>7s} {'above chance':>22s}"
            f" {'unreadable':>11s}"
        )
        rows = [_row(result) for result in self.results]
        mean = f"mean over tasks, above chance: {self.overall:.3f}"
        return "\n".join([f"{self.model} on {self.preset}", head, *rows, mean])

    def json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        tasks = [asdict(result) for result in self.results]
        return {
            "model": self.model,
            "preset": self.preset,
            "above_chance": self.overall,
            "tasks": tasks,
        }


def _row(result: TaskResult) -> str:
    low, high = result.accuracy_interval
    below, above = result.above_chance_interval
    return (
        f"{result.task:20s} {result.samples:5d} {result.accuracy:7.3f} [{low:.3f}, {high:.3f}]"
        f" {result.chance:7.3f} {result.reward:7.3f}"
        f" {result.above_chance:7.3f} [{below:.3f}, {above:.3f}] {result.unreadable:11.3f}"
    )


def evaluate_model(
    model: str, stream: SampleStream, count: int, max_tokens: int = 512, seed: int = 0
) -> EvalReport:
    """Load a model folder or hub name and evaluate it. "tiny" is an untrained tiny model: noise, to try the command."""
    from mmrl.model import tiny
    from mmrl.model.policy import Policy
    from mmrl.rollouts.engine import HFEngine

    engine = HFEngine(Policy.load(tiny.cached() if model == "tiny" else model))
    return evaluate_engine(engine, model, stream, count, max_tokens, seed)


def evaluate_engine(
    engine: Engine,
    name: str,
    stream: SampleStream,
    count: int,
    max_tokens: int = 512,
    seed: int = 0,
) -> EvalReport:
    """Evaluate whatever can answer prompts."""
    sampling = Sampling(group_size=1, temperature=0.0, max_tokens=max_tokens)
    now = Now(step=0, progress=0.0, seed=seed)
    answered: list[Rollout] = []
    samples = with_progress(stream.first(count), count, "samples asked")
    # In batches from the stream: the pictures of all samples together would not fit into memory.
    while batch := [to_prompt(sample) for sample in islice(samples, BATCH)]:
        answered += engine.generate(batch, sampling, now)
    by_task: dict[str, list[Rollout]] = {}
    for rollout in answered:
        by_task.setdefault(rollout.prompt.extra["task"], []).append(rollout)
    results = tuple(summarised(task, by_task[task]) for task in sorted(by_task))
    return EvalReport(name, stream.preset.name, results)


def summarised(task: str, rollouts: Sequence[Rollout]) -> TaskResult:
    """Means and intervals of one task's answers."""
    count = len(rollouts)
    scores = [score(rollout) for rollout in rollouts]
    rewards = np.array([entry.reward for entry in scores])
    chance = np.array([rollout.prompt.extra["chance"] for rollout in rollouts])
    # Per sample, as knobs differ and with them the levels.
    floors = np.array([rollout.prompt.extra["chance_reward"] for rollout in rollouts])
    above = (rewards - floors) / np.maximum(1.0 - floors, 1e-9)
    # Fixed random numbers: the same answers give the same interval.
    picks = philox("bootstrap", task, count).integers(count, size=(2000, count))
    low, high = np.quantile(above[picks].mean(axis=1), [0.025, 0.975])
    right = sum(entry.correct for entry in scores)
    unread = sum(entry.parts.get("parsed", 0.0) == 0.0 for entry in scores)
    return TaskResult(
        task=task,
        samples=count,
        accuracy=right / count,
        accuracy_interval=wilson(right / count, count),
        reward=float(rewards.mean()),
        chance=float(chance.mean()),
        chance_reward=float(floors.mean()),
        above_chance=float(above.mean()),
        above_chance_interval=(float(low), float(high)),
        unreadable=unread / count,
    )
