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
4. The expert's log-probs are read from the whole batch in `shape` and remembered until the step's last `terms`, so that
   a group may be cut over several passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.losses.reduce import keep
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import Need, Objective
from mmrl.types import Batch, Now, Role, Scores


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

    def __post_init__(self) -> None:
        allowed = {
            "weight": (self.weight >= 0, "0 (off) or positive"),
            "alpha": (0 <= self.alpha <= 1, "in [0, 1]"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise ValueError(f"CalibRL.{name} is {getattr(self, name)}; it must be {rule}.")
        # Scores of the step's experts: not a setting, therefore not a field.
        object.__setattr__(self, "_experts", {})

    @property
    def wants(self) -> tuple[str, ...]:
        """Expert answers."""
        return ("expert",) if self.weight > 0 else ()

    def needs(self) -> tuple[Need, ...]:
        """Log-probs of the expert answers before the update."""
        return (Need("raw", stage="shape"),) if self.weight > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Tensor:
        """On-policy group statistics if there are experts; [B, T]. Remembers the experts' log-probs for this step."""
        expert = torch.tensor(
            [r.origin == "expert" for r in batch.rollouts], device=batch.mask.device
        )
        if self.weight > 0:
            self._remember(batch, expert, now)
        if not bool(expert.any()):
            return advantage
        estimator = group_normalized if self.std else group_centered
        own = estimator(torch.where(expert, torch.nan, batch.reward), batch.group, batch.mask)
        return keep(own.unsqueeze(-1).expand(batch.mask.shape), batch.mask)

    def terms(self, live: Mapping[str, Scores], batch: Batch, now: Now) -> dict[str, Tensor]:
        """The guided term on on-policy tokens."""
        if self.weight == 0:
            return {}
        lead, covered = self.lead(live["raw"].logp, batch, now)
        sign = torch.where(batch.reward > self.correct_above, 1.0, -1.0).unsqueeze(-1)  # [B, 1]
        hinge = functional.leaky_relu(-sign * lead, self.alpha)
        guided = batch.advantage.detach().abs() * hinge
        return {"guided": self.weight * torch.where(covered & batch.mask, guided, 0.0)}

    def lead(self, logp: Tensor, batch: Batch, now: Now) -> tuple[Tensor, Tensor]:
        """Δ of every token (0 where there is none to compare with), and where there is one; both [B, T]."""
        experts: Mapping[int, Tensor] = self.__dict__["_experts"].get((now.seed, now.step))
        if experts is None:
            raise ValueError(
                f"CalibRL.terms was called for step {now.step} before CalibRL.shape had seen the step's whole batch; "
                "call shape first (the trainer does)."
            )
        covered = torch.zeros_like(batch.mask)
        baseline = torch.zeros(batch.mask.shape, dtype=logp.dtype, device=logp.device)
        for row, group in enumerate(batch.group.tolist()):
            if group not in experts or batch.rollouts[row].origin == "expert":
                continue
            expert = experts[group].to(logp)
            if self.alignment == "position":
                length = min(len(expert), baseline.shape[1])
                baseline[row, :length], covered[row, :length] = expert[:length], True
            else:
                baseline[row], covered[row] = (
                    expert.mean() if self.alignment == "mean" else expert.sum(),
                    True,
                )
        own = keep(logp, batch.mask)
        if self.alignment == "mean":
            own = answer_mean(own, batch.mask).expand(own.shape)
        elif self.alignment == "sum":
            own = own.sum(-1, keepdim=True).expand(own.shape)
        covered = covered & batch.mask
        return torch.where(covered, own - baseline, 0.0), covered

    def metrics(self, live: Mapping[str, Scores], batch: Batch, now: Now) -> dict[str, Tensor]:
        """Lead over the expert, share of tokens on the fully pushed side, log-probs, guided term by right and wrong."""
        if self.weight == 0:
            return {}
        logp = live["raw"].logp
        lead, covered = self.lead(logp, batch, now)
        right = (batch.reward > self.correct_above).unsqueeze(-1)
        behind = covered & torch.where(right, lead < 0, lead > 0)
        guided = self.terms(live, batch, now)["guided"]
        experts = [
            tokens.mean()
            for tokens in self.__dict__["_experts"][now.seed, now.step].values()
            if len(tokens)
        ]
        expert = torch.stack(experts).mean() if experts else logp.new_zeros(())
        return {
            "guided_right": torch.where(right, guided, 0.0),
            "guided_wrong": torch.where(right, 0.0, guided),
            "logp_expert": expert.to(logp).expand_as(logp),
            "lead": lead,
            "covered": covered.float(),
            "behind": behind.float(),
            "logp_right": torch.where(right, logp, 0.0),
            "logp_wrong": torch.where(right, 0.0, logp),
            "weight": batch.advantage.abs(),
        }

    def _remember(self, batch: Batch, expert: Tensor, now: Now) -> None:
        """Keep the log-probs of each group's first expert answer until the next step."""
        if "raw" not in batch.scores:
            raise ValueError(
                f"CalibRL reads the stored 'raw' scores, but there are {sorted(batch.scores)}; "
                "score the answers before the advantages."
            )
        logp = batch.scores["raw"].logp.detach()
        found: dict[int, Tensor] = {}
        for row in expert.nonzero().flatten().tolist():
            written = batch.roles[row] == Role.EXPERT
            found.setdefault(int(batch.group[row]), logp[row][written])
        experts: dict[tuple[int, int], dict[int, Tensor]] = self.__dict__["_experts"]
        experts.clear()
        experts[now.seed, now.step] = found
