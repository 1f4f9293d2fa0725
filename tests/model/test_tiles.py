"""Pictures and clips as squares of one size: equal to the processors, and within the budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.model.families import family_of
from mmrl.model.families.internvl import InternVL
from mmrl.model.patches import PixelBudget
from mmrl.model.tiles import TileRules, best_grid

PATCH, SIDE = 4, 16


def pixels(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=rng, dtype=torch.uint8)


def processors() -> tuple[Any, Any]:
    from transformers import GotOcr2ImageProcessor, InternVLVideoProcessor

    square: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}
    return GotOcr2ImageProcessor(crop_to_patches=True, **square), InternVLVideoProcessor(
        **square
    )


IMAGES, VIDEOS = processors()
OF_IMAGES = TileRules.of(IMAGES, "image", PATCH, 2)
OF_VIDEOS = TileRules.of(VIDEOS, "video", PATCH, 2)


def as_squares(values: torch.Tensor, count: int) -> torch.Tensor:
    """Our patches as the tower gets them."""
    family = family_of("internvl")
    assert isinstance(family, InternVL)
    n = SIDE // PATCH
    return family.squares(values, (count, n, n), merge=2, patch=PATCH)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 14), st.integers(0, 3))
def test_pictures_are_those_of_the_processor(
    height: int, width: int, most: int, fewest: int
) -> None:
    fewest = min(fewest, most)
    frames = pixels(1, height, width)
    budget = PixelBudget(
        max_pixels=most * SIDE**2, min_pixels=fewest * SIDE**2 if fewest else None
    )
    size = OF_IMAGES.size(1, height, width, budget)
    ours = OF_IMAGES.cut(frames, size)
    theirs = IMAGES(
        images=[frames[0]], max_patches=most, min_patches=max(1, fewest), return_tensors="pt"
    )["pixel_values"]
    assert ours.grid == (len(theirs), SIDE // PATCH, SIDE // PATCH) == OF_IMAGES.grid(1, size)
    assert ours.size == size and ours.tokens == len(theirs) * (SIDE // PATCH // 2) ** 2
    torch.testing.assert_close(as_squares(ours.values, len(theirs)), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 30, 20), (5, 9, 70)])
def test_clips_are_those_of_the_processor(shape: tuple[int, int, int]) -> None:
    frames = pixels(*shape)
    size = OF_VIDEOS.size(*shape, PixelBudget())
    ours = OF_VIDEOS.cut(frames, size)
    theirs = VIDEOS(videos=[frames], do_sample_frames=False, return_tensors="pt")
    expected = theirs["pixel_values_videos"][0]
    assert ours.grid[0] == len(frames) and size == (SIDE, SIDE)
    torch.testing.assert_close(
        as_squares(ours.values, len(frames)), expected, rtol=0, atol=1e-6
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12), st.integers(12, 20))
def test_the_grid_is_that_of_the_library(height: int, width: int, low: int, high: int) -> None:
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), low, high)
    assert best_grid(height, width, 448, low, high) == (rows, columns)


def test_a_clip_that_cannot_be_made_smaller_is_refused() -> None:
    with pytest.raises(ValueError, match=r"5 frames .*max_video_pixels is 1,000; take fewer"):
        OF_VIDEOS.size(5, 30, 30, PixelBudget(max_video_pixels=1000))
    with pytest.raises(ValueError, match="at most 200 times"):
        OF_IMAGES.size(1, 1, 300, PixelBudget())


def test_limits_below_one_square_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_pixels is 255, .*16 x 16.* allow 256"):
        OF_IMAGES.refuse_limits(PixelBudget(max_pixels=255))
    with pytest.raises(ValueError, match=r"max_frame_pixels is 200"):
        OF_VIDEOS.refuse_limits(PixelBudget(max_frame_pixels=200))
    OF_IMAGES.refuse_limits(PixelBudget(max_pixels=256, max_frame_pixels=1))


def test_a_size_that_is_no_whole_number_of_tokens_is_refused() -> None:
    IMAGES.size = {"height": SIDE, "width": SIDE + 1}
    try:
        with pytest.raises(ValueError, match=r"16 x 17 pixels.* multiple of 8"):
            TileRules.of(IMAGES, "image", PATCH, 2)
    finally:
        IMAGES.size = {"height": SIDE, "width": SIDE}
