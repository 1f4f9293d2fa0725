"""PEARL, perceptual-evidence anchored RL (arXiv 2511.18437): reasoning is trained as far as the picture was read right.

Each prompt has a checklist of K sub-questions about what must be seen. A group answers the checklist (perception
branch), a second group the question itself (reasoning branch), both with G answers:

    R_p^i    (1/K) Σ_j [sub-question j of answer i is right],    R̄_p = mean_i R_p^i
    gate     R̄_p > threshold (0): else the reasoning answers are not sampled at all
    Â_r      ← Â_r · min(R̄_p, cap)                               cap 0.5; damps, and never enlarges above one half
    keep     R̄_r ∉ {0, 1} or R̄_p ∉ {0, 1}                        soft filter of prompts
    J        J_GRPO(Â_r) + lambda_p · J_GRPO(Â_p)                 lambda_p 0.1; both Â are (R - mean) / std of the group

This file holds the decisions as pure functions (`gate_open`, `reasoning_factor`, `keeps`, `judged` for one prompt) and
the objective that scales the advantages. Sampling the checklist first and skipping the reasoning is the task of a
rollout function. How the objective tells the branches: an answer to the checklist of prompt x has
`prompt.extra["checklist_of"]` = x's id (`mmrl.perception.checklist.perception_prompt` makes such prompts) and R_p in
the reward part `part`; the answers to x itself have its id. A prompt without checklist answers is plain GRPO (factor
1).

No branch is scored for this objective, and no term is added: it only changes advantages.

Departures (the official training code is not published)
1. lambda_p multiplies the perception advantage, and both branches share the token counts of the batch; as printed,
   each J has its own mean.
2. The advantages come from the run's estimator (`group_normalized`: unbiased std, eps 1e-6); `judged` uses the
   population std without eps, in which a group of equal rewards gets 0.
3. R̄_p pools all answers in the batch to the checklist of a prompt id.
4. lambda_p = 0 without gate and cap is GRPO; then do not sample checklists (`reads_checklists` is False).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.reduce import keep
from mmrl.objectives.base import CHECKLIST, AnswerKind, Objective
from mmrl.types import Batch, Now, Rollout, Shaped

MARKER = "checklist_of"
"""Column of a checklist prompt that holds the id of the prompt to which its questions belong."""


@dataclass(frozen=True)
class PEARL(Objective):
    """Perception-gated reweighting of the reasoning advantage."""

    lambda_p: float = 0.1
    """Weight of the perception branch; 0 does not train on the checklist answers."""
    cap: float | None = 0.5
    """Largest factor on the reasoning advantage; None leaves it as it is."""
    threshold: float | None = 0.0
    """The gate is open where the mean perception reward exceeds this; None: always."""
    part: str = "perception"
    """Reward part that holds R_p; answers without it count their whole reward."""

    off: ClassVar[Mapping[str, Any]] = {"lambda_p": 0.0, "cap": None, "threshold": None}

    def __post_init__(self) -> None:
        cap, gate = self.cap, self.threshold
        require(
            self,
            lambda_p=(self.lambda_p >= 0, "0 (off) or positive"),
            cap=(cap is None or 0 < cap <= 1, "in (0, 1], or None to turn it off"),
            threshold=(gate is None or 0 <= gate < 1, "in [0, 1), or None to turn it off"),
        )

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Checklist answers next to the question's."""
        return (CHECKLIST,) if self.reads_checklists else ()

    @property
    def reads_checklists(self) -> bool:
        """Whether checklist answers change anything."""
        gated = self.cap is not None or self.threshold is not None
        return self.lambda_p > 0 or gated

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Scale both branches. Logs the factor on reasoning tokens, and the share of checklist tokens."""
        factors = self.factors(batch.rollouts)
        asked = [MARKER in rollout.prompt.extra for rollout in batch.rollouts]
        # A prompt whose checklist nobody answered is plain GRPO.
        factor = [factors.get(rollout.prompt.id, 1.0) for rollout in batch.rollouts]
        of_checklist = _columns(asked, advantage)
        reasoning = torch.where(of_checklist > 0, 0.0, _columns(factor, advantage))
        # Checklist answers never pass their own gate: they are trained wherever they were asked.
        scale = torch.where(of_checklist > 0, self.lambda_p, reasoning)
        return Shaped(
            keep(advantage * scale, batch.mask),
            logged={
                "reasoning_factor": reasoning.expand_as(advantage),
                "checklist_tokens": of_checklist.expand_as(advantage),
            },
        )

    def factors(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Prompt id -> factor on its reasoning advantage, for the prompts whose checklist was answered."""
        rewards: dict[str, list[float]] = {}
        for rollout in rollouts:
            owner = rollout.prompt.extra.get(MARKER)
            value = rollout.parts.get(self.part, rollout.reward)
            if owner is not None and value is not None:
                rewards.setdefault(owner, []).append(value)
        found: dict[str, float] = {}
        for owner, values in rewards.items():
            mean = sum(values) / len(values)
            found[owner] = reasoning_factor(mean, self.cap, self.threshold)
        return found


