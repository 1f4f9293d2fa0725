"""What is scored when: decided once per run, from what the objectives read.

A view that nobody reads before the update and that has gradient (or wants the newest weights) is scored inside it,
everything else once beforehand without gradient, and nothing that nobody reads at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmrl.grpo import GRPO
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.base import Objective
from mmrl.types import Divergence, VisualBranch


@dataclass(frozen=True)
class ScorePlan:
    """Which views are scored when."""

    stored: Mapping[str, ScoreOutputs]
    """Once per rollout, without gradient."""
    live: Mapping[str, ScoreOutputs]
    """In every update."""


def plan_scores(
    grpo: GRPO,
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    updates: int,
) -> ScorePlan:
    """Decide the freshness of every view from what the objectives read. Raises ValueError for an unknown branch."""
    stored: dict[str, ScoreOutputs] = {}
    live: dict[str, ScoreOutputs] = {"raw": ScoreOutputs(entropy=grpo.entropy > 0, grad=True)}
    before: set[str] = set()  # views that somebody reads before the update
    in_reward = grpo.kl > 0 and grpo.kl_in == "reward"
    if grpo.kl > 0:
        exact = grpo.kl_kind == "exact"
        asked = ScoreOutputs(divergence="forward" if exact else None)
        # An exact divergence has a gradient towards the raw view, so it is computed where that one is.
        (live if exact and not in_reward else stored)["ref"] = asked
    if in_reward:
        before.add("ref")
    # Raw scores of the rollout's own weights: after the first update nobody could compute them any more.
    early = updates > 1 or grpo.mismatch != "off" or in_reward
    for objective in objectives:
        for request in objective.score_requests():
            name = request.branch
            _refuse_unknown(objective, name, branches)
            branch = branches.get(name)
            grad = name == "raw" or (branch is not None and branch.grad)
            asked = ScoreOutputs(request.entropy, request.divergence, grad)
            if request.stage == "shape":
                asked = replace(asked, grad=False)
                stored[name] = merged_outputs(name, stored.get(name), asked)
                before.add(name)
                early = early or name == "raw" or request.divergence is not None
            elif grad or request.divergence or (branch is not None and branch.refresh):
                live[name] = merged_outputs(name, live.get(name), asked)
            else:
                stored[name] = merged_outputs(name, stored.get(name), asked)
    # What the update scores anyway need not be stored, unless somebody reads it earlier.
    for name in [*stored]:
        if name in live and name not in before:
            del stored[name]
    if early or any(asked.divergence for asked in stored.values()):
        stored["raw"] = merged_outputs("raw", stored.get("raw"), ScoreOutputs())
    return ScorePlan(stored, live)


def _refuse_unknown(
    objective: Objective, name: str, branches: Mapping[str, VisualBranch]
) -> None:
    if name not in ("raw", "ref") and name not in branches:
        raise ValueError(
            f"{type(objective).__name__} reads the visual branch {name!r}, but the branches are "
            f"{sorted(branches)}; add branches={{{name!r}: VisualBranch(...)}}."
        )


def merged_outputs(name: str, first: ScoreOutputs | None, second: ScoreOutputs) -> ScoreOutputs:
    """Both requests in one; two different divergences of one branch are refused."""
    if first is None:
        return second
    kinds: set[Divergence] = {k for k in (first.divergence, second.divergence) if k}
    if len(kinds) > 1:
        raise ValueError(
            f"Branch {name!r} is asked for two exact divergences, {sorted(kinds)}; let the objectives read two "
            "branches with different names, or the same divergence."
        )
    return ScoreOutputs(
        entropy=first.entropy or second.entropy,
        divergence=next(iter(kinds), None),
        grad=first.grad or second.grad,
    )
