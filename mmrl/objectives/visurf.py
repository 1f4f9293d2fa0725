"""ViSurf, visual supervised-and-reinforcement fine-tuning (arXiv 2510.10606): the label is a member of the group.

SFT on a label y and policy gradient on rollouts o_1 … o_G have gradients of the same shape, so y joins the group:

    μ, σ   mean and std of {r(y), r(o_1), …, r(o_G)}
    Â_j  = (r(o_j) - μ) / σ,    Â_y = (r(y) - μ) / σ
    J    = 1/(G + 1) · [Σ_j clipped(ρ_j, Â_j) + clipped(ρ_y, Â_y)],    ρ_y = π(y) / π_old(y)

When the model fails, Â_y is large (SFT-like), when it succeeds it fades (RL-like). Three controls of r(y), in order:

    align         rewrite y in the style of the model's own answers (`aligned`), so that no weight goes into format
    no thinking   the thinking part of r(y) is 0 (`pay_without_thinking`): reasoning is learned from own answers only
    smooth        if max_j r(o_j) ≥ r(y), set r(y) := mean_j r(o_j) (`smoothed`); then Â_y = 0 exactly

The first two are done when the label is put into the group, by the rollout function: labels are rollouts of origin
"label" with role POLICY, paid by the run's rewards. This objective smooths and replaces the advantage. The old
log-probs of labels are the policy's own at sampling time, so ρ_y = 1 at the first update.

Identities: Σ Â = 0 over the G + 1 members; all rollouts 0 and r(y) > 0 give Â_y = √G and Â_j = -1/√G; where the label
is smoothed away the Â_j are those of the group without it times √((G + 1) / G).

A label is short next to a chain of thought: under the token mean it nearly vanishes, `GRPO.reduction="sequence"` gives
it the printed 1/(G + 1). Labels must not enter pass rates used for filters, curricula or logs: read only answers of
origin "policy" there.

Departures
1. The standard deviation is the population's, without epsilon, as the printed identities need; the authors' code base
   divides by the unbiased one + 1e-6. Equal rewards give exactly 0.
2. `weight` scales Â_y. At 0 labels are left out of the statistics as well: GRPO's advantages of the rollouts alone.
3. Rewards that are not available (NaN) are left out of the statistics and get 0. A group without a label is normalised
   by itself.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import keep
from mmrl.objectives.base import LABEL, AnswerKind, LiveScores, Objective, TokenMaps
from mmrl.types import Batch, Now, Shaped


@dataclass(frozen=True)
class ViSurf(Objective):
    """The label as a member of the group."""

    weight: float = 1.0
    """Factor on the label's advantage; 0 leaves labels out altogether."""
    smooth: bool = True
    """Let the label drop out once a rollout reaches its reward."""

    remedies: ClassVar[Mapping[str, str]] = {
        "length": "keep the thinking part of the label's reward at 0 (WithLabel.thinking): labels without a chain of "
        "thought teach the model to skip thinking",
        "entropy": "keep ViSurf.smooth on: without it the label dominates",
    }
    off: ClassVar[Mapping[str, Any]] = {"weight": 0.0}

    def __post_init__(self) -> None:
        require(self, weight=(self.weight >= 0, "0 (off) or positive"))

    def owns(self) -> tuple[Slot, ...]:
        """The advantage of groups that have such an answer."""
        return ("estimator",) if self.weight > 0 else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Labels in the group."""
        return (LABEL,) if self.weight > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Statistics of rollouts and label together. A batch without labels keeps the estimator's advantage."""
        label = labels(batch)
        if not bool(label.any()):
            return Shaped(advantage)
        if self.weight == 0:
            known = torch.where(label, torch.nan, batch.reward)
            own = group_normalized(known, batch.group, batch.mask)
        else:
            own = self._with_labels(batch, label)
        own = own.to(advantage.dtype).unsqueeze(-1)  # [B, 1]
        return Shaped(keep(own.expand(batch.mask.shape), batch.mask))

    def _with_labels(self, batch: Batch, label: Tensor) -> Tensor:
        """The advantage of every answer, labels among them; float64 [B]."""
        reward = batch.reward
        if self.smooth:
            reward = smoothed(reward, batch.group, label)
        own = z_score_in_groups(reward, batch.group)
        # Exactly 0, whatever rounding leaves between a smoothed label and the mean of its group.
        silent = reached(batch.reward, batch.group, label) & self.smooth
        of_label = torch.where(silent, 0.0, self.weight * own)
        return torch.where(label, of_label, own)

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Share of tokens that are labels', share whose label still teaches, and the log-prob of label tokens."""
        label = labels(batch).unsqueeze(-1)
        teaching = label & (batch.advantage != 0)
        logp = live["raw"].logp
        return {
            "label_tokens": label.expand(logp.shape).to(logp.dtype),
            "teaching_tokens": teaching.to(logp.dtype),
            "logp_label": torch.where(label, logp, 0.0),
        }


def labels(batch: Batch) -> Tensor:
    """Which answers are labels, bool [B]."""
    given = [rollout.origin == "label" for rollout in batch.rollouts]
    return torch.tensor(given, device=batch.reward.device)


