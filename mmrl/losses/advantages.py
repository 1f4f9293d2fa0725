"""Advantage estimators: how much better an answer was than expected.

One signature for all, so that `functools.partial` configures them and the trainer calls them blindly:

    estimator(reward, group, mask, **own numbers) -> float [B] (broadcast over tokens) or [B, T]

`reward` is [B], or token rewards [B, T] whose sum over the mask is the answer's reward (reward shaping by a KL, process
rewards). `group` long [B] are arbitrary numbers, equal for the answers of one prompt; groups may be ragged and in any
order. `mask` [B, T] marks trained tokens. R_i reward, μ and σ (unbiased) of the group, n its size.

    group_normalized              (R - μ) / (σ + eps)                              GRPO, arXiv 2402.03300
    group_centered                R - μ                                            Dr. GRPO, 2503.20783
    batch_normalized              (R - μ) / (σ of the batch + eps)                 TRL scale_rewards="batch"
    uncentred                     R                                                REINFORCE, Williams 1992
    rloo                          R - mean of the others = n / (n - 1) · (R - μ)   2402.14740
    reinforce_plus_plus           reward-to-go, whitened over all tokens           2501.03262
    reinforce_plus_plus_baseline  R - μ on every token, whitened over all tokens   2501.03262
    opo                           R - Σ|o|R / Σ|o|                                 2505.23585
    remax                         reward-to-go - R(greedy answer)                  2310.10505
    passk                         best answer only: (R₁ - R₂) / (σ + eps)          2503.19595
    gpg                           (answers / answers with R ≠ μ) · (R - μ)        2504.02546

Degenerate input, all finite: a group whose rewards are all equal gets exactly 0 (also where rounding makes R - μ tiny);
a group of one gets 0, or its reward with `alone="reward"`; `uncentred` gives both their rewards. A NaN reward (not
available) is left out of every statistic and gets 0; an answer without trained tokens weighs nothing in token
statistics. Statistics run in float64.

Departures
1. verl pays a group of one its whole reward (μ = 0, σ = 1), EasyR1 and PAPO raise: `alone` chooses, "zero" by default.
2. eps 1e-6 as verl, EasyR1 and PAPO; TRL and `batch_normalized` use 1e-4.
3. EasyR1 leaves non-zero values on padding after whitening; here padding is 0, as in verl.
4. verl resets the reward-to-go at every token that is not trained; here it passes through tool output inside an answer.
   Both agree when the mask has no holes.
5. EasyR1's ReMax and pass@k: the first raises at the inspected commit, verl's form is used; ties of the best give 0.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from mmrl.ground.traits import having
from mmrl.losses.reduce import keep

Alone = Literal["zero", "reward"]


class Estimator(Protocol):
    """(reward [B] or [B, T], group long [B], mask [B, T]) -> advantage [B] or [B, T]."""

    def __call__(self, reward: Tensor, group: Tensor, mask: Tensor, /) -> Tensor: ...


@having("centres groups", "z-scores groups")
def group_normalized(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-6, alone: Alone = "zero"
) -> Tensor:
    """(R - μ) / (σ + eps), unbiased σ of the group; -> [B]."""
    total = answer_reward(reward, mask)  # [B]
    centred, std, _ = _group_moments(total, group, alone)
    return _finished(centred / (std + eps), total)


@having("centres groups")
def group_centered(
    reward: Tensor, group: Tensor, mask: Tensor, *, alone: Alone = "zero"
) -> Tensor:
    """R - μ; -> [B]. Pair it with a constant length normaliser for Dr. GRPO."""
    total = answer_reward(reward, mask)  # [B]
    centred, _, _ = _group_moments(total, group, alone)
    return _finished(centred, total)


@having("centres groups", "z-scores the batch")
def batch_normalized(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-4, alone: Alone = "zero"
) -> Tensor:
    """(R - μ of the group) / (unbiased σ of all rewards of the batch + eps); -> [B]."""
    total = answer_reward(reward, mask)  # [B]
    known = total[~total.isnan()].double()
    # The unbiased σ of a single number is NaN; R - μ is 0 there, so any finite divisor will do.
    std = known.std() if len(known) > 1 else known.new_zeros(())
    centred, _, _ = _group_moments(total, group, alone)
    return _finished(centred / (std + eps), total)


def uncentred(reward: Tensor, group: Tensor, mask: Tensor) -> Tensor:
    """R itself, compared with nothing: a group of one and one of equal rewards get their rewards; -> [B]."""
    del group
    total = answer_reward(reward, mask)  # [B]
    return _finished(_known_or(0.0, total), total)


@having("centres groups")
def rloo(reward: Tensor, group: Tensor, mask: Tensor, *, alone: Alone = "zero") -> Tensor:
    """R - mean of the other answers of the group (leave one out); -> [B]."""
    total = answer_reward(reward, mask)  # [B]
    centred, _, size = _group_moments(total, group, alone)
    # Leaving R itself out of the mean only stretches R - μ, by n / (n - 1).
    others = (size - 1).clamp(min=1)
    stretch = torch.where(size > 1, size / others, 1.0)
    return _finished(centred * stretch, total)


@having("z-scores the batch")
def reinforce_plus_plus(
    reward: Tensor, group: Tensor, mask: Tensor, *, gamma: float = 1.0, eps: float = 1e-8
) -> Tensor:
    """Reward-to-go G_t = r_t + gamma·G_{t+1}, whitened over all trained tokens of the batch; -> [B, T].

    A reward [B] is paid on the last trained token. `group` is not used.
    """
    del group
    paid = token_reward(reward, mask)  # [B, T]
    returns = reward_to_go(paid, mask, gamma=gamma)
    return _whiten(returns, mask, eps).to(_advantage_type(reward))


@having("centres groups", "z-scores the batch")
def reinforce_plus_plus_baseline(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-8, alone: Alone = "zero"
) -> Tensor:
    """R - μ on every token, whitened over all trained tokens (long answers weigh more); -> [B, T]."""
    centred = group_centered(reward, group, mask, alone=alone).double()
    # An unknown reward came back as 0, which would count in the token statistics: NaN leaves it out.
    unknown = answer_reward(reward, mask).isnan()
    per_answer = torch.where(unknown, torch.nan, centred).unsqueeze(-1)  # [B, 1]
    return _whiten(per_answer.expand(mask.shape), mask, eps).to(_advantage_type(reward))


@having("centres groups")
def opo(reward: Tensor, group: Tensor, mask: Tensor, *, alone: Alone = "zero") -> Tensor:
    """R minus the length-weighted mean reward of the group (optimal baseline); -> [B]."""
    total = answer_reward(reward, mask)  # [B]
    index, size = _groups(total, group)
    value = _known_or(0.0, total)
    lengths = mask.bool().sum(-1).double()
    weights = torch.where(total.isnan(), 0.0, lengths)
    mass = _group_sum(weights, index)
    baseline = _group_sum(weights * value, index) / mass.clamp(min=1.0)
    # A group whose answers are all empty has no baseline and no token to train.
    without_signal = _all_equal(total, index) | (mass == 0)
    centred = torch.where(without_signal, 0.0, value - baseline)
    return _finished(_alone_replaced(centred, value, size, alone), total)


def remax(
    reward: Tensor, group: Tensor, mask: Tensor, *, baseline: Tensor, gamma: float = 1.0
) -> Tensor:
    """Reward-to-go minus the reward [B] of the greedy answer to the same prompt; -> [B, T]."""
    del group
    if baseline.shape != (mask.shape[0],):
        raise ValueError(
            f"remax got baseline of shape {tuple(baseline.shape)} for {mask.shape[0]} answers; give one greedy "
            "reward per answer, shape [B]."
        )
    returns = reward_to_go(token_reward(reward, mask), mask, gamma=gamma)
    lead = returns - baseline.double().unsqueeze(-1)  # [B, T]
    unknown = answer_reward(reward, mask).isnan() | baseline.isnan()
    advantage = torch.where(unknown.unsqueeze(-1), 0.0, lead)
    return keep(advantage, mask).to(_advantage_type(reward))


@having("centres groups", "z-scores groups")
def passk(
    reward: Tensor, group: Tensor, mask: Tensor, *, eps: float = 1e-6, alone: Alone = "zero"
) -> Tensor:
    """Only the best answer of a group learns: its lead over the second best, over σ + eps; ties give 0; -> [B]."""
    total = answer_reward(reward, mask)  # [B]
    _, std, size = _group_moments(total, group, alone)
    index, _ = _groups(total, group)
    value = _known_or(-torch.inf, total)
    best = _group_max(value, index)
    leads = value == best
    second = _group_max(torch.where(leads, -torch.inf, value), index)
    leaders = _group_sum(leads.double(), index)
    winner = leads & (leaders == 1) & (size > 1)
    # Where nobody wins both may be -inf, whose difference is NaN: subtract best from itself there.
    behind = torch.where(winner, second, best)
    lead = torch.where(winner, best - behind, 0.0)
    return _finished(_alone_replaced(lead / (std + eps), value, size, alone), total)


@having("centres groups")
def gpg(reward: Tensor, group: Tensor, mask: Tensor, *, alone: Alone = "zero") -> Tensor:
    """R - μ, scaled up by the share of answers that carry a signal; -> [B]."""
    total = answer_reward(reward, mask)  # [B]
    centred, _, _ = _group_moments(total, group, alone)
    known = ~total.isnan()
    signals = known & (centred != 0)
    scale = known.sum() / signals.sum().clamp(min=1)
    return _finished(centred * scale, total)


WITHIN_GROUPS = (group_normalized, group_centered, uncentred, rloo, opo, remax, passk)
"""Estimators that look at nothing but the answers of one group; all others must see the whole batch."""


def answer_reward(reward: Tensor, mask: Tensor) -> Tensor:
    """The reward of each answer: [B] as it is, token rewards [B, T] summed over the mask; -> [B]."""
    if reward.shape == mask.shape[:1]:
        return reward
    if reward.shape == mask.shape:
        return keep(reward, mask).sum(-1)
    raise ValueError(
        f"reward has shape {tuple(reward.shape)} and the mask {tuple(mask.shape)}; "
        f"give one reward per answer [B] or one per token [B, T]."
    )


def token_reward(reward: Tensor, mask: Tensor) -> Tensor:
    """A reward [B] put on the last trained token of each answer; token rewards [B, T] lose their padding; -> [B, T]."""
    if reward.shape == mask.shape:
        return keep(reward, mask)
    answer_reward(reward, mask)  # refuses any third shape
    on = mask.bool()
    steps = torch.arange(on.shape[1], device=on.device)
    last = torch.where(on, steps, -1).amax(-1, keepdim=True)  # [B, 1], -1 if none is trained
    return torch.where(steps == last, reward.unsqueeze(-1), 0.0)


def reward_to_go(reward: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """G_t = r_t + gamma·G_{t+1} on trained tokens, 0 on padding; token rewards [B, T] -> float64 [B, T].

    Tokens that are not trained neither earn nor discount: the reward of an answer reaches what came before them.
    """
    on = mask.bool()
    paid = keep(reward, on).double()
    running = paid.new_zeros(paid.shape[0])  # [B], G of the token to the right
    columns: list[Tensor] = []
    for t in reversed(range(paid.shape[1])):
        earned = paid[:, t] + gamma * running
        running = torch.where(on[:, t], earned, running)
        columns.append(running)
    if not columns:  # answers of length 0 cannot be stacked
        return paid
    returns = torch.stack(columns[::-1], dim=1)
    return keep(returns, on)


def _groups(total: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Group numbers as 0, 1, … [B], and the count of known rewards in each row's group, float64 [B]."""
    if group.shape != total.shape:
        raise ValueError(
            f"group has shape {tuple(group.shape)} for {len(total)} answers; give one number per answer."
        )
    index = torch.unique(group, return_inverse=True)[1]
    known = (~total.isnan()).double()
    return index, _group_sum(known, index)


