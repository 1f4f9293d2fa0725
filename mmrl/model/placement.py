"""What of a tensor lies on this device, where weights are cut over several."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor


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


@torch.no_grad()
def fill(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one of which this device may hold a part only."""
    if isinstance(target, DTensor):
        near = whole.to(target.device, target.dtype)
        # Every device has the whole and takes its part: nothing is sent.
        whole = distribute_tensor(
            near, target.device_mesh, target.placements, src_data_rank=None
        )
    target.copy_(whole)
