"""DCPO (arXiv 2509.02333): clip bounds from each token's probability, advantages from all visits to a prompt.

Dynamic adaptive clipping (DAC). With q the probability of the token at sampling time its ratio is kept in

    [½ + ½·√max(1 - 4·eps_low / q, 0),  min(½ + ½·√(1 + 4·eps_high / q), cap)]

so that rare tokens may move far, and frequent ones little. Given to the surrogate: Bounded(clipped, dcpo.bounds).

Smooth advantage standardisation (SAS). The i-th visit to a prompt has the group statistics m, s (sample deviation), and
m̄, s̄ over its i-1 earlier visits. With n = i-1

    m_tot = (n·m̄ + m) / i,   s_tot² = [n·s̄² + s² + (n / i)·(m - m̄)²] / i
    A_new = (R - m) / s,  A_tot = (R - m_tot) / s_tot          (0 where the deviation is 0)
    A = of  (n·A_new + A_tot) / i  and  (A_new + n·A_tot) / i  the one of smaller absolute value

At the first visit this is the plain z-score without eps. A group that is all equal gets A_tot / i: it teaches, by what
is remembered. m_tot and s_tot are then remembered (`Visits`, the objective's memory).

"Only token mean" (OTM) is the reduction: GRPO(reduction="sequence"), or "sequence_sum".

Departures
1. OTM: of the two language versions of the README one averages each answer over its tokens, the other sums; the code
   averages over the tokens of a micro-batch, so that its loss depends on the split. Ours is the mean over answers of
   their token means, whatever the split.
2. The released script clips with 0.2 and 0.28; the paper's examples have 0.16 and 0.2, which are the defaults here.
3. The largest ratio is max(c, 10) with c the constant of the dual clip, in the code; here `cap` says it.
4. Counts are kept per prompt and visit; the code keeps them in the rows of its data and multiplies them per answer.
5. A group of one raises there; here it has no deviation of its own, and is compared with what is remembered.
6. At ties the second of the two is taken, as in the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class Past:
    """What is remembered of a prompt."""

    visits: int = 0
    """How often it was answered."""
    mean: float = 0.0
    """Mean reward over all visits."""
    std: float = 0.0
    """Deviation over all visits."""


@dataclass(frozen=True)
class DCPO(Objective):
    """Clip bounds of each token, and advantages over all visits to a prompt."""

    eps_low: float = 0.16
    """How far the ratio may fall, as 4·eps_low / q."""
    eps_high: float = 0.2
    """How far it may rise, as 4·eps_high / q."""
    cap: float = 10.0
    """Largest ratio of a rare token."""
    smooth: bool = True
    """Standardise over all visits to a prompt; off leaves the estimator's advantage as it is."""

    off: ClassVar[Mapping[str, Any]] = {"smooth": False}

    def __post_init__(self) -> None:
        require(
            self,
            eps_low=(self.eps_low >= 0, "0 or positive"),
            eps_high=(self.eps_high >= 0, "0 or positive"),
            cap=(self.cap >= 1, "at least 1"),
        )

    def bounds(self, old: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest ratio of each token, [B, T] each; for `Bounded`."""
        return dynamic_bounds(old, eps_low=self.eps_low, eps_high=self.eps_high, cap=self.cap)

    def remembers_prompts(self) -> bool:
        """The statistics of each, if advantages are standardised over visits."""
        return self.smooth

    def owns(self) -> tuple[Slot, ...]:
        """The advantage, if it is standardised over visits."""
        return ("estimator",) if self.smooth else ()

    def traits(self) -> tuple[str, ...]:
        """It remembers how groups fared."""
        return ("reads group statistics",) if self.smooth else ()

    def start_memory(self) -> Visits:
        """No prompt visited."""
        return Visits()

    def shape(
        self, advantage: Tensor, batch: Batch, now: Now, memory: Visits | None = None
    ) -> Shaped:
        """The advantage over all visits; each group of the batch is one visit, which the memory takes in.

        Logs the number of visits, and the share of answers that teach.
        """
        if not self.smooth:
            return Shaped(advantage)
        if memory is None:
            raise ValueError(
                "DCPO.shape got no memory; pass the one that start_memory() made for this run (the trainer does)."
            )
        own = torch.zeros(len(batch), dtype=torch.float64, device=batch.reward.device)
        visits = torch.ones_like(own)
        names = {
            number: r.prompt.id
            for number, r in zip(batch.group.tolist(), batch.rollouts, strict=True)
        }
        for (
            number,
            name,
        ) in names.items():  # a prompt that stands in two groups is visited twice
            rows = batch.group == number
            past = memory.past.get(name, Past())
            own[rows], after = smoothed(batch.reward[rows], past)
            memory.past[name] = after
            visits[rows] = max(after.visits, 1)
        spread = own.to(advantage.dtype).unsqueeze(-1).expand(batch.mask.shape)
        logged = {
            "visits": visits.to(advantage.dtype).unsqueeze(-1).expand(batch.mask.shape),
            "teaching": (spread != 0).to(advantage.dtype),
        }
        return Shaped(keep(spread, batch.mask), logged)


class Visits:
    """Mean and deviation of the rewards of every prompt met so far."""

    def __init__(self) -> None:
        self.past: dict[str, Past] = {}
        """Prompt id -> what is remembered."""

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {name: [past.visits, past.mean, past.std] for name, past in self.past.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.past = {
            name: Past(int(visits), float(mean), float(std))
            for name, (visits, mean, std) in state.items()
        }


def dynamic_bounds(
    old: Tensor, *, eps_low: float, eps_high: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Smallest and largest ratio of tokens with log-probs `old` at sampling time; same shape, at least float32."""
    q = old.to(torch.promote_types(old.dtype, torch.float32)).exp()
    # q may be 0 in float32: then the root is infinite, and the cap is what counts.
    low = (
        0.5 + 0.5 * (1.0 - 4.0 * eps_low / q).clamp(min=0.0).sqrt()
        if eps_low
        else torch.ones_like(q)
    )
    high = 0.5 + 0.5 * (1.0 + 4.0 * eps_high / q).sqrt() if eps_high else torch.ones_like(q)
    return low, high.clamp(max=cap)


def smoothed(reward: Tensor, past: Past) -> tuple[Tensor, Past]:
    """Advantages of one group [n] at its visit, float64 [n], and what is remembered of its prompt afterwards.

    NaN rewards (not available) are in no statistic and get 0; a group without any known reward is no visit.
    """
    known = ~reward.isnan()
    value = reward.double()[known]
    out = torch.zeros(len(reward), dtype=torch.float64, device=reward.device)
    if not len(value):
        return out, past
    # Equal rewards have deviation exactly 0, whatever rounding leaves.
    equal = bool((value == value[0]).all())
    mean = float(value[0]) if equal else float(value.mean())
    std = 0.0 if equal else float(value.std())
    after = merged(past, mean, std)
    new, total = _standard(value, mean, std), _standard(value, after.mean, after.std)
    earlier, visit = past.visits, after.visits
    by_new = (earlier * new + total) / visit
    by_total = (new + earlier * total) / visit
    out[known] = torch.where(by_new.abs() < by_total.abs(), by_new, by_total)
    return out, after


def merged(past: Past, mean: float, std: float) -> Past:
    """What is remembered after one more visit with these statistics."""
    earlier, visit = past.visits, past.visits + 1
    if not earlier:
        return Past(1, mean, std)
    apart = (earlier / visit) * (mean - past.mean) ** 2
    variance = (earlier * past.std**2 + std**2 + apart) / visit
    return Past(visit, (earlier * past.mean + mean) / visit, variance**0.5)


def _standard(value: Tensor, mean: float, std: float) -> Tensor:
    """(R - mean) / std, 0 where there is no deviation."""
    return (value - mean) / std if std > 0 else torch.zeros_like(value)
