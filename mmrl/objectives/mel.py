"""MEL, meta-experience learning (arXiv 2602.10224): the lessons of the policy's own mistakes as texts to learn.

Of a group with right and wrong answers the policy itself compares a pair and writes the experience M: where the wrong
answer leaves the right way, why, and a rule for other questions. M is kept if the policy, shown M, then answers the
question right (M*). What is kept is learned by likelihood, in the context in which it was written:

    J = J_GRPO + weight · J_MEL,     J_MEL = mean over M* of (1 / |M*|) Σ_t log π(M*_t | I, x, y+, y-, M*_<t)

`weight` is 1 in the paper. Pairs, writing and replay are done by the rollout function (`mmrl.rollouts.mel`), which
reads this record; experience comes as answers of role EXPERT in groups of their own, and has no advantage. A step that
validates none is GRPO, bit for bit.

Departures
1. J_GRPO and J_MEL share one factor, (own answers) / (all answers): both are means over the answers of an update. That
   their ratio is as printed holds for `GRPO.reduction="sequence"`, which the paper has, and one update per step.
2. Bonus for entropy and penalty for KL, of which the paper has none, would reach experience as well.
3. The paper builds pairs "stochastically"; here `pairs` different ones are drawn of each mixed group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.reduce import Reduction, keep
from mmrl.objectives.base import EXPERIENCE, AnswerKind, LiveScores, Objective, TokenMaps
from mmrl.types import Batch, Now, Role, Shaped


@dataclass(frozen=True)
class MEL(Objective):
    """Experience of mistakes, learned by likelihood."""

    weight: float = 1.0
    """Factor on the likelihood of experience; 0 has none written."""
    pairs: int = 1
    """Pairs of a right and a wrong answer that are compared, of each group that has both."""

    reductions: ClassVar[Mapping[str, Reduction]] = {"experience": "sequence"}
    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY, Role.EXPERT)
    off: ClassVar[Mapping[str, Any] | None] = {"weight": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            weight=(self.weight >= 0, "0 (off) or positive"),
            pairs=(self.pairs >= 1, "at least 1"),
        )

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Experience next to the groups."""
        return (EXPERIENCE,) if self.weight > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """No advantage for experience, whose weight is that of all own answers together."""
        theirs = batch.mask & (batch.roles == Role.EXPERT)
        given = theirs.any(1)
        own = torch.where(theirs, 0.0, advantage)
        if self.weight == 0:
            return Shaped(own, kept={"lesson": torch.zeros_like(own)}, trained=~given)
        answers = (batch.mask.any(1) & ~given).sum()
        # Each experience counts as much as if own answers and experience were averaged apart.
        lesson = self.weight * answers / given.sum().clamp(min=1)
        return Shaped(own, kept={"lesson": lesson * theirs.to(own)})

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The negative log-likelihood of experience."""
        if self.weight == 0:
            return {}
        # Before anything is computed: what stands elsewhere may be no number.
        logp = keep(live["raw"].logp, batch.mask & (batch.roles == Role.EXPERT))
        return {"experience": -batch.kept["lesson"] * logp}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Share of tokens that are experience, and their log-prob (0 on own tokens)."""
        theirs = batch.mask & (batch.roles == Role.EXPERT)
        logp = live["raw"].logp
        return {
            name: keep(x, theirs)
            for name, x in {"tokens": torch.ones_like(logp), "logp": logp}.items()
        }
