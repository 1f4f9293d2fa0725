"""Where the answer of a question can be seen, read from `prompt.extra["evidence"]`.

The value is one region or a list of regions, JSON or plain Python. A region is a mapping (or a record with the same
fields) with any of

* `visual`: index of the medium, 0 if absent;
* `boxes`: [[x0, y0, x1, y1], ...] in original pixels, end exclusive; absent or empty means the whole picture;
* `frames`: frame indices; absent or empty means all frames;
* `span`: [start, end] in seconds, both included, for media with time stamps;
* `mask`: [H, W] or [F, H, W], true where the evidence is, on any grid that covers the picture.

Within a region all that is given must hold (a box in some frames); several regions are united. A medium that no region
names holds no evidence. Regions follow the picture through the pixel-budget resize: they are scaled from the original
size (`prompt.media`) to that of the frames at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.perception.pixels import stretch
from mmrl.types import Media, ViewContext

ALLOWED = ("visual", "boxes", "frames", "span", "mask")


def evidence_pixels(context: ViewContext, height: int, width: int, frames: int) -> Tensor:
    """Mark the evidence of the context's medium, bool [F, H, W].

    Raises ValueError if the prompt carries no evidence or a region that cannot be read.
    """
    stated = context.prompt.extra.get("evidence")
    if stated is None:
        raise ValueError(
            f"prompt {context.prompt.id!r} has no evidence; add a column 'evidence' with boxes, frames, span or mask, "
            "or use a view that needs none (PatchMask)."
        )
    shown = torch.zeros(frames, height, width, dtype=torch.bool)
    several = isinstance(stated, Sequence) and not isinstance(stated, str)
    for region in stated if several else [stated]:
        entry = _entry(region, context)
        if int(entry.get("visual") or 0) == context.medium:
            shown |= _region(entry, context, shown)
    return shown


def _entry(region: Any, context: ViewContext) -> Mapping[str, Any]:
    """The region as a mapping with known keys only."""
    if is_dataclass(region) and not isinstance(region, type):
        names = [field.name for field in fields(region)]
        region = {name: getattr(region, name) for name in names}
    if not isinstance(region, Mapping) or not set(region) <= set(ALLOWED):
        raise ValueError(
            f"prompt {context.prompt.id!r}: cannot read the evidence {region!r}; "
            f"a region is a mapping with some of the keys {', '.join(ALLOWED)}."
        )
    return region


def _region(entry: Mapping[str, Any], context: ViewContext, like: Tensor) -> Tensor:
    """One region, bool [F, H, W]."""
    frames, height, width = like.shape
    media = context.prompt.media
    medium = media[context.medium] if media else None
    area = torch.ones_like(like)  # nothing given: everywhere and always
    # Asked by length, not by truth: boxes may be an array, whose truth is not defined.
    if entry.get("boxes") is not None and len(entry["boxes"]):
        area &= _boxed(entry["boxes"], medium, height, width, context)
    if entry.get("mask") is not None:
        area &= _masked(entry["mask"], frames, height, width, context)
    if entry.get("frames") is not None and len(entry["frames"]):
        area &= _frames(entry["frames"], frames, context)[:, None, None]
    if entry.get("span") is not None:
        area &= _span(entry["span"], medium, frames, context)[:, None, None]
    return area


def _masked(given: Any, frames: int, height: int, width: int, context: ViewContext) -> Tensor:
    """A mask on any grid, stretched over the picture; bool [F, H, W] or [1, H, W]."""
    mask = torch.as_tensor(given).bool()
    fits = mask.ndim == 2 or (mask.ndim == 3 and mask.shape[0] == frames)
    if not fits:
        raise ValueError(
            f"prompt {context.prompt.id!r}: the evidence mask has shape {tuple(mask.shape)}; "
            f"it must be [H, W] or [{frames}, H, W]."
        )
    return stretch(mask if mask.ndim == 3 else mask[None], height, width)


def _boxed(
    boxes: Any, medium: Media | None, height: int, width: int, context: ViewContext
) -> Tensor:
    """The union of boxes, bool [H, W], scaled from original pixels; a partly covered pixel counts."""
    original_height, original_width = height, width
    if medium is not None:
        original_height, original_width = medium.frames.shape[-2:]
    area = torch.zeros(height, width, dtype=torch.bool)
    for box in boxes:
        if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"prompt {context.prompt.id!r}: the evidence box {list(box)} is not [x0, y0, x1, y1] with "
                "x0 < x1 and y0 < y1 (original pixels, end exclusive)."
            )
        left, right = _scaled(box[0], box[2], width, original_width)
        top, bottom = _scaled(box[1], box[3], height, original_height)
        # From the pixel that the first edge lies in to the one that the last edge lies in; a box may stick out.
        rows = slice(max(int(top), 0), max(math.ceil(bottom), 0))
        columns = slice(max(int(left), 0), max(math.ceil(right), 0))
        area[rows, columns] = True
    return area


def _scaled(first: float, last: float, side: int, original: int) -> tuple[float, float]:
    """Two edges in original pixels, in pixels of the picture at hand."""
    return first * side / original, last * side / original


def _frames(indices: Any, count: int, context: ViewContext) -> Tensor:
    """The named frames, bool [F]."""
    wanted = [int(index) for index in indices]
    if any(not 0 <= index < count for index in wanted):
        raise ValueError(
            f"prompt {context.prompt.id!r}: evidence frames {wanted} of a clip of {count}; count from 0 to {count - 1}."
        )
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[wanted] = True
    return chosen


def _span(span: Any, medium: Media | None, count: int, context: ViewContext) -> Tensor:
    """Frames within the span, bool [F]; a span between two samples marks the frame nearest to its middle."""
    if medium is None or medium.times is None or len(medium.times) != count:
        raise ValueError(
            f"prompt {context.prompt.id!r}: an evidence span needs a clip with one time stamp per frame; "
            "name `frames` instead."
        )
    start, end = float(span[0]), float(span[1])
    chosen = (medium.times >= start) & (medium.times <= end)
    if not chosen.any():
        away = (medium.times - (start + end) / 2).abs()
        chosen[away.argmin()] = True
    return chosen
