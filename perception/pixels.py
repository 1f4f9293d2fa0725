"""The boundary of every view: uint8 RGB frames [F, 3, H, W], 0 to 255, and how a grid of patches covers their pixels.

Patches are s x s pixels counted from the top-left corner of the given pixels; those at the right and bottom edge are
truncated, so no pixel is left out and the picture keeps its size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def checked(frames: Tensor, view: str) -> Tensor:
    """Return the frames if they are uint8 [F, 3, H, W] with at least one pixel.

    Raises ValueError naming the view otherwise.
    """
    if (
        frames.dtype != torch.uint8
        or frames.ndim != 4
        or frames.shape[1] != 3
        or frames.numel() == 0
    ):
        raise ValueError(
            f"{view} was given {frames.dtype} frames of shape {tuple(frames.shape)}; "
            "a view takes uint8 RGB frames [F, 3, H, W] with F, H, W >= 1. Convert with Media(frames=...) first."
        )
    return frames


def grid_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Rows and columns of s x s patches that cover the picture, edge patches included."""
    return -(-height // size), -(-width // size)


def grid_to_pixels(grid: Tensor, size: int, height: int, width: int) -> Tensor:
    """Spread a patch grid [..., h, w] over its pixels [..., H, W] without interpolation."""
    spread = grid.repeat_interleave(size, dim=-2).repeat_interleave(size, dim=-1)
    return spread[..., :height, :width]


def stretch(grid: Tensor, height: int, width: int) -> Tensor:
    """Stretch a grid [F, h, w] of any shape to [F, H, W]: each pixel takes the cell that its centre falls into."""
    rows = ((torch.arange(height, device=grid.device) + 0.5) * grid.shape[-2] / height).long()
    columns = ((torch.arange(width, device=grid.device) + 0.5) * grid.shape[-1] / width).long()
    return grid[..., rows[:, None], columns[None, :]]


def painted(frames: Tensor, hidden: Tensor, value: int) -> Tensor:
    """Set the hidden pixels (bool [F, H, W] or [1, H, W]) to `value` in all channels; the input stays as it was."""
    return frames.masked_fill(hidden.to(frames.device)[:, None], value)


def check_value(view: str, value: int) -> None:
    """Raise ValueError unless `value` is a uint8 grey level."""
    if not 0 <= value <= 255:
        raise ValueError(
            f"{view}.value is {value}; a grey level lies in 0 (black) to 255 (white)."
        )


def check_share(view: str, field: str, share: float) -> None:
    """Raise ValueError unless `share` lies in [0, 1]."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{view}.{field} is {share}; it is a share and must lie in [0, 1].")