def _columns(values: Sequence[float], like: Tensor) -> Tensor:
    """One number per answer, [B, 1]."""
    column = torch.tensor(values, dtype=like.dtype, device=like.device)
    return column.unsqueeze(-1)


def gate_open(perception_mean: float, threshold: float | None = 0.0) -> bool:
    """Whether the reasoning answers of a prompt are worth sampling."""
    return threshold is None or perception_mean > threshold


def reasoning_factor(
    perception_mean: float, cap: float | None = 0.5, threshold: float | None = 0.0
) -> float:
    """Factor on the reasoning advantage: min(R̄_p, cap) where the gate is open, 0 where it is closed."""
    if not gate_open(perception_mean, threshold):
        return 0.0
    return 1.0 if cap is None else min(perception_mean, cap)


def keeps(perception_mean: float, reasoning_mean: float | None) -> bool:
    """Soft filter: some branch is neither all wrong nor all right. `None`: no reasoning was sampled."""
    return perception_mean not in (0.0, 1.0) or (
        reasoning_mean is not None and reasoning_mean not in (0.0, 1.0)
    )


@dataclass(frozen=True)
class Judged:
    """What PEARL decides about one prompt."""

    perception: Tensor
    """float [G]: R_p of each checklist answer."""
    perception_mean: float
    """R̄_p."""
    gate_open: bool
    """Are reasoning answers sampled?"""
    perception_advantage: Tensor
    """float [G]."""
    reasoning_advantage: Tensor | None
    """float [G'], scaled; None behind a closed gate."""
    keep: bool
    """Does the prompt stay in the batch?"""


def judged(
    marks: Tensor, reasoning: Tensor, cap: float | None = 0.5, threshold: float | None = 0.0
) -> Judged:
    """Apply PEARL to one prompt: marks [G, K] of its checklist answers, rewards [G'] of its reasoning answers."""
    # In float64, so that "all right" is exactly 1 and the soft filter can ask for it.
    perception = marks.double().mean(-1)  # [G]
    mean = perception.mean().item()
    if not gate_open(mean, threshold):
        kept = keeps(mean, None)
        return Judged(perception, mean, False, z_score(perception), None, kept)
    rewards = reasoning.double()
    scaled = z_score(rewards) * reasoning_factor(mean, cap, threshold)
    kept = keeps(mean, rewards.mean().item())
    return Judged(perception, mean, True, z_score(perception), scaled, kept)


def z_score(reward: Tensor) -> Tensor:
    """(R - mean) / population std of one group [G]; exactly 0 if all rewards are equal."""
    # Asked of the rewards, not of their deviation, which rounding may leave a little above 0.
    if (reward == reward[0]).all():
        return torch.zeros_like(reward)
    return (reward - reward.mean()) / reward.std(correction=0)
