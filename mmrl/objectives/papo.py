"""PAPO, Perception-Aware Policy Optimization (arXiv 2507.06448): GRPO that is also paid for looking.

The policy that sees the image is pushed away from the same policy seeing a mostly masked image, in the loss:

    perception      -gamma · k3(ℓ, ℓ̃)     k3 = exp(-d) + d - 1,  d = ℓ - ℓ̃        maximised
    entropy_masked  +eta_masked · (-ℓ̃)                                              minimised
    entropy_orig    +eta_orig · (-ℓ)                                                minimised

ℓ, ℓ̃ log-probs of the sampled tokens under the real and under the masked image; all three scaled by `anneal`. The two
entropies guard against inflating the KL (they are sampled negative log-likelihoods, or exact entropies by choice) and
are token means whatever the reduction of the run is. d = 0 (nothing masked, text only) gives no perception term.

Which gradient: without gradient through the masked branch (default of the official code, `VisualBranch.grad=False`) the
perception term acts on ℓ by -gamma·(1 - exp(-d)) per token: it saturates for d ≫ 0 and follows the gradient of the
reverse KL(π̃‖π), though its value estimates KL(π‖π̃); `entropy_masked` then changes the value only. With
`VisualBranch.grad=True` the masked branch receives -gamma·(exp(-d) - 1) and the gradient of its entropy as well.

Collapse: the maximised KL has no bound. Never gamma ≥ 0.04; without reference KL use both entropies at 0.03 or more.

Departures
1. Paper Eq. 2 prints r - log r - 1 with r = π/π̃ and entropies as +log π; official code and we use Schulman's k3 (the
   1/r form) and lower the entropy, as the paper's text says.
2. The code averages over a micro-batch and divides by their number; here all terms have global counts.
3. k3 is clamped to ±`k3_max` = ±10 (zero gradient beyond), the exponent to ±20, as in the code. The paper has no clamp.
   `k3_clip` is the code's option to cut at a small value (0.2 there; TRL's port always did).
4. `token_top_p`, `kl`, `sft` are switches of the code that are off in every published run. Its `sft` divides by the
   tokens of the correct answers, ours by all trained tokens, so that it cannot depend on the micro-batch. "exact" for
   `kl` (forward KL over the vocabulary) is our addition, for `entropy` it is TRL's.
5. Masks, their sharing, the gradient through the masked branch and its refresh belong to the `VisualBranch`.
6. `anneal` (off in every published run) reads the share done when the step ends; the code's controller moves after it.
7. The official Qwen3 branch computes these terms but never back-propagates them; here they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses import kl
from mmrl.losses.reduce import Reduction, keep
from mmrl.losses.schedules import Linear
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps
from mmrl.types import Batch, Now, Scores


@dataclass(frozen=True)
class PAPO(Objective):
    """Perception KL and double entropy. Paper Table 6: gamma 0.02 or 0.01, both etas 0, 0.03 or 0.05."""

    gamma: float = 0.02
    """Weight of the perception KL between raw and masked image; maximised."""
    eta_orig: float = 0.05
    """Weight of the entropy under the real image; minimised, the essential guard against KL hacking."""
    eta_masked: float = 0.05
    """Weight of the entropy under the masked image; minimised."""
    kl: Literal["k1", "abs", "k2", "k3", "exact"] = "k3"
    """Estimator of the perception KL from sampled tokens, or "exact" over the vocabulary."""
    k3_max: float = 10.0
    """k3 is clamped to plus or minus this value."""
    k3_clip: float | None = None
    """Cut the perception KL of a token to [0, this]; None: off (official option: 0.2)."""
    token_top_p: float | None = None
    """Keep this share of an answer's tokens, those of largest perception KL; None: all (official option: 0.2)."""
    entropy: Literal["sampled", "exact"] = "sampled"
    """Entropies from sampled tokens (official code) or over the vocabulary."""
    sft: float = 0.0
    """Weight of a likelihood term on the answers whose reward exceeds sft_above (official option: 1e-3)."""
    sft_above: float = 0.1
    """Reward above which an answer counts as correct for sft."""
    anneal: Linear = field(default_factory=lambda: Linear(1.0, 1.0))
    """Factor on gamma and both etas over the run; constant 1 by default."""
    masked: str = "masked"
    """Name of the masked visual branch."""

    reductions: ClassVar[Mapping[str, Reduction]] = {
        "entropy_orig": "token",
        "entropy_masked": "token",
    }
    remedies: ClassVar[Mapping[str, str]] = {
        "divergence": "lower PAPO.gamma (0.04 cannot be rescued; 0.01 without reference KL) and set both etas to 0.03 "
        "or 0.05; eta_orig is the essential one, eta_masked alone only delays the collapse",
        "entropy": "raise PAPO.eta_orig and eta_masked to 0.05 (0.01 is too weak), or set grpo.kl to 0.01",
        "length": "lower PAPO.gamma; answers that grow unrelated text after the box are the last stage of KL hacking",
    }
    off: ClassVar[Mapping[str, Any]] = {"gamma": 0.0, "eta_orig": 0.0, "eta_masked": 0.0}

    def __post_init__(self) -> None:
        share, cut = self.token_top_p, self.k3_clip
        require(
            self,
            gamma=(self.gamma >= 0, "0 (off) or positive"),
            eta_orig=(self.eta_orig >= 0, "0 (off) or positive"),
            eta_masked=(self.eta_masked >= 0, "0 (off) or positive"),
            sft=(self.sft >= 0, "0 (off) or positive"),
            k3_max=(self.k3_max > 0, "positive"),
            k3_clip=(cut is None or cut > 0, "positive, or None to turn it off"),
            token_top_p=(share is None or 0 < share <= 1, "in (0, 1], or None to turn it off"),
        )

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """The masked branch if a coefficient reads it, exact quantities only where asked for."""
        exact = self.entropy == "exact"
        requests: list[ScoreRequest] = []
        if self.eta_orig > 0 or self.sft > 0:
            entropy = exact and self.eta_orig > 0
            requests.append(ScoreRequest("raw", entropy=entropy))
        if self.gamma > 0 or self.eta_masked > 0:
            entropy = exact and self.eta_masked > 0
            divergence = "forward" if self.kl == "exact" and self.gamma > 0 else None
            requests.append(ScoreRequest(self.masked, entropy=entropy, divergence=divergence))
        return tuple(requests)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The terms whose coefficients are not zero now."""
        scale = self.anneal(now.progress)
        terms: TokenMaps = {}
        if self.gamma * scale != 0:
            chosen = self._chosen_perception(live, batch)
            terms["perception"] = -self.gamma * scale * chosen
        if self.eta_masked * scale != 0:
            entropy = self._entropy(live[self.masked], self.masked)
            terms["entropy_masked"] = self.eta_masked * scale * entropy
        if self.eta_orig * scale != 0:
            entropy = self._entropy(live["raw"], "raw")
            terms["entropy_orig"] = self.eta_orig * scale * entropy
        if self.sft != 0:  # not scaled: `anneal` is for the terms that look at pictures
            correct = (batch.reward > self.sft_above).unsqueeze(-1)  # [B, 1]
            likelihood = -self.sft * live["raw"].logp
            terms["sft"] = torch.where(correct, likelihood, 0.0)
        return terms

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Distribution of the perception KL, log-ratio d, shares of clamped and of d < 0, surprise under the mask."""
        if self.masked not in live:
            return {}
        raw, masked = live["raw"].logp, live[self.masked].logp
        value = self.perception(live, batch)
        unclamped = kl.k3(raw, masked, value_max=None)
        return {
            "kl": value,
            "kl_squared": value.square(),
            "kl_max": value,
            "kl_above_0.1": (value > 0.1).float(),
            "kl_above_1": (value > 1.0).float(),
            "log_ratio": raw - masked,
            "clamped": (unclamped > self.k3_max).float(),
            "negative": (raw < masked).float(),
            "surprise_masked": -masked,
            "anneal": torch.full_like(raw, self.anneal(now.progress)),
        }

    def perception(self, live: LiveScores, batch: Batch) -> Tensor:
        """The perception divergence of every token, clamped as configured; [B, T]."""
        raw, masked = live["raw"], live[self.masked]
        # Clamped rather than bounded by a weight: beyond ±k3_max a token gives no gradient at all, as in the code.
        value = kl.between(
            self.kl, raw.logp, masked.logp, masked.divergence, value_max=self.k3_max
        )
        if self.k3_clip is not None:
            value = value.clamp(0.0, self.k3_clip)
        return keep(value, batch.mask)

    def _chosen_perception(self, live: LiveScores, batch: Batch) -> Tensor:
        """The divergence of the tokens that are kept by `token_top_p`, 0 elsewhere; [B, T]."""
        value = self.perception(live, batch)
        if self.token_top_p is None:
            return value
        # Which tokens are kept is a choice, not a function that is differentiated.
        chosen = top_tokens(value.detach(), batch.mask, self.token_top_p)
        return torch.where(chosen, value, 0.0)

    def _entropy(self, scores: Scores, branch: str) -> Tensor:
        """Sampled or exact entropy of every token; [B, T]."""
        if self.entropy == "sampled":
            return -scores.logp
        if scores.entropy is None:
            raise ValueError(
                f"PAPO.entropy is 'exact', but branch {branch!r} was scored without entropy; "
                "score it with entropy=True, or use entropy='sampled'."
            )
        return scores.entropy


def top_tokens(value: Tensor, mask: Tensor, share: float) -> Tensor:
    """Tokens at or above the (1 - share) quantile of their answer, linearly interpolated; bool [B, T]."""
    on = mask.bool()
    # Padding is NaN, so that the quantile is that of the answer's own tokens; half precision has no quantile.
    known = torch.where(on, value.float(), torch.nan)
    level = torch.nanquantile(known, 1.0 - share, dim=-1, keepdim=True)  # [B, 1]
    # Without trained tokens the level is NaN, and no comparison with it holds.
    return on & (value >= level)