def aligned(label: Any, keys: Sequence[str] = (), layout: str = "<answer>{}</answer>") -> str:
    """Write a label as the model would: JSON with a space after commas and colons, keys in order, in the layout.

    `keys`: the order of keys in every object; keys that are not named follow as they are. Text is put in as it is.
    Raises ValueError if the layout has not exactly one place `{}`.
    """
    if layout.count("{}") != 1:
        raise ValueError(
            f"the layout {layout!r} has {layout.count('{}')} places '{{}}'; give exactly one for the label."
        )
    text = label
    if not isinstance(label, str):
        text = json.dumps(_ordered(label, keys), ensure_ascii=False)
    # Not `format`: a label of JSON has braces of its own.
    return layout.replace("{}", text)


def pay_without_thinking(
    parts: Mapping[str, float | None], weights: Mapping[str, float], thinking: Collection[str]
) -> float | None:
    """The reward of a label: the weighted sum of its parts with the thinking parts at 0; None if none is available."""
    if unknown := sorted(set(thinking) - set(parts)):
        raise ValueError(
            f"the thinking parts {unknown} are no parts of this reward, which has {sorted(parts)}."
        )
    if all(value is None for value in parts.values()):
        return None
    paid = 0.0
    for name, value in parts.items():
        if value is not None and name not in thinking:
            paid += weights[name] * value
    return paid


def smoothed(reward: Tensor, group: Tensor, label: Tensor) -> Tensor:
    """Set the reward of each label to the mean of its rollouts where the best of them reaches it.

    reward float [B] (NaN: not available), group long [B], label bool [B] -> float64 [B].
    """
    reward = reward.double()
    groups = _Groups(reward, group, own=~label & ~reward.isnan())
    # Rounding must not take the mean of equal rewards beyond them: the group would seem to differ.
    mean = groups.mean().clamp(groups.lowest(), groups.highest())
    fades = reached(reward, group, label)
    return torch.where(fades, mean[groups.index], reward)


def reached(reward: Tensor, group: Tensor, label: Tensor) -> Tensor:
    """Which labels are reached by the best rollout of their group; bool [B], False for rollouts."""
    groups = _Groups(reward, group, own=~label & ~reward.isnan())
    return label & (groups.highest()[groups.index] >= reward)


def z_score_in_groups(reward: Tensor, group: Tensor) -> Tensor:
    """(R - μ) / population std of the group; 0 where all its rewards are equal or R is NaN; float64 [B]."""
    reward = reward.double()
    groups = _Groups(reward, group, own=~reward.isnan())
    away = reward - groups.mean()[groups.index]
    centred = torch.where(groups.own, away, 0.0)
    variance = groups.sum(centred.square()) / groups.counts()
    std = variance.sqrt()
    # Equal rewards are told apart exactly, since rounding may leave a tiny deviation from their mean.
    differ = groups.highest() > groups.lowest()
    divisor = std.clamp(
        min=torch.finfo(std.dtype).tiny
    )  # where nothing differs, 0 / 0 is never used
    scaled = centred / divisor[groups.index]
    return torch.where(differ[groups.index], scaled, 0.0)


@dataclass(frozen=True)
class _Groups:
    """Statistics of each group over the answers that count."""

    reward: Tensor
    """float [B]."""
    group: Tensor
    """long [B]."""
    own: Tensor
    """bool [B]: the answers that count."""

    @cached_property
    def index(self) -> Tensor:
        """Number of each answer's group, 0 to K - 1; long [B]."""
        return torch.unique(self.group, return_inverse=True)[1]

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all answers of a group; [K]."""
        return self._filled(0.0).index_add(0, self.index, value)

    def counts(self) -> Tensor:
        """Answers that count, at least 1; [K]."""
        own = self.own.to(self.reward)
        return self.sum(own).clamp(min=1)  # a group of NaN alone divides 0 by 1

    def mean(self) -> Tensor:
        """Mean reward, 0 without answers that count; [K]."""
        known = torch.where(self.own, self.reward, 0.0)
        return self.sum(known) / self.counts()

    def lowest(self) -> Tensor:
        """Smallest reward, inf without answers that count; [K]."""
        known = torch.where(self.own, self.reward, torch.inf)
        return self._filled(torch.inf).scatter_reduce(0, self.index, known, "amin")

    def highest(self) -> Tensor:
        """Largest reward, -inf without answers that count; [K]."""
        known = torch.where(self.own, self.reward, -torch.inf)
        return self._filled(-torch.inf).scatter_reduce(0, self.index, known, "amax")

    def _filled(self, value: float) -> Tensor:
        """One number per group; [K]."""
        groups = int(self.index.max()) + 1
        return self.reward.new_full((groups,), value)


def _ordered(label: Any, keys: Sequence[str]) -> Any:
    """The same JSON value with the named keys first in every object."""
    if isinstance(label, Mapping):
        named = [key for key in keys if key in label]
        others = [key for key in label if key not in keys]
        return {key: _ordered(label[key], keys) for key in (*named, *others)}
    if isinstance(label, list | tuple):
        return [_ordered(one, keys) for one in label]
    return label
