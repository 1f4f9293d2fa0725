"""How large frames and images are shown, and a token budget that holds. Pure Python.

A token of the language model covers factor × factor pixels of one image, or of one temporal patch (a pair of frames);
factor = patch · merge, 28 for Qwen2.5-VL and 32 for Qwen3-VL.

    smart_resize          qwen-vl-utils 0.0.14; a side can become 0 for extreme shapes under a small limit
    processor_resize      transformers 5.23, Qwen2-VL family: the same with sides of at least one factor
    qwen3_resize          transformers 5.23, Qwen3-VL: limits on the whole clip, T · H · W
    clip_size             fetch_video of qwen-vl-utils: the per-frame limit that follows from `total_pixels`

`fit_clip` and `fit_images` are ours. In qwen-vl-utils the limit per frame never falls below 1.05 · min_pixels, so that
a long clip exceeds `total_pixels`, and stamps are not counted. Ours first lowers the resolution, then the number of
frames, and counts the text that accompanies each temporal patch; the result never exceeds the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def smart_resize(
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
        return math.floor(height / shrink / factor) * factor, math.floor(
            width / shrink / factor
        ) * factor
    return _grown(height, width, rows, columns, factor, low)


def processor_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 56 * 56,
    max_pixels: int = 28 * 28 * 1280,
) -> tuple[int, int]:
    """(height, width) of the Qwen2-VL family's image and video processors. Raises ValueError for a ratio above 200."""
    _check_ratio(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        return _shrunk(height, width, math.sqrt(height * width / max_pixels), factor)
    return _grown(height, width, rows, columns, factor, min_pixels)


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
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    padded = round(frames / temporal_patch) * temporal_patch
    if padded * rows * columns > max_pixels:
        return _shrunk(height, width, math.sqrt(frames * height * width / max_pixels), factor)
    if padded * rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(
            width * grow / factor
        ) * factor
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
        return smart_resize(*resized, factor)
    area = factor * factor
    low = FRAME_TOKENS[0] * area if min_pixels is None else min_pixels
    budget = context * area * 0.9 if total_pixels is None else total_pixels
    high = max(min(FRAME_TOKENS[1] * area, budget / frames * PAIR), int(low * 1.05))
    return smart_resize(
        height, width, factor, low, high if max_pixels is None else min(max_pixels, high)
    )


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
    height, width = smart_resize(height, width, 2 * factor, min_pixels, max_pixels)
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
    return math.ceil(frames / PAIR) * ((height // factor) * (width // factor) + stamp_tokens)


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
    ceiling = math.floor((FRAME_TOKENS[1] * area if max_pixels is None else max_pixels) / area)
    floor = max(1, math.ceil((16 * area if min_pixels is None else min_pixels) / area))
    floor = min(floor, max(1, ceiling))
    patches = math.ceil(frames / PAIR)
    # As many temporal patches as there is room for at the smallest size.
    patches = max(1, min(patches, max_tokens // (floor + stamp_tokens)))
    share = min(max(1, ceiling), max_tokens // patches - stamp_tokens)
    rows, columns = _within(height, width, factor, share, floor)
    kept = min(frames, patches * PAIR)
    return ClipSize(
        kept, rows * factor, columns * factor, patches * (rows * columns + stamp_tokens)
    )


def fit_images(
    sizes: Sequence[tuple[int, int]],
    factor: int,
    *,
    max_tokens: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> list[tuple[int, int]]:
    """(height, width) for each image of a sample so that together they take at most `max_tokens`.

    Large images give way first: there is one cap for all, and images below it keep their size. Raises ValueError if
    the budget is below one token per image.
    """
    if max_tokens < len(sizes):
        raise ValueError(
            f"max_tokens is {max_tokens}; {len(sizes)} images need at least one token each."
        )
    area = factor * factor
    ceiling = IMAGE_TOKENS[1] if max_pixels is None else max(1, math.floor(max_pixels / area))
    floor = min(
        ceiling, IMAGE_TOKENS[0] if min_pixels is None else max(1, math.ceil(min_pixels / area))
    )

    def under(cap: int) -> list[tuple[int, int]]:
        return [_within(h, w, factor, cap, min(floor, cap)) for h, w in sizes]

    low, high = 1, ceiling
    while low < high:
        middle = (low + high + 1) // 2
        if sum(rows * columns for rows, columns in under(middle)) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return [(rows * factor, columns * factor) for rows, columns in under(low)]


def _within(height: int, width: int, factor: int, cap: int, floor: int) -> tuple[int, int]:
    """(rows, columns) in factors whose product is at most `cap`, and at least `floor` where the shape allows it."""
    ratio = min(max(height / width, 1 / MAX_RATIO), MAX_RATIO)
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    if rows * columns < floor:
        rows, columns = math.ceil(math.sqrt(floor * ratio)), math.ceil(math.sqrt(floor / ratio))
    if rows * columns > cap:
        rows, columns = (
            max(1, math.floor(math.sqrt(cap * ratio))),
            max(1, math.floor(math.sqrt(cap / ratio))),
        )
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


def _shrunk(height: int, width: int, shrink: float, factor: int) -> tuple[int, int]:
    rows = max(factor, math.floor(height / shrink / factor) * factor)
    return rows, max(factor, math.floor(width / shrink / factor) * factor)


def _grown(
    height: int, width: int, rows: int, columns: int, factor: int, low: float
) -> tuple[int, int]:
    if rows * columns >= low:
        return rows, columns
    grow = math.sqrt(low / (height * width))
    return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
