"""A run's supply of prompts: what prepares them ahead of their step, and what forgets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmrl.model.policy import Policy
from mmrl.model.preparing import read_ahead
from mmrl.model.ranks import Ranks
from mmrl.objectives.base import Objective
from mmrl.rollouts.groups import RolloutCall, chain
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.compatibility import remembering
from mmrl.training.run import Run
from mmrl.types import Prompts, VisualBranch


def supply_of(
    policy: Policy,
    prompts: Prompts,
    run: Run,
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    rollout: RolloutCall,
    ranks: Ranks,
) -> Supply:
    """A run's prompts in their order, prepared and forgotten by the policy."""
    # Where groups are dropped, nobody knows beforehand which step a row will be in.
    dropped = any(part.drops_even_groups for part in chain(rollout))
    shown = {} if dropped else branches
    return Supply(
        prompts,
        run.prompts_per_step,
        run.seed,
        check=policy.encode,
        on_bad=run.on_bad,
        ahead=read_ahead(prompts, policy, objectives, shown),
        forget=policy.vision.forget,
        ranks=ranks,
        named_for=remembering(objectives, rollout),
    )
