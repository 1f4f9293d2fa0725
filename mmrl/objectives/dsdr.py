"""DSDR, dual-scale diversity regularisation: right answers that differ from each other earn more.

For the right answers C of a group, i ∈ C:

    d_i = ½ (1 - mean over the others of cos(e_i, e_j)) + ½ (share of i's pieces that no other right answer has)

with e the embedding of an answer and "pieces" its formulas, or the boxes that it refers to. On the scale of answers

    R̃_i = R_i + weight·min(d_i, largest)    for i ∈ C; all others keep R;   then A = z-score of R̃ in its group

and on the scale of tokens more entropy for the answers that are most unlike the others,

    -local · Σ_{i ∈ C} w_i · (1 / |o_i|) Σ_t ρ_t H_t,     w = softmax over C of d / temperature

with H the exact entropy and ρ the importance ratio, clamped and without gradient. It is a mean over groups.

Wrong answers never gain, and no answer gains more than weight·largest. A group that is all right teaches by diversity:
do not drop such groups. Degenerate groups: a single right answer has d = 0; alike answers all have d = 0, and the
advantage is GRPO's; an answer without trained tokens is in no C; a NaN reward gets 0, and is in no C.

Departures
1. Reconstructed: structure from a review, symbols and all four weights ours; no code could be read.
2. e is the mean of the policy's own last hidden states over the answer: no second model. Such states all point in about
   one direction, so that cosines are near 1: `stretch` multiplies the distance, which is then cut at 1.
3. Cosines below 0 count as 0, so that d stays in [0, 1].
4. Boxes as pieces are ours. An answer without pieces has no part of its own: d is then half the distance.

Memory: hidden states of all answers of a step, B · T · D numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

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
    old_logp,
    on_tokens,
)
from mmrl.types import Batch, Now, Shaped

FORMULAS = re.compile(
    r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]|([^\s=]+ ?= ?[^\s=]+)", re.DOTALL
)
"""Formulas between dollars or brackets, and equations without any."""
BOXES = re.compile(r"[\[(]\s*-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){3}\s*[\])]")
"""Four numbers in brackets."""


@dataclass(frozen=True)
class DSDR(Objective):
    """Diversity among right answers: a bonus for answers, and entropy for their tokens."""

    weight: float = 0.2
    """Of the bonus for diversity (λ_d); 0 leaves the estimator's advantage as it is."""
    largest: float = 0.5
    """Diversity above which the bonus does not grow."""
    local: float = 0.005
    """Of the entropy of right answers (λ_ℓ); 0 turns it off."""
    temperature: float = 0.2
    """Of the softmax that shares the entropy among right answers (τ)."""
    pieces: Literal["formulas", "boxes", "none"] = "formulas"
    """What else makes answers differ: formulas, boxes, or nothing, which leaves the embedding alone."""
    stretch: float = 1.0
    """Factor on the distance 1 - cos of two embeddings, which is then cut at 1."""
    clamp: float = 0.2
    """The importance ratio is kept within 1 ± this in the entropy term."""
    eps: float = 1e-6
    """Added to the deviation of a group."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    # The weight of a group counts the whole group, and so does its mean over groups.
    reductions: ClassVar[Mapping[str, Reduction]] = {"local_entropy": "sequence"}
    off: ClassVar[Mapping[str, Any] | None] = {"weight": 0.0, "local": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            weight=(self.weight >= 0, "0 (off) or positive"),
            largest=(0 < self.largest <= 1, "in (0, 1]"),
            local=(self.local >= 0, "0 (off) or positive"),
            temperature=(self.temperature > 0, "positive"),
            stretch=(self.stretch > 0, "positive"),
            clamp=(0 <= self.clamp < 1, "in [0, 1)"),
            eps=(self.eps > 0, "positive"),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage, if there is a bonus."""
        return ("estimator",) if self.weight > 0 else ()

    def traits(self) -> tuple[str, ...]:
        """Answers of a group are compared with each other, and a group that is all right teaches by that alone."""
        if self.weight == 0 and self.local == 0:
            return ()
        return ("assumes independent rows", "learns from all-right groups")

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Hidden states before the update; the entropy inside it, if it has a weight."""
        if self.weight == 0 and self.local == 0:
            return ()
        states = ScoreRequest("raw", "shape", states=True)
        return (states, ScoreRequest("raw", entropy=True)) if self.local > 0 else (states,)

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """The z-score of rewards with their bonus. Logs the diversity of right answers, and the bonus."""
        if self.weight == 0 and self.local == 0:
            return Shaped(advantage)
        counts = judged(self, batch) & batch.mask.any(-1) & ~batch.reward.isnan()
        texts = [rollout.text for rollout in batch.rollouts]
        own = pieces_of(texts, self.pieces)
        diverse = diversity(
            self.embedding(batch), own, counts, batch.group, stretch=self.stretch
        )
        # Answers without trained tokens are in no mean over answers.
        trained = torch.where(batch.mask.any(-1), batch.group, -1)
        share = shares(diverse, counts, trained, self.temperature)
        kept = {"share": on_tokens(share, advantage)}
        logged = {"diversity": on_tokens(diverse, advantage)}
        if self.weight == 0:
            return Shaped(advantage, logged, kept)
        bonus = (self.weight * diverse.clamp(max=self.largest)).to(batch.reward)
        logged["bonus"] = on_tokens(bonus, advantage)
        scored = group_normalized(batch.reward + bonus, batch.group, batch.mask, eps=self.eps)
        return Shaped(keep(on_tokens(scored, advantage), batch.mask), logged, kept)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The entropy of right answers, by their shares."""
        if self.local == 0:
            return {}
        raw = live["raw"]
        assert raw.entropy is not None, "asked for, so scored"
        # Kept before the exponential: padding may hold anything, and 0 · inf is NaN on the way back.
        gap = keep(raw.logp.detach() - old_logp(live, batch), batch.mask)
        ratio = gap.exp().clamp(1.0 - self.clamp, 1.0 + self.clamp)
        entropy = keep(raw.entropy, batch.mask)
        weighted = batch.kept["share"] * ratio * entropy
        return {"local_entropy": -self.local * weighted}

    def embedding(self, batch: Batch) -> Tensor:
        """Mean last hidden state of each answer's tokens, [B, D]."""
        states = batch.scores["raw"].states
        assert states is not None, "asked for, so scored"
        on = batch.mask.unsqueeze(-1)
        total = torch.where(on, states, 0.0).double().sum(1)  # [B, D]
        return total / batch.mask.sum(-1, keepdim=True).clamp(min=1)


