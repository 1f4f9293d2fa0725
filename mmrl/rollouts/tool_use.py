"""Groups whose answers call tools (`tool_loop.py`), and an engine that answers with them.

    Trainer(rollout=ToolRollout(policy=policy, toolbox=Toolbox((Calculator(),), ToolUse(max_turns=4))))

ToolRollout     the groups of a step; answers whose tools failed are left out of them
ToolEngine      answers as these are sampled, through `Engine.generate`: for evaluation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from mmrl.ground.traits import Slot
from mmrl.model.policy import Policy
from mmrl.rollouts import forking
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.request import Ability, abilities_of
from mmrl.rollouts.tool_loop import Opening, Spoken, ToolLoop
from mmrl.rollouts.tree_groups import GrowingRollout, Growth, together
from mmrl.tools.toolbox import Toolbox
from mmrl.types import Now, Prompt, Rollout, Sampling


@dataclass(frozen=True)
class ToolRollout(GrowingRollout):
    """Groups whose answers call tools."""

    policy: Policy | None = None
    """Whose template and pictures observations are written for; needed."""
    toolbox: Toolbox | None = None
    """Needed."""

    needs: ClassVar[Collection[Ability]] = ("forks",)

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_without("ToolRollout", self.policy, self.toolbox)

    def owns(self) -> tuple[Slot, ...]:
        """Where answers go on."""
        return ("tree",)

    def answering(self, engine: Engine) -> Engine:
        """The engine, with these tools."""
        assert self.policy is not None and self.toolbox is not None, "asked for at the start"
        return ToolEngine(engine, self.policy, self.toolbox)

    def grow(self, growth: Growth, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The paid group of each prompt."""
        assert self.policy is not None and self.toolbox is not None, "asked for at the start"
        loop = ToolLoop(
            self.policy, self.toolbox, prompts, growth.sampling, growth.now, growth.counters
        )
        size = growth.sampling.group_size
        openings = [Opening(n) for n in range(len(prompts)) for _ in range(size)]
        answers = loop.run(growth.trees, openings)
        loop.refuse_many_lost()
        own: list[list[Spoken]] = [[] for _ in prompts]
        for answer in answers:
            own[answer.opening.prompt].append(answer)
        return loop.paid(growth, own)


@dataclass(frozen=True)
class ToolEngine:
    """An engine whose answers call tools. Answers whose tools failed are there as well, as far as they came."""

    stands_for: Engine
    policy: Policy
    toolbox: Toolbox

    @property
    def abilities(self) -> frozenset[Ability]:
        """It gives plain answers, and each prompt its own number of them."""
        return abilities_of(self.stands_for) & {"counts per prompt"}

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        now: Now,
        *,
        counts: Sequence[int] | None = None,
        first: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """As `Asking.generate`. Raises ToolsFailed."""
        wanted = [sampling.group_size] * len(prompts) if counts is None else list(counts)
        found: list[Rollout] = []
        at = 0
        for some in together(self.stands_for, prompts, sampling):
            places = slice(at, at + len(some))
            numbers = None if first is None else first[places]
            answers = self._answers(some, wanted[places], sampling, now, numbers)
            found += [replace(answer, group=answer.group + at) for answer in answers]
            at += len(some)
        return found

    def sync(self, policy: Policy) -> None:
        """As the engine that it stands for."""
        self.stands_for.sync(policy)

    def _answers(
        self,
        prompts: Sequence[Prompt],
        counts: Sequence[int],
        sampling: Sampling,
        now: Now,
        first: Sequence[int] | None,
    ) -> list[Rollout]:
        loop = ToolLoop(self.policy, self.toolbox, prompts, sampling, now, Counter())
        openings = [Opening(n) for n, count in enumerate(counts) for _ in range(count)]
        with forking.forest(self.stands_for, prompts, sampling, now, first=first) as trees:
            answers = loop.run(trees, openings)
            loop.refuse_many_lost()
            rollouts = trees.rollouts([answer.leaf for answer in answers])
        pairs = zip(answers, rollouts, strict=True)
        return [loop.completed(answer, rollout) for answer, rollout in pairs]


def refuse_without(who: str, policy: Policy | None, toolbox: Toolbox | None) -> None:
    """Raise ValueError unless both are there."""
    if policy is None or toolbox is None:
        raise ValueError(
            f"{who} needs the policy, whose template observations are written for, and tools; give "
            f"{who}(policy=policy, toolbox=Toolbox((tool, …)))."
        )
