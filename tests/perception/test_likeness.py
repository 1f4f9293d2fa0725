"""Likeness of pictures: against scikit-image, and what must hold for any two."""

import numpy as np
import pytest
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

from mmrl.perception.likeness import (
    RANGES,
    Likeness,
    colour_likeness,
    edge_likeness,
    framed,
    lab,
    ssim,
    structure_likeness,
    word_likeness,
)

SMALL = Likeness(side=96)


def bars(heights, colours, side=120):
    picture = np.full((side, side, 3), 255, dtype=np.uint8)
    width = side // (2 * len(heights))
    for place, (height, colour) in enumerate(zip(heights, colours, strict=True)):
        left = width // 2 + 2 * place * width
        picture[side - height : side, left : left + width] = colour
    return picture


CHART = bars((40, 90, 60), ((200, 30, 30), (30, 120, 30), (30, 30, 200)))


def test_lab_and_ssim_are_those_of_a_library():
    noise = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    assert np.allclose(lab(noise), rgb2lab(noise), atol=0.02)
    a, b = lab(noise)[..., 0], lab(np.roll(noise, 1, axis=0))[..., 0]
    _, wanted = structural_similarity(
        a, b, data_range=100, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    assert ssim(a, b)[1] == pytest.approx(wanted.mean(), abs=1e-6)
    corners = np.stack(np.meshgrid(*[[0, 255]] * 3), -1).reshape(-1, 1, 3).astype(np.uint8)
    assert np.allclose(np.ptp(lab(corners), axis=(0, 1)), RANGES, atol=0.1)


@pytest.mark.parametrize("shape", [(120, 120), (40, 300), (300, 40), (1, 900), (7, 7)])
def test_of_itself_it_is_one_and_of_two_it_is_symmetric(shape):
    rng = np.random.default_rng(1)
    other = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert SMALL(other, other) == pytest.approx(1.0, abs=1e-12)
    there, back = SMALL(CHART, other), SMALL(other, CHART)
    assert there == pytest.approx(back, abs=1e-9) and 0 <= there < 0.9
    assert {part.shape for part in framed(CHART, other, 96)} == {
        framed(CHART, other, 96)[0].shape
    }


def test_each_change_makes_it_less_alike():
    """A recoloured bar is less alike than none, a missing one less than a recoloured one, a blank page least."""
    recoloured = bars((40, 90, 60), ((200, 30, 30), (230, 200, 30), (30, 30, 200)))
    missing = bars((40, 0, 60), ((200, 30, 30), (30, 120, 30), (30, 30, 200)))
    blank = np.full_like(CHART, 255)
    found = [SMALL(CHART, picture) for picture in (CHART, recoloured, missing, blank)]
    assert found == sorted(found, reverse=True) and len(set(found)) == 4, found


def test_sizes_do_not_matter_and_parts_are_exact():
    large = CHART.repeat(3, axis=0).repeat(3, axis=1)
    assert SMALL(CHART, large) > 0.97
    black, white = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)
    # Only the lightness differs, by its whole range.
    assert colour_likeness(lab(black), lab(white)) == pytest.approx(2 / 3, abs=1e-3)
    step = np.zeros((40, 40))
    step[:, 20:] = 100
    assert edge_likeness(step[:, 4:36], step[:, 2:34]) == 1.0  # two pixels away
    assert edge_likeness(step[:, 8:40], step[:, 0:32]) == 0.0
    assert edge_likeness(step, step * 0) == 0.0 and edge_likeness(step * 0, step * 0) == 1.0
    assert structure_likeness(step, 100 - step) == 0.0


def test_words_count_only_where_both_are_known():
    assert word_likeness(["A ", "b", "b"], ["a", "b", ""]) == pytest.approx(0.8)
    assert word_likeness([], [" "]) == 1.0 and word_likeness(["a"], []) == 0.0
    other = bars((40, 90, 20), ((200, 30, 30), (30, 120, 30), (30, 30, 200)))
    without = SMALL(CHART, other)
    found = SMALL(CHART, other, (["a"], ["b"]))
    assert found == pytest.approx(0.8 * without, abs=1e-12)
    with pytest.raises(ValueError, match="sum to 1"):
        Likeness(words=0.5)
