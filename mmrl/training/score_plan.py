"""What is scored when: decided once per run, from what the objectives read.

A view that nobody reads before the update and that has gradient (or wants the newest weights) is scored inside it,
everything else once beforehand without gradient, and nothing that nobody reads at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmrl.grpo import GRPO
from mmrl.model.branches import PickOf, SuffixOf
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.base import Objective, ScoreRequest
from mmrl.types import Divergence, Rollout, VisualBranch


@dataclass(frozen=True)
class ScorePlan:
    """Which views are scored when."""

    stored: Mapping[str, ScoreOutputs]
    """Once per rollout, without gradient."""
    live: Mapping[str, ScoreOutputs]
    """In every update."""
    suffixes: Mapping[str, SuffixOf] = field(default_factory=dict)
    """View -> what is scored behind its answers."""
    picks: Mapping[str, PickOf] = field(default_factory=dict)
    """View -> whose log-probs are wanted in each place of an answer."""

    def behind(self, rollouts: Sequence[Rollout]) -> list[int]:
        """Tokens of the longest suffix that some view scores behind each answer."""
        of_each = self.suffixes.values()
        return [max((len(suffix(r)) for suffix in of_each), default=0) for r in rollouts]


def plan_scores(
    grpo: GRPO,
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    updates: int,
) -> ScorePlan:
    """Decide the freshness of every view from what the objectives read. Raises ValueError for an unknown branch."""
    stored: dict[str, ScoreOutputs] = {}
    live: dict[str, ScoreOutputs] = {"raw": ScoreOutputs(entropy=grpo.entropy > 0, grad=True)}
    suffixes: dict[str, SuffixOf] = {}
    picks: dict[str, PickOf] = {}
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
            asked = outputs_of(request, grad)
            if request.suffix is not None:
                first = suffixes.setdefault(name, request.suffix)
                _refuse_two(objective, name, first, request.suffix, "suffix behind the answers")
            if request.picked is not None:
                first = picks.setdefault(name, request.picked)
                _refuse_two(objective, name, first, request.picked, "choice of tokens")
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
        # What the ratio's partner was before the update, its mean over the vocabulary was then too.
        kept = ScoreOutputs(vocabulary_mean=live["raw"].vocabulary_mean)
        stored["raw"] = merged_outputs("raw", stored.get("raw"), kept)
    return ScorePlan(stored, live, suffixes, picks)


def outputs_of(request: ScoreRequest, grad: bool) -> ScoreOutputs:
    """What an objective's request asks of a view."""
    return ScoreOutputs(
        entropy=request.entropy,
        divergence=request.divergence,
        grad=grad,
        vocabulary_mean=request.vocabulary_mean,
        top=request.top,
        slot=request.slot,
        suffix=request.suffix is not None,
        words=request.words,
        states=request.states,
        picked=request.picked is not None,
    )


def _refuse_two(
    objective: Objective, name: str, first: object, second: object, what: str
) -> None:
    if second != first:
        raise ValueError(
            f"{type(objective).__name__} asks for another {what} of the view {name!r} than an "
            "objective before it; only one can be scored: give both the same function, or leave one of them out."
        )


def _refuse_unknown(
    objective: Objective, name: str, branches: Mapping[str, VisualBranch]
) -> None:
    if name not in ("raw", "ref") and name not in branches:
        raise ValueError(
            f"{type(objective).__name__} reads the visual branch {name!r}, but the branches are "
            f"{sorted(branches)}; add branches={{{name!r}: VisualBranch(...)}}."
        )


def merged_outputs(name: str, first: ScoreOutputs | None, second: ScoreOutputs) -> ScoreOutputs:
    """Both requests in one; two different divergences or slots of one branch are refused."""
    if first is None:
        return second
    kinds: set[Divergence] = {k for k in (first.divergence, second.divergence) if k}
    if len(kinds) > 1:
        raise ValueError(
            f"Branch {name!r} is asked for two exact divergences, {sorted(kinds)}; let the objectives read two "
            "branches with different names, or the same divergence."
        )
    slots = {ids for ids in (first.slot, second.slot) if ids}
    if len(slots) > 1:
        raise ValueError(
            f"Branch {name!r} is asked for the tokens {first.slot} and {second.slot} behind each answer; let the "
            "objectives ask for the same."
        )
    return ScoreOutputs(
        entropy=first.entropy or second.entropy,
        divergence=next(iter(kinds), None),
        grad=first.grad or second.grad,
        vocabulary_mean=first.vocabulary_mean or second.vocabulary_mean,
        top=max(first.top, second.top),
        slot=next(iter(slots), ()),
        suffix=first.suffix or second.suffix,
        words=first.words or second.words,
        states=first.states or second.states,
        picked=first.picked or second.picked,
    )
