"""RoRecomp, rollout recomposition: short right answers and long wrong ones first, the others now and then.

No reward speaks of length. Of each group, with its advantages from all of its answers, a step trains

    priority   the share `kept` of right answers, the shortest first; the share `kept` of wrong ones, the longest first

and puts the others by (long right, short wrong). With probability

    p = ½ (1 + cos(π n / N)) · `compensate`          step n of N

a step also trains answers that earlier steps put by, the oldest groups first, as many groups as a step has prompts.
What is put by is a memory of the run: saved with it, the same on all ranks.

Departures
1. Reconstructed: no official code; the abstract and a review say what is composed, the numbers are ours. The paper's
   name is *RoRecomp: enhancing reasoning efficiency via rollout response recomposition in RL*.
2. Groups are put by whole, their trained answers without tokens: so the estimator finds the same group statistics, and
   its advantages are those of the time when the answers were sampled.
3. The ratio's partner is the present policy, and the sampler's probabilities come in as the truncated importance weight
   of `GRPO.mismatch="truncate"`: together π/π_old, bounded above. The recipe sets it.
4. An answer that was cut off is wrong and long by nature; `cut_off="rest"` puts it by instead of training it first.
5. Answers whose reward is not available are trained at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.seeds import uniform_draw
from mmrl.objectives.base import AnswerKind
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import (
    Pay,
    RolloutCall,
    RolloutFunction,
    by_group,
    group_rollout,
    renumbered,
)
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["KEPT", "PutBy", "RoRecomp", "RoRecompRollout", "StoredGroup", "priority"]

KEPT = AnswerKind("kept")
"""Answers of earlier steps, with the probabilities that they were sampled with."""


@dataclass(frozen=True)
class RoRecomp:
    """What is trained at once, and how often the rest is."""

    kept: float = 0.5
    """Share of right and of wrong answers that are trained at once, at least one of each; 1: all, as in GRPO."""
    compensate: float = 0.5
    """Probability that the first step trains what was put by; it falls to 0 over the run."""
    age: int = 4
    """Steps after which answers that were put by are forgotten."""
    cut_off: Literal["wrong", "rest"] = "wrong"
    """Answers without an end: wrong ones like others, or put by."""

    def __post_init__(self) -> None:
        require(
            self,
            kept=(0 < self.kept <= 1, "in (0, 1]"),
            compensate=(0 <= self.compensate <= 1, "in [0, 1]"),
            age=(self.age >= 1, "at least 1"),
            cut_off=(self.cut_off in ("wrong", "rest"), "'wrong' or 'rest'"),
        )

    def probability(self, now: Now) -> float:
        """That this step trains answers which were put by."""
        return 0.5 * (1 + math.cos(math.pi * now.progress)) * self.compensate


def priority(
    lengths: Sequence[int],
    correct: Sequence[bool | None],
    cut_off: Sequence[bool],
    settings: RoRecomp,
) -> list[bool]:
    """Which answers of a group are trained at once. Of equal lengths the earlier answer comes first."""
    rows = range(len(lengths))
    late = [settings.cut_off == "rest" and cut and settings.kept < 1 for cut in cut_off]
    right = [row for row in rows if correct[row] and not late[row]]
    wrong = [row for row in rows if correct[row] is False and not late[row]]
    chosen = {row for row in rows if correct[row] is None}
    right.sort(key=lambda row: lengths[row])
    wrong.sort(key=lambda row: -lengths[row])
    for side in (right, wrong):
        chosen.update(side[: math.ceil(settings.kept * len(side))])
    return [row in chosen for row in rows]


@dataclass(frozen=True)
class StoredAnswer:
    """An answer that was put by, or, without tokens, one that only counts in its group."""

    reward: float
    correct: bool | None
    tokens: tuple[int, ...] = ()
    roles: tuple[int, ...] = ()
    logp: tuple[float, ...] = ()
    text: str = ""
    stop: str = ""
    temperature: float = 1.0


@dataclass(frozen=True)
class StoredGroup:
    """All answers to a prompt, in their order."""

    place: int
    """Of the prompt, in the order of the run."""
    step: int
    answers: tuple[StoredAnswer, ...]


class PutBy:
    """Groups of which something was put by, oldest first; a rollout function's memory, the same on all ranks."""

    def __init__(self) -> None:
        self.groups: list[StoredGroup] = []

    def add(self, groups: Sequence[StoredGroup], now: Now, age: int) -> int:
        """Take these over and forget what is too old for a later step; how many groups were forgotten."""
        every = [*self.groups, *groups]
        self.groups = [one for one in every if now.step - one.step < age]
        return len(every) - len(self.groups)

    def take(self, count: int) -> list[StoredGroup]:
        """The oldest groups, which are not kept any longer."""
        taken, self.groups = self.groups[:count], self.groups[count:]
        return taken

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        rows = [
            [one.place, one.step, [list(vars(answer).values()) for answer in one.answers]]
            for one in self.groups
        ]
        return {"groups": rows}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.groups = [
            StoredGroup(place, step, tuple(_read(row) for row in rows))
            for place, step, rows in state["groups"]
        ]


