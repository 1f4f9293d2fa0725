"""Engine mismatch: the sampler's probabilities are not quite those that the trainer computes for the same weights.

ℓ_s comes from the generation engine (other kernels, other precision), ℓ_o from the trainer. The PPO ratio corrects
from ℓ_o to the current policy; what is missing from ℓ_s to ℓ_o is the weight w = exp(ℓ_o - ℓ_s) of each token, or the
product over an answer. Untruncated it has huge variance, therefore:

    truncated_weight  min(w, cap)               truncated importance sampling (TIS)
    masked_weight     w where w ≤ cap, else 0   (TRL's "*_mask"; optional lower bound)
    rejected          drop tokens or whole answers by a divergence statistic: it changes the mask, not the weight

Weights multiply the policy loss only, never KL terms or objectives. All tensors [B, T]; everything is detached.

Departures: the log-ratio is clamped to ±20 (verl; TRL does not clamp). Normalising the weights to mean 1 (verl option)
needs the whole batch: call `normalized_weight` before the batch is split, or the outcome depends on the split.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmrl.losses.reduce import keep
from mmrl.losses.surrogates import LOG_RATIO_MAX, bounded_ratio

Level = Literal["token", "sequence"]
Statistic = Literal["k1", "k2", "k3"]
Over = Literal["token", "sum", "mean", "max"]


def importance(old: Tensor, sampler: Tensor, mask: Tensor, *, level: Level = "token") -> Tensor:
    """exp(old - sampler) per token, or of the sum over the answer repeated on its tokens; 0 on padding; [B, T]."""
    log_ratio = _log_ratio(old, sampler, mask)
    if level == "sequence":
        # Summed before the exponential: the product of many ratios may overflow, a sum is clamped.
        log_ratio = log_ratio.sum(-1, keepdim=True).expand(mask.shape)
    return keep(bounded_ratio(log_ratio), mask)


def truncated_weight(weight: Tensor, *, cap: float) -> Tensor:
    """min(weight, cap)."""
    return weight.clamp(max=cap)


def masked_weight(weight: Tensor, *, cap: float, floor: float = 0.0) -> Tensor:
    """The weight inside [floor, cap], 0 outside."""
    inside = (weight <= cap) & (weight >= floor)
    return torch.where(inside, weight, 0.0)


def normalized_weight(weight: Tensor, mask: Tensor, *, level: Level = "token") -> Tensor:
    """Weights divided by their mean over the tokens, or over the answers; give it the whole batch; [B, T]."""
    on = mask.bool()
    if level == "token":
        mean = keep(weight, on).sum() / on.sum().clamp(min=1)
    else:
        lengths = on.sum(-1)  # [B]
        per_answer = keep(weight, on).sum(-1) / lengths.clamp(min=1)
        # An answer without trained tokens has no weight: it must not pull the mean down.
        answers = (lengths > 0).sum().clamp(min=1)
        mean = per_answer.sum() / answers
    # All weights may vanish, where the engine is far off: then nothing can be scaled up.
    return weight / mean if mean > 1e-8 else weight


def rejected(
    old: Tensor,
    sampler: Tensor,
    mask: Tensor,
    *,
    statistic: Statistic = "k3",
    over: Over = "token",
    high: float,
    low: float | None = None,
) -> Tensor:
    """The mask without the tokens (`over="token"`) or answers whose statistic is out of bounds; bool [B, T].

    With r = old - sampler per token: k1 = r, k2 = r²/2, k3 = exp(r) - r - 1, summed, averaged or maximised over the
    trained tokens of the answer. k2 and k3 are dropped above `high`. k1 is signed, its bounds are ratios (as in verl):
    kept if log(low) ≤ k1 ≤ log(high); `low` defaults to 1 / high.
    """
    on = mask.bool()
    value = keep(_statistic(_log_ratio(old, sampler, mask), statistic), on)  # [B, T]
    if over != "token":
        value = _over_answer(value, on, over)  # [B, 1]
    if statistic == "k1":
        # Its bounds are given as ratios and the value is a log-ratio: signed, hence a lower bound too.
        low = 1.0 / high if low is None else low
        return on & (value >= math.log(low)) & (value <= math.log(high))
    return on & (value <= high)


def _statistic(log_ratio: Tensor, statistic: Statistic) -> Tensor:
    """k1, k2 or k3 of each token; [B, T]."""
    if statistic == "k1":
        return log_ratio
    if statistic == "k2":
        return 0.5 * log_ratio.square()
    # expm1 keeps precision where engine and trainer nearly agree, which is the usual case.
    return torch.expm1(log_ratio) - log_ratio


def _over_answer(value: Tensor, on: Tensor, over: Over) -> Tensor:
    """Sum, mean or maximum over the trained tokens of each answer; `value` is 0 elsewhere; [B, 1]."""
    if over == "max":
        # k1 may be negative on all tokens, so the zeros of the padding must not win.
        return torch.where(on, value, -torch.inf).amax(-1, keepdim=True)
    total = value.sum(-1, keepdim=True)
    if over == "sum":
        return total
    return total / on.sum(-1, keepdim=True).clamp(min=1)


def _log_ratio(old: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    """old - sampler without gradient, clamped to ±20, 0 on padding; [B, T]."""
    # Masked before the difference: -inf - (-inf) on padding would be NaN.
    log_ratio = keep(old, mask) - keep(sampler, mask)
    return log_ratio.detach().clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)