def diversity(
    embedding: Tensor, pieces: Sequence[frozenset[str]] | None, counts: Tensor, group: Tensor, *,
    stretch: float = 1.0,
) -> Tensor:  # fmt: skip
    """How unlike the other right answers each is; [B, D], B sets or None, bool [B], [B] -> float64 [B] in [0, 1].

    0 for answers that do not count, and for one that counts alone. Without pieces the embedding alone decides.
    """
    out = torch.zeros(len(group), dtype=torch.float64, device=group.device)
    unit = normalize(embedding.double(), dim=-1)
    for label in group[counts].unique():
        rows = ((group == label) & counts).nonzero().squeeze(-1)
        if len(rows) < 2:
            continue
        cosine = (unit[rows] @ unit[rows].T).clamp(0.0, 1.0)
        distance = (stretch * (1.0 - cosine)).clamp(max=1.0)
        distance.fill_diagonal_(0.0)
        apart = distance.sum(-1) / (len(rows) - 1)
        if pieces is not None:
            own = alone_shares([pieces[row] for row in rows.tolist()])
            alone = torch.tensor(own, dtype=torch.float64, device=group.device)
            apart = 0.5 * (apart + alone)
        # Equal embeddings have a cosine of 1 only up to rounding.
        out[rows] = torch.where(apart < 1e-9, 0.0, apart)
    return out


def alone_shares(pieces: Sequence[frozenset[str]]) -> list[float]:
    """Of each set the share that stands in no other one; 0 of an empty set."""
    found: list[float] = []
    for place, own in enumerate(pieces):
        others = frozenset[str]().union(*pieces[:place], *pieces[place + 1 :])
        found.append(len(own - others) / len(own) if own else 0.0)
    return found


def shares(diverse: Tensor, counts: Tensor, group: Tensor, temperature: float) -> Tensor:
    """Weight of each answer's entropy [B], times the size of its group: softmax over those that count, 0 elsewhere.

    The mean over answers of what is weighted so is the mean over groups of Σ w.
    """
    out = torch.zeros_like(diverse)
    for label in group[counts].unique():
        inside = group == label
        rows = inside & counts
        out[rows] = (diverse[rows] / temperature).softmax(0) * inside.sum()
    return out


def pieces_of(texts: Sequence[str], kind: str) -> list[frozenset[str]] | None:
    """Formulas or boxes of each text, without their spaces; None if nothing is looked for."""
    if kind == "none":
        return None
    pattern = FORMULAS if kind == "formulas" else BOXES
    return [frozenset(_plain(match) for match in pattern.finditer(text)) for text in texts]


def _plain(match: re.Match[str]) -> str:
    inner = next((part for part in match.groups() if part is not None), match.group())
    return re.sub(r"\s+", "", inner)
