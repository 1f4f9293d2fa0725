"""Rollout functions whose groups are trees: one forest per round of prompts, whose leaves are paid.

GrowingRollout    asks its `inner` function which prompts, grows their trees, and hands back paid groups
Growth            what the trees of a call have in common, and how their leaves become paid answers

As many trees grow together as the engine has room for, if it says so (`trees_together`); answers do not depend on it.

Counted for the log: `tree/leaves`, paid answers; `tree/tokens`, those of their tokens that were sampled and are scored
and trained, each once; `tree/answer_tokens`, the same for answers that share nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mmrl.rollouts import forking
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.forking import Forest
from mmrl.rollouts.groups import Pay
from mmrl.rollouts.request import Ability, innermost
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.types import Now, Prompt, Rollout, Sampling


@dataclass(frozen=True)
class Growth:
    """Trees of some prompts while they grow."""

    trees: Forest
    pay: Pay
    sampling: Sampling
    now: Now
    counters: Counter[str]
    """Counts of the step, for the log."""

    def paid(
        self,
        leaves: Sequence[Sequence[int]],
        completed: Callable[[int, Rollout], Rollout] | None = None,
    ) -> list[list[Rollout]]:
        """Paid answers that end with these pieces, one list per prompt; without those that could not be paid.

        `completed`: what is paid, of a piece's number and the answer that ends with it; None: these answers.
        """
        found: list[list[Rollout]] = [[] for _ in leaves]
        numbers = [piece for pieces in leaves for piece in pieces]
        answers = self.trees.rollouts(numbers)
        if completed is not None:
            answers = [completed(*pair) for pair in zip(numbers, answers, strict=True)]
        for rollout in self.pay(answers) if answers else ():
            found[rollout.group].append(rollout)
        self.count(found)
        return found

    def count(self, groups: Sequence[Sequence[Rollout]]) -> None:
        """Leaves and tokens of paid trees, for the log."""
        for group in groups:
            self.counters["tree/leaves"] += len(group)
            self.counters["tree/answer_tokens"] += sum(len(one.tokens) for one in group)
            self.counters["tree/tokens"] += tokens_once(group)


@dataclass(frozen=True)
class GrowingRollout(StagedRollout):
    """Groups that are trees."""

    needs: ClassVar[Collection[Ability]] = ("forks",)

    def grow(self, growth: Growth, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The paid tree of each prompt, empty ones where nothing could be paid."""
        raise NotImplementedError(f"{type(self).__name__} has no grow.")

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """As `grow`, in forests of these prompts."""
        found: list[list[Rollout]] = []
        for some in together(stages.engine, prompts, stages.sampling):
            with forking.forest(stages.engine, some, stages.sampling, stages.now) as trees:
                told = (stages.pay, stages.sampling, stages.now, stages.counters)
                growth = Growth(trees, *told)
                found += self.grow(growth, some)
        return found


def together(
    engine: Engine, prompts: Sequence[Prompt], sampling: Sampling
) -> Iterator[list[Prompt]]:
    """Prompts whose trees grow in one forest, in their order; all if the engine does not say how many."""
    server: Any = innermost(engine)
    asked = getattr(server, "trees_together", None)
    counts = [len(prompts)] if asked is None else asked(prompts, sampling)
    at = 0
    for count in counts:
        if count:
            yield list(prompts[at : at + count])
        at += count


def tokens_once(group: Sequence[Rollout]) -> int:
    """Tokens in the answers of a group, those that they share (`Rollout.path`) counted once."""
    alone = sum(len(one.tokens) for one in group if not one.path)
    return alone + sum(dict(node for one in group for node in one.path).values())
