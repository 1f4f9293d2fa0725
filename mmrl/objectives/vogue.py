"""VOGUE, visual-uncertainty guided exploration (arXiv 2510.01444, later DUPL): explore where the picture is ambiguous.

The advantage of a token grows by a bounded bonus, where a noisy view of the image changes what the policy would say:

    noisy branch   Â = A + sgn(w·U)·min(|w·U|, |A| / beta_visual) + min(alpha_entropy·H, |A| / beta_entropy)
    raw branch     Â = A + min(alpha_entropy·H, |A| / beta_entropy)

with w = alpha_visual, U the divergence between the views and H the entropy of the active branch. Each step the noisy
branch is active with `probability`, annealed from 1 to 0. A bonus is at most |A| / beta: with beta 2 one alone never
flips a sign, and A = 0 stays 0. Nothing here carries gradient; the loss stays the clipped surrogate.

    uncertainty="exact"    U = ½ [KL(π‖π̂) + KL(π̂‖π)] over the vocabulary            as printed
    uncertainty="sampled"  U = ½ (p - p̂)(ℓ - ℓ̂), the sampled token's term of that sum  official code
    uncertainty="forward"  U = p·(ℓ - ℓ̂), may be negative                              ablation of the code
    entropy="exact"        H over the vocabulary                                        as printed
    entropy="sampled"      -p log p of the sampled token, at most 1/e                   official code

Departures
1. The defaults are the printed method. The released code is VOGUE(uncertainty="sampled", entropy="sampled",
   caps="sequential", draw="batch"): the second cap is then half of the already raised |A|.
2. Branch draw: one per prompt (ours), one for the whole batch as in the code (there: per data-parallel worker), or
   "rollout": the noisy branch is active for answers that were *sampled* under it (`Rollout.branch`).
3. The printed formulas are reconstructed from abstract, reviews and design notes; coefficients as reviewers quote them.
4. `flip` is the code's optional transition from exploration (w) to consistency (-w); off in its published scripts.
5. The code swallows an exception in the noisy view as "no uncertainty"; here it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.seeds import uniform_draw
from mmrl.losses.reduce import Totals, keep, token_mean
from mmrl.losses.schedules import Linear
from mmrl.objectives.base import (
    AnswerKind,
    LiveScores,
    Objective,
    ScoreRequest,
    TokenMaps,
    noisy_prompts,
)
from mmrl.types import Batch, Now, Scores, Shaped


@dataclass(frozen=True)
class VOGUE(Objective):
    """Visual-uncertainty and entropy bonus on the advantage."""

    alpha_visual: float = 1.0
    """Weight of the visual uncertainty."""
    beta_visual: float = 2.0
    """The visual bonus is at most the absolute advantage over this."""
    alpha_entropy: float = 0.4
    """Weight of the token entropy."""
    beta_entropy: float = 2.0
    """The entropy bonus is at most the absolute advantage over this."""
    probability: Linear = field(default_factory=lambda: Linear(1.0, 0.0))
    """Probability that the noisy branch is active, over the run."""
    uncertainty: Literal["exact", "sampled", "forward"] = "exact"
    """Symmetric KL over the vocabulary, its term of the sampled token, or the signed forward term."""
    entropy: Literal["exact", "sampled"] = "exact"
    """Entropy over the vocabulary, or -p log p of the sampled token."""
    caps: Literal["simultaneous", "sequential"] = "simultaneous"
    """Both caps from the advantage that came in, or the second from the already changed one."""
    draw: Literal["prompt", "batch", "rollout"] = "prompt"
    """Draw the branch per prompt, once per batch, or take the branch that each answer was sampled under."""
    flip: tuple[float, float] | None = None
    """Progress at which the sign of the visual bonus starts and ends to turn; None: never."""
    noisy: str = "noisy"
    """Name of the noisy visual branch."""

    remedies: ClassVar[Mapping[str, str]] = {
        "entropy": "lower VOGUE.alpha_visual and alpha_entropy, or end the noisy branch earlier (probability.until)",
    }
    off: ClassVar[Mapping[str, Any]] = {"alpha_visual": 0.0, "alpha_entropy": 0.0}

    def __post_init__(self) -> None:
        turn = self.flip
        require(
            self,
            alpha_visual=(self.alpha_visual >= 0, "0 (off) or positive"),
            alpha_entropy=(self.alpha_entropy >= 0, "0 (off) or positive"),
            beta_visual=(self.beta_visual > 0, "positive"),
            beta_entropy=(self.beta_entropy > 0, "positive"),
            flip=(turn is None or 0 <= turn[0] < turn[1] <= 1, "two rising shares of the run"),
        )

    @property
    def is_off(self) -> bool:
        """Are both bonuses off?"""
        return self.alpha_visual == 0 and self.alpha_entropy == 0

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Answers sampled under the noisy view, if they decide which branch is active."""
        decide = self.draw == "rollout" and not self.is_off
        return (noisy_prompts(self.noisy),) if decide else ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Stored scores of both branches, exact quantities only where asked for."""
        if self.is_off:
            return ()
        entropy = self.entropy == "exact" and self.alpha_entropy > 0
        exact = self.uncertainty == "exact" and self.alpha_visual > 0
        divergence = "symmetric" if exact else None
        raw = ScoreRequest("raw", stage="shape", entropy=entropy)
        return raw, ScoreRequest(self.noisy, "shape", entropy=entropy, divergence=divergence)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The advantage with both bonuses. Logs the mean bonus, and shares of tokens at the cap of either."""
        if self.is_off:
            return Shaped(advantage)
        active = self.active(batch, now)  # [B, 1]
        shaped = advantage
        maps: TokenMaps = {}
        if self.alpha_visual > 0:
            pull = self.alpha_visual * self._sign(now.progress) * self.visual_uncertainty(batch)
            cap = advantage.abs() / self.beta_visual
            # The pull may be negative (forward term, consistency): its size is capped, its sign kept.
            bonus = pull.sign() * torch.minimum(pull.abs(), cap)
            shaped = advantage + torch.where(active, bonus, 0.0)
            at_cap = (pull.abs() >= cap) & (cap > 0)  # where A is 0, cap and bonus are, too
            maps["capped_visual"] = (active & at_cap).to(advantage)
        if self.alpha_entropy > 0:
            raw = self._entropy(batch, "raw")
            noisy = self._entropy(batch, self.noisy)
            level = self.alpha_entropy * torch.where(active, noisy, raw)
            # The released code caps by what it has already raised, the paper by what came in.
            base = shaped if self.caps == "sequential" else advantage
            cap = base.abs() / self.beta_entropy
            shaped = shaped + torch.minimum(level, cap)
            at_cap = (level >= cap) & (cap > 0)
            maps["capped_entropy"] = at_cap.to(advantage)
        maps["bonus"] = shaped - advantage
        # Averaged here, over the whole batch: the updates see the rows of one mini-batch each.
        totals = Totals.of(batch.mask)
        means: dict[str, float] = {}
        for name, x in maps.items():
            means[name] = float(token_mean(x, batch.mask, totals))
        return Shaped(keep(shaped, batch.mask), logged=means)

    def active(self, batch: Batch, now: Now) -> Tensor:
        """Is the noisy branch active for an answer? bool [B, 1]. Draws are keyed by seed, step and prompt."""
        chance = self.probability(now.progress)
        if self.draw == "rollout":
            chosen = [rollout.branch == self.noisy for rollout in batch.rollouts]
        elif self.draw == "batch":
            chosen = [self._drawn(now, "", chance)] * len(batch.rollouts)
        else:
            prompts = [rollout.prompt.id for rollout in batch.rollouts]
            # Keyed by the prompt, so that its answers agree and company does not matter.
            chosen = [self._drawn(now, prompt, chance) for prompt in prompts]
        active = torch.tensor(chosen, dtype=torch.bool, device=batch.mask.device)
        return active.unsqueeze(-1)

    def visual_uncertainty(self, batch: Batch) -> Tensor:
        """U of every token, 0 on padding; [B, T]."""
        noisy = self._scores(batch, self.noisy)
        if self.uncertainty == "exact":
            if noisy.divergence is None:
                raise ValueError(
                    f"VOGUE.uncertainty is 'exact', but branch {self.noisy!r} was scored without a divergence; "
                    "score it with divergence='symmetric', or use uncertainty='sampled'."
                )
            return keep(noisy.divergence.detach(), batch.mask)
        raw = self._scores(batch, "raw")
        logp = keep(raw.logp.detach(), batch.mask)
        other = keep(noisy.logp.detach(), batch.mask)
        if self.uncertainty == "forward":
            return logp.exp() * (logp - other)
        return 0.5 * (logp.exp() - other.exp()) * (logp - other)

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Uncertainty, entropies, probability and realised share of the noisy branch, share of idle tokens (A = 0).

        A bonus that is off is not scored, so its numbers are left out.
        """
        if self.is_off:
            return {}
        like = torch.ones_like(batch.advantage)
        maps = {"probability": like * self.probability(now.progress)}
        active = self.active(batch, now).to(
            like
        )  # drawn again: the key is the same, so is the coin
        maps["active"] = active.expand(batch.mask.shape)
        maps["idle"] = (batch.advantage == 0).to(like)
        if self.alpha_visual > 0:
            uncertainty = self.visual_uncertainty(batch)
            maps["uncertainty"] = maps["uncertainty_max"] = uncertainty
            maps["uncertainty_squared"] = uncertainty.square()
        if self.alpha_entropy > 0:
            maps["entropy"] = self._entropy(batch, "raw")
            maps["entropy_noisy"] = self._entropy(batch, self.noisy)
        return maps

    def _drawn(self, now: Now, prompt: str, chance: float) -> bool:
        """Does the coin of this step and prompt fall on the noisy branch?"""
        return uniform_draw(now.seed, now.step, prompt, "vogue") < chance

    def _sign(self, progress: float) -> float:
        """1 while exploring, -1 for consistency, a straight line between."""
        if self.flip is None:
            return 1.0
        start, end = self.flip
        turned = (progress - start) / (end - start)
        return 1.0 - 2.0 * min(max(turned, 0.0), 1.0)

    def _entropy(self, batch: Batch, name: str) -> Tensor:
        """H of every token under a branch, 0 on padding; [B, T]."""
        scores = self._scores(batch, name)
        if self.entropy == "sampled":
            logp = keep(scores.logp.detach(), batch.mask)
            return -logp.exp() * logp
        if scores.entropy is None:
            raise ValueError(
                f"VOGUE.entropy is 'exact', but branch {name!r} was scored without entropy; "
                "score it with entropy=True, or use entropy='sampled'."
            )
        return keep(scores.entropy.detach(), batch.mask)

    def _scores(self, batch: Batch, name: str) -> Scores:
        """Stored scores of a branch."""
        if name not in batch.scores:
            raise ValueError(
                f"VOGUE reads the stored scores of {name!r}, but there are {sorted(batch.scores)}; "
                f"add branches={{{self.noisy!r}: VisualBranch(...)}} and score before the advantages."
            )
        return batch.scores[name]
