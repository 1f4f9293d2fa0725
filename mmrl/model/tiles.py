"""Pixels of towers that read squares of one size: a picture becomes tiles, a clip one square per frame.

The arithmetic is that of the GOT-OCR2 image processor and the InternVL video processor of transformers 5.24, repeated
without their overhead; equality is tested. A picture is stretched onto the grid of tiles whose aspect ratio is nearest
to its own, and cut; if there are several tiles, the whole picture, stretched onto one square, follows them. Each tile
is then cut into patches as a frame of its own, with the rows of one visual token side by side (`patches.py`).

Limits of a `PixelBudget` count whole tiles: `max_pixels` allows as many as fit into it; less than one is refused.

Departures from the processors:

1. `max_visual_tokens` lowers the number of tiles of all pictures of a prompt until they fit; frames of a clip cannot be
   made smaller, so a clip that is too long is refused.
2. A view that works on resized pixels gets the stretched picture, and the square of the whole is made from what it
   returns; without a view it is made from the picture as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.model.patches import Patches, PixelBudget, PixelRules, normalisation

MOST_TILES = 12
"""Of a picture, by the published processors."""


@dataclass(frozen=True)
class TileRules(PixelRules):
    """What one checkpoint does to pixels of one kind. A temporal patch is one tile or frame."""

    side: int = 448
    """Pixels per side of a tile."""
    fewest: int = 1
    most: int = MOST_TILES
    """Tiles of a picture, without the square of the whole."""

    @classmethod
    def of(
        cls, processor: Any, kind: Literal["image", "video"], patch: int, merge: int
    ) -> TileRules:
        """Take the rules from a Hugging Face image or video processor.

        Raises ValueError for a size that is no square of whole visual tokens.
        """
        from transformers.image_utils import pil_torch_interpolation_mapping

        side, other = processor.size["height"], processor.size["width"]
        if side != other or side % (patch * merge):
            raise ValueError(
                f"the {kind} processor shows squares of {side} x {other} pixels; both sides must be the same multiple "
                f"of {patch * merge}. Copy the processor files of the base model into the folder."
            )
        mean, std = normalisation(processor)
        return cls(
            kind=kind,
            patch=patch,
            temporal_patch=1,
            merge=merge,
            min_pixels=side**2,
            max_pixels=side**2,
            whole_clip=False,
            max_frame_tokens=None,
            mean=mean,
            std=std,
            interpolation=pil_torch_interpolation_mapping[processor.resample],
            side=side,
            fewest=getattr(processor, "min_patches", None) or 1,
            most=getattr(processor, "max_patches", None) or MOST_TILES,
        )

    def size(
        self, frames: int, height: int, width: int, budget: PixelBudget
    ) -> tuple[int, int]:
        """Height and width of the stretched picture, in whole tiles. Raises ValueError for what cannot be shown."""
        self.refuse_extreme(frames, height, width)
        if self.kind == "video":
            self._refuse_long(frames, budget)
            return self.side, self.side
        fewest, most = self._limits(budget)
        rows, columns = best_grid(height, width, self.side, fewest, most)
        return rows * self.side, columns * self.side

    def refuse_limits(self, budget: PixelBudget) -> None:
        """Raise ValueError for an area below one square."""
        name = "max_pixels" if self.kind == "image" else "max_frame_pixels"
        most = getattr(budget, name)
        if most is not None and most < self.side**2:
            raise ValueError(
                f"PixelBudget.{name} is {most:,}, but this model shows every {self.kind} in squares of {self.side} x "
                f"{self.side} pixels; allow {self.side**2:,} or more, or None for the checkpoint's own limit."
            )

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Tiles (or frames), rows and columns of patches of one of them."""
        count = frames if self.kind == "video" else self.tiles(size)
        return count, self.side // self.patch, self.side // self.patch

    def tiles(self, size: tuple[int, int]) -> int:
        """Squares of a picture that is stretched to this (height, width), the one of the whole included."""
        count = size[0] * size[1] // self.side**2
        return count + 1 if count > 1 else 1

    def cut(self, frames: Tensor, size: tuple[int, int]) -> Patches:
        """Patches of frames uint8 [F, 3, H, W] shown at the given (height, width)."""
        shown = self.resize(frames, size)
        if self.kind == "image" and self.tiles(size) > 1:
            whole = self.resize(frames, (self.side, self.side))
            shown = torch.cat([_squares(shown[0], self.side), whole])
        return replace(self.patches(shown), size=size)

    def shrunk(
        self,
        media: Sequence[tuple[PixelRules, tuple[int, int, int]]],
        sizes: Sequence[tuple[int, int]],
        budget: PixelBudget,
    ) -> list[tuple[int, int]]:
        """Sizes with as many tiles as `budget.max_visual_tokens` allows. Raises ValueError if one each is too many."""
        most = budget.max_visual_tokens
        assert most is not None
        per_tile = (self.side // self.factor) ** 2
        need = 0
        for tiles in range(self._limits(budget)[1], 0, -1):
            small = replace(budget, max_pixels=tiles * self.side**2, min_pixels=None)
            found = [rules.size(*shape, small) for rules, shape in media]
            grids = (
                rules.grid(shape[0], size)
                for (rules, shape), size in zip(media, found, strict=True)
            )
            need = per_tile * sum(grid[0] for grid in grids)
            if need <= most:
                return found
        raise ValueError(
            f"the media need at least {need} visual tokens, max_visual_tokens is {most}"
        )

    def _limits(self, budget: PixelBudget) -> tuple[int, int]:
        """Fewest and most tiles of a picture."""
        most, fewest = self.most, self.fewest
        if budget.max_pixels is not None:
            most = budget.max_pixels // self.side**2
        if budget.min_pixels is not None:
            fewest = max(1, budget.min_pixels // self.side**2)
        return min(fewest, most), most

    def _refuse_long(self, frames: int, budget: PixelBudget) -> None:
        """Frames have one size, so that a limit on a clip's area can only be kept by fewer of them."""
        shown, most = frames * self.side**2, budget.max_video_pixels
        if most is not None and shown > most:
            raise ValueError(
                f"its {frames} frames are shown at {self.side} x {self.side} pixels each, {shown:,} in all, and "
                f"PixelBudget.max_video_pixels is {most:,}; take fewer frames or raise it"
            )


@lru_cache(maxsize=1024)
def best_grid(height: int, width: int, side: int, fewest: int, most: int) -> tuple[int, int]:
    """Rows and columns of tiles for a picture: those of the nearest aspect ratio.

    Of equally near ones the larger wins as long as the picture has more than half of its area.
    """
    ratio, area = width / height, width * height
    nearest, best = float("inf"), (1, 1)
    for rows, columns in _grids(fewest, most):
        gap = abs(ratio - columns / rows)
        wide_enough = area > 0.5 * side**2 * rows * columns
        if gap < nearest or (gap == nearest and wide_enough):
            nearest, best = gap, (rows, columns)
    return best


@lru_cache(maxsize=64)
def _grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """All (rows, columns) of so many tiles, small ones first; among equals narrow ones first, as the processor does."""
    sides = range(1, most + 1)
    found = [
        (rows, columns)
        for columns in sides
        for rows in sides
        if fewest <= rows * columns <= most
    ]
    return sorted(found, key=lambda grid: grid[0] * grid[1])


def _squares(picture: Tensor, side: int) -> Tensor:
    """Tiles [n, 3, side, side] of a picture [3, H, W], row by row."""
    channels, height, width = picture.shape
    cut = picture.view(channels, height // side, side, width // side, side)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels, side, side)
