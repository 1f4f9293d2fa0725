"""What a Qwen vision tower derives from the grids of its media, computed where the grids are: on the host.

The library computes it on the device and asks the device for lengths in between (`tolist`, `repeat_interleave`, boolean
masks), each time waiting until it has done all that was asked before. Its towers take the finished tensors as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.model.window_attention import Windows


def tower_inputs(
    tower: Any, grids: Sequence[tuple[int, int, int]], device: torch.device
) -> dict[str, Any]:
    """Keywords for a call of the tower on media with these grids (temporal patches, rows and columns of patches)."""
    from transformers import vision_utils

    config, grid = tower.config, torch.tensor(grids)
    merge = config.spatial_merge_size
    found: dict[str, Any] = {"position_ids": vision_utils.get_vision_position_ids(grid, merge)}
    edges: dict[str, Tensor] = {"seqlen": vision_utils.get_vision_cu_seqlens(grid)}
    if hasattr(tower, "window_size"):
        found["window_index"], edges["window_seqlen"] = vision_utils.get_vision_window_index(
            grid,
            spatial_merge_size=merge,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
    if hasattr(tower, "num_grid_per_side"):
        found["interp_indices"], found["interp_weights"] = (
            vision_utils.get_vision_interpolation_indices_and_weights(
                grid,
                num_grid_per_side=tower.num_grid_per_side,
                mode=tower.interpolation_mode,
                align_corners=tower.interpolation_align_corners,
                spatial_merge_size=merge,
            )
        )
    found |= {f"cu_{name}s": starts for name, starts in edges.items()}
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in found.items()}
    longest = {f"max_{name}": int(starts.diff().max()) for name, starts in edges.items()}
    # By their number: as many windows as frames are the frames themselves.
    windows = {len(starts): Windows.of(starts.tolist(), device) for starts in edges.values()}
    return {"grid_thw": grid, **moved, **longest, "windows": windows}
