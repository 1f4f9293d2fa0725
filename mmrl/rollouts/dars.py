"""DARS, difficulty-adaptive rollout sampling: hard prompts get more answers in a second stage (DARS).

With a the share of right ones among the first N answers, a = 0 replaced by 0.5 / N, and the weight and its peak

    S = 2 a (1 - a),       peak N / 2       where advantages are centred only
    S = 2 √(a (1 - a)),    peak N           where they are divided by the deviation as well

a prompt with a < 0.5 gets further answers, as many as bring its cumulative advantage up to that of a medium one:

    ET (equal treatment)      ⌈(peak - N S) / S⌉
    HW (hardness weighted)    ⌈(2 (1 - a) peak - N S) / S⌉

at most N_max - N. Both stages are one group, whose statistics are taken over all its answers; groups that are all right
or all wrong are left out.

Departures from the official code (github.com/yangzhch6/DARS, commit 9b21b714)
1. The second stage is sampled exactly as the first; the official one passes settings of a validation to its engine.
2. Numbers of answers go on, so that a draw of the first stage never comes back in the second.
3. A step in which no group is left keeps them all: its advantages are 0, and nothing moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, by_group, renumbered
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.types import LARGEST_GROUP, Now, Prompt, Rollout, Sampling

__all__ = ["DARS", "DARSRollout", "further_answers"]

Schedule = Literal["ET", "HW"]


def further_answers(
    accuracy: float, answers: int, most: int, *, schedule: Schedule, z_scored: bool
) -> int:
    """How many answers the second stage adds (ΔN), 0 to most - answers.

    `accuracy`: share of right ones among the first `answers` (a, N), in [0, 1]; `most`: N_max. Not increasing in a.
    """
    if accuracy >= 0.5:
        return 0
    share = accuracy or 0.5 / answers
    spread = share * (1 - share)
    weight, peak = (2 * math.sqrt(spread), answers) if z_scored else (2 * spread, answers / 2)
    wanted = peak if schedule == "ET" else 2 * (1 - share) * peak
    return max(0, min(math.ceil((wanted - answers * weight) / weight), most - answers))


@dataclass(frozen=True)
class DARS:
    """The numbers of the second stage."""

    schedule: Schedule = "ET"
    """ET brings hard prompts up to medium ones, HW beyond them."""
    most: int = 32
    """Most answers of a prompt in both stages (N_max)."""
    z_scored: bool = False
    """Does the estimator divide by the deviation of a group? Then a prompt's weight is another."""
    drop_even: bool = True
    """Leave out groups that are all right or all wrong."""

    def __post_init__(self) -> None:
        require(
            self,
            schedule=(self.schedule in ("ET", "HW"), "'ET' or 'HW'"),
            most=(1 <= self.most <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
        )


@dataclass(frozen=True)
class DARSRollout(StagedRollout):
    """Two stages: N answers to each prompt, then further ones to the hard prompts."""

    dars: DARS = DARS()

    needs_correct: ClassVar[bool] = True

    def owns(self) -> tuple[Slot, ...]:
        """How many answers a prompt gets."""
        return ("counts",)

    def traits(self) -> tuple[str, ...]:
        """Hard prompts get more, by shares of independent answers; groups without signal are left out."""
        always = ("samples hard prompts again", "assumes independent rows")
        dropped = ("drops all-wrong groups", "drops all-right groups")
        return (*always, *(dropped if self.dars.drop_even else ()))

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Both stages of each prompt."""
        if self.dars.most < stages.sampling.group_size:
            raise ValueError(
                f"DARS.most is {self.dars.most}, but the first stage alone has {stages.sampling.group_size} answers to "
                "a prompt (sampling.group_size); raise --dars.most, or lower --sampling.group-size."
            )
        first = stages(prompts)
        further = [self._further(group, stages.sampling.group_size) for group in first]
        stages.counters["dars/further_answers"] += sum(further)
        stages.counters["dars/hard_prompts"] += sum(count > 0 for count in further)
        second = stages(prompts, further) if any(further) else [[] for _ in prompts]
        return [[*one, *other] for one, other in zip(first, second, strict=True)]

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = super().__call__(engine, pay, supply, sampling, now)
        if not self.dars.drop_even:
            return found
        groups = by_group(found)
        kept = [group for group in groups if len({one.correct for one in group}) > 1]
        supply.counters["dars/dropped_groups"] += len(groups) - len(kept)
        # Asked by all ranks: one may have kept none while others go on.
        return renumbered(kept) if supply.ranks.total([len(kept)])[0] else found

    def _further(self, group: Sequence[Rollout], answers: int) -> int:
        known = [one.correct for one in group if one.correct is not None]
        if not known:  # nothing is known of answers whose reward was not available
            return 0
        return further_answers(
            sum(known) / len(known),
            answers,
            self.dars.most,
            schedule=self.dars.schedule,
            z_scored=self.dars.z_scored,
        )
