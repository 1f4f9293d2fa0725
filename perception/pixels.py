"""The boundary of every view: uint8 RGB frames [F, 3, H, W], 0 to 255, and how a grid of patches covers their pixels.

Patches are s x s pixels counted from the top-left corner of the given pixels; those at the right and bottom edge are
truncated, so no pixel is left out and the picture keeps its size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def checked(frames: Tensor, view: str) -> Tensor:
    """Return the frames if they are uint8 [F, 3, H, W] with at least one pixel.

    Raises ValueError naming the view otherwise.
    """
    is_rgb = frames.ndim == 4 and frames.shape[1] == 3
    if frames.dtype != torch.uint8 or not is_rgb or frames.numel() == 0:
        raise ValueError(
            f"{view} was given {frames.dtype} frames of shape {tuple(frames.shape)}; "
            "a view takes uint8 RGB frames [F, 3, H, W] with F, H, W >= 1. Convert with Media(frames=...) first."
        )
    return frames


def grid_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Rows and columns of s x s patches that cover the picture, edge patches included."""
    # Rounded up: a patch at the edge that is cut off counts like any other.
    return math.ceil(height / size), math.ceil(width / size)


def grid_to_pixels(grid: Tensor, size: int, height: int, width: int) -> Tensor:
    """Spread a patch grid [..., h, w] over its pixels [..., H, W] without interpolation."""
    spread = grid.repeat_interleave(size, dim=-2).repeat_interleave(size, dim=-1)
    return spread[..., :height, :width]


def stretch(grid: Tensor, height: int, width: int) -> Tensor:
    """Stretch a grid [F, h, w] of any shape to [F, H, W]: each pixel takes the cell that its centre falls into."""
    rows = _cells(grid.shape[-2], height, grid.device)
    columns = _cells(grid.shape[-1], width, grid.device)
    return grid[..., rows[:, None], columns[None, :]]


def _cells(cells: int, pixels: int, device: torch.device) -> Tensor:
    """The cell of each pixel along one side, long [pixels]."""
    centres = torch.arange(pixels, device=device) + 0.5
    return (centres * cells / pixels).long()


def painted(frames: Tensor, hidden: Tensor, value: int) -> Tensor:
    """Set the hidden pixels (bool [F, H, W] or [1, H, W]) to `value` in all channels; the input stays as it was."""
    return frames.masked_fill(hidden.to(frames.device)[:, None], value)


def uniform_grid(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1); float64, so that a comparison with a share like 0.6 is that of the written number."""
    return torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)


def a_grey_level(value: int) -> tuple[bool, str]:
    """The rule of `require` for a uint8 grey level."""
    return 0 <= value <= 255, "a grey level, 0 (black) to 255 (white)"


def a_share(share: float) -> tuple[bool, str]:
    """The rule of `require` for a share."""
    return 0.0 <= share <= 1.0, "a share in [0, 1]"
