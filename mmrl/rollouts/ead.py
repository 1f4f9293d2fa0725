"""EAD, exploratory annealed decoding: hot at the beginning of an answer, cold at its end (EAD-RLVR).

With t the position of a token in its answer and s the number of steps done before this one, its logits are divided by

    τ_t = 1                                           for the first c tokens
    τ_t = max(1 + τ_max - exp(t / d), τ_min)          afterwards
    d   = κ · min(d_0 + 5 s, 40000)                   later steps cool more slowly

in place of `Sampling.temperature`. The same temperatures stand in every log-prob that training computes, old, current
and reference: they travel with each answer (`Rollout.temperature`), so the ratio is that of the distribution which was
sampled from, and needs no importance weight.

Departures from the official code (github.com/yangalan123/EAD-RLVR, commit 1d7e156e)
1. Its sampler divides the position by 20 d_s, its recomputation of old log-probs by d_s, and is off by default, so that
   old log-probs are those of another temperature. Here one schedule serves both; κ = 20 is the sampler's.
2. Floors below 0.1 are refused: sampled tokens would all have log-prob 0, and others none.
3. Answers that nobody sampled (labels, experts) are scored at the same temperatures as their group.
4. A prefix that is forced counts as the beginning of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.stages import Answering, asked_of
from mmrl.types import HOTTEST, Now, Prompt, Rollout, Sampling

__all__ = ["EAD", "EADRollout", "annealed"]

SLOWEST = 40_000.0
"""Bound of d_0 + 5 s, in tokens."""
SLOWER_PER_STEP = 5.0
"""Tokens by which d_s grows with each step."""


def annealed(
    position: int, steps: int, *, tau_max: float, tau_min: float, d0: float, kappa: float, warmup: int
) -> float:  # fmt: skip
    """τ_t of position t (from 0) after `steps` steps; symbols as on top, `warmup` is c."""
    if position < warmup:
        return 1.0
    slow = kappa * min(d0 + SLOWER_PER_STEP * steps, SLOWEST)
    # Beyond any use long before exp() overflows.
    spent = min(position / slow, 700.0)
    return max(1.0 + tau_max - math.exp(spent), tau_min)


@dataclass(frozen=True)
class EAD:
    """The schedule of the temperature."""

    tau_max: float = 1.2
    """Temperature at the beginning, after the warm-up."""
    tau_min: float = 0.1
    """Lowest temperature."""
    d0: float = 25.0
    """Tokens: how slowly the first step cools."""
    kappa: float = 20.0
    """Factor of all d_s; 20 is the official sampler's."""
    warmup: int = 10
    """First tokens that are sampled at temperature 1 (c)."""

    def __post_init__(self) -> None:
        require(
            self,
            # First: the other's bound is this one.
            tau_min=(
                0.1 <= self.tau_min <= HOTTEST,
                f"0.1 or more (colder log-probs are 0 or nothing), at most {HOTTEST:g}",
            ),
            tau_max=(
                self.tau_min <= self.tau_max <= HOTTEST,
                f"at least tau_min, at most {HOTTEST:g}",
            ),
            d0=(0 < self.d0 <= SLOWEST, f"positive, at most {SLOWEST:g} tokens"),
            kappa=(0 < self.kappa <= 1e6, "positive, at most 1e6"),
            warmup=(self.warmup >= 0, "0 or positive"),
        )

    def at(self, steps: int) -> Callable[[int], float]:
        """Position -> temperature, after so many steps."""

        def temperature(position: int) -> float:
            return annealed(
                position,
                steps,
                tau_max=self.tau_max,
                tau_min=self.tau_min,
                d0=self.d0,
                kappa=self.kappa,
                warmup=self.warmup,
            )

        return temperature


@dataclass(frozen=True)
class EADRollout(RolloutFunction):
    """All answers of a step are sampled at annealed temperatures. The outermost of several rollout functions."""

    ead: EAD = EAD()
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    needs: ClassVar[Collection[Ability]] = ("temperature per position",)

    def owns(self) -> tuple[Slot, ...]:
        """How hot each token is sampled."""
        return ("temperature",)

    def traits(self) -> tuple[str, ...]:
        """Later tokens are sampled at another temperature."""
        return ("anneals the temperature",)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        heat = self.ead.at(now.step - 1)

        def answer(
            prompts: Sequence[Prompt], sampling: Sampling, now: Now, **more: Any
        ) -> list[Rollout]:
            return asked_of(engine, prompts, sampling, now, **{**more, "temperature_at": heat})

        annealing = Answering(engine, answer, looks=True)
        found = self.inner(annealing, pay, supply, sampling, now)
        return [_heated(rollout, heat) for rollout in found]


def _heated(rollout: Rollout, heat: Callable[[int], float]) -> Rollout:
    """The answer with a temperature per token, also if it was given and not sampled."""
    if isinstance(rollout.temperature, Tensor):
        return rollout
    numbers = [heat(t) for t in range(len(rollout.tokens))]
    return replace(rollout, temperature=torch.tensor(numbers, dtype=torch.float64))
