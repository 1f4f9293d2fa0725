"""SSB, semantic soft bootstrapping (arXiv 2512.05105): the policy teaches itself what it knows with hints.

No reward and no advantage: the same model, shown a right answer and the most common wrong one, writes a solution. If it
is right, the distribution of each of its tokens, as the model with the hints has it, is what the model learns that sees
the question alone:

    L = weight · T² · mean over tokens of KL( softmax(z_teacher / T) ‖ softmax(z_student / T) )

with gradient towards the student. The rollout function (`mmrl.rollouts.ssb`) reads this record and brings the
solutions, role EXPERT, with the `top` most likely tokens of the teacher and their log-probs at temperature T; scores of
such answers are at T as well (`Rollout.temperature`). T² keeps gradients alike for all large T.

Properties: 0 where teacher and student are equal, never negative, and nothing outside the solutions matters. A step
whose answers bring no teacher has loss 0.

Departures
1. Of the teacher's distribution the `top` most likely tokens are known, and the rest as one (`topk_divergence`): a
   lower bound of the official KL, equal to it for top = vocabulary. All logits of 256 solutions of 8,192 tokens would
   be a terabyte.
2. The official student reads system and user text joined by a blank, and its teacher's logits lack the system text;
   here both read the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.distillation import topk_divergence
from mmrl.losses.reduce import Reduction, keep
from mmrl.objectives.base import (
    SELF_TAUGHT,
    AnswerKind,
    LiveScores,
    Objective,
    ScoreRequest,
    TokenMaps,
)
from mmrl.types import HOTTEST, LARGEST_GROUP, Batch, Now, Role, Rollout


@dataclass(frozen=True)
class SSB(Objective):
    """Distillation from the hinted self."""

    weight: float = 1.0
    """Factor on the loss."""
    temperature: float = 2.0
    """What the logits of teacher and student are divided by (T)."""
    top: int = 64
    """Most likely tokens of the teacher that are known in each place."""
    rewrite: float = 0.4
    """Temperature at which the solution is written."""
    solutions: int = 1
    """Solutions written to a question with hints, of which the first right one is learned."""
    reuse: bool = True
    """Learn the same solution when its question comes again; off: sample and write anew."""

    reductions: ClassVar[Mapping[str, Reduction]] = {"distillation": "token"}
    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY, Role.EXPERT)
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = None

    def __post_init__(self) -> None:
        require(
            self,
            weight=(self.weight > 0, "positive; for another loss leave SSB out"),
            temperature=(0 < self.temperature <= HOTTEST, f"in (0, {HOTTEST:g}]"),
            top=(self.top >= 1, "at least 1"),
            solutions=(1 <= self.solutions <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
            rewrite=(0 <= self.rewrite <= HOTTEST, f"0 (greedy) to {HOTTEST:g}"),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The whole loss."""
        return ("surrogate",)

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Solutions with a teacher's tokens."""
        return (SELF_TAUGHT,)

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """The log-probs of the teacher's tokens."""
        return (ScoreRequest("raw", picked=taught_ids),)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """T² times the divergence of each token of a solution."""
        return {"distillation": self.weight * self.temperature**2 * divergence(live, batch)}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The divergence in nats, and how much of the teacher's probability its known tokens have."""
        found = divergence(live, batch)
        known = taught_logp(batch.rollouts, found).exp().sum(-1)
        return {"divergence": found, "known": keep(known, batch.mask)}


def taught_ids(rollout: Rollout) -> Tensor:
    """Long [T, k]: the teacher's most likely tokens in each place; k is 0 without a teacher."""
    if rollout.top_ids is None:
        return torch.zeros(len(rollout.tokens), 0, dtype=torch.long)
    return rollout.top_ids


def taught_logp(rollouts: Sequence[Rollout], like: Tensor) -> Tensor:
    """The teacher's log-probs [B, T, k], -inf where there are none; `like` is [B, T]."""
    widest = max((r.top_logp.shape[1] for r in rollouts if r.top_logp is not None), default=0)
    found = like.new_full((*like.shape, widest), -torch.inf)
    for row, rollout in enumerate(rollouts):
        if rollout.top_logp is not None:
            length, count = rollout.top_logp.shape
            found[row, :length, :count] = rollout.top_logp.to(found)
    return found


def divergence(live: LiveScores, batch: Batch) -> Tensor:
    """KL of the teacher from the policy in each place of a solution [B, T], 0 elsewhere, with gradient."""
    raw = live["raw"]
    taught = taught_logp(batch.rollouts, raw.logp.detach())
    student = raw.picked
    if student is None or not taught.shape[-1]:
        return 0.0 * raw.logp
    on = batch.mask & (batch.roles == Role.EXPERT)
    return keep(topk_divergence(taught, student.to(taught)), on)
