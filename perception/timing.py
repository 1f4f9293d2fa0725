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

from mmrl.ground.require import require
from mmrl.perception.pixels import a_share, checked, uniform_grid
from mmrl.types import Now, View, ViewContext


@dataclass(frozen=True)
class FrameShuffle(View):
    """Show the frames in random order."""

    block: int = 1
    """Frames that stay together; Qwen models merge two frames into one token, which 2 respects."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = True
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, block=(self.block >= 1, "at least 1, a number of frames"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "FrameShuffle").shape[0]
        runs = torch.arange(count).split(self.block)
        order = torch.randperm(len(runs), generator=rng, device=rng.device).tolist()
        return frames[torch.cat([runs[index] for index in order])]


@dataclass(frozen=True)
class Reverse(View):
    """Show the frames from last to first."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = True
    runs_ahead: ClassVar[bool] = True

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        return checked(frames, "Reverse").flip(0)


@dataclass(frozen=True)
class FrameDrop(View):
    """Drop each frame with probability `ratio` and show the frame before it (at the start, the first that is left)."""

    ratio: float = 0.5
    """Probability that a frame is dropped, in [0, 1]; one frame always stays."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, ratio=a_share(self.ratio))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "FrameDrop").shape[0]
        draws = uniform_grid((count,), rng).cpu()
        # The luckiest frame stays even where all would go, as at ratio 1.
        stays = (draws >= self.ratio) | (draws == draws.max())
        kept = stays.nonzero()[:, 0]
        before = torch.searchsorted(kept, torch.arange(count), right=True) - 1
        # Frames before the first one that is left have none before them, and show that one.
        return frames[kept[before.clamp(min=0)]]


@dataclass(frozen=True)
class TemporalCrop(View):
    """Show a random stretch of the clip, slowed down to its full number of frames."""

    share: float = 0.5
    """Length of the stretch as a share of the clip, in (0, 1]; at least one frame."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = True
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, share=(0.0 < self.share <= 1.0, "a share of the clip, in (0, 1]"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        count = checked(frames, "TemporalCrop").shape[0]
        length = max(round(count * self.share), 1)
        start = int(torch.randint(count - length + 1, (), generator=rng, device=rng.device))
        # Each moment of the stretch is shown as often as any other, up to one time.
        moments = start + torch.arange(count) * length // count
        return frames[moments]
