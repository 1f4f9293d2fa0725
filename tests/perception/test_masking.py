"""Masks hide the right pixels, the right share of them, and nothing else."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.seeds import generator
from mmrl.perception.masking import PatchMask
from mmrl.perception.pixels import grid_shape, grid_to_pixels, painted
from mmrl.types import Now, Prompt, ViewContext

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "objectives"
)
NOW = Now(step=0, progress=0.0)
PLAIN = ViewContext(Prompt(id="p", messages=()), 0)


def pixels(frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Random frames without black, so that a black pixel is a hidden one."""
    shape = (frames, 3, height, width)
    return torch.randint(
        1, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def test_golden_objectives_papo_masking():
    arrays = np.load(GOLDEN / "papo_masking.npz")
    names = [key.removesuffix("__in") for key in arrays.files if key.endswith("__in")]
    known = 0
    for name in names:
        match = re.fullmatch(r"h(\d+)_w(\d+)_ps(\d+)_p([\d.]+)_seed(\d+)", name)
        if match is None:
            continue
        height, width, size, seed = (int(match[i]) for i in (1, 2, 3, 5))
        # The official draws: one legacy uniform number per patch, row by row, from numpy's seeded generator.
        draws = np.random.RandomState(seed).random_sample(grid_shape(height, width, size))
        grid = torch.from_numpy(draws < float(match[4]))
        hidden = grid_to_pixels(grid, size, height, width)
        frames = torch.from_numpy(arrays[f"{name}__in"]).permute(2, 0, 1)[None]
        assert torch.equal(hidden, torch.from_numpy(arrays[f"{name}__mask"])), name
        shown = painted(frames, hidden[None], 0)[0].permute(1, 2, 0)
        assert torch.equal(shown, torch.from_numpy(arrays[f"{name}__out"])), name
        known += 1
    assert known, (
        f"{GOLDEN / 'papo_masking.npz'} holds no case of the known naming; it has {arrays.files}"
    )


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 3),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(1, 40),
    ratio=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    tube=st.booleans(),
)
def test_patch_mask_hides_whole_patches_and_nothing_else(
    frames, height, width, size, ratio, tube
):
    given_frames = pixels(frames, height, width)
    before = given_frames.clone()
    seen = PatchMask(ratio=ratio, size=size, tube=tube)(
        given_frames, PLAIN, generator("m"), NOW
    )
    assert seen.shape == given_frames.shape and seen.dtype == torch.uint8
    assert torch.equal(given_frames, before)
    hidden = (seen == 0).all(1)  # [F, H, W]
    assert torch.equal(seen, torch.where(hidden[:, None], 0, given_frames))
    for row in range(0, height, size):
        for column in range(0, width, size):
            patch = hidden[:, row : row + size, column : column + size].flatten(1)
            assert (patch.all(1) | ~patch.any(1)).all()
    if tube:
        assert (hidden == hidden[:1]).all()
    if ratio in (0.0, 1.0):
        assert hidden.all() == bool(ratio)
        assert hidden.any() == bool(ratio)


@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.8])
def test_patch_mask_share_approaches_ratio(ratio):
    seen = PatchMask(ratio=ratio, size=2)(pixels(1, 400, 400), PLAIN, generator("share"), NOW)
    share = (seen == 0).all(1).float().mean().item()
    assert abs(share - ratio) < 4 * (ratio * (1 - ratio) / 200**2) ** 0.5


def test_patch_mask_repeats_with_the_seed_and_differs_otherwise():
    frames = pixels(2, 56, 56)
    mask = PatchMask()
    first = mask(frames, PLAIN, generator(1, 2, "p"), NOW)
    assert torch.equal(first, mask(frames, PLAIN, generator(1, 2, "p"), NOW))
    assert not torch.equal(first, mask(frames, PLAIN, generator(1, 3, "p"), NOW))


def hidden_patches(seen, size):
    """Which patches are hidden, from the pixel at the corner of each; bool [F, h, w]."""
    return (seen == 0).all(1)[:, ::size, ::size]


def assert_independent(first, second, ratio):
    """Both are hidden as often as two draws of their own are: neither copies, complements nor follows the other."""
    both = (first & second).float().mean().item()
    spread = (ratio**2 * (1 - ratio**2) / first.numel()) ** 0.5
    assert abs(both - ratio**2) < 4 * spread
    for one in (first, second):
        share = one.float().mean().item()
        assert abs(share - ratio) < 4 * (ratio * (1 - ratio) / one.numel()) ** 0.5


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_masks_of_frames_images_and_seeds_are_drawn_independently(ratio):
    mask, frames, rng = PatchMask(ratio, 2), pixels(2, 300, 300), generator("shared")
    seen = [mask(frames, PLAIN, rng, NOW) for _ in range(2)]
    seen += [mask(frames, PLAIN, generator(1, seed, "p"), NOW) for seed in (2, 3)]
    first, second, *seeds = [hidden_patches(one, 2) for one in seen]
    assert_independent(first[0], first[1], ratio)
    assert_independent(first, second, ratio)
    assert_independent(*seeds, ratio)
    # Nor is a mask the other one moved by a patch.
    assert_independent(first[0, :, 1:], first[1, :, :-1], ratio)


def test_patch_mask_value_and_refusals():
    frames = pixels(1, 20, 20)
    assert (PatchMask(ratio=1.0, value=127)(frames, PLAIN, generator("v"), NOW) == 127).all()
    with pytest.raises(ValueError, match=r"PatchMask\.ratio is 1\.2"):
        PatchMask(ratio=1.2)
    with pytest.raises(ValueError, match=r"PatchMask\.size is 0"):
        PatchMask(size=0)
    with pytest.raises(ValueError, match=r"PatchMask\.value is 256"):
        PatchMask(value=256)
    with pytest.raises(ValueError, match="uint8 RGB frames"):
        PatchMask()(frames.float(), PLAIN, generator("v"), NOW)
