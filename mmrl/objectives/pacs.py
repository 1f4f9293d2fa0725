"""PACS (arXiv 2509.02522): the reward is a label, and the policy's log-ratio the logit of a classifier for it.

    score s     "ratio": beta·Σ_t (ℓ_t - ℓ_old,t)      "mean": beta·mean_t ℓ_t
    logit ψ     "rloo": s - mean of the others' s      "grpo": (s - mean s) / (σ + 1e-6)      "naive": s
    loss        mean over answers of w·BCE(σ(ψ), R), whose gradient is w·(σ(ψ) - R)·∇ψ

One cross-entropy is actor and critic. R is the reward, in [0, 1]; rewards between the two are soft labels. w weighs the
classes of a prompt's answers alike ("question": w = n / (classes · members of the class) where right and wrong both
occur, else 1), takes one class only, or is 1 ("off"). A group with soft labels has w = 1.

It owns advantage and loss: no clip, no ratio bound, no weights of tokens; there is no strength with which it would be
GRPO. At the old policy ψ = 0: REINFORCE with w·(R - ½), centred, and an all-right group has no gradient. ψ compares the
answers of a group with their gradients, so that no pass may hold a part of one. Other objectives' terms are added.

Departures
1. Printed is the ratio to a reference policy; here, as in the released code, to the policy that sampled.
2. The mean is over the answers of the whole update that have a trained token.
3. Only trained tokens are summed; the released code sums all and relies on zeros on padding.
4. A group of one has nobody to be compared with: ψ = 0 under "rloo" and "grpo", and no gradient.
5. "grpo" divides by 1e-6 in the first update, where all scores are 0, as the released code: clip the gradient norm.

Source: the released code (ritzz-ai/PACS @ bbe1dc6a).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import Reduction, keep
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps, old_logp
from mmrl.types import Batch, Now, Shaped

Score = Literal["ratio", "mean"]
Baseline = Literal["rloo", "grpo", "naive"]
Weights = Literal["question", "only_positive", "only_negative", "off"]
EPS = 1e-6


@dataclass(frozen=True)
class PACS(Objective):
    """The policy's loss as a cross-entropy."""

    beta: float = 1.0
    """Scale of the score."""
    score: Score = "ratio"
    """Sum of the log-ratios, or mean log-prob."""
    baseline: Baseline = "rloo"
    """What an answer's score is compared with."""
    weights: Weights = "question"
    """Right and wrong answers of a prompt weigh the same in sum; one kind only; or each answer weighs 1."""

    reductions: ClassVar[Mapping[str, Reduction]] = {"pacs": "sequence"}
    needs_whole_groups: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = None

    def __post_init__(self) -> None:
        require(self, beta=(self.beta > 0, "positive"))

    def owns(self) -> tuple[Slot, ...]:
        """Labels take the place of the advantage, the cross-entropy that of the surrogate."""
        return "estimator", "surrogate"

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Nothing beyond the log-probs that every update has."""
        return ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """w·(R - ½), the pull on each answer at the old policy; label and weight are kept for the loss."""
        label = labels(batch.reward)
        weight = class_weights(label, batch.group, self.weights)
        pull = (weight * (label - 0.5))[:, None] * batch.mask
        spread = torch.ones_like(advantage)
        kept = {"label": label[:, None] * spread, "weight": weight[:, None] * spread}
        return Shaped(pull.to(advantage), kept=kept)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The cross-entropy of each answer, on each of its tokens."""
        logit = self.logits(live, batch)
        label, weight = batch.kept["label"][:, 0], batch.kept["weight"][:, 0]
        loss = weight * binary_cross_entropy_with_logits(logit, label, reduction="none")
        return {"pacs": loss[:, None].expand(batch.mask.shape)}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Logits by label, and how often the classifier is right."""
        logit, label = self.logits(live, batch), batch.kept["label"][:, 0]
        found = {"logit": logit.abs(), "agrees": ((logit > 0) == (label > 0.5)).to(logit)}
        return {name: x[:, None].expand(batch.mask.shape) for name, x in found.items()}

    def logits(self, live: LiveScores, batch: Batch) -> Tensor:
        """ψ of each answer, with gradient; [B]. `batch` must hold whole groups."""
        old = old_logp(live, batch)
        score = scores(live["raw"].logp, old, batch.mask, self.score, self.beta)
        return compared(score, batch.group, self.baseline)


def labels(reward: Tensor) -> Tensor:
    """R of each answer, [B]; an unknown reward (NaN) is ½. Raises ValueError for rewards outside [0, 1]."""
    # At the old policy a label of ½ pulls nowhere.
    known = torch.where(reward.isnan(), 0.5, reward)
    if bool(((known < 0) | (known > 1)).any()):
        worst = known[(known - 0.5).abs().argmax()].item()
        raise ValueError(
            f"PACS takes rewards as labels, so that they must be in [0, 1]; got {worst:g}. Give the parts of the "
            "reward weights that add up to 1 (accuracy alone: --reward.accuracy 1 --reward.format 0), and leave "
            "penalties (--grpo.overlong-buffer) out."
        )
    return known


def scores(logp: Tensor, old: Tensor, mask: Tensor, kind: Score, beta: float) -> Tensor:
    """s of each answer; logp, old, mask [B, T] -> [B]."""
    if kind == "mean":
        return beta * answer_mean(logp, mask).squeeze(1)
    return beta * (keep(logp, mask) - keep(old, mask)).sum(1)


def compared(score: Tensor, group: Tensor, baseline: Baseline) -> Tensor:
    """ψ: the score [B] against those of its group."""
    if baseline == "naive":
        return score
    index, size = _groups(group, score)
    centred = score - _summed(score, index) / size
    others = (size - 1).clamp(min=1)
    if baseline == "rloo":
        # Leaving the answer itself out of the mean stretches what is left, by n / (n - 1).
        return torch.where(size > 1, centred * size / others, 0.0 * score)
    variance = _summed(centred.square(), index) / others
    # The root has no slope at 0.
    spread = torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)
    return torch.where(size > 1, centred / (spread + EPS), 0.0 * score)


def class_weights(label: Tensor, group: Tensor, mode: Weights) -> Tensor:
    """w of each answer, [B]."""
    if mode == "off":
        return torch.ones_like(label)
    if mode in ("only_positive", "only_negative"):
        # A soft label counts for the class that it is nearer to.
        return ((label > 0.5) == (mode == "only_positive")).to(label)
    index, size = _groups(group, label)
    hard = _summed(((label == 0) | (label == 1)).to(label), index) == size
    right = _summed(label, index)
    members = torch.where(label == 1, right, size - right)
    mixed = hard & (right > 0) & (right < size)
    return torch.where(mixed, size / (2 * members.clamp(min=1)), 1.0)


def _groups(group: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(number of each answer's group, how many answers that has), each [B]."""
    _, index = group.unique(return_inverse=True)
    return index, _summed(torch.ones_like(like), index)


def _summed(x: Tensor, index: Tensor) -> Tensor:
    """Of each answer the sum over its group; [B] -> [B]."""
    count = int(index.max()) + 1 if len(index) else 0
    return x.new_zeros(count).index_add(0, index, x)[index]
