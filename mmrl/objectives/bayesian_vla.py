"""Pointwise mutual information of answers with the question and with the picture, after BayesianVLA (2601.15197).

BayesianVLA (LangForce) keeps robot policies from ignoring their instruction: where it can be guessed from the picture,
the policy need not read it, and the mutual information of instruction and action is close to 0. It raises the log-ratio
log π(a|v,ℓ) - log p(a|v), with the gradient stopped at the second term, for a model could raise the ratio by lowering
the baseline. Of an answer y to question q and picture v:

    Δ_ℓ = mean_t [log π(y_t|v,q,y_<t) - log π(y_t|v,∅,y_<t)]       language: without the question
    Δ_v = mean_t [log π(y_t|v,q,y_<t) - log π(y_t|v⁻,q,y_<t)]      vision: without the picture, or with a masked one

    bonus   R + weight·clip(Δ, 0, most), for right answers only; the advantage is the group's z-score of that
    loss    -pull·(log π(y_t|v,q,·) - sg log π(y_t|v⁻,q,·)) over tokens of right answers, a mean of token means

Both Δ are logged for every answer: a policy with Δ_v near 0 answers blindly, one with Δ_ℓ near 0 does not read.

Which gradient: that of the loss is the likelihood of the answer itself, since the baseline is stopped. On answers that
the policy sampled, all of them, its mean would be 0; so it is taken over right answers, and is a small supervised term
whose value says what it is about. With the bonus the ratio chooses which right answers are learned.

Branches: `reworded` (`mmrl.model.branches`) asks without words and with the same pictures; `Unseen` takes the visual
tokens away, or any mask covers them.

Degenerate groups: where all answers are right, the bonus alone decides; equal bonuses, wrong answers alone, or one
answer give 0. An answer without a trained token has Δ = 0.

What is the paper's and what is ours. The paper's: the log-ratio, its two conditions, the stopped baseline; its model is
a flow-matching policy with query tokens, of which nothing is here. Ours: the transfer to answers, the mean over tokens,
the visual Δ, the bonus and its bounds (0.1, 1), the loss on right answers, all weights: the paper's λ and β were not
seen. Inspired by BayesianVLA, not a reproduction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import Reduction, keep
from mmrl.objectives.base import (
    LiveScores,
    Objective,
    ScoreRequest,
    TokenMaps,
    judged,
    on_tokens,
)
from mmrl.types import Batch, Now, Prompt, Shaped


@dataclass(frozen=True)
class BayesianVLA(Objective):
    """Answers that need the question, and the picture, are worth more."""

    language: float = 0.1
    """Weight of the bonus for needing the question."""
    vision: float = 0.1
    """Weight of the bonus for needing the picture."""
    most: float = 1.0
    """Nats per token above which the bonus does not grow."""
    pull_language: float = 0.0
    """Weight of the loss that raises the ratio to the answer without the question."""
    pull_vision: float = 0.0
    """Weight of the loss that raises the ratio to the answer without the picture."""
    watch: bool = False
    """Measure and log both Δ even where nothing has a weight."""
    mute: str = "mute"
    """Name of the branch without the question."""
    blind: str = "blind"
    """Name of the branch without the picture."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    # Δ is a mean over an answer's tokens.
    reductions: ClassVar[Mapping[str, Reduction]] = {
        "reads_question": "sequence",
        "reads_picture": "sequence",
    }
    off: ClassVar[Mapping[str, Any] | None] = {
        "language": 0.0,
        "vision": 0.0,
        "pull_language": 0.0,
        "pull_vision": 0.0,
        "watch": False,
    }

    def __post_init__(self) -> None:
        weights = ("language", "vision", "pull_language", "pull_vision")
        require(
            self,
            most=(0 < self.most <= 1e3, "positive, at most 1,000 nats"),
            mute=(self.mute != self.blind, "another branch than that without the picture"),
            **{name: (0 <= getattr(self, name) <= 1e3, "0 (off) to 1,000") for name in weights},
        )

    @property
    def _pays(self) -> bool:
        return self.language > 0 or self.vision > 0

    @property
    def _is_on(self) -> bool:
        return self._pays or self.pull_language > 0 or self.pull_vision > 0 or self.watch

    def owns(self) -> tuple[Slot, ...]:
        """The advantage, if there is a bonus."""
        return ("estimator",) if self._pays else ()

    def traits(self) -> tuple[str, ...]:
        """A group that is all right teaches by its bonuses."""
        return ("learns from all-right groups",) if self._pays else ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """The real view and both others before the update; the losses read theirs inside it."""
        if not self._is_on:
            return ()
        found = [ScoreRequest(name, "shape") for name in ("raw", self.mute, self.blind)]
        for pull, name in self._pulls().values():
            if pull > 0:
                found += [ScoreRequest("raw"), ScoreRequest(name)]
        return tuple(found)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The z-score of rewards with their bonus. Logs both Δ, the bonus, and how many answers have a Δ below 0."""
        if not self._is_on:
            return Shaped(advantage)
        right = judged(self, batch)
        logged: dict[str, float | Tensor] = {}
        bonus = torch.zeros_like(batch.reward)
        raw = batch.scores["raw"].logp
        named = (("question", self.mute, self.language), ("picture", self.blind, self.vision))
        for what, branch, weight in named:
            gain = mean_gain(raw, batch.scores[branch].logp, batch.mask)
            logged[f"needs_{what}"] = on_tokens(gain, advantage)
            logged[f"without_{what}"] = on_tokens((gain < 0).float(), advantage)
            bonus += (weight * gain.clamp(0.0, self.most)).to(bonus)
        kept = {"right": on_tokens(right.float(), advantage)}
        if not self._pays:
            return Shaped(advantage, logged, kept)
        bonus = torch.where(right, bonus, 0.0)
        logged["bonus"] = on_tokens(bonus, advantage)
        scored = group_normalized(batch.reward + bonus, batch.group, batch.mask)
        return Shaped(keep(on_tokens(scored, advantage), batch.mask), logged, kept)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The log-ratios of right answers, whose baseline has no gradient."""
        found: TokenMaps = {}
        for term, (pull, branch) in self._pulls().items():
            if pull > 0:
                ratio = live["raw"].logp - live[branch].logp.detach()
                found[term] = -pull * batch.kept["right"] * keep(ratio, batch.mask)
        return found

    def _pulls(self) -> dict[str, tuple[float, str]]:
        """Term -> its weight and the branch of its baseline."""
        return {
            "reads_question": (self.pull_language, self.mute),
            "reads_picture": (self.pull_vision, self.blind),
        }


def mean_gain(raw: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Mean over trained tokens of how much more likely each is in the first view; log-probs [B, T] -> float64 [B]."""
    gain = keep((raw - other).detach().double(), mask).sum(-1)
    return gain / mask.sum(-1).clamp(min=1)


def without_question(prompt: Prompt) -> Prompt:
    """The same prompt whose user says nothing: media alone, for `VisualBranch.reworded`. Other roles keep theirs."""
    return replace(prompt, messages=[_silent(message) for message in prompt.messages])


def _silent(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message.get("role") != "user":
        return message
    content = message["content"]
    parts = [] if isinstance(content, str) else [p for p in content if p.get("type") != "text"]
    # A turn must hold something, or templates refuse it.
    return {**message, "content": parts or ""}
