"""Constrained divergences after RePo (arXiv 2309.00082): a target instead of a coefficient.

RePo learns world models that hold no more of what they see than they need: KL(posterior‖prior) ≤ target, with a
multiplier that gradient ascent finds. Here the same rule holds any divergence D of the policy from itself under another
view, or from the reference, at most or at least at a target d*:

    loss          +β·(D - d*)   "at most"             +β·(d* - D)   "at least"          D a token mean, β a number
    multiplier    log β ← log β + rate·(D - d*)       log β ← log β + rate·(d* - D)     cut to [-10, 5]

once per step, by the D of the policy that sampled. So β grows as long as the constraint is broken and falls once it
holds; at D = d* it rests. It is a part of checkpoints.

`balance` κ is RePo's two-sided divergence with the gradient stopped on one side each:

    D = κ·D(sg(policy), branch) + (1 - κ)·D(policy, sg(branch))

whose value is D for every κ; κ = 0 moves the policy under the real picture alone, κ = 1 its other view alone (which
needs `VisualBranch.grad=True`).

Several of them may stand in one run, one for each divergence, beside PAPO, DVRP or plain GRPO: for example the masked
view at least so far away, the noisy one at most, the reference at most.

What is the paper's and what is ours. RePo's (official code zchuning/repo): the two-sided divergence with κ = k/(1 + k),
the constraint by a multiplier whose logarithm is learned, and that the multiplier has no part in the gradient of D.
Ours: everything that is not a world model, that is the divergences, the "at least" side, and the recipe. Plain ascent
stands in the place of Adam on log β, and its bounds are ours; the targets of the recipe are ours as well.

Degenerate: without a trained token in the step β rests. Beyond the k3 clamp a token gives no gradient, as in PAPO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses import kl
from mmrl.losses.reduce import Reduction, keep
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps
from mmrl.types import Batch, Now, Scores, Shaped

LOWEST, HIGHEST = -10.0, 5.0
"""Bounds of log β."""
Side = Literal["at most", "at least"]


@dataclass(frozen=True)
class RePo(Objective):
    """One divergence held at a target."""

    branch: str = "ref"
    """"ref" for the reference policy, or the name of a branch."""
    side: Side = "at most"
    """On which side of the target the divergence shall stay."""
    target: float = 0.05
    """d*, in nats per token."""
    beta: float = 0.01
    """The multiplier at the start of the run; 0 leaves the constraint out."""
    rate: float = 0.1
    """How fast log β follows: per step and nat of violation."""
    kl: Literal["k1", "abs", "k2", "k3", "exact"] = "k3"
    """Estimator of the divergence from sampled tokens, or "exact" over the vocabulary."""
    balance: float | None = None
    """κ in [0, 1] of the two-sided divergence; None: the gradient goes wherever there is one."""

    # The multiplier of a mean is that of the same mean: a constraint is a token mean in every run.
    reductions: ClassVar[Mapping[str, Reduction]] = {"at_most": "token", "at_least": "token"}
    off: ClassVar[Mapping[str, Any] | None] = {"beta": 0.0}

    def __post_init__(self) -> None:
        share = self.balance
        require(
            self,
            branch=(self.branch != "raw", "'ref' or another view than the raw one itself"),
            side=(self.side in ("at most", "at least"), "'at most' or 'at least'"),
            target=(0 <= self.target <= 1e3, "0 to 1,000 nats"),
            beta=(
                self.beta == 0 or math.exp(LOWEST) <= self.beta <= math.exp(HIGHEST),
                f"0 (off), or in [e^{LOWEST:g}, e^{HIGHEST:g}]",
            ),
            rate=(0 <= self.rate <= 1e3, "0 (a fixed multiplier) to 1,000"),
            balance=(share is None or 0 <= share <= 1, "in [0, 1], or None"),
        )
        if self.kl == "exact" and share is not None:
            raise ValueError(
                f"RePo.balance is {share:g} with kl 'exact', whose two sides cannot be told apart; take an estimator "
                "(k3), or leave balance out."
            )

    def start_memory(self) -> Multiplier | None:
        """The multiplier."""
        return Multiplier(self.beta) if self.beta > 0 else None

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Both sides, before the update for the multiplier and inside it for the loss."""
        if self.beta == 0:
            return ()
        exact = "forward" if self.kl == "exact" else None
        return (
            ScoreRequest("raw", "shape"),
            ScoreRequest(self.branch, "shape", divergence=exact),
            ScoreRequest("raw"),
            ScoreRequest(self.branch, divergence=exact),
        )

    def shape(
        self, advantage: Tensor, batch: Batch, now: Now, memory: Multiplier | None = None
    ) -> Shaped:
        """Move the multiplier by this step's divergence. The advantage stays; logs BRANCH_beta and BRANCH_violation."""
        if memory is None:
            return Shaped(advantage)
        found = self.divergence(batch.scores["raw"], batch.scores[self.branch], batch.mask)
        count = int(batch.mask.sum())
        gap = self._violation(found.sum().item() / count) if count else 0.0
        memory.ascend(self.rate * gap)
        kept = {"beta": torch.full_like(advantage, memory.beta)}
        logged = {f"{self.branch}_beta": memory.beta, f"{self.branch}_violation": gap}
        return Shaped(advantage, logged, kept)

    def terms(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """β times how far the divergence is beyond its target."""
        if self.beta == 0:
            return {}
        found = self.divergence(live["raw"], live[self.branch], batch.mask)
        beyond = keep(self._violation(found), batch.mask)
        return {self.side.replace(" ", "_"): batch.kept["beta"] * beyond}

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """BRANCH_divergence, as it is inside the update."""
        if self.beta == 0:
            return {}
        found = self.divergence(live["raw"], live[self.branch], batch.mask)
        return {f"{self.branch}_divergence": found}

    def divergence(self, raw: Scores, other: Scores, mask: Tensor) -> Tensor:
        """D of every token, 0 on what is not trained; [B, T]."""
        if self.balance is None:
            found = kl.between(self.kl, raw.logp, other.logp, other.divergence)
            return keep(found, mask)
        there = kl.between(self.kl, raw.logp.detach(), other.logp, None)
        here = kl.between(self.kl, raw.logp, other.logp.detach(), None)
        return keep(self.balance * there + (1.0 - self.balance) * here, mask)

    def _violation(self, divergence: Any) -> Any:
        """How far beyond the target, a number or a tensor; negative where the constraint holds."""
        beyond = divergence - self.target
        return beyond if self.side == "at most" else -beyond


class Multiplier:
    """β, which remembers how far its constraint was broken."""

    def __init__(self, beta: float) -> None:
        self.log_beta = math.log(beta)

    @property
    def beta(self) -> float:
        """The factor on the constraint."""
        return math.exp(self.log_beta)

    def ascend(self, change: float) -> None:
        """Add to log β, within its bounds; a change that is no number is left out."""
        if math.isfinite(change):
            self.log_beta = min(max(self.log_beta + change, LOWEST), HIGHEST)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"log_beta": self.log_beta}

    def load(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.log_beta = float(state["log_beta"])
