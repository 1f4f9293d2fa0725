"""What of a tensor lies on this device, where weights are cut over several."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate


def is_sharded(tensor: Tensor) -> bool:
    """Does this device hold a part of it only?"""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """What this device holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def copies(tensor: Tensor, world: int) -> int:
    """On how many of `world` devices each number of it lies."""
    if not isinstance(tensor, DTensor):
        return world
    placed = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return math.prod(size for size, place in placed if isinstance(place, Replicate))
