"""RECAP, replay with dynamic objective reweighting (arXiv 2510.21978): what still moves weighs more than what rests.

General data is replayed beside the task (a mixture of data sets), and each kind of pay is an objective of its own. Of
each of the K objectives one number a step is watched, over two windows of W steps, the last and the one before it:

    mu, mu~      means of the last W values and of the W before          sigma    deviation of the last W
    convergence  c = mu / mu~            instability  i = sigma / (mu + mu~)
    weight       lambda = K softmax((c + i) / T),       T = 5
    A = (1/K) Σ_k lambda_k A_k           next-token loss of labels: (lambda / K) (-log p)

A_k is the advantage within the group by part k alone. Until an objective has 2W values, its weight is 1; one without
data in a step keeps its windows. The number that is watched falls as an objective gets better: 1 - mean reward, clipped
to [0, 1], and for labels their mean -log p.

Degenerate groups: a group of one, and one whose answers earn the same in all parts, get 0. An objective at 0 throughout
(solved, by 1 - mean) has c = i = 0.

Departures (no official code is known to us; formulas by two summaries of the paper that agree)
1. W is not told: 10. The deviation is that of the window itself (divided by W).
2. The summaries disagree on which direction of c is progress. "paper" is the printed ratio, with which an objective
   that falls fast weighs less than one that rests; "inverse" is mu~ / mu, which turns that round.
3. A surrogate has mean 0 and no ratio of means: rewards are watched in its place. Denominators have 1e-8 added, and c
   lies in [0, 10].
4. The weights act on advantages, each normalised for itself: a factor on the sum of rewards would be taken away again.
5. Labels are reduced together with all other tokens, by the run's one reduction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.domains import SCORE
from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import keep
from mmrl.objectives.base import (
    LABEL,
    AnswerKind,
    LiveScores,
    Objective,
    ScoreRequest,
    on_tokens,
)
from mmrl.types import Batch, Now, Shaped

Convergence = Literal["paper", "inverse"]
NEXT_TOKEN = "next_token"
"""Name of the objective that labels are."""
TINY, STEEPEST = 1e-8, 10.0
"""Added to denominators; the largest ratio of means."""


@dataclass(frozen=True)
class RECAP(Objective):
    """Weights of the objectives of a run by how they move."""

    window: int = 10
    """Steps of each of the two windows (W); 0 leaves the estimator's advantage as it is."""
    temperature: float = 5.0
    """Softness of the weights (T); the larger, the more alike."""
    convergence: Convergence = "paper"
    """The ratio of means: last over before (paper), or before over last (inverse)."""
    objectives: tuple[str, ...] = ()
    """Parts of the reward that are objectives; none: all parts that answers are paid for."""
    labels: bool = False
    """Are there rows that are learned by the next-token loss of their label?"""

    off: ClassVar[Mapping[str, Any] | None] = {"window": 0}

    def __post_init__(self) -> None:
        require(
            self,
            window=(0 <= self.window <= 10_000, "0 (off) to 10,000 steps"),
            temperature=(0 < self.temperature <= 1e6, "positive, at most 1,000,000"),
            convergence=(self.convergence in ("paper", "inverse"), "'paper' or 'inverse'"),
        )
        if self.labels and not self.window:
            raise ValueError(
                "RECAP.window is 0, which leaves out what labels are learned by; set --recap.window above 0, or take "
                "learn=next-token away."
            )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage."""
        return ("estimator",) if self.window else ()

    def traits(self) -> tuple[str, ...]:
        """Each objective is normalised within its group."""
        return ("centres groups", "z-scores groups") if self.window else ()

    def answer_kinds(self) -> tuple[AnswerKind, ...]:
        """Labels, where there are such rows."""
        return (LABEL,) if self.labels else ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """What labels are worth before the update."""
        return (ScoreRequest("raw", "shape"),) if self.labels else ()

    def start_memory(self) -> Windows | None:
        """Empty windows."""
        return Windows(self.window) if self.window else None

    def shape(
        self, advantage: Tensor, batch: Batch, now: Now, memory: Windows | None = None
    ) -> Shaped:
        """The weighted sum of the objectives' advantages. Logs `weight_NAME` and `level_NAME` of each objective."""
        if not self.window or memory is None:
            return Shaped(advantage)
        paid = self._paid(batch)
        # Those that no answer of this step has count among the K from the first step on.
        levels: dict[str, float | None] = dict.fromkeys(self.objectives)
        levels |= {name: level(values) for name, values in paid.items()}
        label = torch.tensor(
            [r.origin == "label" for r in batch.rollouts], device=batch.mask.device
        )
        if self.labels:
            levels[NEXT_TOKEN] = _label_loss(batch, label)
        memory.observe(levels)
        chosen = memory.weights(self.temperature, self.convergence)
        own = torch.zeros_like(batch.reward, dtype=torch.float64)
        for name, values in paid.items():
            alone = group_normalized(values, batch.group, batch.mask)
            own += chosen.get(name, 1.0) / max(len(chosen), 1) * alone.nan_to_num(0.0)
        kept: dict[str, Tensor] = {}
        if self.labels:
            share = chosen.get(NEXT_TOKEN, 1.0) / max(len(chosen), 1)
            kept[NEXT_TOKEN] = on_tokens(label * share, advantage)
        logged: dict[str, float | Tensor] = {f"weight_{k}": v for k, v in chosen.items()}
        logged |= {f"level_{k}": v for k, v in levels.items() if v is not None}
        return Shaped(keep(on_tokens(own, advantage), batch.mask), logged, kept)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> dict[str, Tensor]:
        """Next-token loss of labels [B, T], weighted."""
        if not self.labels:
            return {}
        return {NEXT_TOKEN: batch.kept[NEXT_TOKEN] * -live["raw"].logp}

    def _paid(self, batch: Batch) -> dict[str, Tensor]:
        """Objective -> its part of each answer, float64 [B]; NaN where it does not apply."""
        own = [{} if r.origin == "label" else r.parts for r in batch.rollouts]
        found = {name for parts in own for name in parts} - {SCORE}
        found = found & set(self.objectives) if self.objectives else found
        table: dict[str, Tensor] = {}
        for name in sorted(found):
            told = [parts.get(name) for parts in own]
            numbers = [math.nan if value is None else float(value) for value in told]
            table[name] = torch.tensor(numbers, dtype=torch.float64, device=batch.reward.device)
        return table


