"""SEELE (arXiv 2509.06923): hints as long as it takes for half of a question's answers to be right.

An answer begins with the first share p of the row's worked solution, which the policy goes on from. How long the hints
of a question are, is found in rounds: after each, a curve of item-response theory goes through what was seen of it

    acc(p) = 1 / (1 + e^(-k·(p - b)))                 k its slope, b the share with which half of the answers are right
    next p = b + log(target / (1 - target)) / k       cut to [0, most]

because a step lowers the loss most where a(1 - a) is largest. k and b minimise

    Σ over rounds n·(a - acc(p))² / ¼  +  ((k - 8) / 8)²  +  ((b - ½) / ½)²       k in [1, 30], b in [-½, 1½]

    own token     Â = R - μ of the answers of its question with as long a hint, over σ if `scaled`
    hint's token  -weight·log π, and no advantage

Rounds, hints and their memory are the rollout function's (`mmrl.rollouts.seele`), which reads this record.

Degenerate groups: groups without hints keep the advantage of the estimator, bit for bit. An answer that is alone with
its length of hint gets 0; the rollout function asks for two at least.

What is the paper's and what is ours: the paper's code could not be had. From the paper are the prefix of the solution
that is set to half of the answers, the logistic curve in several rounds, and the supervised loss on hint tokens. Ours
are the least squares above and its numbers, four rounds, the weight of 0.1, and that the guessing floor of the curve is
0. Answers are compared with those of as long a hint because a mean over all would pay long hints, not good answers.
Hint tokens count among the tokens that losses are divided by, as teachers' do in `mmrl.objectives.rl_plus`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.losses.reduce import keep
from mmrl.objectives.base import HINTS, AnswerKind, LiveScores, Objective, TokenMaps
from mmrl.types import Batch, Now, Role, Shaped

SLOPES = torch.linspace(1.0, 30.0, 59, dtype=torch.float64)
PLACES = torch.linspace(-0.5, 1.5, 81, dtype=torch.float64)
"""Slopes k and places b that a curve may have: few enough to try them all."""
USUAL_SLOPE, USUAL_PLACE = 8.0, 0.5
"""What a curve is taken for before anything is known of it."""
SLOPE_SPREAD, PLACE_SPREAD = 8.0, 0.5
"""How far it may well be from that."""


@dataclass(frozen=True)
class Tried:
    """What was seen of a question in one round."""

    rate: float
    """Share of the solution that was given."""
    accuracy: float
    """Share of right answers."""
    answers: int


@dataclass(frozen=True)
class SEELE(Objective):
    """Hints that are fitted to what the policy can do."""

    rounds: int = 4
    """Rounds in which a question's answers are asked for, each with the hint that the rounds before suggest."""
    start: float = 0.5
    """Share of the solution that is given to a question which was never asked before."""
    target: float = 0.5
    """Share of right answers that hints are fitted to."""
    most: float = 0.95
    """Largest share of the solution that is given; 0: no hints, plain GRPO."""
    weight: float = 0.1
    """Factor on the supervised loss of hint tokens."""
    scaled: bool = False
    """Divide by the deviation of the answers with as long a hint."""

    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY, Role.HINT)
    off: ClassVar[Mapping[str, Any] | None] = {"most": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            rounds=(1 <= self.rounds <= 64, "1 to 64"),
            start=(0 <= self.start <= 1, "in [0, 1]"),
            target=(0 < self.target < 1, "strictly between 0 and 1"),
            most=(
                0 <= self.most < 1,
                "0 (no hints) or below 1: a whole solution leaves nothing to do",
            ),
            weight=(self.weight >= 0, "0 (hints are only read) or positive"),
        )

    @property
    def is_on(self) -> bool:
        """Are there hints?"""
        return self.most > 0

    def owns(self) -> tuple[Slot, ...]:
        """The advantage of groups that have hints."""
        return ("estimator",) if self.is_on else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Answers that begin with hints."""
        return (HINTS,) if self.is_on else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Everybody against the answers with as long a hint; hint tokens are left to the term."""
        if not self.is_on:
            return Shaped(advantage)
        hints = batch.roles == Role.HINT
        alike = with_equal_hints(batch.group, hints)
        estimator = group_normalized if self.scaled else group_centered
        own = estimator(batch.reward, alike, batch.mask).to(advantage).unsqueeze(-1)
        hinted = torch.isin(batch.group, batch.group[hints.any(1)]).unsqueeze(-1)
        # By selection, so that groups without hints stay as they are, to the bit.
        found = torch.where(hinted, keep(own.expand(hints.shape), batch.mask), advantage)
        logged = {} if batch.correct is None else {"missed": self._missed(batch.correct, alike)}
        return Shaped(torch.where(hints, 0.0, found), logged=logged)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The supervised loss of hint tokens."""
        if not self.is_on or self.weight == 0:
            return {}
        # Before anything is computed: what stands elsewhere may be no number.
        logp = keep(live["raw"].logp, batch.mask & (batch.roles == Role.HINT))
        return {"hints": -self.weight * logp}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Share of tokens that are hints', and their probability (0 on own tokens)."""
        if not self.is_on:
            return {}
        theirs = batch.mask & (batch.roles == Role.HINT)
        logp = live["raw"].logp
        maps = {"hints": torch.ones_like(logp), "probability": logp.exp()}
        return {name: keep(x, theirs) for name, x in maps.items()}

    def _missed(self, correct: Tensor, alike: Tensor) -> float:
        """How far the share of right answers is from the target, mean over questions and lengths of hints."""
        shares = [correct[alike == number].double().mean() for number in alike.unique()]
        return float(torch.stack([(share - self.target).abs() for share in shares]).mean())


def with_equal_hints(group: Tensor, hints: Tensor) -> Tensor:
    """Numbers long [B], equal for answers of a group with equally many hint tokens; group [B], hints bool [B, T]."""
    pairs = torch.stack([group, hints.sum(1).to(group)])
    return torch.unique(pairs, dim=1, return_inverse=True)[1]


def fitted_curve(tried: Sequence[Tried]) -> tuple[float, float]:
    """(k, b) of the curve through what was seen of a question; the usual one if nothing was."""
    slope, place = SLOPES[:, None], PLACES[None, :]
    cost = ((slope - USUAL_SLOPE) / SLOPE_SPREAD) ** 2
    cost = cost + ((place - USUAL_PLACE) / PLACE_SPREAD) ** 2
    for one in tried:
        away = one.accuracy - torch.sigmoid(slope * (one.rate - place))
        cost = (
            cost + one.answers * away.square() / 0.25
        )  # ¼: the largest variance of one answer
    best = divmod(int(cost.argmin()), len(PLACES))
    return float(SLOPES[best[0]]), float(PLACES[best[1]])


def next_rate(tried: Sequence[Tried], target: float, most: float) -> float:
    """The share of the solution with which `target` of the answers will be right, in [0, most]."""
    slope, place = fitted_curve(tried)
    return min(max(place + math.log(target / (1 - target)) / slope, 0.0), most)
