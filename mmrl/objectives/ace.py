"""ACE, asymmetric confidence-aware error penalty (arXiv 2602.21420): wrong answers of a sure policy cost more.

With c the log-ratio of a whole answer to the reference, at sampling time,

    c = Σ_t (ℓ - ℓ_ref),  clamped to ±clamp
    Â = A·(1 + alpha·softplus(c))    of a wrong answer with A < 0
    Â = A                            of every other one

c carries no gradient. At θ = ref each wrong answer is scaled by 1 + alpha·ln 2; as c → -∞ the factor goes to 1.

Departures
1. Reconstructed: the form is that of all summaries of the paper; its alpha, and whether the softplus has an offset,
   were not to be seen. alpha = 1 is ours, and so is the clamp: a sum over thousands of tokens would saturate.
2. Wrong is what the rewards declare (`Rewards(correct=...)`), not A < 0, which also holds for answers that are right in
   part. A wrong answer with A > 0 (in a group of continuous rewards) is left as it is.
3. `per_token` replaces the sum by the mean over tokens times this number, so that c does not grow with the length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmrl.ground.require import require
from mmrl.losses.reduce import keep
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import Objective, ScoreRequest, judged
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class ACE(Objective):
    """A heavier penalty for wrong answers that the policy has become sure of."""

    alpha: float = 1.0
    """Weight of the softplus of the log-ratio; 0 leaves the advantage as it is."""
    clamp: float = 10.0
    """Largest absolute log-ratio of an answer."""
    per_token: float = 0.0
    """Take the mean over an answer's tokens times this number in place of the sum; 0 takes the sum."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any]] = {"alpha": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            alpha=(self.alpha >= 0, "0 (off) or positive"),
            clamp=(self.clamp > 0, "positive"),
            per_token=(self.per_token >= 0, "0 (the sum) or positive"),
        )

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Stored scores of policy and reference."""
        if self.alpha == 0:
            return ()
        return ScoreRequest("raw", stage="shape"), ScoreRequest("ref", stage="shape")

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Scale the advantage of wrong answers. Logs c, and the factor on their tokens."""
        if self.alpha == 0:
            return Shaped(advantage)
        sure = self.confidence(batch)  # [B, 1]
        factor = 1.0 + self.alpha * softplus(sure)
        penalised = ~judged(self, batch).unsqueeze(-1) & (advantage < 0)
        shaped = torch.where(penalised, advantage * factor, advantage)
        of_wrong = torch.where(penalised, factor.expand_as(advantage), 1.0)
        return Shaped(shaped, {"confidence": sure.expand_as(advantage), "factor": of_wrong})

    def confidence(self, batch: Batch) -> Tensor:
        """c of each answer, [B, 1]."""
        raw, ref = (keep(batch.scores[name].logp, batch.mask) for name in ("raw", "ref"))
        gain = (raw - ref).detach()
        if self.per_token:
            total = self.per_token * answer_mean(gain, batch.mask)
        else:
            total = gain.sum(-1, keepdim=True)
        return total.clamp(-self.clamp, self.clamp)