@dataclass
class Windows:
    """The last 2W values of each objective."""

    window: int
    values: dict[str, list[float]] = field(default_factory=dict)

    def observe(self, levels: Mapping[str, float | None]) -> None:
        """Take a step's values; an objective without one keeps its windows."""
        for name, value in levels.items():
            history = self.values.setdefault(name, [])
            if value is not None:
                history.append(value)
                del history[: -2 * self.window]

    def weights(self, temperature: float, convergence: Convergence) -> dict[str, float]:
        """Objective -> lambda; they sum to the number of objectives."""
        ready = [name for name, past in self.values.items() if len(past) == 2 * self.window]
        found = dict.fromkeys(self.values, 1.0)
        if ready:
            history = torch.tensor([self.values[name] for name in ready], dtype=torch.float64)
            chosen = lambdas(signals(history, convergence), temperature)
            found |= dict(zip(ready, chosen.tolist(), strict=True))
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"values": {name: list(past) for name, past in self.values.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.values = {name: list(map(float, past)) for name, past in state["values"].items()}


def signals(history: Tensor, convergence: Convergence = "paper") -> Tensor:
    """Convergence + instability of each objective; history [K, 2W], the oldest first, none negative -> [K]."""
    before, last = history.chunk(2, dim=-1)
    mean, earlier = last.mean(-1), before.mean(-1)
    above, below = (mean, earlier) if convergence == "paper" else (earlier, mean)
    ratio = (above / (below + TINY)).clamp(0.0, STEEPEST)
    unsteady = last.std(-1, unbiased=False) / (mean + earlier + TINY)
    return ratio + unsteady


def lambdas(signal: Tensor, temperature: float = 5.0) -> Tensor:
    """Weights of the objectives, which sum to K; signal [K] -> [K]."""
    return len(signal) * torch.softmax(signal / temperature, dim=-1)


def level(values: Tensor) -> float | None:
    """1 - mean of an objective's rewards [B], clipped to [0, 1]; None if no answer has one (NaN)."""
    known = values[~values.isnan()]
    return 1.0 - min(max(float(known.mean()), 0.0), 1.0) if len(known) else None


def _label_loss(batch: Batch, label: Tensor) -> float | None:
    """Mean -log p of the tokens of labels, before the update; None without labels."""
    on = batch.mask & label.unsqueeze(-1)
    tokens = int(on.sum())
    return float(-keep(batch.scores["raw"].logp, on).sum() / tokens) if tokens else None
