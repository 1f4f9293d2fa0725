"""SPAE, step potential advantage estimation: steps that bring the answer nearer are paid, repeated checks are not.

Behind each step of an answer the policy is asked for its result (`rollouts.spae`). With Acc_k the mean probability of
the tokens of the row's own answer there, and Conf_k how sure the policy is of what it would say,

    Φ_k = 1.5·Acc_k·Conf_k + 0.5·Acc_k - Conf_k                    in [-1, 1], Φ_0 = 0
    Conf = mean over probes of exp(-mean entropy of their tokens)
    C_k = number of steps t < k with Φ_t > settled,   f_k = 1 - fade·(1 - exp(-C_k))
    g_k = exp(d_k) - mean of exp(d),   d = Φ_k - Φ_{k-1}, mapped to [0, 1] by the least and largest of the batch
    A of a token of step k = (R - mean R of the group)·f_k + weight·g_k
    A <- (A - mean A) / (std A + 1e-6)                              over all trained tokens of the batch

The potentials of an answer stand in its `Rollout.valued`, as (tokens, Φ) of each step. `group_centered` is the
estimator that the formula has. Without steps it is Dr.GRPO's advantage, normalised over the batch.

Degenerate batches: with one step, or equal gains, g is 0; an answer whose reward is not available is in no statistic
and gets 0; advantages that are all equal become 0.

Departures (paper as reviewed; github.com/cii030/SPAE-RL, commit ed529f8a, has no training code)
1. The official script for probes sums entropies and divides by answer tokens; the means above are the paper's.
2. What follows the last step has f of all steps before it and no g: nothing was asked behind it.
3. `settled` is not printed; 0.9 is ours. So are Φ_0, which is the potential of knowing nothing, and that least and
   largest gain and the mean of exp(d) are over the steps of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.reduce import keep
from mmrl.objectives.base import PROBED, AnswerKind, Objective
from mmrl.types import Batch, Now, Rollout, Shaped

__all__ = ["SPAE", "confidence", "faded", "potential", "step_gains", "top_entropy"]

EPS = 1e-6


@dataclass(frozen=True)
class SPAE(Objective):
    """What steps are asked, and what their potentials are worth."""

    weight: float = 0.5
    """Factor on the gains of steps (ξ)."""
    fade: float = 0.5
    """Share of the answer's advantage that steps lose once its result is settled (α)."""
    settled: float = 0.9
    """Potential from which on the result counts as settled (ε_sat)."""
    probes: int = 5
    """Results that are drawn behind each step (N)."""
    tokens: int = 10
    """Most tokens of a result, and of the row's own answer: a row with a longer one has no potentials."""
    temperature: float = 0.6
    """At which results are drawn, and all their probabilities are meant."""
    candidates: int = 20
    """Most likely tokens of a place over which its entropy is."""

    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0, "fade": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            weight=(0 <= self.weight <= 100, "0 (off) to 100"),
            fade=(0 <= self.fade <= 1, "in [0, 1]"),
            settled=(-1 <= self.settled <= 1, "in [-1, 1]"),
            probes=(1 <= self.probes <= 1000, "1 to 1,000"),
            tokens=(1 <= self.tokens <= 1000, "1 to 1,000"),
            temperature=(0 < self.temperature <= 100, "above 0, at most 100"),
            candidates=(1 <= self.candidates <= 1000, "1 to 1,000"),
        )

    @property
    def on(self) -> bool:
        """Does it change anything?"""
        return self.weight > 0 or self.fade > 0

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Answers with potentials."""
        return (PROBED,) if self.on else ()

    def traits(self) -> tuple[str, ...]:
        """It changes the advantage and normalises it over the batch."""
        return ("shapes the advantage", "z-scores the batch") if self.on else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The advantage with f and g of each token's step, normalised. Logs both, and potentials."""
        if not self.on:
            return Shaped(advantage)
        known = batch.mask & ~batch.reward.isnan().unsqueeze(-1)
        potentials = [[value for _, value in one.valued] for one in batch.rollouts]
        used = [
            own if bool(there) else []
            for own, there in zip(potentials, known.any(-1), strict=True)
        ]
        gains = step_gains(used)
        maps = {name: torch.zeros(known.shape, dtype=torch.float64) for name in NAMES}
        for row, rollout in enumerate(batch.rollouts):
            if not used[row]:
                maps["fade"][row] = 1.0
                continue
            fades = faded(used[row], self.settled, self.fade)
            told = (fades, [*gains[row], 0.0], [*used[row], 0.0])
            for name, numbers in zip(NAMES, told, strict=True):
                maps[name][row] = _over_steps(rollout, numbers, known.shape[1])
        fade, gain, _ = (maps[name].to(advantage.device) for name in NAMES)
        found = advantage.double() * fade + self.weight * gain
        logged = {name: keep(numbers.to(advantage), known) for name, numbers in maps.items()}
        return Shaped(standardised(found, known).to(advantage.dtype), logged)


