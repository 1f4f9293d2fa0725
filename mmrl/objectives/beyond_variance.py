"""Beyond Variance: a hard question and an easy one at each update, and GRPO weighted by what is rare in them.

Which two: by the share p of G answers that are right, measured once before the run,

    hard   1/G ≤ p ≤ band/G          hardly solvable: what is rare is a right answer
    easy   1 - band/G ≤ p ≤ 1 - 1/G  almost safe: what is rare is a wrong answer

The rewards of right and wrong answers are +1 and -failure, and the advantage is their z-score

    scope="group"   in each question: at a rate p a right answer gets √((1 - p) / p)·√((G - 1) / G)
    scope="pair"    over the answers to both questions of a pair (ours)

times `right_on_hard` for right answers to hard questions, and `wrong_on_easy` for wrong ones to easy ones.

A group's z-score takes any map of two rewards away again, so that `failure` would change nothing with scope="group":
it is refused there. What the paper amplifies is the z-score of a rare answer; `failure` means something only where
statistics span both questions.

Degenerate groups (or pairs): of one mind 0 (exactly); an answer alone 0; one whose reward is NaN is in no statistic and
gets 0. A pair of which one question is missing is the other one alone.

Departures
1. Reconstructed from a review; there is no official code. It says the hard band is of low, non-zero rates: ours mirrors
   the easy one.
2. scope="pair" and both weights are ours; all of them are off by default.
3. Right is what the rewards declare, whatever else is paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective, judged, on_tokens
from mmrl.types import Batch, Now, Shaped

PAIR, SIDE = "pair", "side"
"""Columns of a row: the number of its pair, and "hard" or "easy"."""


@dataclass(frozen=True)
class BeyondVariance(Objective):
    """z-scores of right and wrong over a question or a pair of questions, weighted by what is rare."""

    scope: Literal["group", "pair", "off"] = "group"
    """Whose mean and deviation: each question's, or the pair's; "off" leaves the estimator's advantage as it is."""
    failure: float = 1.0
    """A wrong answer is paid minus this (λ_neg), a right one +1; other than 1 only with scope="pair"."""
    right_on_hard: float = 1.0
    """Factor on the advantage of right answers to hard questions."""
    wrong_on_easy: float = 1.0
    """Factor on the advantage of wrong answers to easy questions."""
    eps: float = 1e-6
    """Added to the deviation."""

    needs_correct: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any] | None] = {"scope": "off"}

    def __post_init__(self) -> None:
        require(
            self,
            failure=(self.failure >= 0, "0 or positive"),
            right_on_hard=(self.right_on_hard >= 0, "0 or positive"),
            wrong_on_easy=(self.wrong_on_easy >= 0, "0 or positive"),
            eps=(self.eps > 0, "positive"),
        )
        if self.scope == "group" and self.failure != 1.0:
            raise ValueError(
                f"BeyondVariance.failure is {self.failure:g} with scope 'group', but the z-score of each group takes "
                "any map of two rewards away again, so that it would change nothing; set --beyond-variance.scope pair, "
                "or weigh with --beyond-variance.right-on-hard and --beyond-variance.wrong-on-easy."
            )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage."""
        return () if self.scope == "off" else ("estimator",)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The weighted z-score. Logs the share of right answers to hard and to easy questions."""
        if self.scope == "off":
            return Shaped(advantage)
        right = judged(self, batch)
        sides = [rollout.prompt.extra.get(SIDE, "") for rollout in batch.rollouts]
        hard, easy = (_where(sides, name, right) for name in ("hard", "easy"))
        whose = self._pairs(batch) if self.scope == "pair" else batch.group
        paid = mapped(right, self.failure)
        paid = torch.where(batch.reward.isnan(), torch.nan, paid)
        own = group_normalized(paid, whose, batch.mask, eps=self.eps)
        own = torch.where(right & hard, own * self.right_on_hard, own)
        own = torch.where(~right & easy, own * self.wrong_on_easy, own)
        spread = on_tokens(own, advantage)
        logged = {
            f"right_on_{name}": float(right[rows].double().mean())
            for name, rows in (("hard", hard), ("easy", easy))
            if bool(rows.any())
        }
        return Shaped(keep(spread, batch.mask), logged)

    def _pairs(self, batch: Batch) -> Tensor:
        """Number of each answer's pair, [B]. Raises ValueError for rows without."""
        for rollout in batch.rollouts:
            if PAIR not in rollout.prompt.extra:
                raise ValueError(
                    f"BeyondVariance.scope is 'pair', but row {rollout.prompt.id} is in none; give the trainer "
                    f"prompts whose `extra` has {PAIR!r} (a number) and {SIDE!r} (hard or easy), as the recipe "
                    "beyond_variance does, or set --beyond-variance.scope group."
                )
        told = [int(rollout.prompt.extra[PAIR]) for rollout in batch.rollouts]
        return torch.tensor(told, device=batch.group.device)


def mapped(right: Tensor, failure: float) -> Tensor:
    """+1 for a right answer, -failure for a wrong one; bool [B] -> float64 [B]."""
    return torch.where(right, 1.0, -failure).double()


def hard_and_easy(
    right: Sequence[int], answers: Sequence[int], band: int
) -> tuple[list[int], list[int]]:
    """Places of hard questions, the hardest first, and of easy ones, the easiest first, from counts per question.

    `band` says how many of a question's answers may be of the rare kind, at least 1. Ties keep their order; a
    question that is rare in both ways (few answers, a wide band) is in both lists.
    """
    places = range(len(right))
    wrong = [count - good for good, count in zip(right, answers, strict=True)]
    mixed = [i for i in places if right[i] >= 1 and wrong[i] >= 1]
    hard = [i for i in mixed if right[i] <= band]
    easy = [i for i in mixed if wrong[i] <= band]
    hard.sort(key=lambda i: right[i] / answers[i])
    easy.sort(key=lambda i: wrong[i] / answers[i])
    return hard, easy


def _where(sides: Sequence[object], name: str, like: Tensor) -> Tensor:
    """Which answers are of this side, bool [B]."""
    return torch.tensor([side == name for side in sides], dtype=torch.bool, device=like.device)
