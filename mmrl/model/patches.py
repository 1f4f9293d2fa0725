"""From uint8 frames to the flat patches a Qwen-VL vision tower reads: how large a picture becomes, how it is cut up.

The numbers are those of the checkpoint's own image and video processor (sizes, resampling, normalisation, patch order);
this file repeats their arithmetic without their overhead per call and adds a budget per prompt. Equality with the
processors is tested. Patch rows come in blocks of merge x merge, so merge² neighbouring rows become one visual token;
one row holds channel, time within the temporal patch, row and column of pixels, in this order. An image is shown twice
in time, and an odd number of frames repeats the last one.

Sizes, with f = patch * merge: both sides are rounded to multiples of f; when the area leaves [min_pixels, max_pixels]
both sides are scaled by one factor instead (rounded down when shrinking, up when growing). The area is that of one
frame for images and Qwen2.5-VL videos, and of all frames together for Qwen3-VL videos.

Departures from the processors:

1. `PixelBudget.max_visual_tokens` is a hard limit per prompt: if the sizes above need more, all media are shrunk by one
   common factor until they fit, even below `min_pixels`. Nothing is ever cut off or dropped.
2. `PixelBudget.max_video_pixels` is hard too, down to one visual token per temporal patch; qwen-vl-utils keeps at
   least 1.05 * min_pixels per frame.
3. A clip of one frame is treated as two equal frames (the Qwen3-VL processor refuses it).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require

MAX_ASPECT = 200
"""Longest allowed side ratio, as in the processors."""


@dataclass(frozen=True)
class PixelBudget:
    """How much a prompt may show. None keeps the limit of the checkpoint's own processor."""

    min_pixels: int | None = None
    """Smallest area of an image in pixels; smaller ones are enlarged."""
    max_pixels: int | None = None
    """Largest area of an image in pixels; larger ones are shrunk."""
    min_frame_pixels: int | None = None
    """Smallest area of one video frame in pixels."""
    max_frame_pixels: int | None = None
    """Largest area of one video frame in pixels."""
    max_video_pixels: int | None = None
    """Largest area of all frames of one video together, in pixels."""
    max_visual_tokens: int | None = None
    """Most visual tokens of one prompt; above it all media are shrunk in proportion. None: no limit."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens, visual ones included; a longer one is a bad row. None: the model's context length."""

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            fine = number is None or number >= 1
            require(self, **{name: (fine, "positive, or None for the checkpoint's")})
        self._refuse_crossing("min_pixels", "max_pixels")
        self._refuse_crossing("min_frame_pixels", "max_frame_pixels")

    def chosen(self) -> dict[str, int]:
        """The limits that are not left to the checkpoint."""
        return {name: number for name, number in vars(self).items() if number is not None}

    def _refuse_crossing(self, low: str, high: str) -> None:
        least, most = getattr(self, low), getattr(self, high)
        if least is not None and most is not None and least > most:
            raise ValueError(
                f"PixelBudget.{low} is {least}, above {high} = {most}; lower one or raise the other."
            )


