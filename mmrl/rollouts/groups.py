"""Rollout functions: from the supply of prompts to paid answers.

A rollout function is called with (engine, pay, supply, sampling, now) and returns paid rollouts whose `group` numbers
tell which answers share a prompt. It may look at rewards, ask for more prompts, or add answers of another origin.

A plain function brings the policy's plain answers and nothing else. What a rollout function does beyond that,
objectives and checks read off the attributes that `RolloutFunction` declares. Noisy views are in `noisy.py`, labels and
experts in `experts.py`, checklists in `checklist.py`, contrasts in `contrast.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from mmrl.ground.declared import added, refuse_misspelt
from mmrl.ground.faults import BadRow
from mmrl.ground.printable import logger
from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.group_filters import keeps_by_mean, keeps_by_spread
from mmrl.model.policy import Policy
from mmrl.objectives.base import LABEL, AnswerKind, Memory
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.oversampling import KeptShares
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.streaming import paid_answers
from mmrl.types import Now, Prompt, Role, Rollout, Sampling, VisualBranch

log = logger(__name__)

LABEL_TRIES = 20
"""Steps' worth of prompts among which one label must be usable."""
FRUITLESS = 10_000
"""Prompts of an endless collection after which unlimited sampling gives up if it kept none."""
Pay = Callable[[Sequence[Rollout]], list[Rollout]]


RolloutCall = Callable[[Engine, Pay, Supply, Sampling, Now], list[Rollout]]
"""Makes the paid answers of one step: a plain function, or a `RolloutFunction`."""


class RolloutFunction:
    """A rollout function that says what it does. Subclasses are frozen dataclasses whose fields are its settings."""

    inner: RolloutCall | None = None
    """The rollout function that it adds to; None if it makes the groups itself."""
    drops_even_groups: bool = False
    """Does it drop groups whose answers all earn the same?"""
    needs: Collection[Ability] = ()
    """What the engine must be able to do, beyond the views of `sampled_under`."""
    needs_correct: bool = False
    """Does it read `Rollout.correct`? Then the rewards must declare which part says whether an answer is right."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, RolloutFunction)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        raise NotImplementedError(f"{type(self).__name__} has no __call__.")

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers that objectives may rely on, beyond plain groups."""
        return ()

    def sampled_under(self) -> Mapping[str, VisualBranch]:
        """The views that trained answers are sampled under, by the name which `Rollout.branch` has."""
        return {}

    def answering(self, engine: Engine) -> Engine:
        """The engine that held-out prompts are answered by; with tools, for example. The same by default."""
        return engine

    def remembers_prompts(self) -> bool:
        """Is its memory keyed by `Prompt.id`? Then no two rows may share one."""
        return False

    def owns(self) -> tuple[Slot, ...]:
        """What it alone decides: "temperature", "counts" or "tree"."""
        return ()

    def traits(self) -> tuple[str, ...]:
        """What it says about itself for the table of combinations that mean nothing (`ground.traits.TRAITS`)."""
        return ()

    def start_memory(self) -> Memory | None:
        """A fresh memory for one run, which it asks for by `supply.memory(self)`; None if nothing outlives a step.

        With several processes each has one: what all must remember is told by `supply.ranks.gathered`.
        """
        return None

    if_missing: ClassVar[str] = "name another with column=..."
    """What to do if all rows lack it."""

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks for the answers to be brought; "" if none."""
        return ""


@dataclass(frozen=True)
class PlainRollout(RolloutFunction):
    """A plain function, which brings nothing."""

    function: RolloutCall

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        return self.function(engine, pay, supply, sampling, now)


def group_rollout(
    engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
) -> list[Rollout]:
    """G answers to each of the step's prompts."""
    return paid_answers(engine, pay, supply.take(), sampling, now)


