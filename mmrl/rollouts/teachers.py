"""Answers of several teachers in the groups, with role EXPERT: in no mask unless an objective trains that role.

A row's column holds the answers, each with its teacher's name, in one of three forms:

    {"qwen-72b": "text", "o3": "text"}
    [{"name": "qwen-72b", "text": "text", "logp": [-0.1, -2.3, ...]}, ...]
    ["text", "text"]                                                              named "0", "1", …

`logp` are the teacher's own log-probs, one per token of the text as this model's tokenizer writes it, end token
included; they become `Rollout.logp`. What the *policy* thinks of an expert's tokens is scored like that of its own:
`ScoreRequest("raw", stage="shape")` stores it before the update.

Teachers join after the inner rollout function has chosen its groups, so no filter sees them, and are paid by the run's
rewards: that a teacher is right is checked, not assumed. `Teachers` leaves open which groups get which answers; with
`WithTeachers` each group gets up to `most`, drawn anew in each step. Answers with special tokens, or with log-probs
that cannot be theirs, are left out and counted (`teachers/unusable`); so are groups that ask (`teachers/asked`), those
of them that get none (`teachers/missing`) and own answers that give way (`teachers/replaced`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmrl.ground.require import require
from mmrl.ground.seeds import generator
from mmrl.objectives.base import TEACHERS, AnswerKind
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.experts import Encode, given_answer, refuse_annealing_inside
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, by_group, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["Teachers", "Told", "WithTeachers", "told"]


@dataclass(frozen=True)
class Told:
    """What one teacher wrote."""

    name: str
    text: str
    logp: tuple[float, ...] | None = None
    """The teacher's log-prob of each token."""


def told(value: Any) -> list[Told]:
    """The teachers' answers that a column holds, in its order; entries that are none of the three forms are left out.

    Nothing there (None, empty): no answers.
    """
    if isinstance(value, Mapping):
        value = [{"name": name, "text": text} for name, text in value.items()]
    # One text alone is one teacher's answer.
    entries = [value] if isinstance(value, str) else list(value or ())
    found: list[Told] = []
    for number, entry in enumerate(entries):
        named = {"text": entry} if isinstance(entry, str) else entry
        if not isinstance(named, Mapping) or not isinstance(named.get("text"), str):
            continue
        name = str(named.get("name", number))
        found.append(Told(name, named["text"], _numbers(named.get("logp"))))
    return found


def _numbers(logp: Any) -> tuple[float, ...] | None:
    """Log-probs as numbers; None if there are none, empty if they are no log-probs."""
    if logp is None:
        return None
    try:
        found = tuple(float(value) for value in logp)
    except (TypeError, ValueError):
        return ()
    return found if all(-math.inf < value <= 0 for value in found) else ()


@dataclass(frozen=True)
class Teachers(RolloutFunction):
    """Answers of teachers as members of groups; which, subclasses say."""

    encode: Encode
    column: str = "solutions"
    """Column of the row that holds the teachers' answers."""
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    def __post_init__(self) -> None:
        refuse_annealing_inside(self)

    def brings(self) -> tuple[AnswerKind, ...]:
        """Teachers' answers."""
        return (TEACHERS,)

    def traits(self) -> tuple[str, ...]:
        """Not the policy's own answers."""
        return ("injects answers",)

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks, or ""."""
        return "" if told(prompt.extra.get(self.column)) else self.column

    def wants(self, group: Sequence[Rollout]) -> bool:
        """Are teachers asked about this group? Else their answers are not paid."""
        return True

    def joined(
        self, group: Sequence[Rollout], answers: Sequence[Rollout], now: Now
    ) -> list[Rollout]:
        """A group that wants teachers, with those of their paid answers that are chosen for it."""
        raise NotImplementedError(f"{type(self).__name__} has no joined.")

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        groups = by_group(self.inner(engine, pay, supply, sampling, now))
        wanting = [group for group in groups if self.wants(group)]
        written = [self._written(group[0], supply, sampling) for group in wanting]
        answers = [answer for each in written for answer in each]
        paid: dict[int, list[Rollout]] = {group[0].group: [] for group in wanting}
        for answer in pay(answers) if answers else ():
            paid[answer.group].append(answer)
        out: list[Rollout] = []
        for group in groups:
            theirs = paid.get(group[0].group)
            whole = group if theirs is None else self.joined(group, theirs, now)
            given = sum(one.origin == "expert" for one in whole)
            asked = theirs is not None
            supply.counters["teachers/replaced"] += given + len(group) - len(whole)
            supply.counters["teachers/asked"] += asked
            supply.counters["teachers/answers"] += given
            supply.counters["teachers/missing"] += asked and not given
            out += whole
        return out

    def _written(self, beside: Rollout, supply: Supply, sampling: Sampling) -> list[Rollout]:
        """The teachers' answers to the prompt of a group, unpaid."""
        answers: list[Rollout] = []
        for one in told(beside.prompt.extra.get(self.column)):
            answer = given_answer(
                beside, one.text, self.encode, "expert", Role.EXPERT, sampling
            )
            if answer is None or not (one.logp is None or len(one.logp) == len(answer.tokens)):
                supply.counters["teachers/unusable"] += 1
                continue
            logp = None if one.logp is None else torch.tensor(one.logp)
            answers.append(replace(answer, teacher=one.name, logp=logp))
        return answers


@dataclass(frozen=True)
class WithTeachers(Teachers):
    """Answers of teachers as members of each group."""

    most: int = 1
    """Most of them in a group; 0 takes all."""
    right_above: float | None = None
    """Leave out answers whose reward does not exceed this; None keeps all."""

    def __post_init__(self) -> None:
        require(self, most=(self.most >= 0, "0 (all) or positive"))
        super().__post_init__()

    def joined(
        self, group: Sequence[Rollout], answers: Sequence[Rollout], now: Now
    ) -> list[Rollout]:
        """The group, and up to `most` of the answers."""
        if self.right_above is not None:
            answers = [one for one in answers if (one.reward or 0.0) > self.right_above]
        if self.most and len(answers) > self.most:
            rng = generator(now.seed, now.step, group[0].prompt.id, "teachers")
            order = torch.randperm(len(answers), generator=rng)[: self.most]
            answers = [answers[n] for n in sorted(order.tolist())]
        return [*group, *answers]