@dataclass(frozen=True)
class Normal:
    """How bytes become numbers: (byte - mean) / std per channel, a lone frame repeated in time."""

    mean: tuple[float, ...]
    """Per channel, in units of 0 to 255."""
    std: tuple[float, ...]
    numbers: int
    """Pixels of one channel that a row of `Patches.values` holds: temporal patch · patch · patch."""

    @cached_property
    def columns(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation, float32 [channels, 1] each."""
        return torch.tensor(self.mean).view(-1, 1), torch.tensor(self.std).view(-1, 1)

    def repeats(self, held: int) -> int:
        """How often pixels are repeated of which a row holds so many per channel."""
        return self.numbers // held


@dataclass(frozen=True, eq=False)
class Patches:
    """One medium as the vision tower reads it."""

    pixels: Tensor
    """uint8 [N, channels, t · patch · patch], N = t·h·w of `grid`; t is the temporal patch, or 1 where a single frame
    is shown again and again. A quarter (an eighth) of the bytes of `values`."""
    normal: Normal
    """What turns `pixels` into `values`."""
    grid: tuple[int, int, int]
    """Temporal patches, rows and columns of patches."""
    kind: Literal["image", "video"]
    size: tuple[int, int]
    """Height and width in pixels after the resize."""
    key: str
    """Hash of the resized pixels, kind and grid: equal keys have equal `values`."""
    merge: int = 2
    """Patches per visual token along each side."""

    def __len__(self) -> int:
        """Number of patches, N."""
        return len(self.pixels)

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return math.prod(self.grid) // self.merge**2

    @property
    def frames(self) -> Tensor:
        """uint8 [F, channels, H, W], the pixels put together again; an odd number ends with a repeated frame."""
        depth, rows, columns = self.grid
        p, m = self.size[0] // rows, self.merge
        t = self.pixels.shape[2] // p**2
        # (depth, tall, wide, m, m) number the rows; (channels, t, p, p) are one row's pixels.
        cut = self.pixels.view(depth, rows // m, columns // m, m, m, -1, t, p, p)
        frames = cut.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)
        return frames.reshape(depth * t, self.pixels.shape[1], *self.size)

    @property
    def values(self) -> Tensor:
        """float32 [N, channels · temporal patch · patch · patch], normalised; computed at each call."""
        return self.values_on(self.pixels.device)

    def values_on(self, device: torch.device | str) -> Tensor:
        """`values`, computed on a device, so that bytes travel there and not numbers of four bytes each."""
        mean, std = (part.to(device) for part in self.normal.columns)
        # In place where it can be: `float` has made a copy already.
        numbers = self.pixels.to(device).float().sub_(mean).div_(std)
        repeats = self.normal.repeats(self.pixels.shape[2])
        return numbers[:, :, None].expand(-1, -1, repeats, -1).reshape(len(numbers), -1)


def area_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Sides as multiples of `factor`, with the area in [min_pixels, max_pixels] as far as rounding allows."""
    return clip_resize(1, height, width, 1, factor, min_pixels, max_pixels)


def clip_resize(
    frames: int,
    height: int,
    width: int,
    temporal: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """The same for a clip whose frames share the limits (`frames` rounded to multiples of `temporal`)."""
    # Python's `round`, which takes halves to the even side, because the processors use it.
    rounded = round(frames / temporal) * temporal
    tall = round(height / factor) * factor
    wide = round(width / factor) * factor
    if rounded * tall * wide > max_pixels:
        # From the unrounded sides and frames, as the library does: rounding twice would give other sizes.
        shrink = math.sqrt(frames * height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif rounded * tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


def shrink_to_tokens(
    sizes: Sequence[tuple[int, int]], depths: Sequence[int], factor: int, max_tokens: int
) -> list[tuple[int, int]]:
    """Scale all sizes (multiples of `factor`) by one factor, the largest that needs at most `max_tokens` tokens.

    `depths` are the temporal patches of each medium. Raises ValueError if one token per temporal patch is too much.
    """

    def scaled(scale: float) -> list[tuple[int, int]]:
        return [_floor_size(size, scale, factor) for size in sizes]

    def tokens(candidate: Sequence[tuple[int, int]]) -> int:
        total = 0
        for depth, (height, width) in zip(depths, candidate, strict=True):
            total += depth * height * width // factor**2
        return total

    if tokens(sizes) <= max_tokens:
        return list(sizes)
    if sum(depths) > max_tokens:
        raise ValueError(
            f"the media need at least {sum(depths)} visual tokens, max_visual_tokens is {max_tokens}"
        )
    low, high = 0.0, 1.0
    # Halved so often that the size of no real picture can change any more; `low` always fits.
    for _ in range(40):
        middle = (low + high) / 2
        if tokens(scaled(middle)) <= max_tokens:
            low = middle
        else:
            high = middle
    return scaled(low)


def _floor_size(size: tuple[int, int], scale: float, factor: int) -> tuple[int, int]:
    height, width = (math.floor(side * scale / factor) * factor for side in size)
    return max(factor, height), max(factor, width)


def normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, in units of 0 to 255, of a Hugging Face image or video processor."""
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    normal = processor.do_normalize
    # The processors fold the rescaling into mean and deviation in float32; repeating it gives equal bits.
    mean = torch.tensor(processor.image_mean if normal else [0.0] * 3) * (1.0 / scale)
    std = torch.tensor(processor.image_std if normal else [1.0] * 3) * (1.0 / scale)
    return tuple(mean.tolist()), tuple(std.tolist())


@dataclass(frozen=True)
class PixelRules:
    """What one checkpoint does to pixels of one kind."""

    kind: Literal["image", "video"]
    patch: int
    temporal_patch: int
    merge: int
    min_pixels: int
    max_pixels: int
    whole_clip: bool
    """Do the limits count all frames of a video together (Qwen3-VL) or each frame (Qwen2.5-VL)?"""
    max_frame_tokens: int | None
    """With the processor's `cap_pixels_per_frame`: its `max_video_tokens`; else None."""
    mean: tuple[float, ...]
    """Per channel, in units of 0 to 255."""
    std: tuple[float, ...]
    interpolation: Any
    """torchvision's `InterpolationMode`."""

    @classmethod
    def read(
        cls, processor: Any, kind: Literal["image", "video"], whole_clip: bool = False
    ) -> PixelRules:
        """Take the rules from a Hugging Face image or video processor."""
        from transformers.image_utils import pil_torch_interpolation_mapping

        mean, std = normalisation(processor)
        capped = kind == "video" and bool(getattr(processor, "cap_pixels_per_frame", None))
        return cls(
            kind=kind,
            patch=processor.patch_size,
            temporal_patch=processor.temporal_patch_size,
            merge=processor.merge_size,
            min_pixels=processor.size["shortest_edge"],
            max_pixels=processor.size["longest_edge"],
            whole_clip=whole_clip,
            max_frame_tokens=processor.max_video_tokens if capped else None,
            mean=mean,
            std=std,
            interpolation=pil_torch_interpolation_mapping[processor.resample],
        )

    @property
    def factor(self) -> int:
        """Pixels per visual token along each side."""
        return self.patch * self.merge

    def depth(self, frames: int) -> int:
        """Temporal patches of so many frames."""
        return -(-frames // self.temporal_patch)

    def size(
        self, frames: int, height: int, width: int, budget: PixelBudget
    ) -> tuple[int, int]:
        """Height and width after the resize, before the budget per prompt. Raises ValueError for extreme shapes."""
        self.refuse_extreme(frames, height, width)
        if self.kind == "image":
            low, high = _combined_limits(
                self.min_pixels, self.max_pixels, budget.min_pixels, budget.max_pixels
            )
            return area_resize(height, width, self.factor, low, high)
        # A clip of one frame is shown as two equal ones.
        size = self._video_size(max(frames, self.temporal_patch), height, width, budget)
        shown = self.depth(frames) * self.temporal_patch * math.prod(size)
        if budget.max_video_pixels is not None and shown > budget.max_video_pixels:
            scale = math.sqrt(budget.max_video_pixels / shown)
            return _floor_size(size, scale, self.factor)
        return size

    def refuse_limits(self, budget: PixelBudget) -> None:
        """Raise ValueError for limits that cannot be kept. All can, where pictures become any size."""

    def refuse_extreme(self, frames: int, height: int, width: int) -> None:
        """Raise ValueError for a shape that cannot be shown."""
        if min(height, width) < 1 or frames < 1:
            raise ValueError(
                f"it has {frames} frames of {width} x {height} pixels; every side must be at least 1"
            )
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise ValueError(
                f"it is {width} x {height} pixels; the longer side may be at most {MAX_ASPECT} times the other"
            )

    def shrunk(
        self,
        media: Sequence[tuple[PixelRules, tuple[int, int, int]]],
        sizes: Sequence[tuple[int, int]],
        budget: PixelBudget,
    ) -> list[tuple[int, int]]:
        """Smaller `sizes` of a prompt's media (rules; frames, height, width), within `budget.max_visual_tokens`.

        Raises ValueError if nothing is small enough.
        """
        assert budget.max_visual_tokens is not None
        depths = [rules.depth(frames) for rules, (frames, _, _) in media]
        return shrink_to_tokens(sizes, depths, self.factor, budget.max_visual_tokens)

    def grid(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Temporal patches, rows and columns of patches of so many frames at the given (height, width)."""
        return (self.depth(frames), size[0] // self.patch, size[1] // self.patch)

    def cut(self, frames: Tensor, size: tuple[int, int]) -> Patches:
        """Patches of frames uint8 [F, 3, H, W] shown at the given (height, width)."""
        return self.patches(self.resize(frames, size))

    def _video_size(
        self, frames: int, height: int, width: int, budget: PixelBudget
    ) -> tuple[int, int]:
        low, high = self._video_limits(frames, budget)
        if not self.whole_clip:
            return area_resize(height, width, self.factor, low, high)
        # The Qwen3-VL processor enlarges small frames first, and its limits then count the enlarged ones.
        if min(height, width) < self.factor:
            grow = max(self.factor / height, self.factor / width)
            height, width = int(height * grow), int(width * grow)
        return clip_resize(frames, height, width, self.temporal_patch, self.factor, low, high)

    def _video_limits(self, frames: int, budget: PixelBudget) -> tuple[int, int]:
        """Least and most pixels: of one frame, or of the clip if `whole_clip`."""
        share = frames if self.whole_clip else 1
        high = self.max_pixels if self.max_frame_tokens is None else self._capped(frames)
        least, most = budget.min_frame_pixels, budget.max_frame_pixels
        return _combined_limits(
            self.min_pixels,
            high,
            None if least is None else least * share,
            None if most is None else most * share,
        )

    def _capped(self, frames: int) -> int:
        """The processors' `cap_pixels_per_frame`."""
        assert self.max_frame_tokens is not None
        # The constants 1.05 and 0.9 and the whole-number divisions are theirs.
        floor = int(self.min_pixels * 1.05)
        area = self.max_frame_tokens * self.factor**2
        if self.whole_clip:
            return max(min(area, self.max_pixels // frames), floor) * frames
        share = int(area * 0.9) * self.temporal_patch // frames
        return max(min(self.max_pixels, share), floor)

    def resize(self, frames: Tensor, size: tuple[int, int]) -> Tensor:
        """Frames uint8 [F, 3, H, W] at the given (height, width), uint8."""
        # A resize to the same size is the identity in the library too.
        if tuple(frames.shape[-2:]) == size:
            return frames
        from torchvision.transforms.v2 import functional

        return functional.resize(
            frames, list(size), interpolation=self.interpolation, antialias=True
        )

    def patches(self, frames: Tensor) -> Patches:
        """Cut resized frames uint8 [F, 3, H, W] (sides multiples of `factor`) into patches."""
        frames = frames.contiguous()
        height, width = frames.shape[-2:]
        p, m = self.patch, self.merge
        grid = (self.depth(len(frames)), height // p, width // p)
        count = math.prod(grid)
        # A single frame is kept once; it is repeated in time when its numbers are asked for.
        t = 1 if len(frames) == 1 else self.temporal_patch
        missing = -len(frames) % t
        padded = frames
        if missing:
            padded = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
        depth, tall, wide = grid[0], grid[1] // m, grid[2] // m
        cut = padded.view(depth, t, 3, tall, m, p, wide, m, p)
        # (depth, tall, wide, m, m) number the rows; (3, t, p, p) are one row's pixels.
        rows = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(count, 3, t * p * p)
        size, key = (height, width), self._key(frames, grid)
        return Patches(rows, self._normal, grid, self.kind, size, key, m)

    @cached_property
    def _normal(self) -> Normal:
        return Normal(self.mean, self.std, self.temporal_patch * self.patch**2)

    def _key(self, frames: Tensor, grid: tuple[int, int, int]) -> str:
        # Of the bytes before they are normalised: a quarter of the work, and they decide the rest.
        digest = hashlib.blake2b(f"{self.kind}{grid}".encode(), digest_size=16)
        digest.update(frames.numpy().data)
        return digest.hexdigest()


def _combined_limits(
    low: int, high: int, own_low: int | None, own_high: int | None
) -> tuple[int, int]:
    """The checkpoint's limits with the budget's in their place; where they cross, the given one moves the other."""
    if own_high is not None:
        return (min(low, own_high) if own_low is None else own_low), own_high
    if own_low is not None:
        return own_low, max(high, own_low)
    return low, high
