"""CAPO, generative credit assignment (arXiv 2508.02298): a language model names the wrong steps of an answer.

Each answer is read `critiques` times; each reading lists its wrong steps, and the vote says of each step how wrong it
is, w in [0, 1]. With r the reward of answer i, every token has a reward of its own

    R_t = whole·r_i - process·w(step of t)          w = 0 between steps
    A_t = (R_t - μ) / (σ + 1e-6)

μ and σ are of all trained tokens of the group; every answer weighs as much as any other, however long, and σ has n - 1
below it for n answers, so that A goes over into GRPO's as process goes to 0. With process < whole and r in {0, 1} a
right answer with wrong steps stays above a wrong one: 2, 1, 0, -1 with the paper's numbers.

    vote           w of a step that k of C readings call wrong
    intersection   1 where k = C
    majority       1 where k ≥ C / 2 and k > 0
    union          1 where k > 0
    average        k / C

`mmrl.rewards.critique` asks and reads, `mmrl.rollouts.capo` puts -w on the sampled tokens (`Rollout.valued`).

Degenerate groups: with equal R on all tokens A is 0. A group in which any answer has no critique keeps the advantage
that comes in, so that its answers are compared by the same rule. An answer whose reward is not available is in no
statistic and gets 0, and so it is with tokens that are not trained.

Departures (the repository andyclsr/CAPO holds no code; whole and process are confirmed second-hand)
1. How token rewards are normalised is a reviewer's description; the equal weight of answers and n - 1 are ours.
2. The paper's "greedy" is critiques=1 at temperature 0. The temperature of several readings is ours.
3. r is the whole reward of an answer, which is the verdict where accuracy alone is paid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.objectives.base import CRITIQUED, AnswerKind, Objective, on_tokens
from mmrl.types import Batch, Now, Rollout, Shaped

__all__ = ["CAPO", "Vote", "token_advantage", "token_reward", "voted"]

Vote = Literal["intersection", "majority", "union", "average"]
Readings = Sequence[Sequence[int]]
TRAITS = ("centres groups", "z-scores groups", "shapes the advantage")
EPS = 1e-6


@dataclass(frozen=True)
class CAPO(Objective):
    """What wrong steps cost, and how they are found."""

    whole: float = 2.0
    """Factor on the reward of an answer (W_whole)."""
    process: float = 1.0
    """What each token of a wrong step loses (W_process); 0 asks nobody."""
    critiques: int = 4
    """Readings of each answer (k)."""
    vote: Vote = "majority"
    """When a step counts as wrong: if all readings say so, half of them, or any; or by their share."""
    temperature: float = 1.0
    """Sampling temperature of the readings; with several of them above 0, or they would all be the same."""

    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any]] = {"process": 0.0}

    def __post_init__(self) -> None:
        several = self.critiques > 1
        require(
            self,
            whole=(0 < self.whole <= 1000, "above 0, at most 1,000"),
            process=(0 <= self.process <= 1000, "0 (off) to 1,000"),
            critiques=(1 <= self.critiques <= 1000, "1 to 1,000"),
            vote=(self.vote in get_args(Vote), f"one of {', '.join(get_args(Vote))}"),
            temperature=(
                0 <= self.temperature <= 100 and not (several and self.temperature == 0),
                "above 0 for several readings, at most 100",
            ),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage, which it makes anew from rewards of tokens."""
        return ("estimator",) if self.process > 0 else ()

    def traits(self) -> tuple[str, ...]:
        """It makes the advantage of each token, with the statistics of the group."""
        return TRAITS if self.process > 0 else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Answers whose steps were read."""
        return (CRITIQUED,) if self.process > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The advantage of each token in its group. Logs how wrong tokens are, and which groups were read."""
        if self.process == 0:
            return Shaped(advantage)
        known = batch.mask & ~batch.reward.isnan().unsqueeze(-1)
        wrong = torch.stack([_wrongness(one, known.shape[1]) for one in batch.rollouts])
        wrong = wrong.to(advantage.device)
        paid = token_reward(batch.reward, wrong, self.whole, self.process)
        told = [bool(one.valued) for one in batch.rollouts]
        read = torch.tensor(told, device=paid.device)
        there = known.any(-1)
        out, used = advantage.clone(), torch.zeros_like(read)
        for number in batch.group.unique():
            rows = batch.group == number
            # What is in no statistic needs no critique either.
            if bool(read[rows & there].all()):
                used |= rows
                found = token_advantage(paid[rows], known[rows])
                out[rows] = found.to(out.dtype)
        wrong = keep(wrong, known).to(out)
        return Shaped(out, {"wrong": wrong, "read": on_tokens(used, out)})


def voted(readings: Readings, steps: int, vote: Vote) -> list[float]:
    """w of each step, in [0, 1]. `readings`: numbers of wrong steps from 1, each reading's; others are ignored."""
    of = len(readings)
    # A reading that names a step twice has one vote.
    named = Counter(number for one in readings for number in set(one))
    counts = [named[number] for number in range(1, steps + 1)]
    if vote == "average":
        return [count / of for count in counts]
    least = {"intersection": of, "majority": of / 2, "union": 1}[vote]
    return [float(count > 0 and count >= least) for count in counts]


def token_reward(reward: Tensor, wrong: Tensor, whole: float, process: float) -> Tensor:
    """R of each token, float64 [B, T], of the rewards [B] and how wrong each token's step is [B, T]."""
    return whole * reward.double().unsqueeze(-1) - process * wrong.double()


def token_advantage(paid: Tensor, mask: Tensor) -> Tensor:
    """(R - μ) / (σ + 1e-6) over the tokens of one group, all answers weighing alike; float64 [n, T], 0 off the mask."""
    paid = keep(paid.double(), mask)
    lengths = mask.sum(-1, keepdim=True)
    answers = int((lengths > 0).sum())
    told = paid[mask]
    # Rounding makes R - μ tiny where it is 0.
    if not len(told) or told.min() == told.max():
        return torch.zeros_like(paid)
    weights = mask / lengths.clamp(min=1) / answers
    centred = keep(paid - (weights * paid).sum(), mask)
    spread = (weights * centred.square()).sum()
    variance = spread * answers / max(answers - 1, 1)
    return centred / (variance.sqrt() + EPS)


def _wrongness(rollout: Rollout, width: int) -> Tensor:
    """w of each token of an answer, float64 [T]; 0 for one that was not read."""
    out = torch.zeros(width, dtype=torch.float64)
    at = 0
    for tokens, value in rollout.valued:
        out[at : at + tokens] = -value
        at += tokens
    if at > len(rollout.tokens):
        raise ValueError(
            f"An answer to {rollout.prompt.id!r} has {len(rollout.tokens)} tokens, but its steps have {at}; the runs "
            "in Rollout.valued must be no longer than the answer."
        )
    return out
