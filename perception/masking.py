"""Views that take evidence away: PAPO's random patches, patches by saliency, annotated evidence, frames, everything.

PAPO (arXiv 2507.06448, official code, branch main): the picture is cut into a row-major grid of s x s pixel patches,
edge patches truncated; one uniform number u is drawn per patch, and the patch is painted black where u < p. Several
images of a prompt are masked independently. The grid lies on the pixels that the view is given; the official code
masks the original picture, before the pixel-budget resize (`VisualBranch.stage="original"`).

Semantic masking (the paper's ablation): the floor(p (N - 1)) most salient patches are masked. N counts the tokens of
the saliency model with its class token, so N - 1 is the number of patches.

Departures from paper and official code:
1. Draws come from the branch's generator instead of numpy's global state (so that a rerun repeats them on any number
   of ranks).
2. Videos, which PAPO does not treat: a fresh mask for each frame or, with `tube`, one mask through all frames.
3. SaliencyMask reads whatever grid the context carries (the policy's own vision attention, or
   `mmrl.perception.saliency.DinoSaliency`), stretched to the picture; ties are broken by the row-major order.
4. EvidenceMask, Blank and FrameMask are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.perception.evidence import evidence_pixels
from mmrl.perception.pixels import (
    a_grey_level,
    a_share,
    checked,
    grid_shape,
    grid_to_pixels,
    painted,
    stretch,
    uniform_grid,
)
from mmrl.types import Now, View, ViewContext


@dataclass(frozen=True)
class PatchMask(View):
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
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            ratio=a_share(self.ratio),
            value=a_grey_level(self.value),
            size=(self.size >= 1, "at least 1, a side in pixels"),
        )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count, _, height, width = checked(frames, "PatchMask").shape
        rows, columns = grid_shape(height, width, self.size)
        grids = 1 if self.tube else count
        hidden = uniform_grid((grids, rows, columns), rng) < self.ratio  # [F, h, w]
        return painted(frames, grid_to_pixels(hidden, self.size, height, width), self.value)


@dataclass(frozen=True)
class Unseen(View):
    """No visual tokens at all: they leave the prompt, all other positions stay (`mmrl.model.unseen`).

    Equal to forbidding every token to look at a visual one, at the price of a shorter row without the tower. Scored,
    never sampled under: a question without its picture is another row.
    """

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    shows: ClassVar[Literal["nothing"]] = "nothing"  # type: ignore[misc]

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return torch.zeros_like(frames)


@dataclass(frozen=True)
class SaliencyMask(View):
    """Black out the most salient patches of each frame: floor(ratio * number of patches) of them (PAPO's ablation)."""

    ratio: float = 0.6
    """Share of patches that is hidden, in [0, 1]."""
    value: int = 0
    """Grey level of hidden pixels, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    reads_saliency: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, ratio=a_share(self.ratio), value=a_grey_level(self.value))

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
        grids = saliency if saliency.ndim == 3 else saliency[None]
        top = most_salient(grids, self.ratio)  # [F', h, w]
        # The tower merges frames in time, so F' may be smaller: each frame takes the grid that its middle falls into.
        middles = torch.arange(count, device=top.device) + 0.5
        moments = (middles * top.shape[0] / count).long()
        return painted(frames, stretch(top[moments], height, width), self.value)


def most_salient(saliency: Tensor, ratio: float) -> Tensor:
    """Mark the floor(ratio * h * w) highest cells of each grid of [F, h, w]; ties go to the earlier cell."""
    flat = saliency.flatten(1)
    # Stable, so that equal saliencies (a blank wall) are hidden alike on every machine.
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    counted = ranks < math.floor(ratio * flat.shape[1])
    marked = torch.zeros_like(flat, dtype=torch.bool).scatter(1, order, counted)
    return marked.view_as(saliency)


@dataclass(frozen=True)
class EvidenceMask(View):
    """Black out the annotated evidence (`prompt.extra["evidence"]`, see `mmrl.perception.evidence`), or all but it."""

    side: Literal["inside", "outside"] = "inside"
    """Hide the evidence ("inside": the answer should be lost) or everything else ("outside": it should survive)."""
    value: int = 0
    """Grey level of hidden pixels, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        known = self.side in ("inside", "outside")
        require(self, value=a_grey_level(self.value), side=(known, "'inside' or 'outside'"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count, _, height, width = checked(frames, "EvidenceMask").shape
        evidence = evidence_pixels(context, height, width, frames=count)
        hidden = evidence if self.side == "inside" else ~evidence
        return painted(frames, hidden, self.value)


@dataclass(frozen=True)
class Blank(View):
    """One flat colour: what is left when nothing is seen (the blind probe)."""

    value: int = 0
    """Grey level of all pixels, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, value=a_grey_level(self.value))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return torch.full_like(checked(frames, "Blank"), self.value)


@dataclass(frozen=True)
class FrameMask(View):
    """Black out whole frames, each run of `block` frames independently with probability `ratio`."""

    ratio: float = 0.5
    """Probability that a run of frames is hidden, in [0, 1]."""
    block: int = 1
    """Frames that share one draw; Qwen models merge two frames into one token, which 2 respects."""
    value: int = 0
    """Grey level of hidden frames, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            ratio=a_share(self.ratio),
            value=a_grey_level(self.value),
            block=(self.block >= 1, "at least 1, a number of frames"),
        )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "FrameMask").shape[0]
        runs = math.ceil(count / self.block)
        hidden = uniform_grid((runs,), rng) < self.ratio
        of_frames = hidden.repeat_interleave(self.block)[:count]  # the last run may be short
        return painted(frames, of_frames[:, None, None], self.value)
