"""CalibRL, controllable exploration with expert answers (arXiv 2602.20197): the expert is a baseline, not a target.

Each prompt has on-policy answers and one expert answer, which is only scored. For on-policy answers

    guided   +weight · |A| · leaky_relu(-s·Δ, alpha)      s = +1 if right else -1,  Δ = ℓ - ℓ_expert

is minimised next to the clipped surrogate: a right answer less likely than the expert's is pushed up fully, one above
it by alpha only; a wrong one likewise downwards. ℓ_expert is scored with the sampling-time weights and carries no
gradient. |A| makes rare outcomes of a group weigh more.

    alignment="position"  Δ_t = ℓ_t - ℓ_expert,t by token index                        official code
    alignment="mean"      Δ = mean_t ℓ - mean_t ℓ_expert of the whole answers           ours, length-normalised
    alignment="sum"       Δ = Σ_t ℓ - Σ_t ℓ_expert                                      as printed

Expert answers are rollouts of origin "expert" with role EXPERT: they are in no mask, so neither the surrogate nor this
term trains on them, and they do not enter the group statistics: this objective replaces the advantage of a batch that
holds experts by R - mean (or z-score with `std=True`) over the on-policy answers of the group.

The term is not bounded below (no hinge) and not corrected for staleness; watch the log-probs of wrong answers.

Departures
1. By position the code compares a token with a token of an unrelated text, and beyond the expert's end with its
   padding; here the term is 0 beyond the end.
2. The code hard-codes weight 0.1. Its other modes (luffy, rlplus) are other papers.
3. Groups without an expert answer get no guided term.
4. The expert's log-probs are laid beside its group's answers in `shape`, which sees the whole batch, so that a group
   may be cut over several passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.losses.reduce import keep
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import (
    EXPERT,
    AnswerKind,
    LiveScores,
    Objective,
    ScoreRequest,
    TokenMaps,
)
from mmrl.types import Batch, Now, Role, Shaped


@dataclass(frozen=True)
class CalibRL(Objective):
    """Group rarity and a leaky expert baseline."""

    weight: float = 0.1
    """Weight of the guided term."""
    alpha: float = 0.5
    """Slope on the side where the answer already stands on the right side of the expert."""
    alignment: Literal["position", "mean", "sum"] = "position"
    """How an answer is compared with the expert's."""
    correct_above: float = 0.1
    """Answers with a larger reward are right; format alone must not reach it."""
    std: bool = False
    """Divide the advantage by the standard deviation of the group."""

    remedies: ClassVar[Mapping[str, str]] = {
        "entropy": "raise CalibRL.alpha to 0.5 (0.3 makes the entropy unstable, at 0.8 it decays) or lower the weight",
    }
    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            weight=(self.weight >= 0, "0 (off) or positive"),
            alpha=(0 <= self.alpha <= 1, "in [0, 1]"),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage of groups that have such an answer."""
        return ("estimator",) if self.weight > 0 else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Expert answers."""
        return (EXPERT,) if self.weight > 0 else ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Log-probs of the expert answers before the update."""
        if self.weight == 0:
            return ()
        return (ScoreRequest("raw", stage="shape"),)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """On-policy group statistics if there are experts. Keeps ℓ_expert as `baseline`, and where there is one."""
        origins = [rollout.origin == "expert" for rollout in batch.rollouts]
        expert = torch.tensor(origins, device=batch.mask.device)
        kept: dict[str, Tensor] = {}
        logged: dict[str, float] = {}
        if self.weight > 0:
            found = self._experts(batch, expert)
            baseline, covered = self._baseline(batch, expert, found)
            kept = {"baseline": baseline, "covered": covered}
            logged["logp_expert"] = _mean_of_means(list(found.values()))
        if bool(expert.any()):
            estimator = group_normalized if self.std else group_centered
            # An expert that earned something would move the mean; NaN is left out of it.
            known = torch.where(expert, torch.nan, batch.reward)
            own = estimator(known, batch.group, batch.mask)  # [B]
            advantage = keep(own.unsqueeze(-1).expand(batch.mask.shape), batch.mask)
        return Shaped(advantage, logged, kept)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The guided term on on-policy tokens."""
        if self.weight == 0:
            return {}
        lead, covered = self.lead(live["raw"].logp, batch)
        right = (batch.reward > self.correct_above).unsqueeze(-1)  # [B, 1]
        sign = torch.where(right, 1.0, -1.0)
        # A right answer behind the expert and a wrong one ahead of it lie on the steep side.
        hinge = functional.leaky_relu(-sign * lead, self.alpha)
        guided = batch.advantage.detach().abs() * hinge
        # Selected, not multiplied by the mask: rows without an expert must not carry a NaN into the gradient.
        return {"guided": self.weight * torch.where(covered, guided, 0.0)}

    def lead(self, logp: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Δ of every token (0 where there is none to compare with), and where there is one; both [B, T]."""
        if "baseline" not in batch.kept:
            raise ValueError(
                "CalibRL.terms was called before CalibRL.shape had seen the step's whole batch; call shape first and "
                "pass on what it kept as Batch.kept (the trainer does)."
            )
        own = keep(logp, batch.mask)
        if self.alignment == "mean":
            own = answer_mean(own, batch.mask).expand(own.shape)
        elif self.alignment == "sum":
            own = own.sum(-1, keepdim=True).expand(own.shape)
        covered = batch.kept["covered"] & batch.mask
        lead = own - batch.kept["baseline"]
        return torch.where(covered, lead, 0.0), covered

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Lead over the expert, share of tokens on the fully pushed side, log-probs, guided term by right and wrong."""
        if self.weight == 0:
            return {}
        logp = live["raw"].logp
        lead, covered = self.lead(logp, batch)
        right = (batch.reward > self.correct_above).unsqueeze(-1)
        behind = covered & torch.where(right, lead < 0, lead > 0)
        guided = self.terms(live, batch, now)["guided"]
        return {
            "guided_right": torch.where(right, guided, 0.0),
            "guided_wrong": torch.where(right, 0.0, guided),
            "lead": lead,
            "covered": covered.float(),
            "behind": behind.float(),
            "logp_right": torch.where(right, logp, 0.0),
            "logp_wrong": torch.where(right, 0.0, logp),
            "weight": batch.advantage.abs(),
        }

    def _experts(self, batch: Batch, expert: Tensor) -> dict[int, Tensor]:
        """Group -> log-probs of its first expert answer, without gradient; [T_i] each."""
        if "raw" not in batch.scores:
            raise ValueError(
                f"CalibRL reads the stored 'raw' scores, but there are {sorted(batch.scores)}; "
                "score the answers before the advantages."
            )
        logp = batch.scores["raw"].logp.detach()
        groups = batch.group.tolist()
        found: dict[int, Tensor] = {}
        for row in expert.nonzero().flatten().tolist():
            # By role, not by mask: experts are trained by nobody and stand in no mask.
            written = batch.roles[row] == Role.EXPERT
            found.setdefault(groups[row], logp[row][written])
        return found

    def _baseline(
        self, batch: Batch, expert: Tensor, experts: Mapping[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """ℓ_expert beside every on-policy token of its group, 0 elsewhere, and where there is one; both [B, T]."""
        baseline = torch.zeros_like(batch.scores["raw"].logp)
        covered = torch.zeros_like(batch.mask)
        for row, group in enumerate(batch.group.tolist()):
            if group not in experts or expert[row]:
                continue
            logp = experts[group]
            if self.alignment == "position":
                # Beyond the expert's end there is nothing to compare with; the code compares with its padding.
                length = min(len(logp), baseline.shape[1])
                baseline[row, :length] = logp[:length]
                covered[row, :length] = True
                continue
            baseline[row] = logp.mean() if self.alignment == "mean" else logp.sum()
            covered[row] = True
        return baseline, covered


def _mean_of_means(experts: Sequence[Tensor]) -> float:
    """Mean log-prob of the experts' tokens, each expert counting once; 0 without one."""
    means = [logp.mean() for logp in experts if len(logp)]
    return float(torch.stack(means).mean()) if means else 0.0
