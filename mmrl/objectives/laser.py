"""LaSeR (arXiv 2510.14943): what the model thinks of its answer is the likelihood of one token just behind it.

z is a special token that the model does not use, ℓ_z = log π(z | prompt, answer), c its usual value before training:

    self-reward r_s   beta·(ℓ_z - c)
    loss              +alpha · mean over answers of w·1(not cut off)·(r_s - R)²,      R 1 for a right answer, else 0
    advantage         A ← (1 - tau)·A + tau·A_s, with r_s in [0, 1] (0 if cut off) and A_s = (r_s - mean) / σ of the
                      group; A_s = A where that σ is at most `flat`

The loss begins after `loss_warmup` steps of plain training, the advantage `mix_warmup` steps later.

w gives right and wrong answers of the batch the same weight: n / (2·members), over the n answers that were not cut off.
After training r_s > ½ is the model's own verdict, for the price of one place behind the answer: no token is fed there,
so that neither positions nor pictures move. Log-probs of that place are at temperature 1.

c ("usual"): "measured" takes the mean ℓ_z of the first step's answers, "model" each answer's own ℓ_z under the
reference weights, "constant" a number. The constants of the paper (-23 for Qwen2.5, -25 for OctoThinker) belong to its
token, which marks pictures in vision-language models and is refused there.

Departures
1. The released code multiplies ℓ_z by the temperature in the loss but not in the advantage; both agree at temperature
   1, which is the one here.
2. "measured" is ours: the paper's constants are such a mean, taken once before training.
3. w counts the whole batch, also in several processes; the released code does so too.
4. The released code takes an answer that was cut off for 0 in the statistics of its group and for the log-prob of its
   first token when it compares it with these; here it is 0 in both.
5. A group whose answers are all cut off, or one of a single answer, keeps its advantage.
6. R is whether the answer is right as the rewards declare it, not the sum of the rewards.

Source: the released code (RUCBM/LaSeR @ 48996f78).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses.reduce import Reduction
from mmrl.objectives.base import LiveScores, Memory, Objective, ScoreRequest, TokenMaps
from mmrl.types import Batch, Now, Scores, Shaped

VERDICT = 0.5
"""Self-rewards above it say that the answer is right."""


@dataclass
class UsualValue:
    """c, once it was measured."""

    value: float | None = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value}

    def load(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.value = state["value"]


@dataclass(frozen=True)
class LaSeR(Objective):
    """A self-reward, trained beside the policy, and its share in the advantage."""

    alpha: float = 0.1
    """Weight of the regression; 0 turns it off."""
    beta: float = 0.1
    """Scale of the self-reward per nat."""
    tau: float = 0.1
    """Share of the self-reward in the advantage; 0 turns it off."""
    loss_warmup: int = 200
    """Steps before the regression begins."""
    mix_warmup: int = 200
    """Steps after these before the self-reward shares in the advantage."""
    balanced: bool = True
    """Right and wrong answers of a batch weigh the same in sum."""
    flat: float = 0.1
    """Groups whose self-rewards have at most this deviation keep their advantage."""
    usual: Literal["measured", "model", "constant"] = "measured"
    """Where c comes from: the first step's answers, the reference weights, or `constant`."""
    constant: float = -23.0
    """c if `usual` is "constant", in nats."""
    token: str = "<|fim_pad|>"
    """z, a special token that the model does not use; none that stands for pictures."""

    reductions: ClassVar[Mapping[str, Reduction]] = {"self_reward": "sequence"}
    needs_correct: ClassVar[bool] = True
    off: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0, "tau": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            alpha=(self.alpha >= 0, "0 (off) or positive"),
            beta=(self.beta > 0, "positive"),
            tau=(0 <= self.tau <= 1, "in [0, 1]"),
            loss_warmup=(self.loss_warmup >= 0, "0 or positive"),
            mix_warmup=(self.mix_warmup >= 0, "0 or positive"),
            flat=(self.flat >= 0, "0 or positive"),
            constant=(self.constant <= 0, "a log-prob, so 0 or negative"),
            token=(bool(self.token), "the text of a special token"),
        )

    @property
    def is_on(self) -> bool:
        """Does it do anything?"""
        return self.alpha > 0 or self.tau > 0

    def traits(self) -> tuple[str, ...]:
        """It compares log-probs of a place that has no temperature."""
        changes = ("shapes the advantage",) if self.tau > 0 else ()
        return ("reads one temperature", *changes) if self.is_on else ()

    def start_memory(self) -> Memory | None:
        """What was measured."""
        return UsualValue() if self.is_on and self.usual == "measured" else None

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """The place behind each answer, before and in the update."""
        if not self.is_on:
            return ()
        ids = (self.token,)
        wanted = [ScoreRequest("raw", "shape", slot=ids)]
        if self.alpha > 0:
            wanted.append(ScoreRequest("raw", slot=ids))
        if self.usual == "model":
            wanted.append(ScoreRequest("ref", "shape", slot=ids))
        return tuple(wanted)

    def shape(
        self, advantage: Tensor, batch: Batch, now: Now, memory: UsualValue | None = None
    ) -> Shaped:
        """The advantage with its share of the self-reward; what the regression needs is kept for it."""
        if not self.is_on:
            return Shaped(advantage)
        assert batch.correct is not None, "refused at construction without"
        before = slot_of(batch.scores["raw"])
        whole = torch.tensor([r.stop != "length" for r in batch.rollouts], device=before.device)
        usual = self._usual(before, whole, batch, memory)
        found = self.beta * (before - usual)  # r_s at sampling time
        label = batch.correct.to(found)
        if self.balanced:
            weight = balanced(label, whole)
        else:
            weight = whole.to(found)
        spread = torch.ones_like(advantage)
        kept = {"label": label, "weight": weight, "usual": usual.expand_as(found)}
        if self.tau > 0 and now.step > self.loss_warmup + self.mix_warmup:
            own, nothing = self_rewards(found, whole), torch.full_like(found, torch.nan)
            theirs = self_advantage(own, own, batch.group, nothing, self.flat)
            advantage = mixed(advantage, theirs, self.tau) * batch.mask
        return Shaped(
            advantage,
            logged={"self_reward": found[:, None] * spread, **verdicts(found, label, whole)},
            kept={name: x[:, None] * spread for name, x in kept.items()},
        )

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The weighted squared error of each answer, on each of its tokens."""
        if self.alpha == 0 or now.step <= self.loss_warmup:
            return {}
        label, weight, usual = (batch.kept[n][:, 0] for n in ("label", "weight", "usual"))
        found = self.beta * (slot_of(live["raw"]) - usual)
        loss = self.alpha * squared_error(found, label, weight)
        return {"self_reward": loss[:, None].expand(batch.mask.shape)}

    def _usual(
        self, before: Tensor, whole: Tensor, batch: Batch, memory: UsualValue | None
    ) -> Tensor:
        """c of each answer, or of all; [B] or []."""
        if self.usual == "model":
            return slot_of(batch.scores["ref"])
        if self.usual == "constant":
            return before.new_tensor(self.constant)
        assert memory is not None, "the trainer passes the memory that `start_memory` made"
        if memory.value is None:
            counted = before[whole] if bool(whole.any()) else before
            memory.value = counted.mean().item()
        return before.new_tensor(memory.value)


def slot_of(scores: Scores) -> Tensor:
    """ℓ_z of each answer, [B]."""
    if scores.slot is None:
        raise ValueError(
            "LaSeR reads the log-prob of a token behind each answer, but the view was scored without; score it with "
            "ScoreOutputs(slot=(id,))."
        )
    return scores.slot[:, 0]


def squared_error(found: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """w·(r_s - R)² of each answer, exactly 0 with no gradient where w is 0; all [B]."""
    counted = weight != 0
    # By selection: an answer that was cut off may have any number behind it.
    gap = torch.where(counted, found, 0.0) - torch.where(counted, label, 0.0)
    return weight * gap.square()


def balanced(label: Tensor, whole: Tensor) -> Tensor:
    """w of each answer, 0 for those that were cut off; label [B] of 0 and 1, whole bool [B]."""
    members = {value: ((label == value) & whole).sum() for value in (0, 1)}
    own = torch.where(label == 1, members[1], members[0]).clamp(min=1)
    return torch.where(whole, whole.sum() / (2.0 * own), 0.0).to(label)


def self_rewards(found: Tensor, whole: Tensor) -> Tensor:
    """r_s as it is compared: within [0, 1], 0 for an answer that was cut off; [B]."""
    return torch.where(whole, found.clamp(0.0, 1.0), 0.0)


def self_advantage(
    own: Tensor, counted: Tensor, group: Tensor, otherwise: Tensor, flat: float
) -> Tensor:
    """A_s of each answer: its `own` self-reward against those `counted` in its group; `otherwise` in flat ones; [B]."""
    out = otherwise.double().clone()
    for number in group.unique():
        rows = group == number
        ours = counted[rows].double()
        if len(ours) > 1 and ours.std() > flat:
            out[rows] = (own[rows].double() - ours.mean()) / ours.std()
    return out.to(otherwise)


def mixed(advantage: Tensor, own: Tensor, tau: float) -> Tensor:
    """(1 - tau)·A + tau·A_s; A [B, T], A_s [B], NaN where a group is flat: there A stays as it is, to the bit."""
    per_token = own[:, None]
    return torch.where(per_token.isnan(), advantage, (1 - tau) * advantage + tau * per_token)


def verdicts(found: Tensor, label: Tensor, whole: Tensor) -> dict[str, float]:
    """How often the model's own verdict was right, over the answers that were not cut off."""
    if not bool(whole.any()):
        return {}
    right = (found > VERDICT) == (label > VERDICT)
    return {"verified": right[whole].float().mean().item()}
