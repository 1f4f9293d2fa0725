"""M-RoPE positions: three numbers (time, row, column) for every prompt token, computed once and passed explicitly.

Text tokens carry the same number on all three axes and count upwards. A block of visual tokens that starts at s has

    time = s + floor(k * step),   row = s + i,   column = s + j        (temporal patch k, merged row i, merged column j)

with step = tokens_per_second * seconds_per_grid for a Qwen2.5-VL video and 1 for one of Qwen2-VL, which counts. An
image has one temporal patch, and a Qwen3-VL video is a row of one-patch blocks with textual time stamps between them,
so there the step plays no part. The token after a block continues at the largest position of the block + 1.

Departures from transformers 5.23:

1. There the text after a Qwen2-VL or Qwen2.5-VL video continues at s + max(rows, columns), which lies inside the
   video's own time positions for every clip longer than a few seconds. We continue after the largest position (as
   4.57 did).
2. 4.57 in turn truncated seconds_per_grid to a whole number before multiplying; we floor the product (as 5.23 does).
3. Nothing is kept on the model between calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Block:
    """One unbroken run of visual tokens."""

    start: int
    """Index of its first token in the prompt."""
    grid: tuple[int, int, int]
    """Temporal patches, rows and columns of visual (merged) tokens."""
    step: float = 1.0
    """Distance of neighbouring temporal patches in positions, before the floor."""

    @property
    def tokens(self) -> int:
        """Visual tokens in the run."""
        return math.prod(self.grid)


def mrope_positions(length: int, blocks: Sequence[Block]) -> Tensor:
    """Positions long [3, length] (time, row, column) of a prompt with these blocks, given in order of `start`."""
    pieces: list[Tensor] = []
    filled, position = 0, 0
    for block in blocks:
        assert block.start >= filled, (
            f"block at {block.start} overlaps the previous one, which ends at {filled}"
        )
        pieces.append(_text_positions(block.start - filled, position))
        position += block.start - filled
        # `extent`, not the number of tokens: a block advances by its longest axis.
        grid, extent = _block_positions(block.grid, block.step)
        pieces.append(grid + position)
        position += extent
        filled = block.start + block.tokens
    assert filled <= length, f"the blocks end at {filled}, the prompt at {length}"
    pieces.append(_text_positions(length - filled, position))
    return torch.cat(pieces, dim=1)


def _text_positions(count: int, position: int) -> Tensor:
    return torch.arange(position, position + count).expand(3, -1)


@lru_cache(maxsize=256)
def _block_positions(grid: tuple[int, int, int], step: float) -> tuple[Tensor, int]:
    """Positions long [3, t·h·w] of a block that starts at zero, columns running fastest, and its largest position + 1.

    Remembered, since most pictures of a run share a few grids; callers must not write into it.
    """
    frames, rows, columns = grid
    # int64 times a Python number gives float32, as in the library: both floor to the same integers.
    time = (torch.arange(frames) * step).long()
    height, width = torch.arange(rows), torch.arange(columns)
    axes = torch.meshgrid(time, height, width, indexing="ij")
    positions = torch.stack(axes).flatten(1)
    return positions, int(positions.max()) + 1
