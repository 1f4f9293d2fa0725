"""PSR, NSR and W-REINFORCE (arXiv 2506.01347): what right and what wrong answers teach, weighed apart.

No statistics of the group: the advantage of every token of an answer is

    A = positive    if the answer is right
    A = -negative   if it is wrong

    PSR          positive 1, negative 0: right answers alone
    NSR          positive 0, negative 1: wrong answers alone
    W-REINFORCE  positive 0.1 (the paper's λ), negative 1

Answers of weight 0 leave the batch, so that the token mean runs over the others; an update that is left without
answers is skipped.

Departures
1. The official code asserts that every score is exactly 0 or 1; here right is what the rewards declare
   (`Rewards(correct=...)`), so that format parts, penalties and IoUs may be paid beside it.
2. The official code drops further rows until the rest can be divided among its processes; here none is lost.
3. Its weight in the loss (`positive_learning_weight` w, off by default) is not offered: over one batch it is
   positive = w.
4. An answer that nobody judged leaves the batch (the trainer's payment counts it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective, judged, on_tokens
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class NSR(Objective):
    """Weights of right and of wrong answers, without a baseline."""

    positive: float = 0.1
    """Advantage of a right answer (the paper's λ); 0 leaves right answers out."""
    negative: float = 1.0
    """A wrong answer has minus this; 0 leaves wrong answers out."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    off: ClassVar[None] = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(self.positive >= 0, "0 (left out) or positive"),
            negative=(self.negative >= 0, "0 (left out) or positive"),
        )
        if self.positive == self.negative == 0:
            raise ValueError(
                "NSR.positive and NSR.negative are both 0, so that every answer would be left out; set "
                "--nsr.positive or --nsr.negative above 0."
            )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage."""
        return ("estimator",)

    def traits(self) -> tuple[str, ...]:
        """Groups of one mind teach as well; a weight of 0 leaves answers out."""
        said = {
            "learns from all-right groups": self.positive > 0,
            "learns from all-wrong groups": self.negative > 0,
            "learns from some answers": not (self.positive > 0 and self.negative > 0),
        }
        return tuple(trait for trait, is_so in said.items() if is_so)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The weight of each answer on its tokens. Logs the share of answers that stay."""
        right = judged(self, batch)
        own, stays = weights(right, self.positive, self.negative)
        spread = keep(on_tokens(own, advantage), batch.mask)
        return Shaped(spread, {"kept": on_tokens(stays, advantage)}, trained=stays)


def weights(right: Tensor, positive: float, negative: float) -> tuple[Tensor, Tensor]:
    """Advantage of each answer, and whether it stays; right bool [B] -> float32 [B], bool [B]."""
    own = torch.where(right, positive, -negative)
    return own, own != 0