def _group_sum(x: Tensor, index: Tensor) -> Tensor:
    """Sum of x [B] over each row's group, given back to every row; [B]."""
    # There are at most B groups, so [B] slots hold all sums.
    sums = x.new_zeros(len(x)).index_add(0, index, x)
    return sums[index]


def _group_max(x: Tensor, index: Tensor) -> Tensor:
    """Maximum of x [B] over each row's group, given back to every row; [B]."""
    lowest = torch.full_like(x, -torch.inf)
    return lowest.scatter_reduce(0, index, x, "amax")[index]


def _known_or(filler: float, total: Tensor) -> Tensor:
    """Rewards in float64, `filler` in place of those that are not available; [B]."""
    return torch.where(total.isnan(), filler, total.double())


def _all_equal(total: Tensor, index: Tensor) -> Tensor:
    """Are all known rewards of the row's group equal? bool [B]."""
    high = _group_max(_known_or(-torch.inf, total), index)
    low = -_group_max(_known_or(-torch.inf, -total), index)
    # "<=" rather than "==": a group without known rewards has high -inf and low +inf.
    return high <= low


def _alone_replaced(advantage: Tensor, value: Tensor, size: Tensor, alone: Alone) -> Tensor:
    """The advantage with groups of one replaced as `alone` says; [B]."""
    instead = value if alone == "reward" else 0.0
    return torch.where(size > 1, advantage, instead)


