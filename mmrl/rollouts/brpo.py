"""BRPO's dynamic sampling (Writing-Zero, arXiv 2506.00103): groups whose reference is an outlier are dropped.

A group is kept where |Σ R| / G is at most `skew` (0.6 is kept, above it is dropped), G being the answers that have a
verdict; further prompts fill the step, as in `DynamicSampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from mmrl.ground.require import require
from mmrl.losses.brpo import keeps_by_skew
from mmrl.rollouts.groups import DynamicSampling
from mmrl.types import Rollout


@dataclass(frozen=True)
class SkewSampling(DynamicSampling):
    """Keep groups by the skew of `part`; bounds of the mean are not read."""

    part: str = "preferred"
    skew: float = 0.6
    """Largest |sum| / G of a group that is kept."""

    drops_even_groups: ClassVar[bool] = False
    why_dropped: ClassVar[str] = "was better or worse than its reference nearly throughout"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, skew=(0 <= self.skew <= 1, "in [0, 1]"))

    def traits(self) -> tuple[str, ...]:
        """None: what is dropped is not told by right and wrong."""
        return ()

    def keeps(self, group: Sequence[Rollout]) -> bool:
        """Is the reference one of the middle?"""
        return keeps_by_skew([self.value_of(rollout) for rollout in group], self.skew)
