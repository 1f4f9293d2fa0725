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

import torch
from torch import Tensor

from mmrl.objectives.base import Objective
from mmrl.types import Batch, Now, Rollout, Scores

INVALID = "invalid"
"""The solution of an answer that cannot be read."""


@dataclass(frozen=True)
class PuzzleCraft(Objective):
    """Weight each group by difficulty and by dispersion of its solutions."""

    scale: float = 4.0
    """λ: makes the weight 1 at d = 1/2 and full dispersion."""
    gamma: float = 0.5
    """Exponent of the dispersion."""
    influence: float = 1.0
    """1 is the paper; 0 leaves GRPO as it is."""

    def __post_init__(self) -> None:
        allowed = {
            "scale": (self.scale > 0, "positive"),
            "gamma": (
                self.gamma >= 0,
                "0 (dispersion only switches off groups of one mind) or positive",
            ),
            "influence": (0 <= self.influence <= 1, "in [0, 1]"),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise ValueError(
                    f"PuzzleCraft.{name} is {getattr(self, name)}; it must be {rule}."
                )
        # The settings are frozen; what an answer's solution is, and the log, are not settings.
        object.__setattr__(self, "_solution", said)
        object.__setattr__(self, "_log", {})

    def reading(self, solution: Callable[[Rollout], Hashable]) -> PuzzleCraft:
        """The same numbers, with this function from an answer to its solution."""
        other = replace(self)
        object.__setattr__(other, "_solution", solution)
        return other

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Tensor:
        """The advantage times its group's factor; [B, T]."""
        if self.influence == 0:
            return advantage
        weights = self.weights(batch).to(advantage)
        factor = 1.0 - self.influence + self.influence * weights
        return advantage * factor.unsqueeze(-1)

    def weights(self, batch: Batch) -> Tensor:
        """w of each answer's group; float64 [B]."""
        solution = self.__dict__["_solution"]
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(batch.group.tolist()):
            rows.setdefault(number, []).append(row)
        out = torch.zeros(len(batch), dtype=torch.float64)
        difficulties, dispersions, weights = [], [], []
        for group in rows.values():
            answers = [batch.rollouts[row] for row in group]
            hard = difficulty(batch.reward[group])
            apart = dispersion(
                [solution(answer) for answer in answers], answers[0].prompt.extra.get("options")
            )
            weight = (
                max(0.0, self.scale * hard * (1.0 - hard) * apart**self.gamma) if apart else 0.0
            )
            out[group] = weight
            difficulties.append(hard)
            dispersions.append(apart)
            weights.append(weight)
        self._note(difficulty=difficulties, dispersion=dispersions, weight=weights)
        return out

    def metrics(self, live: Mapping[str, Scores], batch: Batch, now: Now) -> dict[str, Tensor]:
        """Means over groups of d, d_pi and w, quartiles of w, and the share of groups that do not count."""
        return {
            name: torch.full_like(batch.advantage, value)
            for name, value in self.__dict__["_log"].items()
        }

    def _note(
        self, *, difficulty: list[float], dispersion: list[float], weight: list[float]
    ) -> None:
        """Keep the numbers of this step for the log."""
        spread = torch.tensor(weight, dtype=torch.float64)
        low, middle, high = torch.quantile(
            spread, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        ).tolist()
        self.__dict__["_log"].update(
            difficulty=sum(difficulty) / len(difficulty),
            dispersion=sum(dispersion) / len(dispersion),
            weight=sum(weight) / len(weight),
            weight_quarter=low,
            weight_half=middle,
            weight_three_quarters=high,
            silent=sum(value == 0.0 for value in weight) / len(weight),
        )


def said(rollout: Rollout) -> Hashable:
    """The text of an answer, as its solution."""
    return rollout.text.strip() or INVALID


def difficulty(reward: Tensor) -> float:
    """Mean of the known rewards [G], each clipped to [0, 1]; 0 if none is known."""
    known = reward[~reward.isnan()].double().clamp(0.0, 1.0)
    return float(known.mean()) if len(known) else 0.0


def dispersion(solutions: Sequence[Hashable], options: int | None = None) -> float:
    """d_pi in [0, 1]; `options` is None for orders and other large answer spaces."""
    group = len(solutions)
    if group < 2 or (options is not None and options < 2):
        return 0.0
    counts = Counter(solutions)
    if options is None:
        return (len(counts) - 1) / (group - 1)
    shares = [count / group for solution, count in counts.items() if solution != INVALID]
    return max(0.0, -sum(share * math.log(share) for share in shares) / math.log(options))
