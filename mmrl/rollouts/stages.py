"""Several calls of the engine in one step: answer numbers that go on, and rollout functions that answer in stages.

    OneStep         the engine as rollout functions get it: whoever asks a prompt again gets further answers to it
    StagedRollout   a rollout function that looks at paid answers and asks for more, or for others, of some prompts

A stage answers some prompts, each with its own number of answers, and pays them; the next one decides by their pay. All
stages of a prompt are one group, so that groups differ in size. A staged function stands before its `inner` one, whose
filters see the groups when all their stages are over: `DARSRollout(inner=DynamicSampling())`.

Rewards that compare the answers of a group are given those of one stage at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, chain, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import (
    Ability,
    Done,
    Prefix,
    Temperature,
    abilities_of,
    refuse_beyond,
)
from mmrl.rollouts.streaming import paid_answers
from mmrl.types import Now, Prompt, Rollout, Sampling

__all__ = ["Answering", "OneStep", "StagedRollout", "Stages", "asked_of"]

TAKEN: Mapping[str, Ability] = {
    "counts": "counts per prompt",
    "prefixes": "forced prefixes",
    "temperature_at": "temperature per position",
    "visual": "other pixels",
}
"""Argument of `Asking.generate` -> what an engine that takes it can do."""


@dataclass
class OneStep:
    """An engine within one step: the numbers of a prompt's answers go on from call to call, so no draw repeats.

    An engine that gives no counts per prompt numbers its answers itself.
    """

    stands_for: Engine
    _given: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    """(seed, step, view, prompt id) -> answers so far."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the engine."""
        return abilities_of(self.stands_for)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        *,
        visual: Sequence[tuple[Patches, ...]] | None = None,
        branch: str = "raw",
        counts: Sequence[int] | None = None,
        first: Sequence[int] | None = None,
        prefixes: Sequence[Prefix] | None = None,
        temperature_at: Temperature | None = None,
        done: Done | None = None,
    ) -> list[Rollout]:
        """As `Asking.generate`."""
        more = given(
            visual=visual,
            counts=counts,
            prefixes=prefixes,
            temperature_at=temperature_at,
            done=done,
        )
        if branch != "raw":
            more["branch"] = branch
        if first is None and "counts per prompt" in self.abilities:
            wanted = [sampling.group_size] * len(prompts) if counts is None else counts
            first = self._next(prompts, wanted, (now.seed, now.step, branch))
        return asked_of(self.stands_for, prompts, sampling, now, **given(first=first), **more)

    def sync(self, policy: Policy) -> None:
        """As the engine that it stands for."""
        self.stands_for.sync(policy)

    def opened(
        self, prompts: Sequence[Prompt], where: tuple[Any, ...], answers: int
    ) -> list[int]:
        """Numbers of the first answers in a forest (`forking.py`) on each prompt; so many belong to it from now on.

        `where`: seed, step and view.
        """
        distinct = list({prompt.id: prompt for prompt in prompts}.values())
        first = self._next(distinct, [answers] * len(distinct), where)
        by_name = dict(zip((prompt.id for prompt in distinct), first, strict=True))
        return [by_name[prompt.id] for prompt in prompts]

    def _next(
        self, prompts: Sequence[Prompt], counts: Sequence[int], where: tuple[Any, ...]
    ) -> list[int]:
        """Answers to each prompt so far; the engine itself numbers on where a prompt is there twice in one call."""
        keys = [(*where, prompt.id) for prompt in prompts]
        first = [self._given[key] for key in keys]
        for key, count in zip(keys, counts, strict=True):
            self._given[key] += count
        return first


@dataclass(frozen=True)
class Answering:
    """The engine, with another way of answering."""

    stands_for: Engine
    answer: Callable[..., list[Rollout]]
    """As `Asking.generate`; given only those keyword arguments that were passed."""
    looks: bool = False
    """May it be asked to show other pixels? Else `answer` decides which are shown."""

    @property
    def abilities(self) -> frozenset[Ability]:
        """Those of the engine, but perhaps for the pixels."""
        hidden: frozenset[Ability] = frozenset(() if self.looks else ("other pixels",))
        return abilities_of(self.stands_for) - hidden

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        *,
        visual: Sequence[tuple[Patches, ...]] | None = None,
        branch: str | None = None,
        counts: Sequence[int] | None = None,
        first: Sequence[int] | None = None,
        prefixes: Sequence[Prefix] | None = None,
        temperature_at: Temperature | None = None,
    ) -> list[Rollout]:
        """What `answer` says."""
        more = given(
            visual=visual,
            branch=branch,
            counts=counts,
            first=first,
            prefixes=prefixes,
            temperature_at=temperature_at,
        )
        return self.answer(prompts, sampling, now, **more)

    def sync(self, policy: Policy) -> None:
        """As the engine that it stands for."""
        self.stands_for.sync(policy)