NAMES = ("fade", "gain", "potential")


def potential(accuracy: float, confidence: float) -> float:
    """Φ of an accuracy and a confidence in [0, 1]: in [-1, 1], least where the policy is sure of what is wrong."""
    return 1.5 * accuracy * confidence + 0.5 * accuracy - confidence


def top_entropy(logp: Tensor) -> Tensor:
    """-Σ p log p over the likeliest tokens of each place, which are not made to add up to 1; [..., k] -> [...]."""
    logp = logp.double()
    # A token of probability 0 adds nothing; 0·log 0 would be no number.
    return -(logp.exp() * torch.where(logp.isinf(), 0.0, logp)).sum(-1)


def confidence(entropies: Sequence[Tensor]) -> float:
    """Mean over probes of exp(-mean entropy of their tokens), in (0, 1]; float [n] each, at least one token."""
    return sum(float((-each.double().mean()).exp()) for each in entropies) / len(entropies)


def faded(potentials: Sequence[float], settled: float, fade: float) -> list[float]:
    """f of each of K steps, and of what follows the last one: K + 1 numbers in [1 - fade, 1], falling."""
    counts = accumulate((value > settled for value in potentials), initial=0)
    decay = [torch.tensor(float(count)).neg().exp().item() for count in counts]
    return [1 - fade * (1 - each) for each in decay]


def step_gains(potentials: Sequence[Sequence[float]]) -> list[list[float]]:
    """g of each step of each answer, which add up to 0 over the batch."""
    rises = [[after - before for before, after in pairwise([0.0, *own])] for own in potentials]
    every = torch.tensor([rise for own in rises for rise in own], dtype=torch.float64)
    if not len(every) or every.min() == every.max():
        return [[0.0] * len(own) for own in rises]
    grown = ((every - every.min()) / (every.max() - every.min())).exp()
    split = (grown - grown.mean()).split([len(own) for own in rises])
    return [own.tolist() for own in split]


def standardised(advantage: Tensor, mask: Tensor) -> Tensor:
    """(A - mean) / (std + 1e-6) over the tokens of the mask, 0 elsewhere; equal advantages become 0. [B, T]."""
    told = advantage[mask]
    if len(told) < 2 or told.min() == told.max():
        return torch.zeros_like(advantage)
    return keep((advantage - told.mean()) / (told.std() + EPS), mask)


def _over_steps(rollout: Rollout, numbers: Sequence[float], width: int) -> Tensor:
    """Numbers of the steps of an answer, and of what follows them, on its tokens; float64 [T]."""
    out = torch.full((width,), numbers[-1], dtype=torch.float64)
    at = 0
    for (tokens, _), number in zip(rollout.valued, numbers[:-1], strict=True):
        out[at : at + tokens] = number
        at += tokens
    if at > len(rollout.tokens):
        raise ValueError(
            f"An answer to {rollout.prompt.id!r} has {len(rollout.tokens)} tokens, but its steps have {at}; the steps "
            "in Rollout.valued must be no longer than the answer."
        )
    return out