def _group_moments(total: Tensor, group: Tensor, alone: Alone) -> tuple[Tensor, Tensor, Tensor]:
    """R - μ, unbiased σ, size of each row's group, float64 [B]; groups of one: 0 or R, and σ = 1."""
    index, size = _groups(total, group)
    value = _known_or(0.0, total)
    mean = _group_sum(value, index) / size.clamp(min=1)
    # Equal rewards must give exactly 0: R - μ may be an ulp off and eps is small.
    without_signal = _all_equal(total, index) | total.isnan()
    centred = torch.where(without_signal, 0.0, value - mean)
    variance = _group_sum(centred.square(), index) / (size - 1).clamp(min=1)
    # σ = 1 for a group of one, so that `alone="reward"` pays R itself, not R / eps.
    std = torch.where(size > 1, variance.sqrt(), 1.0)
    return _alone_replaced(centred, value, size, alone), std, size


def _whiten(x: Tensor, mask: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(unbiased variance + eps) over the known tokens of the mask, 0 elsewhere; [B, T]."""
    on = mask.bool() & ~x.isnan()
    count = on.sum().clamp(min=1)
    mean = keep(x, on).sum() / count
    # Kept again: x - mean is -mean, not 0, on padding.
    centred = keep(x - mean, on)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    return centred * torch.rsqrt(variance + eps)


def _finished(advantage: Tensor, total: Tensor) -> Tensor:
    """Advantage [B] in the type of the rewards, 0 where the reward is not available."""
    known = torch.where(total.isnan(), 0.0, advantage)
    return known.to(_advantage_type(total))


def _advantage_type(reward: Tensor) -> torch.dtype:
    """The type of the advantage: that of the reward, float32 for integers and half precision."""
    precise = reward.dtype in (torch.float32, torch.float64)
    return reward.dtype if precise else torch.float32
