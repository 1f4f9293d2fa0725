"""SELF (arXiv 2510.02230): train only on prompts that the policy does not answer right by itself.

Learning what is likely already takes probability from what is not, so that fewer prompts are in reach (pass@k falls).
Each step every prompt is answered once, greedily, with the present weights. Prompts whose greedy answer is right are
left out; the others are answered `group_size` times and trained on as ever:

    kept = {q : greedy answer to q is not right}          A = the estimator's, over the groups of kept prompts

The batch is as large as what is kept: losses are means over its own tokens or answers. Where nothing is left the step
makes no update: its greedy answers are logged, none of their tokens is trained.

Departures from the official code (github.com/mail-research/SELF-llm-interference, commit d17634bc)
1. There rows are repeated until the batch divides among the devices, which gives those prompts twice the weight; here
   no row is repeated.
2. Right is what the rewards declare, never the total; a prompt whose greedy answer could not be judged is kept.
3. The paper's name speaks of a forward KL as well; the released scripts train without any, and so do we.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, renumbered
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["SELF", "SELFRollout"]


@dataclass(frozen=True)
class SELF:
    """Curation by greedy reach."""

    probe: bool = True
    """Answer each prompt greedily first, and leave out those that are right; off: plain GRPO."""


@dataclass(frozen=True)
class SELFRollout(StagedRollout):
    """Two stages: one greedy answer to each prompt, then groups for those that it did not solve."""

    boundary: SELF = SELF()

    needs: ClassVar[Collection[Ability]] = ()
    needs_correct: ClassVar[bool] = True

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        if not self.boundary.probe:
            return self.inner(engine, pay, supply, sampling, now)
        probing = _Probing(self.inner)
        found = probing(engine, pay, supply, sampling, now)
        # Asked by all ranks: one may have nothing left while others go on.
        if supply.ranks.total([len(found)])[0]:
            return found
        supply.counters["self_boundary/skipped_steps"] += supply.ranks.first
        return renumbered([[muted(one, sampling)] for one in probing.solved])


@dataclass(frozen=True)
class _Probing(StagedRollout):
    """One step's stages, and the greedy answers that solved their prompts."""

    solved: list[Rollout] = field(default_factory=list)

    needs: ClassVar[Collection[Ability]] = ()

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The group of each prompt, an empty one where the greedy answer is right."""
        probes = replace(stages, sampling=greedily(stages.sampling))(prompts)
        right = [[one for one in group if one.correct] for group in probes]
        left = [n for n, solved in enumerate(right) if not solved]
        self.solved.extend(one for group in right for one in group)
        stages.counters["self_boundary/solved"] += len(prompts) - len(left)
        found: list[list[Rollout]] = [[] for _ in prompts]
        sampled = stages([prompts[n] for n in left]) if left else []
        for number, group in zip(left, sampled, strict=True):
            found[number] = group
        return found


def greedily(sampling: Sampling) -> Sampling:
    """One answer, of the most likely tokens."""
    return replace(sampling, group_size=1, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0)


def muted(rollout: Rollout, sampling: Sampling) -> Rollout:
    """The same answer, of which no token is trained."""
    roles = torch.full_like(rollout.roles, int(Role.OBSERVATION))
    # At the run's temperature: logits divided by 0 have no log-probs, trained or not.
    return replace(rollout, roles=roles, temperature=sampling.temperature)
