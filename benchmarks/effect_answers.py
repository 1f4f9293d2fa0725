"""The exam of the RLVR systems: what the sampled answers of a model are like, question by question.

    accuracy         greedy answers that are right as the task pays
    pass1, pass8     share of right ones among 8 sampled answers; whether any is right
    variety          different right answers among the 8
    entropy          mean surprise -log p of the 8
    sure             mean over the 8 of p(answer), 0 where it is right: how much mass lies on confident errors
    length           tokens of the 8, mean
    closer           as accuracy, with the tools of the task at hand

and from the log of the training run, one value per run, mean over its second half (answers: over all of it):

    trained/answers  answers per step, those that were thrown away included: sampled tokens over those of an answer
    trained/decoded  sampled tokens of a trained answer over its length: below 1 where answers share beginnings
    trained/updated  tokens that the update computed for a trained answer, with its part of the prompt
    trained/clipped  share of tokens whose ratio was clipped, on either side
    trained/verified  LaSeR: share of answers about which its own verdict was right; one half for methods without
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from effect_tasks import EXAM_SEED, FREE, GREEDY, NOW, Marks, Task, engine_of, surprise

from mmrl.recipes.shared.opening import DRAWN, Data, open_data
from mmrl.rollouts.groups import by_group
from mmrl.rollouts.tool_use import ToolEngine
from mmrl.training.evaluate import heldout_prompts
from mmrl.types import Prompt, Rollout, Sampling

CLIPPED = ("policy/clip_low", "policy/clip_high", "policy/clip_dual")


@dataclass(frozen=True)
class AnswerExam:
    """The same questions for every model of a task."""

    prompts: tuple[Prompt, ...]
    task: Task

    @staticmethod
    def of(task: Task, count: int) -> AnswerExam:
        """Draw the questions."""
        if task.questions is not None:
            return AnswerExam(task.questions(count), task)
        _, heldout = open_data(DRAWN, Data(style="tag"), seed=EXAM_SEED)
        return AnswerExam(tuple(heldout_prompts(heldout, count)), task)

    def marked(self, model: Path) -> Marks:
        """All numbers of one model."""
        engine, right = engine_of(model), self.task.right
        once, often = (replace(how, max_tokens=self.task.longest) for how in (GREEDY, FREE))
        greedy = engine.generate(self.prompts, once, NOW)
        groups = by_group(engine.generate(self.prompts, often, NOW))
        fair = [[right(answer) for answer in group] for group in groups]
        return {
            **self._closer(engine, once),
            "accuracy": [right(answer) for answer in greedy],
            "pass1": [fmean(values) for values in fair],
            "pass8": [max(values) for values in fair],
            "variety": [variety(*pair) for pair in zip(groups, fair, strict=True)],
            "entropy": [surprise(group) for group in groups],
            "sure": [sure(*pair) for pair in zip(groups, fair, strict=True)],
            "length": [fmean(len(answer.tokens) for answer in group) for group in groups],
        }

    def _closer(self, engine: Any, once: Sampling) -> Marks:
        """Greedy answers that may call the task's tools."""
        if self.task.toolbox is None:
            return {}
        tools = self.task.toolbox(engine.policy.processing)
        answers = ToolEngine(engine, engine.policy, tools).generate(self.prompts, once, NOW)
        return {"closer": [self.task.right(answer) for answer in answers]}


def variety(group: Sequence[Rollout], right: Sequence[float]) -> float:
    """How many different right answers there are."""
    texts = {answer.text.strip() for answer, value in zip(group, right, strict=True) if value}
    return float(len(texts))


def sure(group: Sequence[Rollout], right: Sequence[float]) -> float:
    """Mean probability of the wrong answers, 0 for right ones."""
    mass = []
    for answer, value in zip(group, right, strict=True):
        assert answer.logp is not None, "sampled here"
        mass.append(0.0 if value else math.exp(float(sum(answer.logp))))
    return fmean(mass)


def of_training(log: Path) -> Marks:
    """What the log of a run tells, one value each."""
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [step for step in steps if "answer/count" in step]
    late = steps[len(steps) // 2 :]
    marks = {
        "trained/answers": [fmean(_sampled(step) for step in steps)],
        "trained/decoded": [fmean(_sampled(step) / step["answer/count"] for step in steps)],
        "trained/updated": [
            fmean(step["tokens/update"] / step["answer/count"] for step in steps)
        ],
        "trained/clipped": [fmean(sum(step.get(n, 0.0) for n in CLIPPED) for step in late)],
    }
    verified = [step["laser/verified"] for step in late if "laser/verified" in step]
    # GRPO has no verdict, and a coin would do as well.
    marks["trained/verified"] = [fmean(verified) if verified else 0.5]
    return marks


def _sampled(step: Mapping[str, float]) -> float:
    """Answers that a step sampled, in units of those that it trained on."""
    # The first token of an answer comes out of its prompt, without a step of decoding.
    return step["tokens/decode"] / max(1.0, step["answer/length"] - 1.0)
