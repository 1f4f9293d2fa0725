"""CANON, conditional advantage estimation: a number of each answer matters, without saying in which direction.

A group is sorted by a number of its answers, for example their lengths; the lower half L is its first ⌊n/2⌋ answers,
the upper half H the rest. Each answer is compared with the other half (inter) and with its own (intra):

    A = inter·(R - mean of the other half) + (1 - inter)·(R - mean of the own half)

so that the half that is paid better wins as a whole. No deviation. `alpha` < 1 takes a side after all: in the first
bracket rewards of the half that is not `favoured` are multiplied by it. With inter = ½, alpha = 1 and an even n this is
Dr. GRPO.

The number (`by`), always that of the policy that sampled:

    length    trained tokens                       entropy   mean entropy over the vocabulary
    visual    mean KL(raw‖masked) of the tokens: how much the answer depends on the picture (ours)
    part      the reward part of this name, paid or not (ours)

How much weighs what, over the run (`schedule`):

    constant  inter
    accuracy  mean reward of the batch: while little is right, halves are compared within
    cosine    1 - w, w rising to 0.6 in 30 steps, then falling to 0 by a cosine, three times until step 150

The method goes with GRPO(reduction="constant", length_constant=8192), without a KL.

Degenerate groups: an answer alone gets 0, or its reward with `alone="reward"`; equal rewards give exactly 0 if alpha is
1; an answer whose reward or number is not available is in no half and gets 0; one without trained tokens has length,
entropy and dependence 0. Equal numbers keep the order of the answers.

Departures
1. An answer alone gets its reward in the official code, as both means are 0 there.
2. The code ignores alpha where the weight follows the accuracy; here it counts under every schedule.
3. The code has alpha on the side of long answers, and of small entropy, in two functions; here `favoured` says it.
4. Behind the last cosine w stays at 0; `reversed` exchanges the two weights, as its variant does.
5. The code divides each advantage by 8,192; here that is the reduction.

Source: github.com/biuboomc/CANON @ 7d6f814fb71f, verl/trainer/ppo/core_algos.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import Objective, ScoreRequest, on_tokens
from mmrl.types import Batch, Now, Shaped

Half = Literal["low", "high"]
Alone = Literal["zero", "reward"]


@dataclass(frozen=True)
class CANON(Objective):
    """Comparison of the two halves of a group, sorted by a number of each answer."""

    by: Literal["length", "entropy", "visual", "part", "nothing"] = "length"
    """The number that sorts a group; "nothing" leaves the estimator's advantage as it is."""
    part: str = ""
    """Name of the reward part that sorts a group, with by="part"."""
    inter: float = 1.0
    """Weight of the comparison with the other half (the paper's mu), in [0, 1]; with schedule "constant"."""
    alpha: float = 1.0
    """Factor on rewards of the half that is not favoured, in the comparison with the other half."""
    favoured: Half = "low"
    """Which half alpha spares: the lower one (short answers), or the upper one (large entropy)."""
    schedule: Literal["constant", "accuracy", "cosine"] = "constant"
    """How the weight goes: as `inter` says, with the batch's mean reward, or as cosines with restarts."""
    reversed: bool = False
    """Exchange the weights of the two comparisons."""
    alone: Alone = "zero"
    """An answer without others gets 0, or its reward (official code)."""
    masked: str = "masked"
    """Name of the masked visual branch, for by="visual"."""

    off: ClassVar[Mapping[str, Any] | None] = {"by": "nothing"}

    def __post_init__(self) -> None:
        require(
            self,
            inter=(0.0 <= self.inter <= 1.0, "a weight in [0, 1]"),
            alpha=(0.0 <= self.alpha <= 1.0, "in [0, 1]; `favoured` says which half it spares"),
            part=(
                bool(self.part) == (self.by == "part"),
                "the name of a reward part together with by='part', and empty otherwise",
            ),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage."""
        return () if self.by == "nothing" else ("estimator",)

    def traits(self) -> tuple[str, ...]:
        """A group's mean would take the difference of its halves away."""
        if self.by == "nothing":
            return ()
        return "undone by centring", "assumes independent rows"

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """What the number is made of, by the policy that sampled."""
        if self.by == "entropy":
            return (ScoreRequest("raw", "shape", entropy=True),)
        if self.by == "visual":
            masked = ScoreRequest(self.masked, "shape", divergence="forward")
            return ScoreRequest("raw", "shape"), masked
        return ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The advantage of each answer on its tokens. Logs the number, and the weight of the other half."""
        if self.by == "nothing":
            return Shaped(advantage)
        number = self.number(batch)
        inter = self.weight(batch.reward, now)
        own = conditional(
            batch.reward, number, batch.group, inter=inter, alpha=self.alpha,
            favoured=self.favoured, alone=self.alone,
        )  # fmt: skip
        spread = on_tokens(own, advantage)
        logged = {"number": on_tokens(number.nan_to_num(0.0), advantage), "inter": inter}
        return Shaped(keep(spread, batch.mask), logged)

    def number(self, batch: Batch) -> Tensor:
        """What sorts each answer, float64 [B]; NaN where it is not available."""
        if self.by == "part":
            told = [self._paid(rollout.parts) for rollout in batch.rollouts]
            return torch.tensor(told, dtype=torch.float64, device=batch.reward.device)
        if self.by == "length":
            return batch.mask.sum(-1).double()
        name, kind = ("raw", "entropy") if self.by == "entropy" else (self.masked, "divergence")
        per_token = getattr(batch.scores[name], kind)
        if per_token is None:
            raise ValueError(
                f"CANON.by is {self.by!r}, but branch {name!r} was scored without {kind}; the trainer scores it if "
                "the objective is in its list."
            )
        known = keep(per_token.double(), batch.mask)
        return answer_mean(known, batch.mask).squeeze(-1)

    def weight(self, reward: Tensor, now: Now) -> float:
        """Weight of the comparison with the other half, now; rewards of the whole batch, [B]."""
        weight = self.inter
        if self.schedule == "accuracy":
            known = reward[~reward.isnan()].double()
            # Rewards beyond [0, 1] would make a comparison count negatively.
            weight = min(max(float(known.mean()), 0.0), 1.0) if len(known) else 0.0
        if self.schedule == "cosine":
            weight = 1.0 - restarted(now.step)
        return 1.0 - weight if self.reversed else weight

    def _paid(self, parts: Mapping[str, float | None]) -> float:
        if self.part not in parts:
            raise ValueError(
                f"CANON.part is {self.part!r}, but the answers were paid {sorted(parts)}; set --canon.part to one of "
                "them (a part of weight 0 is told and not paid)."
            )
        value = parts[self.part]
        return math.nan if value is None else float(value)


def conditional(
    reward: Tensor, number: Tensor, group: Tensor, *, inter: float, alpha: float = 1.0,
    favoured: Half = "low", alone: Alone = "zero",
) -> Tensor:  # fmt: skip
    """Advantages by halves; reward, number, group [B] -> float64 [B]. NaN in reward or number: in no half, gets 0."""
    out = torch.zeros(len(reward), dtype=torch.float64, device=reward.device)
    known = ~(reward.isnan() | number.isnan())
    for label in group.unique():
        rows = ((group == label) & known).nonzero().squeeze(-1)
        # Stable, so that equal numbers keep the order of the answers.
        ranked = rows[number[rows].argsort(stable=True)]
        out[ranked] = _of_ranked(reward[ranked].double(), inter, alpha, favoured, alone)
    return out


def _of_ranked(own: Tensor, inter: float, alpha: float, favoured: Half, alone: Alone) -> Tensor:
    """Advantages of a group whose rewards [n] are sorted by their number; float64 [n]."""
    if len(own) < 2:
        return own if alone == "reward" else torch.zeros_like(own)
    if alpha == 1.0 and bool((own == own[0]).all()):  # exactly 0, whatever rounding leaves
        return torch.zeros_like(own)
    middle = len(own) // 2
    low, high = own[:middle], own[middle:]
    of_low, of_high = (1.0, alpha) if favoured == "low" else (alpha, 1.0)
    # In this bracket both halves are worth what alpha leaves of them.
    worth_low, worth_high = of_low * low, of_high * high
    low_ahead = worth_low - worth_high.mean()
    high_ahead = worth_high - worth_low.mean()
    across = torch.cat([low_ahead, high_ahead])
    within = torch.cat([low - low.mean(), high - high.mean()])
    return inter * across + (1.0 - inter) * within


def restarted(
    step: int, *, total: int = 150, top: float = 0.6, low: float = 0.0, warmup: int = 30, cycles: int = 3
) -> float:  # fmt: skip
    """Weight of the own half: a line up to `top`, then `cycles` half cosines to `low`, which stays from `total` on."""
    if step < warmup:
        return top * (step + 1) / warmup
    if step >= total:
        return low
    length = (total - warmup) / cycles
    share = ((step - warmup) % length) / length
    height = 1.0 + math.cos(math.pi * share)  # 2 where a cycle starts, 0 where it ends
    return low + (top - low) * 0.5 * height
