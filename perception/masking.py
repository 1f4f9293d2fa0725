"""Views that take evidence away: PAPO's random patches, patches by saliency, annotated evidence, frames, everything.

PAPO (arXiv 2507.06448, official code, branch main): the picture is cut into a row-major grid of s x s pixel patches,
edge patches truncated; one uniform number u is drawn per patch, and the patch is painted black where u < p. Several
images of a prompt are masked independently. The grid lies on the pixels that the view is given; the official code
masks the original picture, before the pixel-budget resize (`VisualBranch.stage="original"`).

Semantic masking (the paper's ablation): the floor(p (N - 1)) most salient patches are masked. N counts the tokens of
the saliency model with its class token, so N - 1 is the number of patches.

Departures from paper and official code:
1. Draws come from the branch's generator instead of numpy's global state (so that a rerun repeats them on any number
   of ranks); `legacy_patch_grid` reproduces the official draws of one image.
2. Videos, which PAPO does not treat: a fresh mask for each frame or, with `tube`, one mask through all frames.
3. SaliencyMask reads whatever grid the context carries (the policy's own vision attention, or
   `perception.saliency.DinoSaliency`), stretched to the picture; ties are broken by the row-major order.
4. EvidenceMask, Blank and FrameMask are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmrl.types import Now, ViewContext
from perception.pixels import check_share, check_value, checked, grid_shape, grid_to_pixels, painted


@dataclass(frozen=True)
class PatchMask:
    """Black out each square patch independently with probability `ratio` (PAPO, DVRP, VOGUE ablations)."""

    ratio: float = 0.6
    """Probability that a patch is hidden, in [0, 1]."""
    size: int = 14
    """Side of a patch in pixels."""
    value: int = 0
    """Grey level of hidden pixels, 0 (black) to 255."""
    tube: bool = False
    """Hide the same patches in all frames of a video."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("PatchMask", "ratio", self.ratio)
        check_value("PatchMask", self.value)
        if self.size < 1:
            raise ValueError(f"PatchMask.size is {self.size}; a patch needs a side of at least 1 pixel.")

    def __call__(self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now) -> Tensor:
        count, _, height, width = checked(frames, "PatchMask").shape
        shape = (1 if self.tube else count, *grid_shape(height, width, self.size))
        hidden = torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64) < self.ratio  # [F, h, w]
        return painted(frames, grid_to_pixels(hidden, self.size, height, width), self.value)


def legacy_patch_grid(height: int, width: int, size: int, ratio: float, state: np.random.RandomState) -> Tensor:
    """Hidden patches, bool [h, w], by the official code's draws: one legacy uniform per patch in row-major order.

    Seed with `np.random.RandomState(seed)`; the same numbers as numpy's global state after `np.random.seed(seed)`.
    """
    return torch.from_numpy(state.random_sample(grid_shape(height, width, size)) < ratio)
