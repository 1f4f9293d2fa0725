"""The vision tower of a policy: patches in, features out, with what the vision cache must know about its weights.

The tower counts the patches it reads, knows whether it learns, names the weights that are read now, and says how much
memory its graph would take. It remembers nothing: that is the cache's part (`vision_cache.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from mmrl.model.patches import Patches
from mmrl.model.visual_attention import token_saliency

GRAPH_BYTES = 40
"""A tower's graph takes about so many bytes per patch, block and hidden unit."""
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
        return any(p.requires_grad for p in self._visual.parameters())

    @property
    def version(self) -> str:
        """A name for the weights in use: equal names mean equal features of equal pixels."""
        # One name will do for "the policy's, which are frozen" and "the reference's": where the policy's are frozen
        # too, both are the same weights.
        return f"step {self.weights.version}" if self.trains else FROZEN

    @property
    def merge(self) -> int:
        """Patches per visual token along each side."""
        return self._visual.config.spatial_merge_size

    def graph_bytes(self, patches: int) -> int:
        """Memory that a graph over so many patches takes, roughly."""
        config = self._visual.config
        return GRAPH_BYTES * patches * config.depth * config.hidden_size

    def __call__(self, media: Sequence[Patches]) -> list[VisualFeatures]:
        """Features of each medium, all in one run of the tower."""
        values, device = self._values(media), self.weights.device
        grid = torch.tensor([item.grid for item in media], device=device)
        self.weights.counters["patches/tower"] += len(values)
        found = self._visual(values, grid_thw=grid, return_dict=True)
        sizes = [item.tokens for item in media]
        merged = torch.split(found.pooler_output, sizes)
        # Qwen2.5-VL has no such levels, and a Qwen3-VL config may name none.
        levels = getattr(found, "deepstack_features", None) or ()
        per_level = [torch.split(level, sizes) for level in levels]
        per_medium = zip(*per_level, strict=True) if per_level else [()] * len(media)
        return [
            VisualFeatures(rows, tuple(deep))
            for rows, deep in zip(merged, per_medium, strict=True)
        ]

    def saliency(self, medium: Patches) -> Tensor:
        """Attention that each visual token receives in the tower, float32 [F', h, w] on the CPU."""
        values = self._values([medium])
        self.weights.counters["patches/saliency"] += len(values)
        return token_saliency(self._visual, values, medium.grid).cpu()

    @property
    def _visual(self) -> Any:
        return self.weights.base.model.visual

    def _values(self, media: Sequence[Patches]) -> Tensor:
        """All patches in one tensor [N, patch], where and in the number format in which the model computes."""
        values = torch.cat([item.values for item in media])
        return values.to(self.weights.device, self.weights.dtype)


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
    mask = torch.zeros(1, len(rows), dtype=torch.bool, device=rows.device)
    mask[0, places] = True
    levels = [torch.cat([item.deepstack[i] for item in features]) for i in range(depth)]
    return rows, {"visual_pos_masks": mask, "deepstack_visual_embeds": levels}
