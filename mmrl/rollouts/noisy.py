"""Answers that are sampled while the policy sees a noisy picture, and trained as if it had seen the clean one.

    NoisyRollout   of each prompt's G answers the last ⌊share·G⌋ are sampled under the noisy view; all G are one group
    NoisyPrompts   with probability p(progress), drawn per prompt, a prompt's whole group is sampled under it (VOGUE)

Only the engine sees noise: old, current and reference log-probs are all taken under the clean picture, without an
importance correction. There is one noisy picture per prompt and step (`VisualBranch.share_in_group`), the same one that
a visual branch of this name scores. How noise fades is the view's business (`mmrl.perception.noise`), how often it is
used is `NoisyPrompts.probability`.

Sources: NoisyRollout (arXiv 2504.13055), from public notes; VOGUE (arXiv 2510.01444) as printed.

Departures
1. The released code of VOGUE samples from clean pictures only, whatever its branch (use `group_rollout` for it).
2. Which log-probs VOGUE's noisy answers are trained with is not said; we treat them as NoisyRollout does.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mmrl.ground.seeds import generator
from mmrl.losses.schedules import Linear
from mmrl.model.branches import render_branch
from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutFunction, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Rollout, Sampling, VisualBranch

__all__ = ["NoisyPrompts", "NoisyRollout", "can_look", "generate_under", "looks"]


@dataclass(frozen=True)
class NoisyRollout:
    """Part of each group is sampled under a noisy view."""

    policy: Policy
    view: VisualBranch
    """The noisy view; seen by the engine only."""
    branch: str = "noisy"
    """Its name: keys the draws and marks `Rollout.branch`."""
    share: float = 0.5
    """Share of each group that is sampled under it, in (0, 1); rounded down, at least one answer on either side."""
    inner: RolloutFunction = group_rollout
    """Asks for answers, for example `DynamicSampling()`."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(
                f"NoisyRollout.share is {self.share}; it must lie strictly between 0 and 1."
            )

    @property
    def brings(self) -> tuple[str, ...]:
        """What objectives may rely on."""
        return (f"noisy answers:{self.branch}",)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        def mixed(prompts: Sequence[Prompt], sampling: Sampling, now: Now) -> list[Rollout]:
            noisy = int(sampling.group_size * self.share + 1e-9)
            if not 0 < noisy < sampling.group_size:
                raise ValueError(
                    f"NoisyRollout.share {self.share} of {sampling.group_size} answers leaves {noisy} noisy ones; "
                    "raise sampling.group_size, or change the share, so that both kinds are in the group."
                )
            clean = engine.generate(
                prompts, replace(sampling, group_size=sampling.group_size - noisy), now
            )
            seen = looks(self.policy, prompts, self.branch, self.view, now)
            few = replace(sampling, group_size=noisy)
            other = generate_under(self.policy, engine, prompts, few, now, seen, self.branch)
            supply.counters["rollout/noisy_answers"] += len(other)
            return sorted(
                [*clean, *other], key=lambda rollout: rollout.group
            )  # stable: clean ones first

        return self.inner(_Seeing(engine, mixed), pay, supply, sampling, now)


@dataclass(frozen=True)
class NoisyPrompts:
    """Some prompts are answered under a noisy view, with a probability that changes over the run."""

    policy: Policy
    view: VisualBranch
    """The noisy view."""
    branch: str = "noisy"
    """Its name: keys the draws and marks `Rollout.branch`."""
    probability: Linear = field(default_factory=lambda: Linear(1.0, 0.0))
    """Probability that a prompt is answered under the noisy view, over the run."""
    inner: RolloutFunction = group_rollout
    """Asks for answers."""

    @property
    def brings(self) -> tuple[str, ...]:
        """What objectives may rely on."""
        return (f"noisy prompts:{self.branch}",)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        chance = self.probability(now.progress)

        def drawn(prompts: Sequence[Prompt], sampling: Sampling, now: Now) -> list[Rollout]:
            coins = [_coin(now, prompt.id) < chance for prompt in prompts]
            noisy = [i for i, coin in enumerate(coins) if coin]
            clean = [i for i, coin in enumerate(coins) if not coin]
            chosen = [prompts[i] for i in noisy]
            seen = looks(self.policy, chosen, self.branch, self.view, now)
            other = (
                generate_under(self.policy, engine, chosen, sampling, now, seen, self.branch)
                if noisy
                else []
            )
            plain = engine.generate([prompts[i] for i in clean], sampling, now) if clean else []
            supply.counters["rollout/noisy_answers"] += len(other)
            both = [replace(r, group=noisy[r.group]) for r in other] + [
                replace(r, group=clean[r.group]) for r in plain
            ]
            return sorted(both, key=lambda rollout: rollout.group)

        return self.inner(_Seeing(engine, drawn), pay, supply, sampling, now)


@dataclass(frozen=True)
class _Seeing:
    """The engine, with another way of answering."""

    engine: Engine
    answer: Any

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, now: Now
    ) -> list[Rollout]:
        return self.answer(prompts, sampling, now)

    def sync(self, policy: Policy) -> None:
        self.engine.sync(policy)


def looks(
    policy: Policy,
    prompts: Sequence[Prompt],
    name: str,
    branch: VisualBranch,
    now: Now,
    *,
    compared: bool = False,
) -> list[tuple[Patches, ...]]:
    """The pixels of each prompt under a branch, one draw per prompt; `compared` as for `branches.render_branch`."""
    return [
        render_branch(policy, prompt, name, branch, now, compared=compared)
        for prompt in prompts
    ]


def can_look(engine: Engine) -> bool:
    """Can this engine sample answers to other pixels than the prompt's?"""
    return {"visual", "branch"} <= inspect.signature(engine.generate).parameters.keys()


def _coin(now: Now, prompt: str) -> float:
    """A uniform number in [0, 1) for a prompt of this step."""
    return torch.rand(1, generator=generator(now.seed, now.step, prompt, "noisy prompt")).item()


def generate_under(
    policy: Policy,
    engine: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    now: Now,
    seen: Sequence[tuple[Patches, ...]],
    branch: str,
) -> list[Rollout]:
    """Answers under other pixels. The tower's graph of noisy pictures is of no use to the update and is not kept."""
    if not can_look(engine):
        raise ValueError(
            f"{type(engine).__name__} cannot sample answers to other pixels than the prompt's, which the rollout under "
            f"the view {branch!r} needs; use HFEngine."
        )
    with policy.vision.no_update():
        return engine.generate(prompts, sampling, now, visual=seen, branch=branch)
