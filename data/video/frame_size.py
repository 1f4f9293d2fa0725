"""How large frames and images are shown, and a token budget that holds. Pure Python.

A token of the language model covers factor × factor pixels of one image, or of one temporal patch (a pair of frames);
factor = patch · merge, 28 for Qwen2.5-VL and 32 for Qwen3-VL.

    image_size            smart_resize of qwen-vl-utils 0.0.14; a side can become 0 for extreme shapes
    clip_size             fetch_video of qwen-vl-utils: the per-frame limit that follows from `total_pixels`
    frame_list_size       fetch_video of qwen-vl-utils for a list of images
    qwen3_resize          transformers 5.23, Qwen3-VL: limits on the whole clip, T · H · W

`fit_clip` is ours. In qwen-vl-utils the limit per frame never falls below 1.05 · min_pixels, so that a long clip
exceeds `total_pixels`, and stamps are not counted. Ours first lowers the resolution, then the number of frames, and
counts the text that accompanies each temporal patch; the result never exceeds the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_RATIO = 200
CONTEXT = 128_000
IMAGE_TOKENS = (4, 16384)
FRAME_TOKENS = (128, 768)
PAIR = 2


@dataclass(frozen=True)
class ClipSize:
    """What a clip becomes under a budget."""

    frames: int
    height: int
    """Pixels, a multiple of the factor."""
    width: int
    """Pixels, a multiple of the factor."""
    tokens: int
    """Visual tokens plus the text of the stamps."""


def image_size(
    height: int,
    width: int,
    factor: int,
    min_pixels: int | None = None,
    max_pixels: float | None = None,
) -> tuple[int, int]:
    """(height, width) in multiples of factor with an area within the limits, as qwen-vl-utils rounds.

    Raises ValueError for a ratio above 200 and for min_pixels > max_pixels (an AssertionError there).
    """
    low, high = _limits(factor, min_pixels, max_pixels)
    _check_ratio(height, width)
    rows = max(factor, round(height / factor) * factor)
    columns = max(factor, round(width / factor) * factor)
    if rows * columns > high:
        shrink = math.sqrt(height * width / high)
        # A side may become 0 here, and only here, as in qwen-vl-utils.
        return _floor(height / shrink, factor), _floor(width / shrink, factor)
    if rows * columns < low:
        grow = math.sqrt(low / (height * width))
        return _ceil(height * grow, factor), _ceil(width * grow, factor)
    return rows, columns


def qwen3_resize(
    frames: int,
    height: int,
    width: int,
    factor: int = 32,
    min_pixels: int = 128 * 32 * 32,
    max_pixels: int = 768 * 32 * 32,
    temporal_patch: int = PAIR,
) -> tuple[int, int]:
    """(height, width) of the Qwen3-VL video processor; limits count the pixels of all frames together.

    Raises ValueError for fewer frames than one temporal patch or a ratio above 200.
    """
    if frames < temporal_patch:
        raise ValueError(f"The clip has {frames} frames; at least {temporal_patch} are needed.")
    if height < factor or width < factor:
        # Before the ratio is checked: a line of pixels is enlarged first and refused afterwards.
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    # The limits are compared with the padded clip, the scale is computed from the real number of frames, as there.
    padded = round(frames / temporal_patch) * temporal_patch
    if padded * rows * columns > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows, columns = _floor(height / shrink, factor), _floor(width / shrink, factor)
        return max(factor, rows), max(factor, columns)
    if padded * rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return _ceil(height * grow, factor), _ceil(width * grow, factor)
    return rows, columns


def clip_size(
    frames: int,
    height: int,
    width: int,
    factor: int,
    *,
    min_pixels: int | None = None,
    max_pixels: float | None = None,
    total_pixels: float | None = None,
    resized: tuple[int, int] | None = None,
    context: int = CONTEXT,
) -> tuple[int, int]:
    """(height, width) that fetch_video of qwen-vl-utils gives a clip; `total_pixels` counts pairs of frames once.

    `resized` is its resized_height and resized_width, which override all limits but those for images.
    """
    if resized is not None:
        return image_size(*resized, factor)
    area = factor * factor
    low = FRAME_TOKENS[0] * area if min_pixels is None else min_pixels
    budget = context * area * 0.9 if total_pixels is None else total_pixels
    per_frame = min(FRAME_TOKENS[1] * area, budget / frames * PAIR)
    # The floor under the limit is why a long clip exceeds `total_pixels`.
    high = max(per_frame, int(low * 1.05))
    if max_pixels is not None:
        high = min(max_pixels, high)
    return image_size(height, width, factor, low, high)


def frame_list_size(
    images: int,
    height: int,
    width: int,
    factor: int,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    total_pixels: float | None = None,
) -> tuple[int, int, int]:
    """(frames, height, width) that qwen-vl-utils makes of a list of equal images given as a video.

    It pads the list to an even number, and resizes twice: as images, to multiples of *twice* the factor (the factor is
    passed where a patch size is expected), then as a clip.
    """
    height, width = image_size(height, width, 2 * factor, min_pixels, max_pixels)
    frames = math.ceil(images / PAIR) * PAIR
    size = clip_size(
        frames,
        height,
        width,
        factor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        total_pixels=total_pixels,
    )
    return frames, *size


def clip_tokens(
    frames: int, height: int, width: int, factor: int, stamp_tokens: int = 0
) -> int:
    """Tokens of a clip: ceil(frames / 2) temporal patches of (h / factor · w / factor + stamp_tokens)."""
    per_patch = (height // factor) * (width // factor) + stamp_tokens
    return math.ceil(frames / PAIR) * per_patch


def fit_clip(
    frames: int,
    height: int,
    width: int,
    factor: int,
    *,
    max_tokens: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    stamp_tokens: int = 0,
) -> ClipSize:
    """The size and number of frames that keep a clip (or a list of equal frames) within `max_tokens`.

    Frames are as large as `max_pixels` and the budget allow; if they would fall below `min_pixels` (16 factor² unless
    given), frames are left out instead, in pairs. `stamp_tokens` is text per temporal patch. Raises ValueError if not
    even one temporal patch of one token fits.
    """
    area = factor * factor
    if max_tokens < 1 + stamp_tokens:
        raise ValueError(
            f"max_tokens is {max_tokens}; one temporal patch needs at least {1 + stamp_tokens} tokens."
        )
    largest = FRAME_TOKENS[1] * area if max_pixels is None else max_pixels
    smallest = 16 * area if min_pixels is None else min_pixels
    # From here on in tokens per temporal patch. Where the limits contradict each other, the upper one wins.
    ceiling = max(1, math.floor(largest / area))
    floor = min(ceiling, max(1, math.ceil(smallest / area)))
    # As many temporal patches as there is room for at the smallest size.
    room = max_tokens // (floor + stamp_tokens)
    patches = max(1, min(math.ceil(frames / PAIR), room))
    share = min(ceiling, max_tokens // patches - stamp_tokens)
    rows, columns = _within(height, width, factor, share, floor)
    height, width = rows * factor, columns * factor
    # An odd last frame shares its patch with itself, so that it costs as much as two.
    kept = min(frames, patches * PAIR)
    return ClipSize(kept, height, width, clip_tokens(kept, height, width, factor, stamp_tokens))


def _within(height: int, width: int, factor: int, cap: int, floor: int) -> tuple[int, int]:
    """(rows, columns) in factors whose product is at most `cap`, and at least `floor` where the shape allows it."""
    ratio = min(max(height / width, 1 / MAX_RATIO), MAX_RATIO)
    rows = max(1, round(height / factor))
    columns = max(1, round(width / factor))
    if rows * columns < floor:
        rows = math.ceil(math.sqrt(floor * ratio))
        columns = math.ceil(math.sqrt(floor / ratio))
    # Second, because the cap is the promise: what the floor has raised may have to shrink again.
    if rows * columns > cap:
        rows = max(1, math.floor(math.sqrt(cap * ratio)))
        columns = max(1, math.floor(math.sqrt(cap / ratio)))
    # A side that was raised to 1 leaves the other at most `cap`.
    return min(rows, cap), min(columns, cap)


def _limits(
    factor: int, min_pixels: int | None, max_pixels: float | None
) -> tuple[float, float]:
    low = IMAGE_TOKENS[0] * factor**2 if min_pixels is None else min_pixels
    high = IMAGE_TOKENS[1] * factor**2 if max_pixels is None else max_pixels
    if high < low:
        raise ValueError(
            f"max_pixels is {high}, below min_pixels {low}; raise the one or lower the other."
        )
    return low, high


def _check_ratio(height: int, width: int) -> None:
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise ValueError(
            f"The picture is {height} × {width}; sides may differ by a factor of at most {MAX_RATIO}."
        )


def _floor(side: float, factor: int) -> int:
    return math.floor(side / factor) * factor


def _ceil(side: float, factor: int) -> int:
    return math.ceil(side / factor) * factor
