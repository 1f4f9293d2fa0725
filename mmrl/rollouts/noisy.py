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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmrl.ground.require import require
from mmrl.ground.seeds import uniform_draw
from mmrl.losses.schedules import Linear
from mmrl.model.branches import render_branch
from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.objectives.base import AnswerKind, noisy_answers, noisy_prompts
from mmrl.rollouts.engine import Engine, can_look
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import lacks
from mmrl.types import Now, Prompt, Rollout, Sampling, VisualBranch

__all__ = ["NoisyPrompts", "NoisyRollout", "generate_under", "rendered"]


@dataclass(frozen=True)
class NoisyRollout(RolloutFunction):
    """Part of each group is sampled under a noisy view."""

    policy: Policy
    view: VisualBranch
    """The noisy view; seen by the engine only."""
    branch: str = "noisy"
    """Its name: keys the draws and marks `Rollout.branch`."""
    share: float = 0.5
    """Share of each group that is sampled under it, in (0, 1); rounded down, at least one answer on either side."""
    inner: RolloutCall = group_rollout
    """Asks for answers, for example `DynamicSampling()`."""

    def __post_init__(self) -> None:
        require(self, share=(0 < self.share < 1, "strictly between 0 and 1"))

    def brings(self) -> tuple[AnswerKind, ...]:
        """Groups of both kinds."""
        return (noisy_answers(self.branch),)

    def sampled_under(self) -> Mapping[str, VisualBranch]:
        """The noisy view."""
        return {self.branch: self.view}

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        def mixed(prompts: Sequence[Prompt], sampling: Sampling, now: Now) -> list[Rollout]:
            noisy = int(sampling.group_size * self.share + 1e-9)  # 0.3 · 10 is 2.999…
            if not 0 < noisy < sampling.group_size:
                raise ValueError(
                    f"NoisyRollout.share {self.share} of {sampling.group_size} answers leaves {noisy} noisy ones; "
                    "raise sampling.group_size, or change the share, so that both kinds are in the group."
                )
            rest = replace(sampling, group_size=sampling.group_size - noisy)
            few = replace(sampling, group_size=noisy)
            clean = engine.generate(prompts, rest, now)
            # Draws are keyed by the branch, too, so that noisy answer 0 is not clean answer 0 again.
            seen = rendered(self.policy, prompts, self.branch, self.view, now)
            other = generate_under(self.policy, engine, prompts, few, now, seen, self.branch)
            supply.counters["rollout/noisy_answers"] += len(other)
            return _by_group_number([*clean, *other])  # of a group, the clean ones first

        return self.inner(_Seeing(engine, mixed), pay, supply, sampling, now)


@dataclass(frozen=True)
class NoisyPrompts(RolloutFunction):
    """Some prompts are answered under a noisy view, with a probability that changes over the run."""

    policy: Policy
    view: VisualBranch
    """The noisy view."""
    branch: str = "noisy"
    """Its name: keys the draws and marks `Rollout.branch`."""
    probability: Linear = field(default_factory=lambda: Linear(1.0, 0.0))
    """Probability that a prompt is answered under the noisy view, over the run."""
    inner: RolloutCall = group_rollout
    """Asks for answers."""

    def brings(self) -> tuple[AnswerKind, ...]:
        """Whole groups of either kind."""
        return (noisy_prompts(self.branch),)

    def sampled_under(self) -> Mapping[str, VisualBranch]:
        """The noisy view."""
        return {self.branch: self.view}

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        chance = self.probability(now.progress)

        def drawn(prompts: Sequence[Prompt], sampling: Sampling, now: Now) -> list[Rollout]:
            noisy: list[int] = []
            clean: list[int] = []
            for i, prompt in enumerate(prompts):
                # Keyed by the prompt, so that the coin does not depend on who else is in the step.
                coin = uniform_draw(now.seed, now.step, prompt.id, "noisy prompt")
                (noisy if coin < chance else clean).append(i)
            other: list[Rollout] = []
            plain: list[Rollout] = []
            if noisy:
                chosen = [prompts[i] for i in noisy]
                seen = rendered(self.policy, chosen, self.branch, self.view, now)
                other = generate_under(
                    self.policy, engine, chosen, sampling, now, seen, self.branch
                )
            if clean:
                plain = engine.generate([prompts[i] for i in clean], sampling, now)
            supply.counters["rollout/noisy_answers"] += len(other)
            # The engine numbers groups by the prompts that it was given; here they get the step's numbers.
            seen_noisily = [replace(r, group=noisy[r.group]) for r in other]
            seen_clearly = [replace(r, group=clean[r.group]) for r in plain]
            return _by_group_number([*seen_noisily, *seen_clearly])

        return self.inner(_Seeing(engine, drawn), pay, supply, sampling, now)


@dataclass(frozen=True)
class _Seeing:
    """The engine, with another way of answering."""

    engine: Engine
    answer: Callable[[Sequence[Prompt], Sampling, Now], list[Rollout]]

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, now: Now
    ) -> list[Rollout]:
        return self.answer(prompts, sampling, now)

    def sync(self, policy: Policy) -> None:
        self.engine.sync(policy)


def _by_group_number(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Groups in the order of their numbers; the sort is stable, so answers of a group keep theirs."""
    return sorted(rollouts, key=lambda rollout: rollout.group)


def rendered(
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


def generate_under(
    policy: Policy,
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    now: Now,
    seen: Sequence[tuple[Patches, ...]],
    branch: str,
) -> list[Rollout]:
    """Answers under other pixels. The tower's graph of noisy pictures is of no use to the update and is not kept."""
    if not can_look(engine):
        raise ValueError(
            lacks(engine, "other pixels", f"The rollout under the view {branch!r}")
        )
    # The update reads clean pictures: a graph of noisy ones would be kept for nobody.
    with policy.vision.no_update():
        return engine.generate(prompts, sampling, now, visual=seen, branch=branch)
