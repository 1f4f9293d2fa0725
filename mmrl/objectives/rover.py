"""ROVER, random policy valuation (arXiv 2509.24981): the log-ratio learns the values of the uniformly random policy.

In a tree of tokens with a reward at its leaves, the action of largest value under the *random* policy is a best one,
and acting on these values keeps what else is right. Per token, with r̃ = R - μ of the group, over its σ if `scaled`:

    Q_t       rho·(ℓ_t - ℓ_old,t)
    M(s)      mean over the vocabulary of log π(v | s)
    target_t  r̃ + rho·gamma·(M(s_{t+1}) - M_old(s_{t+1})), the second term 0 behind the last token; no gradient
    loss      token mean of (Q_t - target_t)²

It owns advantage and loss: no clip, no ratio bound, no weights of tokens. There is no strength with which it would be
GRPO. At the old policy its gradient is REINFORCE with 2·rho·r̃, and a group of equal rewards has none. Other objectives'
terms (a divergence between views) are added to it.

Departures
1. Printed is a tabular value; here, as in the released code, it is relative to the policy that sampled.
2. M leaves out ids that only pad the vocabulary; the released code averages over all columns.
3. A token that is not trained (tool output, a hint) ends the sum like the end of the answer.
4. The token mean counts the whole update, not a device's share of it.

Source: the released code (tinnerhrhe/ROVER @ b0fa5878): `scaled` as in its maths scripts; its countdown script has it
off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.losses.reduce import Reduction, keep
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps, old_logp
from mmrl.types import Batch, Now, Scores, Shaped


@dataclass(frozen=True)
class ROVER(Objective):
    """The policy's loss as a Bellman regression."""

    rho: float = 1.0
    """Temperature of the values: Q in units of the log-ratio."""
    gamma: float = 1.0
    """Weight of what comes after the token."""
    scaled: bool = True
    """Divide the centred rewards by the deviation of their group."""

    reductions: ClassVar[Mapping[str, Reduction]] = {"rover": "token"}
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = None

    def __post_init__(self) -> None:
        require(
            self,
            rho=(self.rho > 0, "positive"),
            gamma=(0 <= self.gamma <= 1, "in [0, 1]"),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The centred reward takes the place of the advantage, the regression that of the surrogate."""
        return "estimator", "surrogate"

    def traits(self) -> tuple[str, ...]:
        """Values of now and then are at one temperature."""
        return ("reads one temperature",)

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """The mean over the vocabulary, of now and of the policy that sampled."""
        return (ScoreRequest("raw", vocabulary_mean=self.gamma > 0),)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """r̃ on every trained token."""
        estimate = group_normalized if self.scaled else group_centered
        centred = estimate(batch.reward, batch.group, batch.mask)  # [B]
        return Shaped(centred[:, None].to(advantage) * batch.mask)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The squared distance to the target."""
        value, target = self.values(live, batch)
        return {"rover": (value - target).square()}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Value, target, and how far the values of what follows have moved."""
        value, target = self.values(live, batch)
        return {"value": value, "target": target, "ahead": target - batch.advantage}

    def values(self, live: LiveScores, batch: Batch) -> tuple[Tensor, Tensor]:
        """(Q, target), each [B, T], 0 where nothing is trained; gradient only through Q."""
        raw = live["raw"]
        mask = batch.mask
        ratio = keep(raw.logp, mask) - keep(old_logp(live, batch), mask)
        ahead = torch.zeros_like(ratio)
        if self.gamma > 0:
            # With one update nothing is stored: the policy itself is the old one, and nothing has moved.
            moved = _mean(raw).detach() - _mean(batch.scores.get("raw", raw.detach()))
            ahead = following(moved, mask)
        target = batch.advantage + self.rho * self.gamma * ahead
        return self.rho * ratio, keep(target, mask)


def following(values: Tensor, mask: Tensor) -> Tensor:
    """Of each token the value at the next one, 0 if that is not trained; [B, T] -> [B, T]."""
    shifted = torch.roll(keep(values, mask), -1, dims=1)
    shifted[:, -1:] = 0.0  # rolled round from the first token
    return keep(shifted, mask)


def _mean(scores: Scores) -> Tensor:
    if scores.vocabulary_mean is None:
        raise ValueError(
            "ROVER reads the mean log-prob over the vocabulary, but the raw view was scored without; score it with "
            "ScoreOutputs(vocabulary_mean=True)."
        )
    return scores.vocabulary_mean