def _read(row: Sequence[Any]) -> StoredAnswer:
    reward, correct, tokens, roles, logp, *rest = row
    return StoredAnswer(reward, correct, tuple(tokens), tuple(roles), tuple(logp), *rest)


@dataclass(frozen=True)
class RoRecompRollout(RolloutFunction):
    """Groups of which the priority answers are trained, and now and then what was put by."""

    prompt_ids: Callable[[Prompt], Tensor]
    """Ids of a prompt as the model reads it."""
    recomp: RoRecomp = field(default_factory=RoRecomp)
    inner: RolloutCall = group_rollout

    needs_correct: ClassVar[bool] = True

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers that were put by."""
        return (KEPT,) if self._composes else ()

    def traits(self) -> tuple[str, ...]:
        """Which answers of a group are trained depends on whether they are right."""
        return ("learns from some answers",) if self._composes else ()

    def start_memory(self) -> PutBy | None:
        """Nothing put by."""
        return PutBy() if self._composes else None

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = self.inner(engine, pay, supply, sampling, now)
        if not self._composes:
            return found
        memory: PutBy = supply.memory(self)
        # Before this step's own are put by: a step does not train its answers twice.
        replayed = self._replayed(memory, supply, now)
        places = supply.group_places(found)
        fresh: list[list[Rollout]] = []
        stored: list[StoredGroup] = []
        for group in by_group(found):
            first = self._first(group)
            fresh.append(
                [one if now_ else muted(one) for one, now_ in zip(group, first, strict=True)]
            )
            if not all(first):
                stored.append(_stored(group, first, places[group[0].group], now))
        every = sorted(
            (one for each in supply.ranks.gathered(stored) for one in each),
            key=lambda one: one.place,
        )
        old = memory.add(every, now, self.recomp.age)
        supply.counters["rorecomp/put_by"] += sum(
            bool(answer.tokens) for one in stored for answer in one.answers
        )
        supply.counters["rorecomp/out_of_date"] += old * supply.ranks.first
        supply.counters["rorecomp/replayed_groups"] += len(replayed)
        return renumbered([*fresh, *replayed])

    @property
    def _composes(self) -> bool:
        return self.recomp.kept < 1

    def _first(self, group: Sequence[Rollout]) -> list[bool]:
        """Which answers of a group are trained at once."""
        lengths = [len(one.tokens) for one in group]
        ends = [one.stop == "length" for one in group]
        return priority(lengths, [one.correct for one in group], ends, self.recomp)

    def _replayed(self, memory: PutBy, supply: Supply, now: Now) -> list[list[Rollout]]:
        """This rank's share of what was put by, if this step trains it."""
        coin = uniform_draw(now.seed, now.step, "rorecomp")
        if coin >= self.recomp.probability(now):
            return []
        ranks = supply.ranks
        mine = memory.take(supply.per_step)[ranks.rank :: ranks.world]
        found: list[list[Rollout]] = []
        for stored in mine:
            prompt = supply.again(stored.place)
            if prompt is not None:
                ids = self.prompt_ids(prompt)
                found.append([_again(answer, prompt, ids) for answer in stored.answers])
        return found


def _again(answer: StoredAnswer, prompt: Prompt, ids: Tensor) -> Rollout:
    return Rollout(
        prompt=prompt,
        group=0,
        prompt_ids=ids,
        tokens=torch.tensor(answer.tokens, dtype=torch.long),
        roles=torch.tensor(answer.roles, dtype=torch.uint8),
        text=answer.text,
        stop=answer.stop,
        logp=torch.tensor(answer.logp),
        temperature=answer.temperature,
        origin="kept",
        reward=answer.reward,
        correct=answer.correct,
    )


def muted(rollout: Rollout) -> Rollout:
    """The same answer, of which no token is trained."""
    return replace(rollout, roles=torch.full_like(rollout.roles, int(Role.OBSERVATION)))


def _stored(
    group: Sequence[Rollout], first: Sequence[bool], place: int, now: Now
) -> StoredGroup:
    return StoredGroup(
        place,
        now.step,
        tuple(
            StoredAnswer(float(one.reward or 0.0), one.correct) if trained else _whole(one)
            for one, trained in zip(group, first, strict=True)
        ),
    )


def _whole(rollout: Rollout) -> StoredAnswer:
    assert rollout.logp is not None and isinstance(rollout.temperature, float | int)
    return StoredAnswer(
        float(rollout.reward or 0.0),
        rollout.correct,
        tuple(rollout.tokens.tolist()),
        tuple(rollout.roles.tolist()),
        tuple(rollout.logp.tolist()),
        rollout.text,
        rollout.stop,
        float(rollout.temperature),
    )
