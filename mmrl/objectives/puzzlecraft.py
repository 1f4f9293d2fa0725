"""PuzzleCraft (arXiv 2512.14944, section 3.2): a group counts by how hard and how undecided its prompt is.

    w = scale · d · (1 - d) · d_pi^gamma            scale = 4, gamma = 1/2
    d     mean reward of the G answers to the prompt, in [0, 1]
    d_pi  dispersion of their solutions: normalised entropy -Σ p̂ ln p̂ / ln K for K options, (M - 1)/(G - 1) with M
          distinct solutions for orders and other large answer spaces

The whole group's advantage is multiplied by w, which carries no gradient and is not renormalised over the batch. Pair
it with advantages r - mean(r) (`group_centered`) and the "sequence" reduction, as the paper does.

What an answer's solution is, and how many options there are, is the task's business: `reading(solution)` names the
function. Without it an answer's text is its solution, and K is `Prompt.extra["options"]` (None: no fixed options).

Departures
1. Where the paper is silent: unreadable answers (solution "invalid") share one key in the count of distinct solutions,
   and are left out of p̂ but count in G; d_pi is 0 if K or G is 1; rewards are clipped to [0, 1]; an unavailable reward
   is left out of d; a tiny negative w is 0.
2. `influence` is ours: the factor is 1 - influence + influence · w, so that 0 is plain GRPO, bit for bit.
3. GRPO-CARE, which the paper's main run adds, is not offered.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Now, Rollout, Shaped

INVALID = "invalid"
"""The solution of an answer that cannot be read."""


def answer_text(rollout: Rollout) -> Hashable:
    """The text of an answer, as its solution."""
    return rollout.text.strip() or INVALID


@dataclass(frozen=True)
class PuzzleCraft(Objective):
    """Weight each group by difficulty and by dispersion of its solutions."""

    scale: float = 4.0
    """λ: makes the weight 1 at d = 1/2 and full dispersion."""
    gamma: float = 0.5
    """Exponent of the dispersion."""
    influence: float = 1.0
    """1 is the paper; 0 leaves GRPO as it is."""
    solution: Callable[[Rollout], Hashable] = answer_text
    """What counts as an answer's solution; INVALID where it cannot be read."""

    off: ClassVar[Mapping[str, Any]] = {"influence": 0.0}

    def __post_init__(self) -> None:
        only = "0 (dispersion only switches off groups of one mind) or positive"
        require(
            self,
            scale=(self.scale > 0, "positive"),
            gamma=(self.gamma >= 0, only),
            influence=(0 <= self.influence <= 1, "in [0, 1]"),
        )

    def reading(self, solution: Callable[[Rollout], Hashable]) -> PuzzleCraft:
        """The same numbers, with this function from an answer to its solution."""
        return replace(self, solution=solution)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The advantage times its group's factor.

        Logs means over groups of d, d_pi and w, quartiles of w, and the share of groups that do not count.
        """
        if self.influence == 0:
            return Shaped(advantage)
        groups = self.groups(batch)
        weights = _spread(groups, len(batch)).to(advantage)
        factor = 1.0 - self.influence + self.influence * weights
        # Not renormalised: a batch of settled groups is meant to teach little.
        return Shaped(advantage * factor.unsqueeze(-1), logged=_summary(groups))

    def weights(self, batch: Batch) -> Tensor:
        """w of each answer's group; float64 [B]."""
        return _spread(self.groups(batch), len(batch))

    def groups(self, batch: Batch) -> list[Weighed]:
        """Every group with its numbers, in order of appearance."""
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(batch.group.tolist()):
            rows.setdefault(number, []).append(row)
        return [self._weighed(batch, group) for group in rows.values()]

    def _weighed(self, batch: Batch, rows: list[int]) -> Weighed:
        answers = [batch.rollouts[row] for row in rows]
        hard = difficulty(batch.reward[rows])
        solutions = [self.solution(answer) for answer in answers]
        options = answers[0].prompt.extra.get("options")  # of one group, hence of one prompt
        apart = dispersion(solutions, options)
        weight = 0.0
        if apart:  # 0 to the power 0 would be 1, for a group of one mind
            weight = max(0.0, self.scale * hard * (1.0 - hard) * apart**self.gamma)
        return Weighed(rows, hard, apart, weight)


@dataclass(frozen=True)
class Weighed:
    """A group and its numbers."""

    rows: list[int]
    """Rows of its answers in the batch."""
    difficulty: float
    """d, in [0, 1]."""
    dispersion: float
    """d_pi, in [0, 1]."""
    weight: float
    """w, at least 0."""


def _spread(groups: Sequence[Weighed], count: int) -> Tensor:
    """The weight of each answer's group; float64 [B]."""
    # In float64 until the last product, as the formula's golden values are.
    out = torch.zeros(count, dtype=torch.float64)
    for group in groups:
        out[group.rows] = group.weight
    return out


def _summary(groups: Sequence[Weighed]) -> dict[str, float]:
    """The numbers of a step, for the log."""
    weights = [group.weight for group in groups]
    quarters = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    quartiles = torch.quantile(torch.tensor(weights, dtype=torch.float64), quarters)
    low, middle, high = quartiles.tolist()
    count = len(groups)
    return {
        "difficulty": sum(group.difficulty for group in groups) / count,
        "dispersion": sum(group.dispersion for group in groups) / count,
        "weight": sum(weights) / count,
        "weight_quarter": low,
        "weight_half": middle,
        "weight_three_quarters": high,
        "silent": sum(weight == 0.0 for weight in weights) / count,
    }


def difficulty(reward: Tensor) -> float:
    """Mean of the known rewards [G], each clipped to [0, 1]; 0 if none is known."""
    known = reward[~reward.isnan()]
    if not len(known):
        return 0.0
    return float(known.double().clamp(0.0, 1.0).mean())


def dispersion(solutions: Sequence[Hashable], options: int | None = None) -> float:
    """d_pi in [0, 1]; `options` is None for orders and other large answer spaces."""
    group = len(solutions)
    if group < 2 or (options is not None and options < 2):
        return 0.0
    counts = Counter(solutions)
    if options is None:
        return (len(counts) - 1) / (group - 1)
    counts.pop(
        INVALID, None
    )  # what nobody can read is no opinion, but it stays in the size of the group
    shares = [count / group for count in counts.values()]
    entropy = -sum(share * math.log(share) for share in shares)
    return max(0.0, entropy / math.log(options))
