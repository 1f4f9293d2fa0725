"""Each domain of a mixture is paid by rewards of its own: parts, weights and limits as if it were alone.

An answer belongs to the domain of its prompt (`mmrl.ground.domains`). Groups never span domains, so that answers of one
prompt are compared by the same sum; sums of two domains need not have the same scale, since the statistics of a group
take it away (those of a batch would not). Parts are called `DOMAIN/PART` where all are listed, and by their own name in
`Rollout.parts`. A domain without a part `accuracy` gets a part `score`, a copy of its main one, for evaluations.
No torch is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from mmrl.ground.domains import SCORE, domain_of
from mmrl.rewards.pay import Rewards, Unpaid

if TYPE_CHECKING:
    from mmrl.types import Rollout

ADDED = ("time/", "reward_failures/")
"""Beginnings of the names of metrics that add up over domains."""


class DomainRewards(Rewards):
    """Rewards by domain. Nothing is inherited but the type: every question goes to those of the domains."""

    def __init__(self, domains: Mapping[str, Rewards], main: Mapping[str, str]) -> None:
        """`main`: domain -> the part that measures it, for domains without a part `accuracy`."""
        if not domains:
            raise ValueError("Rewards by domain need at least one domain.")
        self.domains = dict(domains)
        self.main = dict(main)
        for name, part in self.main.items():
            if part not in self.domains[name].weights:
                parts = sorted(self.domains[name].weights)
                raise ValueError(
                    f"The domain {name!r} is measured by {part!r}, but is paid {parts}; name one."
                )
        declared = [rewards.correct for rewards in self.domains.values()]
        self.correct = None if None in declared else declared[0]
        self.gate = None

    @property
    def needs_tags(self) -> tuple[str, ...]:
        """Tags without which some part of some domain pays nothing."""
        found = chain(*(rewards.needs_tags for rewards in self.domains.values()))
        return tuple(dict.fromkeys(found))

    @property
    def weights(self) -> dict[str, float]:
        """DOMAIN/PART -> weight."""
        return self._each(lambda rewards: rewards.weights)

    @property
    def functions(self) -> dict[str, Callable[..., Any]]:
        """DOMAIN/PART -> its function."""
        return self._each(lambda rewards: rewards.functions)

    def traits(self) -> tuple[str, ...]:
        """Sums of two domains compare only if they are made alike."""
        sums = [rewards.weights for rewards in self.domains.values()]
        return () if all(one == sums[0] for one in sums) else ("pays domains apart",)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """As `Rewards`, each answer paid by its domain's. Raises ValueError for an answer that is of none."""
        paid: dict[int, list[Rollout]] = {}
        problem: Unpaid | None = None
        for name, answers in self._by_domain(rollouts).items():
            try:
                found = self.domains[name](answers)
            except Unpaid as nothing:  # the others may be paid
                problem = nothing
                continue
            for rollout in found:
                paid.setdefault(rollout.group, []).append(self._measured(name, rollout))
        if problem is not None and not paid:
            raise problem
        # In the order in which groups were given, whatever their domains.
        order = dict.fromkeys(rollout.group for rollout in rollouts)
        return [rollout for group in order for rollout in paid.get(group, ())]

    def begin(self, rollouts: Sequence[Rollout]) -> None:
        """As `Rewards.begin`, each answer by its domain's."""
        for name, answers in self._by_domain(rollouts).items():
            self.domains[name].begin(answers)

    def forget(self) -> None:
        """As `Rewards.forget`."""
        for rewards in self.domains.values():
            rewards.forget()

    def metrics(self) -> dict[str, float]:
        """Counts and seconds of all domains, added up; what else a part counts, by its own name."""
        total: dict[str, float] = {}
        for rewards in self.domains.values():
            for name, value in rewards.metrics().items():
                before = total.get(name, 0.0) if name.startswith(ADDED) else 0.0
                total[name] = before + value
        return total

    def start(self) -> None:
        """Start the workers of all domains."""
        for rewards in self.domains.values():
            rewards.start()

    def close(self) -> None:
        """End the workers of all domains."""
        for rewards in self.domains.values():
            rewards.close()

    def _by_domain(self, rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
        found: dict[str, list[Rollout]] = {}
        for rollout in rollouts:
            name = domain_of(rollout.prompt.extra)
            if name not in self.domains:
                raise ValueError(
                    f"The prompt {rollout.prompt.id!r} is of the domain {name!r}, and there are rewards for "
                    f"{sorted(self.domains)}."
                )
            found.setdefault(name, []).append(rollout)
        return found

    def _measured(self, name: str, rollout: Rollout) -> Rollout:
        """The answer with its domain's measure as a part of its own, if no part is called accuracy."""
        part = self.main.get(name)
        if part is None:
            return rollout
        return dataclasses.replace(
            rollout, parts={**rollout.parts, SCORE: rollout.parts.get(part)}
        )

    def _each(self, told: Callable[[Rewards], Mapping[str, Any]]) -> dict[str, Any]:
        return {
            f"{domain}/{part}": value
            for domain, rewards in self.domains.items()
            for part, value in told(rewards).items()
        }
