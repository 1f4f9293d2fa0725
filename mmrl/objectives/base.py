"""The one seam of the core: a paper overrides `shape`, `terms` or both, and says what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from mmrl.losses.reduce import Reduction
from mmrl.types import Batch, Divergence, Now, Scores


@dataclass(frozen=True)
class Need:
    """One thing an objective reads."""

    branch: str
    """"raw" or the name of a visual branch."""
    stage: Literal["shape", "terms"] = "terms"
    """Before the update (stored scores) or inside it (live scores)."""
    entropy: bool = False
    """Read `Scores.entropy`, the exact entropy over the vocabulary."""
    divergence: Divergence | None = None
    """Read `Scores.divergence`: exact divergence of raw against this branch over the vocabulary.
    forward = KL(raw‖branch), reverse = KL(branch‖raw), symmetric = their mean, js = Jensen–Shannon."""


class Objective:
    """A paper's change to GRPO. Subclasses are frozen dataclasses whose fields are the paper's symbols."""

    reductions: ClassVar[Mapping[str, Reduction]] = {}
    """Term -> rule by which it is reduced, whatever `GRPO.reduction` says."""
    single_rollout: ClassVar[bool] = False
    """Does it train one answer per prompt? Then nothing may compare the answers of a group."""
    remedies: ClassVar[Mapping[str, str]] = {}
    """Alarm of `monitor.py` ("divergence", "entropy", "length") -> what the paper does about it."""

    @property
    def wants(self) -> tuple[str, ...]:
        """What the rollout function must bring: "label", "expert", "checklist" or "noisy prompts:BRANCH"."""
        return ()

    def needs(self) -> tuple[Need, ...]:
        """What this objective reads. Empty when its coefficients are zero: then no branch is scored for it."""
        return ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Tensor:
        """Change the advantage [B, T]. Runs without gradient, in the order in which objectives are listed."""
        return advantage

    def terms(self, live: Mapping[str, Scores], batch: Batch, now: Now) -> dict[str, Tensor]:
        """Named loss terms, each a token map [B, T] that is reduced like the surrogate and minimised.

        `live["raw"]` carries gradient; `live[branch]` does if the branch has `grad=True`. `batch` holds the same rows.
        """
        return {}

    def metrics(self, live: Mapping[str, Scores], batch: Batch, now: Now) -> dict[str, Tensor]:
        """Token maps [B, T] to log as masked means under `<objective>/<name>`; called without gradient."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep; JSON-serialisable or tensors. Empty for memoryless objectives."""
        return {}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
