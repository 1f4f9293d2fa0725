"""The vision tower of a policy: patches in, features out, with what the vision cache must know about its weights.

The tower counts the patches it reads, knows whether it learns, names the weights that are read now, and says how much
memory its graph would take. It remembers nothing: that is the cache's part (`vision_cache.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl.model.families import Family, TowerShape
from mmrl.model.patches import Patches
from mmrl.model.visual_attention import token_saliency

GRAPH_BYTES = 40
"""A tower's graph takes about so many bytes per patch, block and hidden unit."""
NO_SALIENCY = (
    "The attention inside the vision tower of {name} is not read. Give the view another source of saliency, as in "
    "SeenBy(view, DinoSaliency(folder)), or use one that needs none, such as PatchMask."
)
FROZEN = "frozen"
"""Version of weights that never change."""


@dataclass(frozen=True)
class VisualFeatures:
    """What the language model sees of one medium."""

    merged: Tensor
    """[n, D]: one row per visual token."""
    deepstack: tuple[Tensor, ...] = ()
    """[n, D] each: added to the first language layers (Qwen3-VL)."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All rows, merged first."""
        return (self.merged, *self.deepstack)


class TowerWeights(Protocol):
    """What the tower must know of its policy."""

    counters: Counter[str]
    version: int
    """Optimizer steps so far."""
    in_reference: bool
    """Are the starting weights in use now?"""

    @property
    def family(self) -> Family:
        """The adapter of the model's family."""
        ...

    @property
    def base(self) -> Any:
        """The transformers model whose weights are read now."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which it computes."""
        ...


class VisionTower:
    """Runs the tower and its merger with the weights that the policy reads now."""

    def __init__(self, weights: TowerWeights) -> None:
        self.weights = weights

    @property
    def trains(self) -> bool:
        """Does any weight of the tower or its merger change? The reference's never do."""
        if self.weights.in_reference:
            return False
        weights = self._family.tower_parameters(self.weights.base)
        return any(p.requires_grad for p in weights)

    @property
    def version(self) -> str:
        """A name for the weights in use: equal names mean equal features of equal pixels."""
        # One name will do for "the policy's, which are frozen" and "the reference's": where the policy's are frozen
        # too, both are the same weights.
        return f"step {self.weights.version}" if self.trains else FROZEN

    @property
    def merge(self) -> int:
        """Patches per visual token along each side."""
        return self._shape.merge

    def graph_bytes(self, patches: int) -> int:
        """Memory that a graph over so many patches takes, roughly."""
        return GRAPH_BYTES * patches * self._shape.depth * self._shape.hidden

    def __call__(self, media: Sequence[Patches]) -> list[VisualFeatures]:
        """Features of each medium, all in one run of the tower."""
        values = self._values(media)
        self.weights.counters["patches/tower"] += len(values)
        grids = [item.grid for item in media]
        rows, levels = self._family.features(self.weights.base, values, grids)
        sizes = [item.tokens for item in media]
        merged = torch.split(rows, sizes)
        per_level = [torch.split(level, sizes) for level in levels]
        per_medium = zip(*per_level, strict=True) if per_level else [()] * len(media)
        return [
            VisualFeatures(own, tuple(deep))
            for own, deep in zip(merged, per_medium, strict=True)
        ]

    def saliency(self, medium: Patches) -> Tensor:
        """Attention that each visual token receives in the tower, float32 [F', h, w] on the CPU."""
        if not self._family.saliency:
            raise ValueError(self.no_saliency)
        values = self._values([medium])
        self.weights.counters["patches/saliency"] += len(values)
        tower = self._family.tower(self.weights.base)
        return token_saliency(tower, values, medium.grid).cpu()

    @property
    def no_saliency(self) -> str:
        """What to say where the family's saliency is not read."""
        return NO_SALIENCY.format(name=self._family.name)

    @property
    def _family(self) -> Family:
        return self.weights.family

    @cached_property
    def _shape(self) -> TowerShape:
        return self._family.shape(self.weights.base.config)

    def _values(self, media: Sequence[Patches]) -> Tensor:
        """All patches in one tensor [N, patch], where and in the number format in which the model computes."""
        device, dtype = self.weights.device, self.weights.dtype
        # Medium by medium, so that only one at a time is there in fp32.
        return torch.cat([item.values_on(device).to(dtype) for item in media])


def insert_features(
    rows: Tensor, places: Tensor, features: Sequence[VisualFeatures]
) -> tuple[Tensor, dict[str, Any]]:
    """Put visual rows into embedded tokens [S, D] at `places` (long [n], in the order of the media).

    Returns the new rows, and keywords for the language model by which Qwen3-VL adds `deepstack` to its first layers.
    """
    if not features:
        return rows, {}
    merged = torch.cat([item.merged for item in features]).to(rows.dtype)
    rows = rows.index_copy(0, places, merged)
    depth = len(features[0].deepstack)
    if not depth:
        return rows, {}
    # Qwen3-VL adds these levels after the first layers, at the same places.
    levels = [torch.cat([item.deepstack[i] for item in features]) for i in range(depth)]
    nothing = torch.zeros_like(rows)
    whole = [nothing.index_copy(0, places, level.to(rows.dtype))[None] for level in levels]
    return rows, {"visual_pos_masks": Everywhere(), "deepstack_visual_embeds": whole}


class Everywhere:
    """In the place of the mask by which Qwen3-VL finds visual tokens: the levels are added everywhere.

    They are zero where no visual token stands. A mask would be counted on the device, and the host would wait for it in
    each of those layers.
    """

    def to(self, device: torch.device) -> slice:
        """What the library takes for the mask on its device, to index rows with."""
        return slice(None)