@dataclass(frozen=True)
class DynamicSampling(RolloutFunction):
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
    """Most rounds of sampling per step; afterwards the step goes on with what there is. 0: as many as it takes."""
    at_once: int = 0
    """Prompts of a round (PAPO: 128); 0 takes those of a step. With `adaptive` the most of a round; 0: no bound."""
    adaptive: bool = added(False)
    """Ask for as many prompts as the share of groups that were kept so far says it takes (CodeV-R1)."""
    least_share: float = added(0.1)
    """Smallest share that `adaptive` reckons with: a round asks for at most so many times what is missing."""

    drops_even_groups: ClassVar[bool] = True
    why_dropped: ClassVar[str] = "was all right or all wrong"

    def traits(self) -> tuple[str, ...]:
        """Which groups are left out: by spread both kinds, by mean those that a bound reaches."""
        wrong, right = self.spread or self.low >= 0, self.spread or self.high <= 1
        both = {"drops all-wrong groups": wrong, "drops all-right groups": right}
        return tuple(trait for trait, drops in both.items() if drops)

    def __post_init__(self) -> None:
        require(
            self,
            rounds=(self.rounds >= 0, "at least 1, or 0 for as many as it takes"),
            at_once=(self.at_once >= 0, "at least 1, or 0 for the prompts of a step"),
            least_share=(0 < self.least_share <= 1, "in (0, 1]"),
        )

    def start_memory(self) -> KeptShares | None:
        """The shares of groups that were kept, if rounds depend on them."""
        return KeptShares() if self.adaptive else None

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        kept: list[tuple[int, list[Rollout]]] = []
        shares: KeptShares | None = supply.memory(self)
        # Groups and prompts of all ranks; rounds, and those since the last group that was kept.
        full, asked, done, idle = 0, 0, 0, 0
        while full < supply.per_step and not self._ends(done, idle, supply):
            done, idle = done + 1, idle + 1
            supply.counters["rollout/rounds"] += supply.ranks.first
            size = self._round(supply.per_step - full, supply, shares)
            prompts = supply.take(size)
            with supply.ranks.together():
                groups = by_group(paid_answers(engine, pay, prompts, sampling, now))
                good = [group for group in groups if self.keeps(group)]
            supply.counters["rollout/dropped_groups"] += len(groups) - len(good)
            # The engine numbers groups by the prompts that it was given.
            kept += [(supply.places[group[0].group], group) for group in good]
            before, full = full, int(supply.ranks.total([len(kept)])[0])
            idle = 0 if full > before else idle
            asked += size
            if shares is not None:
                shares.after_round(full - before, size)
            used = {id(group) for group in good}
            supply.drop([group[0].prompt for group in groups if id(group) not in used])
            del prompts, groups, good  # the next round needs the room
        # Fewer than a full step is no error: the rounds are bounded so that a hard set cannot hang the run.
        if not full:
            raise ValueError(
                f"DynamicSampling kept no group in {done} rounds of {asked // done} prompts: every group "
                f"{self.why_dropped} on {self.part!r}. Use easier or harder prompts, or train without it."
            )
        if shares is not None:
            shares.after_step(full, asked)
        # Surplus groups are left out rather than kept for later: by then the weights have changed.
        chosen = first_places([place for place, _ in kept], supply)
        supply.counters["rollout/surplus_groups"] += len(kept) - len(chosen)
        supply.drop([group[0].prompt for place, group in kept if place not in chosen])
        return renumbered([group for place, group in kept if place in chosen])

    def _round(self, missing: int, supply: Supply, shares: KeptShares | None) -> int:
        """Prompts of the next round, of all ranks."""
        if shares is None:
            return self.at_once or supply.per_step
        wanted = shares.asks(missing, self.least_share)
        return min(wanted, self.at_once) if self.at_once else wanted

    def _ends(self, done: int, idle: int, supply: Supply) -> bool:
        """Is sampling over although the step is not full?"""
        if self.rounds:
            return done >= self.rounds
        # A data set that holds nothing more to keep would be read for ever.
        whole = -(-(supply.prompts.size or FRUITLESS) // (self.at_once or supply.per_step))
        return idle >= whole

    def keeps(self, group: Sequence[Rollout]) -> bool:
        """Does this group carry signal?"""
        values = [self.value_of(rollout) for rollout in group]
        if self.spread:
            return keeps_by_spread(values)
        return keeps_by_mean(values, self.low, self.high)

    def value_of(self, rollout: Rollout) -> float | None:
        """What is looked at of an answer. Raises ValueError for a part that the rewards do not have."""
        if self.part == "total":
            return rollout.reward
        if self.part not in rollout.parts:
            raise ValueError(
                f"DynamicSampling.part is {self.part!r}, but the rewards have {sorted(rollout.parts)}; "
                "name one of them or 'total'."
            )
        return rollout.parts[self.part]


@dataclass(frozen=True)
class LabelRollout(RolloutFunction):
    """Supervised fine-tuning as a rollout: the label is the only answer, paid 1. The engine is not used.

    The text comes from `Prompt.extra[field]`, or from the answer itself where there is no such field.
    """

    encode: Callable[[str], torch.Tensor]
    """Text -> token ids with the end token, `Processing.encode_answer`."""
    prompt_ids: Callable[[Prompt], torch.Tensor]
    """Ids of a prompt as the model reads it."""
    field: str = "target"

    def brings(self) -> tuple[AnswerKind, ...]:
        """Labels alone."""
        return (LABEL,)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        problem = ""
        for _ in range(LABEL_TRIES):
            out: list[Rollout] = []
            for prompt in supply.take():
                try:
                    out.append(self.label(len(out), prompt))
                except BadRow as error:  # a special token in it would be read as structure
                    problem = str(error)
                    supply.counters["label/unusable"] += 1
                    log.warning("%r: its label is left out: %s", prompt.id, problem)
            if supply.ranks.most(len(out)):
                return out
        raise BadRow(
            f"No label of {LABEL_TRIES} steps in a row can be used; the last: {problem}"
        )

    def label(self, number: int, prompt: Prompt) -> Rollout:
        """The label of a prompt as its only answer. Raises `BadRow` for a text that cannot be one."""
        text = str(prompt.extra.get(self.field, prompt.answer))
        tokens = self.encode(text)
        return Rollout(
            prompt=prompt,
            group=number,
            prompt_ids=self.prompt_ids(prompt),
            tokens=tokens,
            # As if the policy had written it: only such tokens are in the mask that is trained.
            roles=torch.full((len(tokens),), int(Role.POLICY), dtype=torch.uint8),
            text=text,
            stop="eos",
            origin="label",
            reward=1.0,
        )


@dataclass(frozen=True)
class FirstPass(RolloutFunction):
    """Answer every prompt once before the first step, and tell `start` how often it was right (MSSR's prior)."""

    start: Callable[[Mapping[str, float]], None]
    """Takes prompt id -> success rate in [0, 1], `SuccessMemory.start` of the memory that the trainer is given."""
    policy: Policy
    part: str = "accuracy"
    """Reward part that counts as success, or "total"."""
    at_once: int = 256
    """Prompts that are answered together."""
    inner: RolloutCall = group_rollout

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        if now.step == 1:  # a run that goes on later has the rates in its checkpoint
            # As step 0, so that the first real answers are drawn anew.
            before = replace(now, step=0)
            self.start(self.rates(engine, pay, supply, sampling, before))
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
        ranks = supply.ranks
        for begin in range(0, size, self.at_once):
            block = range(begin, min(size, begin + self.at_once))
            indices = block[ranks.rank :: ranks.world]
            # Each block is forgotten before the next, so that a whole data set need not fit in memory.
            with self.policy.vision.no_update():
                prompts = self._usable(supply, indices)
                answers = paid_answers(engine, pay, prompts, sampling, now) if prompts else []
                for answer in answers:
                    value = self._value(answer)
                    if value is not None:
                        values.setdefault(answer.prompt.id, []).append(value)
                supply.counters["rollout/first_pass"] += len(prompts)
        everybodys: dict[str, list[float]] = {}
        for found in ranks.gathered(values):
            for prompt, some in found.items():
                everybodys.setdefault(prompt, []).extend(some)
        return {prompt: sum(found) / len(found) for prompt, found in everybodys.items()}

    def _usable(self, supply: Supply, indices: range) -> list[Prompt]:
        """The prompts of these rows without those that cannot be read or shown; the supply's position stays."""
        prompts: list[Prompt] = []
        for index in indices:
            with contextlib.suppress(BadRow):
                prompt = supply.prompts[index]
                self.policy.encode(prompt)
                prompts.append(prompt)
        return prompts

    def _value(self, rollout: Rollout) -> float | None:
        """The success of an answer, clipped to [0, 1]; None if its reward is not available."""
        value = rollout.parts.get(self.part)
        if self.part == "total":
            value = rollout.reward
        return None if value is None else min(max(value, 0.0), 1.0)


def chain(rollout: RolloutCall) -> list[RolloutFunction]:
    """A rollout function and those inside it, the outermost first."""
    found: list[RolloutFunction] = []
    here: RolloutCall | None = rollout
    while here is not None:
        # Wrapped, so that the checks meet the declared names on every part.
        part = here if isinstance(here, RolloutFunction) else PlainRollout(here)
        found.append(part)
        here = part.inner
    return found


def answering(rollout: RolloutCall, engine: Engine) -> Engine:
    """The engine that held-out prompts are answered by in a run with this rollout function."""
    for part in chain(rollout):
        engine = part.answering(engine)
    return engine


def first_places(kept: Sequence[int], supply: Supply) -> set[int]:
    """Which of the places that this rank kept are among the first `per_step` that all ranks kept. Collective."""
    everybodys = sorted(place for each in supply.ranks.gathered(list(kept)) for place in each)
    # So the groups of a step are the same for any number of ranks, though some may then have more of them.
    return set(everybodys[: supply.per_step]) & set(kept)


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
