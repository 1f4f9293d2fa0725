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
   `mmrl.perception.saliency.DinoSaliency`), stretched to the picture; ties are broken by the row-major order.
4. EvidenceMask, Blank and FrameMask are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mmrl.perception.evidence import evidence_pixels
from mmrl.perception.pixels import (
    check_share,
    check_value,
    checked,
    grid_shape,
    grid_to_pixels,
    painted,
    stretch,
)
from mmrl.types import Now, ViewContext


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
            raise ValueError(
                f"PatchMask.size is {self.size}; a patch needs a side of at least 1 pixel."
            )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count, _, height, width = checked(frames, "PatchMask").shape
        shape = (1 if self.tube else count, *grid_shape(height, width, self.size))
        hidden = (
            torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64)
            < self.ratio
        )  # [F, h, w]
        return painted(frames, grid_to_pixels(hidden, self.size, height, width), self.value)


@dataclass(frozen=True)
class SaliencyMask:
    """Black out the most salient patches of each frame: floor(ratio * number of patches) of them (PAPO's ablation)."""

    ratio: float = 0.6
    """Share of patches that is hidden, in [0, 1]."""
    value: int = 0
    """Grey level of hidden pixels, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("SaliencyMask", "ratio", self.ratio)
        check_value("SaliencyMask", self.value)

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count, _, height, width = checked(frames, "SaliencyMask").shape
        saliency = context.saliency
        if saliency is None:
            raise ValueError(
                f"SaliencyMask got no saliency for medium {context.medium} of prompt {context.prompt.id!r}; let the "
                "branch compute the policy's visual attention, or wrap the mask in mmrl.perception.saliency.SeenBy."
            )
        top = most_salient(
            saliency if saliency.ndim == 3 else saliency[None], self.ratio
        )  # [F', h, w]
        moments = ((torch.arange(count, device=top.device) + 0.5) * top.shape[0] / count).long()
        return painted(frames, stretch(top[moments], height, width), self.value)


def most_salient(saliency: Tensor, ratio: float) -> Tensor:
    """Mark the floor(ratio * h * w) highest cells of each grid of [F, h, w]; ties go to the earlier cell."""
    flat = saliency.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    first = torch.zeros_like(flat, dtype=torch.bool).scatter(
        1, order, ranks < math.floor(ratio * flat.shape[1])
    )
    return first.view_as(saliency)


@dataclass(frozen=True)
class EvidenceMask:
    """Black out the annotated evidence (`prompt.extra["evidence"]`, see `mmrl.perception.evidence`), or all but it."""

    side: Literal["inside", "outside"] = "inside"
    """Hide the evidence ("inside": the answer should be lost) or everything else ("outside": it should survive)."""
    value: int = 0
    """Grey level of hidden pixels, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_value("EvidenceMask", self.value)
        if self.side not in ("inside", "outside"):
            raise ValueError(
                f"EvidenceMask.side is {self.side!r}; it must be 'inside' or 'outside'."
            )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        shown = evidence_pixels(
            context, *checked(frames, "EvidenceMask").shape[-2:], frames=frames.shape[0]
        )
        return painted(frames, shown if self.side == "inside" else ~shown, self.value)


@dataclass(frozen=True)
class Blank:
    """One flat colour: what is left when nothing is seen (the blind probe)."""

    value: int = 0
    """Grey level of all pixels, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_value("Blank", self.value)

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return torch.full_like(checked(frames, "Blank"), self.value)


@dataclass(frozen=True)
class FrameMask:
    """Black out whole frames, each run of `block` frames independently with probability `ratio`."""

    ratio: float = 0.5
    """Probability that a run of frames is hidden, in [0, 1]."""
    block: int = 1
    """Frames that share one draw; Qwen models merge two frames into one token, which 2 respects."""
    value: int = 0
    """Grey level of hidden frames, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("FrameMask", "ratio", self.ratio)
        check_value("FrameMask", self.value)
        if self.block < 1:
            raise ValueError(
                f"FrameMask.block is {self.block}; it counts frames and must be at least 1."
            )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "FrameMask").shape[0]
        runs = -(-count // self.block)
        hidden = (
            torch.rand(runs, generator=rng, device=rng.device, dtype=torch.float64) < self.ratio
        )
        return painted(
            frames, hidden.repeat_interleave(self.block)[:count, None, None], self.value
        )


def legacy_patch_grid(
    height: int, width: int, size: int, ratio: float, state: np.random.RandomState
) -> Tensor:
    """Hidden patches, bool [h, w], by the official code's draws: one legacy uniform per patch in row-major order.

    Seed with `np.random.RandomState(seed)`; the same numbers as numpy's global state after `np.random.seed(seed)`.
    """
    return torch.from_numpy(state.random_sample(grid_shape(height, width, size)) < ratio)
