"""What methods that train teachers' answers have in common: own answers set the mean, teachers' tokens have a term.

A group with teachers' answers is compared with its own answers alone, the teachers' against the same mean. The
surrogate is for what the policy sampled: it finds an advantage of 0 on teachers' tokens (role EXPERT), whose advantage
("lesson") goes into a term of the objective. Groups without teachers keep the advantage of the estimator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.losses.reduce import keep
from mmrl.objectives.base import on_tokens
from mmrl.types import Batch, Role, Shaped

EPS = 1e-6


def taught(advantage: Tensor, batch: Batch, weight: float, scaled: bool) -> Shaped:
    """The advantage of own tokens, and in `kept["lesson"]` that of teachers' times `weight`; each 0 on the others.

    At weight 0 teachers' answers leave the batch.
    """
    foreign = (batch.roles == Role.EXPERT).any(1)  # [B]
    own = compared_with_own(batch.reward, batch.group, foreign, scaled)
    guided = torch.isin(batch.group, batch.group[foreign])
    # By selection, so that groups without teachers stay as they are, to the bit.
    found = torch.where(guided[:, None], keep(on_tokens(own, advantage), batch.mask), advantage)
    rest, lesson = divided(found, batch.roles, weight)
    trained = ~foreign if weight == 0 else None
    return Shaped(rest, kept={"lesson": lesson}, trained=trained)


def divided(advantage: Tensor, roles: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """An advantage [B, T] as (that of all other tokens, that of teachers' tokens times `weight`)."""
    theirs = roles == Role.EXPERT
    return torch.where(theirs, 0.0, advantage), torch.where(theirs, weight * advantage, 0.0)


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


def of_teachers(logp: Tensor, batch: Batch) -> Tensor:
    """Log-probs of teachers' tokens and 0 elsewhere, before anything is computed of them; [B, T]."""
    return keep(logp, (batch.roles == Role.EXPERT) & batch.mask)


def teacher_metrics(logp: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Which of the trained tokens are teachers', and the policy's probability of these (0 on the others); [B, T]."""
    theirs = ((batch.roles == Role.EXPERT) & batch.mask).to(logp)
    return {"teachers": theirs, "probability": theirs * of_teachers(logp, batch).exp()}
