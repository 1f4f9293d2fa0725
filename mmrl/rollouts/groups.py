"""Rollout functions: from the supply of prompts to paid answers.

A rollout function is called with (engine, pay, supply, sampling, now) and returns paid rollouts whose `group` numbers
tell which answers share a prompt. It may look at rewards, ask for more prompts, or add answers of another origin.

Rollout functions that only add to another one hold it as `inner`. What objectives and checks may rely on stands in two
optional attributes: `brings` ("label", "expert", "checklist", "noisy answers:BRANCH", "noisy prompts:BRANCH") and
`drops_even_groups`. Noisy views are in `noisy_rollouts.py`, labels and experts in `given_answers.py`, checklists in
`checklist_rollout.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from mmrl.ground.faults import BadRow
from mmrl.losses.group_filters import keeps_by_mean, keeps_by_spread
from mmrl.model.policy import Policy
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

Pay = Callable[[Sequence[Rollout]], list[Rollout]]


class RolloutFunction(Protocol):
    """Makes the paid answers of one step."""

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]: ...


def group_rollout(
    engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
) -> list[Rollout]:
    """G answers to each of the step's prompts."""
    return pay(engine.generate(supply.take(), sampling, now))


@dataclass(frozen=True)
class DynamicSampling:
    """Drop groups whose answers all earn the same and sample further prompts until the step is full (DAPO).

    The PAPO and EasyR1 rule keeps a group if its mean of `part` lies strictly between `low` and `high`; with `spread`
    the DAPO recipe's rule keeps it if the values differ at all. Use an accuracy part rather than the total: with a
    format reward, groups that are all wrong but well-formed pass on the total. Surplus groups are left out.
    """

    part: str = "accuracy"
    """Reward part that is looked at; "total" for the sum."""
    low: float = 0.01
    """Means at or below are dropped."""
    high: float = 0.99
    """Means at or above are dropped."""
    spread: bool = False
    """Keep groups by spread instead of by mean."""
    rounds: int = 20
    """Most rounds of sampling per step; afterwards the step goes on with what there is."""

    drops_even_groups: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"DynamicSampling.rounds is {self.rounds}; it must be at least 1.")

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        kept: list[list[Rollout]] = []
        for _ in range(self.rounds):
            supply.counters["rollout/rounds"] += 1
            groups = by_group(pay(engine.generate(supply.take(), sampling, now)))
            good = [group for group in groups if self.keeps(group)]
            supply.counters["rollout/dropped_groups"] += len(groups) - len(good)
            kept.extend(good)
            if len(kept) >= supply.per_step:
                break
        if not kept:
            raise ValueError(
                f"DynamicSampling kept no group in {self.rounds} rounds of {supply.per_step} prompts: every group was "
                f"all right or all wrong on {self.part!r}. Use easier or harder prompts, or train without it."
            )
        supply.counters["rollout/surplus_groups"] += max(0, len(kept) - supply.per_step)
        return renumbered(kept[: supply.per_step])

    def keeps(self, group: Sequence[Rollout]) -> bool:
        """Does this group carry signal?"""
        values = [r.reward if self.part == "total" else self._value(r) for r in group]
        return (
            keeps_by_spread(values)
            if self.spread
            else keeps_by_mean(values, self.low, self.high)
        )

    def _value(self, rollout: Rollout) -> float | None:
        if self.part not in rollout.parts:
            raise ValueError(
                f"DynamicSampling.part is {self.part!r}, but the rewards have {sorted(rollout.parts)}; "
                "name one of them or 'total'."
            )
        return rollout.parts[self.part]


@dataclass(frozen=True)
class LabelRollout:
    """Supervised fine-tuning as a rollout: the label is the only answer, paid 1. The engine is not used.

    The text comes from `Prompt.extra[field]`, or from the answer itself where there is no such field.
    """

    encode: Callable[[str], torch.Tensor]
    """Text -> token ids with the end token, `Processing.encode_answer`."""
    prompt_ids: Callable[[Prompt], torch.Tensor]
    """Ids of a prompt as the model reads it."""
    field: str = "target"

    brings: ClassVar[tuple[str, ...]] = ("label",)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        out = []
        for number, prompt in enumerate(supply.take()):
            text = str(prompt.extra.get(self.field, prompt.answer))
            tokens = self.encode(text)
            roles = torch.full((len(tokens),), int(Role.POLICY), dtype=torch.uint8)
            out.append(
                Rollout(
                    prompt,
                    number,
                    self.prompt_ids(prompt),
                    tokens,
                    roles,
                    text,
                    "eos",
                    origin="label",
                    reward=1.0,
                )
            )
        return out


@dataclass(frozen=True)
class FirstPass:
    """Answer every prompt once before the first step, and tell `start` how often it was right (MSSR's prior)."""

    start: Callable[[Mapping[str, float]], None]
    """Takes prompt id -> success rate in [0, 1], `MSSR.start`."""
    policy: Policy
    part: str = "accuracy"
    """Reward part that counts as success, or "total"."""
    at_once: int = 256
    """Prompts that are answered together."""
    inner: RolloutFunction = group_rollout

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        if now.step == 1:
            self.start(self.rates(engine, pay, supply, sampling, replace(now, step=0)))
        return self.inner(engine, pay, supply, sampling, now)

    def rates(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> dict[str, float]:
        """The mean of the part over `group_size` answers to each prompt; rows that cannot be used are left out."""
        size = supply.prompts.size
        if size is None:
            raise ValueError(
                "FirstPass answers every prompt once, but the data is endless; set data.limit."
            )
        values: dict[str, list[float]] = {}
        for begin in range(0, size, self.at_once):
            # Each block is forgotten before the next, so that a whole data set need not fit in memory.
            with self.policy.vision.no_update():
                prompts: list[Prompt] = []
                for index in range(begin, min(size, begin + self.at_once)):
                    with contextlib.suppress(BadRow):
                        prompt = supply.prompts[index]
                        self.policy.encode(prompt)
                        prompts.append(prompt)
                for rollout in pay(engine.generate(prompts, sampling, now)) if prompts else []:
                    value = (
                        rollout.reward if self.part == "total" else rollout.parts.get(self.part)
                    )
                    if value is not None:
                        values.setdefault(rollout.prompt.id, []).append(
                            min(max(value, 0.0), 1.0)
                        )
                supply.counters["rollout/first_pass"] += len(prompts)
        return {prompt: sum(found) / len(found) for prompt, found in values.items()}


def chain(rollout: object) -> list[object]:
    """A rollout function and those inside it, the outermost first."""
    found = [rollout]
    while (inner := getattr(found[-1], "inner", None)) is not None:
        found.append(inner)
    return found


def by_group(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """Answers of one prompt together, in order of appearance."""
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(rollout)
    return list(groups.values())


def renumbered(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    """Flatten groups and number them 0, 1, 2, …"""
    return [
        replace(rollout, group=number)
        for number, group in enumerate(groups)
        for rollout in group
    ]
