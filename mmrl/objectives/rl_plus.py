"""RL-PLUS (arXiv 2508.00222): an expert's answer in each group, weighed without knowing how the expert came to it.

π is the policy's probability of a token now, π_old when the group was sampled, sg stops the gradient.

    own token       the surrogate of the core, on ρ = π / π_old
    expert's token  -Â·(1 - sg π)^gamma · ρ_e,    ρ_e = 2π / (π_old + ½(π_old + 1))       "mixture"
                                                  ρ_e = π                                  "certain"
    Â = R - μ, over σ if `scaled`; μ and σ of the group's own answers, for own and expert's answers

Who wrote the expert's answer is not known. "mixture" takes for it the middle between the old policy and certainty,
which keeps ρ_e at or below 4π (1 where the policy is sure already); "certain" takes certainty. (1 - π)^gamma turns to
right steps that the policy finds unlikely, and fades as it learns them.

π_old of an expert's token is the policy's own, scored like that of its own tokens: with one update it is π without
gradient. Experts are rollouts of role EXPERT (`WithTeachers`), paid by the run's rewards: a wrong one has no advantage.

Degenerate groups: a group without an expert keeps the estimator's advantage, with `group_centered` that of Dr. GRPO. Of
one own answer beside an expert's μ is 0 and σ is 1, of equal own answers σ is 1; an unknown reward gives 0.

Departures
1. The released code (YihongDong/RL-PLUS @ eb4aa4d4) adds up rows and tokens of a micro-batch and divides by the padded
   length; here the "constant" reduction divides by the number of answers as well, whatever the micro-batch. The factor
   is the answers of a micro-batch; AdamW sees it only where the norm is clipped and beside the entropy bonus.
2. Its `no_reshape` is "certain" with gamma 0.
3. `weight` is ours; at 0 experts leave the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.losses.teaching import with_lessons
from mmrl.objectives.base import (
    TEACHERS,
    AnswerKind,
    LiveScores,
    Objective,
    TokenMaps,
    old_logp,
)
from mmrl.types import Batch, Now, Role, Shaped

Proposal = Literal["mixture", "certain"]


@dataclass(frozen=True)
class RLPLUS(Objective):
    """Experts' answers by multiple importance sampling, with an advantage that explores."""

    weight: float = 1.0
    """Factor on the loss of experts' tokens; 0 leaves them out."""
    gamma: float = 0.5
    """How much more unlikely tokens count; 0: all alike."""
    proposal: Proposal = "mixture"
    """Who is taken to have written an expert's token: the middle of old policy and certainty, or certainty."""
    scaled: bool = False
    """Divide by the deviation of the group's own answers."""

    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY, Role.EXPERT)
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = {"weight": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            weight=(self.weight >= 0, "0 (off) or positive"),
            gamma=(0 <= self.gamma <= 10, "in [0, 10]"),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage of groups that have an expert."""
        return ("estimator",) if self.weight > 0 else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Experts in the groups."""
        return (TEACHERS,) if self.weight > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Everybody against the own answers of the group; experts' tokens are left to the term."""
        theirs = batch.roles == Role.EXPERT
        paid = batch.reward, batch.group, batch.mask
        own, lesson = with_lessons(advantage, *paid, theirs, scaled=self.scaled)
        trained = ~theirs.any(1) if self.weight == 0 else None
        return Shaped(own, kept={"lesson": self.weight * lesson}, trained=trained)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The loss of experts' tokens."""
        if self.weight == 0:
            return {}
        theirs = batch.mask & (batch.roles == Role.EXPERT)
        logp, ratio = self._seen(live, batch, theirs)
        return {"teachers": -batch.kept["lesson"] * exploring(logp, self.gamma) * ratio}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Share of tokens that are experts', their probability and their ratio (0 on own tokens)."""
        theirs = batch.mask & (batch.roles == Role.EXPERT)
        logp, ratio = self._seen(live, batch, theirs)
        maps = {"teachers": torch.ones_like(logp), "probability": logp.exp(), "ratio": ratio}
        return {name: keep(x, theirs) for name, x in maps.items()}

    def _seen(self, live: LiveScores, batch: Batch, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Log-prob and ratio of experts' tokens, with gradient; those of probability 1 elsewhere; [B, T] each."""
        # Before anything is computed: what stands elsewhere may be no number.
        logp, old = keep(live["raw"].logp, theirs), keep(old_logp(live, batch), theirs)
        return logp, expert_ratio(logp, old, self.proposal)


def expert_ratio(logp: Tensor, old: Tensor, proposal: Proposal) -> Tensor:
    """ρ_e of each token; logp (with gradient) and old, any shape -> the same shape, in [0, 4]."""
    probability = logp.exp()
    if proposal == "certain":
        return probability
    before = old.exp()
    return 2.0 * probability / (before + 0.5 * (before + 1.0))


def exploring(logp: Tensor, gamma: float) -> Tensor:
    """(1 - sg π)^gamma of each token, in [0, 1]; any shape."""
    return (1.0 - logp.detach().exp()).clamp(min=0.0) ** gamma
