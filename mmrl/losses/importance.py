"""Engine mismatch: the sampler's probabilities are not quite those that the trainer computes for the same weights.

ℓ_s comes from the generation engine (other kernels, other precision), ℓ_o from the trainer. The PPO ratio corrects
from ℓ_o to the current policy; what is missing from ℓ_s to ℓ_o is the weight w = exp(ℓ_o - ℓ_s) of each token, or the
product over an answer. Untruncated it has huge variance, therefore:

    truncate  min(w, cap)         truncated importance sampling (TIS)
    mask      w where w ≤ cap, else 0   (TRL's "*_mask"; optional lower bound)
    reject    drop tokens or whole answers by a divergence statistic: `rejected` changes the mask, not the weight

Weights multiply the policy loss only, never KL terms or objectives. All tensors [B, T]; everything is detached.

Departures: the log-ratio is clamped to ±20 (verl; TRL does not clamp). Normalising the weights to mean 1 (verl option)
needs the whole batch: call `normalized` before the batch is split, or the outcome depends on the split.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmrl.losses.reduce import keep
from mmrl.losses.surrogates import bounded_ratio

Level = Literal["token", "sequence"]
Statistic = Literal["k1", "k2", "k3"]
Over = Literal["token", "sum", "mean", "max"]


def importance(old: Tensor, sampler: Tensor, mask: Tensor, *, level: Level = "token") -> Tensor:
    """exp(old - sampler) per token, or of the sum over the answer repeated on its tokens; 0 on padding; [B, T]."""
    log_ratio = _log_ratio(old, sampler, mask)
    if level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand(mask.shape)
    return keep(bounded_ratio(log_ratio), mask)


def truncated(weight: Tensor, *, cap: float) -> Tensor:
    """min(weight, cap)."""
    return weight.clamp(max=cap)


def masked(weight: Tensor, *, cap: float, floor: float = 0.0) -> Tensor:
    """The weight inside [floor, cap], 0 outside."""
    return torch.where((weight <= cap) & (weight >= floor), weight, 0.0)


def normalized(weight: Tensor, mask: Tensor, *, level: Level = "token") -> Tensor:
    """Weights divided by their mean over the tokens, or over the answers; give it the whole batch; [B, T]."""
    on = mask.bool()
    if level == "token":
        mean = keep(weight, on).sum() / on.sum().clamp(min=1)
    else:
        lengths = on.sum(-1)
        per_answer = keep(weight, on).sum(-1) / lengths.clamp(min=1)
        mean = per_answer.sum() / (lengths > 0).sum().clamp(min=1)
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
    if statistic == "k1":
        low = 1.0 / high if low is None else low
        bounds = (math.log(low), math.log(high))
    else:
        bounds = (-math.inf, high)
    log_ratio = _log_ratio(old, sampler, mask)
    value = {
        "k1": log_ratio,
        "k2": 0.5 * log_ratio.square(),
        "k3": torch.expm1(log_ratio) - log_ratio,
    }[statistic]
    value = keep(value, on)
    if over == "max":
        value = torch.where(on, value, -torch.inf).amax(-1, keepdim=True)
    elif over != "token":
        value = value.sum(-1, keepdim=True)
        value = value / on.sum(-1, keepdim=True).clamp(min=1) if over == "mean" else value
    return on & (value >= bounds[0]) & (value <= bounds[1])


def _log_ratio(old: Tensor, sampler: Tensor, mask: Tensor) -> Tensor:
    """old - sampler without gradient, clamped to ±20, 0 on padding; [B, T]."""
    return (keep(old, mask) - keep(sampler, mask)).detach().clamp(-20.0, 20.0)
