"""DVRP, Differential Visual Reasoning Policy (arXiv 2601.06801): change without evidence, stay under noise.

Two extra views of each image: masked I⁻ (evidence removed) and noisy I⁺ (only nuisance added). Maximised:

    J = J_base + lambda_nec·D(π‖π⁻) - lambda_rob·D(π‖π⁺) - lambda_ent·(H[π⁻] + H[π⁺])

and as minimised terms

    necessity       -lambda_nec·D(π‖π⁻)        sensitivity: push away from the masked view
    robustness      +lambda_rob·D(π‖π⁺)        pull towards the noisy view
    entropy_masked  +lambda_ent·(-ℓ⁻),  entropy_noisy  +lambda_ent·(-ℓ⁺),  entropy_orig  +lambda_orig·(-ℓ)

D is summed over the vocabulary (`kl="exact"`, KL(π‖π_aux)) or estimated from the sampled token. The base is GRPO or
DAPO without reference KL. If the branches carry no gradient, the auxiliary entropies change the value only, and a
sampled k3 follows the gradient of KL(π_aux‖π) (see `kl.py`).

All of PAPO's hacking risk applies to the necessity term. At strong noise the robustness term teaches blindness.

Departures
1. There is no official code; coefficients and the full-vocabulary D are second-hand, KL direction and normalisation
   unverified. A public re-implementation uses sampled k3: `kl="k3"`.
2. `lambda_orig`, the entropy under the clean view, is not in the paper (0 by default) but is PAPO's essential guard.
3. Entropies are sampled negative log-likelihoods, or exact, and token means whatever the reduction of the run is.
4. The annealing of the noise belongs to the noisy view, masks and gradients to the two `VisualBranch`es.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses import kl
from mmrl.losses.reduce import Reduction
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps
from mmrl.types import Batch, Now


@dataclass(frozen=True)
class DVRP(Objective):
    """Sensitivity to the masked, robustness to the noisy branch."""

    lambda_nec: float = 0.01
    """Weight of the divergence from the masked view; maximised."""
    lambda_rob: float = 0.01
    """Weight of the divergence from the noisy view; minimised."""
    lambda_ent: float = 0.05
    """Weight of the entropy under each of the two views; minimised."""
    lambda_orig: float = 0.0
    """Weight of the entropy under the clean view; minimised (our addition, 0.03 to 0.05 guards against hacking)."""
    kl: Literal["k1", "abs", "k2", "k3", "exact"] = "exact"
    """Divergence over the vocabulary, or an estimator from sampled tokens."""
    entropy: Literal["sampled", "exact"] = "sampled"
    """Entropies from sampled tokens or over the vocabulary."""
    masked: str = "masked"
    """Name of the branch without evidence."""
    noisy: str = "noisy"
    """Name of the branch with nuisance."""

    reductions: ClassVar[Mapping[str, Reduction]] = {
        "entropy_masked": "token",
        "entropy_noisy": "token",
        "entropy_orig": "token",
    }
    remedies: ClassVar[Mapping[str, str]] = {
        "divergence": "lower DVRP.lambda_nec, or set lambda_orig to 0.03 or 0.05: the paper penalises the entropy of "
        "the auxiliary views only, which guards against hacking only if those branches carry gradient",
        "entropy": "set DVRP.lambda_orig to 0.03 or 0.05",
    }
    off: ClassVar[Mapping[str, Any]] = {
        "lambda_nec": 0.0,
        "lambda_rob": 0.0,
        "lambda_ent": 0.0,
        "lambda_orig": 0.0,
    }

    def __post_init__(self) -> None:
        require(
            self,
            lambda_nec=(self.lambda_nec >= 0, "0 (off) or positive"),
            lambda_rob=(self.lambda_rob >= 0, "0 (off) or positive"),
            lambda_ent=(self.lambda_ent >= 0, "0 (off) or positive"),
            lambda_orig=(self.lambda_orig >= 0, "0 (off) or positive"),
        )
        if self.masked == self.noisy:
            raise ValueError(
                f"DVRP.masked and DVRP.noisy are both {self.masked!r}; the two views need two branches."
            )

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """A branch for every coefficient that reads it, exact quantities only where asked for."""
        exact = self.entropy == "exact"
        requests: list[ScoreRequest] = []
        if self.lambda_orig > 0:
            requests.append(ScoreRequest("raw", entropy=exact))
        for _, name, weight in self._views():
            if weight == 0 and self.lambda_ent == 0:
                continue  # nobody reads this view
            entropy = exact and self.lambda_ent > 0
            divergence = "forward" if self.kl == "exact" and weight > 0 else None
            requests.append(ScoreRequest(name, entropy=entropy, divergence=divergence))
        return tuple(requests)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The terms whose coefficients are not zero."""
        terms: TokenMaps = {}
        if self.lambda_nec > 0:
            # Maximised and without a bound: the reason why lambda_nec must stay small.
            terms["necessity"] = -self.lambda_nec * self.divergence(live, self.masked)
        if self.lambda_rob > 0:
            terms["robustness"] = self.lambda_rob * self.divergence(live, self.noisy)
        if self.lambda_ent > 0:
            # Values only, unless the branches carry gradient (`VisualBranch.grad`).
            terms["entropy_masked"] = self.lambda_ent * self._entropy(live, self.masked)
            terms["entropy_noisy"] = self.lambda_ent * self._entropy(live, self.noisy)
        if self.lambda_orig > 0:
            terms["entropy_orig"] = self.lambda_orig * self._entropy(live, "raw")
        return terms

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Divergence from and surprise under each view; masked over noisy should be large and grow."""
        maps: TokenMaps = {}
        for role, name, weight in self._views():
            if name not in live:
                continue
            maps[f"surprise_{role}"] = -live[name].logp
            # Without a weight nobody asked for the exact divergence; the sampled one costs nothing.
            if weight > 0:
                maps[f"kl_{role}"] = self.divergence(live, name)
            else:
                maps[f"kl_{role}"] = kl.k3(live["raw"].logp, live[name].logp)
        return maps

    def _views(self) -> tuple[tuple[str, str, float], tuple[str, str, float]]:
        """Role, branch and weight of the divergence of either view."""
        return (
            ("masked", self.masked, self.lambda_nec),
            ("noisy", self.noisy, self.lambda_rob),
        )

    def divergence(self, live: LiveScores, name: str) -> Tensor:
        """D(π‖π_branch) of every token; [B, T]."""
        raw, branch = live["raw"], live[name]
        return kl.between(self.kl, raw.logp, branch.logp, branch.divergence)

    def _entropy(self, live: LiveScores, name: str) -> Tensor:
        """Sampled or exact entropy of every token under a view; [B, T]."""
        if (
            self.entropy == "sampled"
        ):  # its gradient is that of the likelihood, not of the entropy
            return -live[name].logp
        entropy = live[name].entropy
        if entropy is None:
            raise ValueError(
                f"DVRP.entropy is 'exact', but branch {name!r} was scored without entropy; "
                "score it with entropy=True, or use entropy='sampled'."
            )
        return entropy
