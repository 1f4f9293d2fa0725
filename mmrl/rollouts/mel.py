"""MEL's experience (arXiv 2602.10224): written by the policy about its own mistakes, and kept if it helps.

    pairs      of each group with right and wrong answers, `MEL.pairs` pairs of one each, drawn at random
    writing    to question and pair, the wrong answer first: one text M
    replay     the question once more, with M behind it: M is kept if this answer is right

What is kept comes behind the step's groups, each text with its own prompt in a group of its own, with origin "expert"
and role EXPERT; `objectives/mel.py` trains it. Texts that were cut off, are empty or do not fit are left out. A mixed
group costs `pairs` texts and as many answers more, however large it is.

Counts: `mel/pairs` that were compared, `mel/too_long` of them without room, `mel/cut` texts without an end or words,
`mel/validated` texts that are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from mmrl.ground.require import require
from mmrl.ground.seeds import generator
from mmrl.objectives.base import EXPERIENCE, AnswerKind
from mmrl.objectives.mel import MEL
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, by_group, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.rewording import Check, behind, fits, with_pair
from mmrl.rollouts.stages import Stages, asked_of, numbered
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["MELRollout"]

ANALYST = """

You are an analyst now. Two solutions of the question above follow; do not solve it again.

Solution 1, which is wrong:
{wrong}

Solution 2, which is right:
{right}

Check solution 2 first. Then find the step at which solution 1 leaves the right way, and the flaw behind it. Write what
helps with other questions of this kind, without any number or name of this one, in four parts:
1. How it fails.
2. What makes it succeed.
3. What I, who made the mistake, take from it.
4. Rules of the form "If …, then …"."""
REMEMBER = """

You remember this from earlier questions:
{}"""


@dataclass(frozen=True)
class _Pair:
    """A right and a wrong answer to one question, and the prompt that asks what is to be learned of them."""

    question: Prompt
    asked: Prompt


@dataclass(frozen=True)
class MELRollout(RolloutFunction):
    """Groups, and behind them the experience that was made with them."""

    mel: MEL = field(default_factory=MEL)
    check: Check | None = None
    """Raises `BadRow` for a prompt that cannot be shown to the model, `Policy.encode`."""
    analyst: str = ANALYST
    """What is asked about a pair, behind the question, with the places {wrong} and {right}."""
    remember: str = REMEMBER
    """What a replay has behind the question, with the place {} for the text."""
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    needs: ClassVar[Collection[Ability]] = ("counts per prompt",)
    needs_correct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        both = self.analyst.count("{wrong}") == self.analyst.count("{right}") == 1
        require(
            self,
            analyst=(both, "a text with {wrong} and {right} once each"),
            remember=(self.remember.count("{}") == 1, "a text with exactly one {}"),
        )

    def brings(self) -> tuple[AnswerKind, ...]:
        """Experience, unless it is off."""
        return (EXPERIENCE,) if self.mel.weight > 0 else ()

    def traits(self) -> tuple[str, ...]:
        """Texts that are no answers."""
        on = self.mel.weight > 0
        return ("adds texts to learn", "samples beside answers") if on else ()

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = self.inner(engine, pay, supply, sampling, now)
        if self.mel.weight == 0:
            return found
        stages = Stages(numbered(engine), pay, sampling, now, supply.counters)
        pairs = [pair for group in by_group(found) for pair in self._pairs(group, stages)]
        written = self._written(pairs, stages)
        kept = self._validated(written, stages)
        supply.counters["mel/validated"] += len(kept)
        free = 1 + max((one.group for one in found), default=-1)
        return [*found, *(experience(text, free + n) for n, text in enumerate(kept))]

    def _pairs(self, group: Sequence[Rollout], stages: Stages) -> list[_Pair]:
        """Pairs of a group that have room in a prompt."""
        right = [one for one in group if one.correct]
        wrong = [one for one in group if one.correct is False]
        question, now = group[0].prompt, stages.now
        rng = generator(now.seed, now.step, question.id, "pairs")
        drawn = torch.randperm(len(right) * len(wrong), generator=rng)[: self.mel.pairs]
        stages.counters["mel/pairs"] += len(drawn)
        found: list[_Pair] = []
        for number in drawn.tolist():
            good, bad = right[number // len(wrong)], wrong[number % len(wrong)]
            text = with_pair(self.analyst, bad.text, good.text)
            asked = behind(question, text, f"{question.id}~pair{len(found)}")
            if fits(asked, self.check):
                found.append(_Pair(question, asked))
            else:
                stages.counters["mel/too_long"] += 1
        return found

    def _written(self, pairs: Sequence[_Pair], stages: Stages) -> list[tuple[Rollout, Prompt]]:
        """What the policy writes about pairs, with the prompt of each replay."""
        if not pairs:
            return []
        texts = _one_each([pair.asked for pair in pairs], stages)
        found: list[tuple[Rollout, Prompt]] = []
        for text in texts:
            question, told = pairs[text.group].question, text.text.strip()
            if text.stop == "length" or not told:
                stages.counters["mel/cut"] += 1
                continue
            words = self.remember.replace("{}", told)
            replay = behind(question, words, f"{text.prompt.id}~replay")
            if fits(replay, self.check):
                found.append((text, replay))
            else:
                stages.counters["mel/too_long"] += 1
        return found

    def _validated(
        self, written: Sequence[tuple[Rollout, Prompt]], stages: Stages
    ) -> list[Rollout]:
        """The texts with which the question is answered right."""
        if not written:
            return []
        replays = stages([replay for _, replay in written], [1] * len(written))
        kept = [
            text
            for (text, _), answers in zip(written, replays, strict=True)
            if any(one.correct for one in answers)
        ]
        return kept


def experience(text: Rollout, group: int) -> Rollout:
    """A text as a member of the batch: learned by likelihood, at temperature 1, in a group of its own."""
    changes: dict[str, Any] = {"group": group, "origin": "expert", "logp": None}
    roles = torch.full_like(text.roles, int(Role.EXPERT))
    return replace(
        text, roles=roles, temperature=1.0, reward=1.0, correct=True, parts={}, **changes
    )


def _one_each(prompts: Sequence[Prompt], stages: Stages) -> list[Rollout]:
    """One unpaid answer to each prompt."""
    sampling = replace(stages.sampling, group_size=1)
    return asked_of(stages.engine, prompts, sampling, stages.now, counts=[1] * len(prompts))
