"""NGRPO (arXiv 2509.18851): a group is compared with answers of the largest reward that nobody gave. An estimator.

`virtual` rewards of `r_max` join the statistics of each group and are not trained:

    μ̃, σ̃ = mean and sample deviation of {R_1, …, R_n, r_max, …, r_max}
    A_i = (R_i - μ̃) / (σ̃ + eps)

So a group that is all wrong learns: with one virtual answer and rewards of 0 and 1 each of its n answers gets
-1 / √(n + 1). A group that is all right stays at exactly 0, a mixed one has a negative sum.

The other half of the method is a clip that lets right answers move further than wrong ones: GRPO(clip_low=0.16,
clip_high=0.24). Only the upper bound binds for A > 0, only the lower one for A < 0.

Departures
1. A group of one gets its reward as it is in the official code (mean 0, deviation 1); here it is compared with the
   virtual answers like any other. `alone="reward"` is the official way.
2. A reward above `r_max` would turn the sign of the method around; it is an error.
3. The official code leaves out groups that are all right and samples on; in a recipe that is DynamicSampling(low=-1).
   There surplus rows are cut, which may split a group; here whole groups are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.advantages import answer_reward, group_normalized

TOLERANCE = 1e-6
"""A sum of weighted parts may exceed its own maximum by rounding."""


@dataclass(frozen=True)
class NGRPO:
    """Statistics of each group with virtual answers of the largest reward."""

    r_max: float = 1.0
    """The largest total reward that an answer can earn, all parts together."""
    virtual: int = 1
    """Virtual answers per group; 0 is GRPO."""
    eps: float = 1e-6
    """Added to the deviation."""
    alone: Literal["virtual", "reward"] = "virtual"
    """A group of one is compared with the virtual answers, or gets its reward (official code)."""

    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any]] = {"virtual": 0}

    def __post_init__(self) -> None:
        require(
            self,
            virtual=(0 <= self.virtual <= 1024, "0 (off) to 1,024"),
            eps=(self.eps > 0, "positive"),
        )

    def traits(self) -> tuple[str, ...]:
        """All-wrong groups teach, by a mean that must stay negative."""
        if not self.virtual:
            return ("centres groups", "z-scores groups")
        # No "z-scores groups": a map of all rewards moves them against the virtual one.
        return (
            "learns from all-wrong groups",
            "undone by centring",
            "knows the largest reward",
        )

    def __call__(self, reward: Tensor, group: Tensor, mask: Tensor, /) -> Tensor:
        """(reward [B] or [B, T], group [B], mask [B, T]) -> advantage [B]; rewards that are not available get 0."""
        if not self.virtual:
            return group_normalized(reward, group, mask, eps=self.eps)
        # Token rewards hold more than what the parts can pay, for example a KL.
        if reward.ndim == 1:
            self._refuse_larger(reward)
        total = answer_reward(reward, mask)
        if group.shape != total.shape:
            raise ValueError(
                f"group has shape {tuple(group.shape)} for {len(total)} answers; give one number per answer."
            )
        value, out = total.double(), torch.zeros_like(total, dtype=torch.float64)
        for number in group.unique():
            rows = (group == number) & ~value.isnan()
            out[rows] = self._of_group(value[rows])
        precise = total.dtype in (torch.float32, torch.float64)
        return out.to(total.dtype if precise else torch.float32)

    def _of_group(self, own: Tensor) -> Tensor:
        """The advantages of a group's known rewards, float64 [n]."""
        if len(own) == 1 and self.alone == "reward":
            return own
        whole = torch.cat([own, own.new_full((self.virtual,), self.r_max)])
        if bool((whole == whole[0]).all()):  # exactly 0, whatever rounding leaves
            return torch.zeros_like(own)
        return (own - whole.mean()) / (whole.std() + self.eps)

    def _refuse_larger(self, reward: Tensor) -> None:
        known = reward[~reward.isnan()]
        if len(known) and float(known.max()) > self.r_max + TOLERANCE:
            raise ValueError(
                f"NGRPO.r_max is {self.r_max:g}, but an answer earned {float(known.max()):g}, more than the largest "
                "reward; set --ngrpo.r-max to the sum of the largest values of all parts times their weights."
            )
