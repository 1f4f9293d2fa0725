"""VPPO, visually-perceptive policy optimization (arXiv 2510.09285): learn from the tokens that depend on the image.

On top of DAPO. S_t = KL(π(·|I)‖π(·|I')) measures how much token t depends on the image, I' a masked image:

    token filter       A_t = 0 unless S_t is among the top ⌈top_share·|o|⌉ of its answer
    answer shaping     A ← A·w,  w = beta_min + (beta_max - beta_min)·(S̄ - min S̄) / (max S̄ - min S̄)
    entropy penalty    +eta·(-ℓ) in the loss (baseline and method alike)

S̄ is the mean of S over an answer. With top_share 1, beta_min = beta_max = 1 and eta 0 this is DAPO. All-equal S̄ give
w = 1. Nothing of the shaping carries gradient.

Departures
1. `beta_max=None` is the code's dynamic maximum: the mean of w is 1, here over the answers of the batch, in the code
   over those of a device micro-batch.
2. Minimum and maximum of S̄ are taken over the whole batch; the code takes them per device mini-batch.
3. S is sampled k3 as in the code, or exact over the vocabulary as printed (`kl="exact"`).
4. Filtered tokens still count in the length normaliser.
5. The mask (random 14-px patches of the resized picture, p = 0.5, one draw per answer) belongs to the `VisualBranch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses import kl
from mmrl.losses.reduce import Reduction, keep
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class VPPO(Objective):
    """Token filter and answer weights by visual dependency."""

    top_share: float = 0.4
    """Share of an answer's tokens that are trained, those of largest dependency; 1 trains all."""
    beta_min: float = 0.9
    """Weight of the answer with the least dependency; 1 with beta_max 1 turns the shaping off."""
    beta_max: float | None = None
    """Weight of the answer with the most dependency; None: such that the mean weight is 1."""
    eta: float = 0.06
    """Weight of the sampled entropy in the loss; minimised."""
    kl: Literal["k1", "abs", "k2", "k3", "exact"] = "k3"
    """Estimator of the dependency from sampled tokens, or "exact" over the vocabulary."""
    masked: str = "masked"
    """Name of the masked visual branch."""

    reductions: ClassVar[Mapping[str, Reduction]] = {"entropy": "token"}
    remedies: ClassVar[Mapping[str, str]] = {
        "entropy": "raise VPPO.eta (0.06 in the paper, for baseline and method)"
    }
    off: ClassVar[Mapping[str, Any]] = {"top_share": 1.0, "beta_min": 1.0, "eta": 0.0}

    def __post_init__(self) -> None:
        top = self.beta_max
        require(
            self,
            top_share=(0 < self.top_share <= 1, "in (0, 1]"),
            beta_min=(0 <= self.beta_min <= 1, "in [0, 1]"),
            beta_max=(top is None or top >= self.beta_min, "at least beta_min, or None"),
            eta=(self.eta >= 0, "0 (off) or positive"),
        )

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Stored scores of both views unless filter and shaping are off."""
        if not (self.filters or self.weighs):
            return ()
        divergence = "forward" if self.kl == "exact" else None
        raw = ScoreRequest("raw", stage="shape")
        return raw, ScoreRequest(self.masked, stage="shape", divergence=divergence)

    @property
    def filters(self) -> bool:
        """Does the token filter do anything?"""
        return self.top_share < 1

    @property
    def weighs(self) -> bool:
        """Does the answer shaping do anything?"""
        return self.beta_min != 1 or self.beta_max not in (None, 1)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The advantage times answer weights, 0 on tokens that do not look."""
        if not self.score_requests():
            return Shaped(advantage)
        dependency = self.dependency(batch)
        if self.weighs:
            advantage = advantage * self.answer_weight(dependency, batch.mask)
        if self.filters:
            chosen = most_dependent(dependency, batch.mask, self.top_share)
            advantage = torch.where(chosen, advantage, 0.0)
        return Shaped(advantage)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The entropy penalty."""
        if self.eta == 0:
            return {}
        return {"entropy": -self.eta * live["raw"].logp}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Dependency and the share of tokens that are trained."""
        if not self.score_requests():
            return {}
        trained = (batch.advantage != 0).float()
        return {"dependency": self.dependency(batch), "trained": trained}

    def dependency(self, batch: Batch) -> Tensor:
        """S of every token, 0 on padding; [B, T]."""
        missing = {"raw", self.masked} - batch.scores.keys()
        if missing:
            raise ValueError(
                f"VPPO reads the stored scores of {sorted(missing)}, but there are {sorted(batch.scores)}; "
                f"add branches={{{self.masked!r}: VisualBranch(...)}} and score before the advantages."
            )
        raw, masked = batch.scores["raw"], batch.scores[self.masked]
        logp = keep(raw.logp, batch.mask)
        other = keep(masked.logp, batch.mask)
        dependency = kl.between(self.kl, logp, other, masked.divergence)
        # A weight, not a term: the policy is not asked to depend on the picture, only taught where it does.
        return keep(dependency.detach(), batch.mask)

    def answer_weight(self, dependency: Tensor, mask: Tensor) -> Tensor:
        """w of every answer; [B, 1]. Answers without trained tokens neither set the range nor the mean."""
        mean = answer_mean(dependency, mask)  # [B, 1]
        counted = mask.bool().any(-1, keepdim=True)
        if not bool(counted.any()):
            return torch.ones_like(mean)
        low, high = mean[counted].min(), mean[counted].max()
        if not high > low:  # also where a NaN hides: then nothing can be ranked
            return torch.ones_like(mean)
        rank = (mean - low) / (high - low)
        if self.beta_max is None:
            # The span for which the mean of beta_min + span · rank over the answers is 1.
            span = (1.0 - self.beta_min) / rank[counted].mean()
        else:
            span = self.beta_max - self.beta_min
        return self.beta_min + span * rank


def most_dependent(dependency: Tensor, mask: Tensor, share: float) -> Tensor:
    """The ⌈share·|o|⌉ tokens of largest dependency of each answer, earlier ones first among equals; bool [B, T]."""
    on = mask.bool()
    # The sort must be stable: equal dependencies are common (masked text), and the choice must not vary by machine.
    ranked = torch.where(on, dependency, -torch.inf).argsort(
        dim=-1, descending=True, stable=True
    )
    place = ranked.argsort(dim=-1)  # rank of each token in its answer
    # Counts are small integers: round away the error of share·|o| before the ceiling.
    lengths = on.sum(-1, keepdim=True)
    count = (lengths * share - 1e-6).ceil()
    return on & (place < count)
