"""Advantages of groups in which some answers are teachers': all are compared with the policy's own.

Surrogates are for what the policy sampled. So the advantage is divided in two: that of own tokens, and the "lesson" of
teachers' tokens, which an objective puts into a term of its own. Groups without teachers keep what the estimator said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.losses.reduce import keep

EPS = 1e-6


def with_lessons(
    advantage: Tensor,
    reward: Tensor,
    group: Tensor,
    mask: Tensor,
    theirs: Tensor,
    *,
    scaled: bool = False,
) -> tuple[Tensor, Tensor]:
    """(advantage of own tokens, lesson of teachers'), each [B, T] and 0 on the other's tokens.

    advantage [B, T] of an estimator; reward, group long [B]; mask, theirs (teachers' tokens) bool [B, T].
    """
    foreign = theirs.any(1)
    own = compared_with_own(reward, group, foreign, scaled).to(advantage).unsqueeze(-1)
    guided = torch.isin(group, group[foreign]).unsqueeze(-1)
    # By selection, so that groups without teachers stay as they are, to the bit.
    found = torch.where(guided, keep(own.expand(mask.shape), mask), advantage)
    return divided(found, theirs)


def divided(advantage: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """The advantage of all tokens but `theirs`, and of theirs; all [B, T]."""
    return torch.where(theirs, 0.0, advantage), torch.where(theirs, advantage, 0.0)


def compared_with_own(reward: Tensor, group: Tensor, foreign: Tensor, scaled: bool) -> Tensor:
    """R - μ of each answer, over σ + 1e-6 if `scaled`; μ and σ of the answers of its group that are not `foreign`.

    Of fewer than two such answers μ is 0 and σ is 1, of equal ones σ is 1. Unknown rewards (NaN) are left out and get
    0. reward float [B], group long [B], foreign bool [B] -> float64 [B].
    """
    out = torch.zeros_like(reward, dtype=torch.float64)
    for number in group.unique():
        rows = group == number
        value = reward[rows].double()
        own = value[~foreign[rows] & ~value.isnan()]
        mean, spread = value.new_zeros(()), value.new_ones(())
        if len(own) > 1:
            # Rounding must not take the mean of equal rewards away from them.
            mean = own.mean().clamp(own.min(), own.max())
            spread = own.std() if own.max() > own.min() else spread
        away = (value - mean) / (spread + EPS) if scaled else value - mean
        out[rows] = torch.where(value.isnan(), 0.0, away)
    return out
