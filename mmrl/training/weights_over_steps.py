"""One parameter of a run at each of its checkpoints, read by itself: no second model is ever in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmrl.training import shards
from mmrl.training.checkpoint import CheckpointError, Named

Read = Callable[[str], Tensor]
HALF = (torch.bfloat16, torch.float16)


def reader(checkpoint: Path, named: Named) -> Read:
    """Name of a trained parameter -> it at a checkpoint, of one process or of several, at its most precise, on the CPU.

    `named`: the trained parameters in the order of the run. Raises CheckpointError for what cannot be read.
    """
    if shards.is_sharded_checkpoint(checkpoint):
        return lambda name: shards.weight(checkpoint, name)
    file = checkpoint / "weights.safetensors"
    masters = _masters(checkpoint, named)

    def read(name: str) -> Tensor:
        # Changes of a step are smaller than what half precision tells apart.
        if name in masters:
            return masters[name]
        try:
            with safe_open(file, "pt") as weights:
                return weights.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint} cannot be read ({error}).") from error

    return read


def _masters(checkpoint: Path, named: Named) -> dict[str, Tensor]:
    """fp32 copies of half-precision parameters, read from the disk where they are used; none if none were kept."""
    half = [name for name, parameter in named if parameter.dtype in HALF]
    if not half:
        return {}
    try:
        kept = torch.load(
            checkpoint / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} cannot be read ({error}).") from error
    masters: Sequence[Tensor] = kept.get("masters", ())
    return dict(zip(half, masters, strict=True)) if masters else {}