@dataclass(frozen=True)
class Stages:
    """What the stages of a step have in common. Called, it answers prompts once more and pays the answers."""

    engine: Engine
    pay: Pay
    sampling: Sampling
    now: Now
    counters: Counter[str]
    """Counts of the step, for the log."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int] | None = None,
        prefixes: Sequence[Prefix] | None = None,
    ) -> list[list[Rollout]]:
        """Paid answers to each prompt, `counts` of them instead of `sampling.group_size`; without those that could
        not be paid. `prefixes`: what answers to each prompt begin with. Prompts that get none are not read."""
        more = given(counts=counts, prefixes=prefixes)
        refuse_beyond(self.engine, [TAKEN[name] for name in more], "A rollout function")
        paid = paid_answers(self.engine, self.pay, prompts, self.sampling, self.now, **more)
        found: list[list[Rollout]] = [[] for _ in prompts]
        for rollout in paid:
            found[rollout.group].append(rollout)
        return found


@dataclass(frozen=True)
class StagedRollout(RolloutFunction):
    """Answers in stages, each after the one before it was paid."""

    inner: RolloutCall = group_rollout
    """Asks for answers, for example `DynamicSampling()`; it gets groups whose stages are over."""

    needs: ClassVar[Collection[Ability]] = ("counts per prompt",)

    def __post_init__(self) -> None:
        for part in chain(self.inner):
            if isinstance(part, StagedRollout):
                raise ValueError(
                    f"{type(self).__name__} and {type(part).__name__} cannot be used together: each answers prompts in "
                    "stages of its own and decides how often the next one asks. Keep one of them."
                )

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The paid group of each prompt, empty ones where nothing could be paid."""
        raise NotImplementedError(f"{type(self).__name__} has no groups.")

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        refuse_beyond(engine, self.needs, type(self).__name__)

        def answer(
            prompts: Sequence[Prompt], sampling: Sampling, now: Now, **more: Any
        ) -> list[Rollout]:
            if more:
                raise ValueError(
                    f"{type(self).__name__} says itself how often and in which way prompts are answered, but was asked "
                    f"for {sorted(more)} as well; make it the innermost rollout function."
                )
            stages = Stages(numbered(engine), pay, sampling, now, supply.counters)
            found = self.groups(stages, prompts)
            return [
                replace(rollout, group=number)
                for number, group in enumerate(found)
                for rollout in group
            ]

        return self.inner(Answering(engine, answer), paid_once(pay), supply, sampling, now)


def numbered(engine: Engine) -> Engine:
    """The engine, in which numbers of answers go on: as it is if they do already."""
    inside: Any = engine
    while inside is not None and not isinstance(inside, OneStep):
        inside = getattr(inside, "stands_for", None)
    return OneStep(engine) if inside is None else engine


def paid_once(pay: Pay) -> Pay:
    """`pay` for those that were not paid yet; groups stay together, those who were paid first in front."""

    def paid(rollouts: Sequence[Rollout]) -> list[Rollout]:
        done = [rollout for rollout in rollouts if rollout.reward is not None]
        due = [rollout for rollout in rollouts if rollout.reward is None]
        new = pay(due) if due else []
        return sorted([*done, *new], key=lambda rollout: rollout.group)

    return paid


def asked_of(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling, now: Now, **more: Any
) -> list[Rollout]:
    """The engine's answers. Raises ValueError, naming it, if it cannot do what is asked of it."""
    needs: list[Ability] = [TAKEN[name] for name in TAKEN if name in more]
    refuse_beyond(engine, needs, "A rollout function")
    generate: Callable[..., list[Rollout]] = engine.generate
    return generate(prompts, sampling, now, **more)


def given(**arguments: Any) -> dict[str, Any]:
    """Those that are not None: an engine need not know of what nobody asks for."""
    return {name: value for name, value in arguments.items() if value is not None}
