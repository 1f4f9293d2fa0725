"""Views of a clip that change when its frames are shown. The number of frames, their size and stamps stay.

T-GRPO (Video-R1) rewards a clip that is better answered in order than with `FrameShuffle`; `FrameDrop` and
`TemporalCrop` take moments away by repeating their neighbours, so that token counts and positions stay as they were.
An image (one frame) is shown unchanged by all of them.

`changes_order` is True where the order or the times of what is seen change, hence possibly the answer of a temporal
question. FrameDrop keeps what remains in its place, so it does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrl.perception.pixels import check_share, checked
from mmrl.types import Now, ViewContext


@dataclass(frozen=True)
class FrameShuffle:
    """Show the frames in random order."""

    block: int = 1
    """Frames that stay together; Qwen models merge two frames into one token, which 2 respects."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(
                f"FrameShuffle.block is {self.block}; it counts frames and must be at least 1."
            )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        runs = torch.arange(checked(frames, "FrameShuffle").shape[0]).split(self.block)
        order = torch.randperm(len(runs), generator=rng, device=rng.device).tolist()
        return frames[torch.cat([runs[index] for index in order])]


@dataclass(frozen=True)
class Reverse:
    """Show the frames from last to first."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = True

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return checked(frames, "Reverse").flip(0)


@dataclass(frozen=True)
class FrameDrop:
    """Drop each frame with probability `ratio` and show the frame before it (at the start, the first that is left)."""

    ratio: float = 0.5
    """Probability that a frame is dropped, in [0, 1]; one frame always stays."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share("FrameDrop", "ratio", self.ratio)

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "FrameDrop").shape[0]
        draws = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64).cpu()
        # The luckiest frame stays even where all would go, as at ratio 1.
        kept = ((draws >= self.ratio) | (draws == draws.max())).nonzero()[:, 0]
        before = torch.searchsorted(kept, torch.arange(count), right=True) - 1
        return frames[kept[before.clamp(min=0)]]


@dataclass(frozen=True)
class TemporalCrop:
    """Show a random stretch of the clip, slowed down to its full number of frames."""

    share: float = 0.5
    """Length of the stretch as a share of the clip, in (0, 1]; at least one frame."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(
                f"TemporalCrop.share is {self.share}; it is a share of the clip and must lie in (0, 1]."
            )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "TemporalCrop").shape[0]
        length = max(round(count * self.share), 1)
        start = int(torch.randint(count - length + 1, (), generator=rng, device=rng.device))
        return frames[start + torch.arange(count) * length // count]
