"""AMPO (arXiv 2510.02227): where all answers of a group are wrong, teachers whom the policy follows take some places.

    trigger        no answer of the group is right
    replacement    up to `most` of its answers, drawn at random, give way to right answers of teachers
    choice         the teachers with the highest comprehension score: how likely the policy finds the row's answer
                   behind question and teacher's reasoning, the mean of π over the answer's tokens ("probability"),
                   e to the mean of log π ("likelihood"), or none ("random")
    Â = R - μ      over σ if `scaled`; μ and σ of the group's own answers that are left

    own token      the surrogate of the core
    teacher's      -Â·f(π),   f = π / (π + floor) "saturating",  π "plain",  √π "root"

f needs no old probability and has no clip; with floor 0.1 it is at most 1 / 1.1, and its slope is largest where π is
small. Trigger, choice and replacement are done by the rollout function (`mmrl.rollouts.ampo`), which reads this
record.

What follows: in such a group the own answers are all wrong, so that where they earn the same their advantage is 0 and
only the teachers' tokens carry gradient. The step is then supervised learning weighed by f (`ampo/teachers` is the
share of such tokens). Groups with a right answer are GRPO's, bit for bit.

Degenerate groups: as of RL-PLUS (`mmrl.objectives.rl_plus`). A group of one keeps its answer.

Departures
1. "Right" is what the rewards declare; the released code (SII-Enigma/AMPO @ b88d3656) compares the sum of accuracy and
   format with 0.6. A teacher's answer that is not right never takes a place.
2. The released code rounds the comprehension score to bfloat16, so that close scores tie there.
3. Its sum over a micro-batch: see `mmrl.objectives.rl_plus`, departure 1. Its two forms of the loss are one number.
4. `weight` is ours; at 0 no teacher is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.losses.teaching import with_lessons
from mmrl.objectives.base import TEACHERS, AnswerKind, LiveScores, Objective, TokenMaps
from mmrl.types import Batch, Now, Role, Shaped

Shaping = Literal["saturating", "plain", "root"]
Choice = Literal["probability", "likelihood", "random"]


@dataclass(frozen=True)
class AMPO(Objective):
    """Guidance by teachers where the policy fails."""

    weight: float = 1.0
    """Factor on the loss of teachers' tokens; 0 asks no teacher."""
    most: int = 2
    """Most answers of a group that teachers replace."""
    choice: Choice = "probability"
    """Which teachers: by the mean probability of the answer behind their reasoning, its likelihood, or at random."""
    shaping: Shaping = "saturating"
    """What is learned of a teacher's token: π / (π + floor), π or √π."""
    floor: float = 0.1
    """The probability at which "saturating" is one half."""
    scaled: bool = False
    """Divide by the deviation of the group's own answers."""

    trains_roles: ClassVar[tuple[Role, ...]] = (Role.POLICY, Role.EXPERT)
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any] | None] = {"weight": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            weight=(self.weight >= 0, "0 (off) or positive"),
            most=(self.most >= 1, "at least 1"),
            floor=(0 < self.floor <= 1, "in (0, 1]"),
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage of groups that have a teacher."""
        return ("estimator",) if self.weight > 0 else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Teachers in the groups."""
        return (TEACHERS,) if self.weight > 0 else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Everybody against the own answers of the group; teachers' tokens are left to the term."""
        theirs = batch.roles == Role.EXPERT
        paid = batch.reward, batch.group, batch.mask
        own, lesson = with_lessons(advantage, *paid, theirs, scaled=self.scaled)
        trained = ~theirs.any(1) if self.weight == 0 else None
        return Shaped(own, kept={"lesson": self.weight * lesson}, trained=trained)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """The loss of teachers' tokens."""
        if self.weight == 0:
            return {}
        # Before anything is computed: what stands elsewhere may be no number.
        logp = keep(live["raw"].logp, batch.mask & (batch.roles == Role.EXPERT))
        return {"teachers": -batch.kept["lesson"] * shaped_probability(logp, self)}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Share of tokens that are teachers', and their probability (0 on own tokens)."""
        theirs = batch.mask & (batch.roles == Role.EXPERT)
        logp = live["raw"].logp
        maps = {"teachers": torch.ones_like(logp), "probability": logp.exp()}
        return {name: keep(x, theirs) for name, x in maps.items()}


def shaped_probability(logp: Tensor, ampo: AMPO) -> Tensor:
    """f(π) of each token, with gradient; any shape -> the same, in [0, 1]."""
    if ampo.shaping == "root":
        return (0.5 * logp).exp()
    probability = logp.exp()
    return probability if ampo.shaping == "plain" else probability / (probability + ampo.floor)


def comprehension(logp: Tensor, mask: Tensor, choice: Choice) -> Tensor:
    """How well each answer is foreseen: logp and mask [B, S] of the answer's tokens -> [B] in [0, 1], 0 without any."""
    if choice == "random":
        raise ValueError("AMPO.choice is 'random', which has no score; draw instead.")
    count = mask.sum(-1)
    values = logp.exp() if choice == "probability" else logp
    mean = keep(values, mask).sum(-1) / count.clamp(min=1)
    score = mean if choice == "probability" else mean.exp()
    return torch.where(count > 0, score, 0.0)
