"""Where a run changed its matrices: closed forms of each measure, and what is degenerate."""

from __future__ import annotations

import math

import pytest
import torch

from mmrl.training.geometry import (
    EXACT,
    Geometry,
    alike,
    changed,
    compared,
    decomposed,
    largest,
    largest_angle,
    overlap,
)

HOW = Geometry(tolerance=1e-3, rank=3, fraction=0.5)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(matrix, degrees):
    """The same singular values, whose first left direction is turned towards the last one."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    angle = math.radians(degrees)
    first, last = u[:, 0].clone(), u[:, -1].clone()
    u[:, 0] = math.cos(angle) * first + math.sin(angle) * last
    u[:, -1] = math.cos(angle) * last - math.sin(angle) * first
    return (u * s) @ v


def test_equal_matrices_are_unchanged_and_nothing_is_divided_by_zero():
    found = compared("w", draw(8, 6), draw(8, 6), HOW)
    assert found.unchanged == 1.0 and found.drift == 0.0
    assert found.angle_left < 1e-3 and found.angle_right < 1e-3
    assert math.isnan(found.principal) and math.isnan(found.low), "nothing changed"
    nothing = compared("w", torch.zeros(4, 4), torch.zeros(4, 4), HOW)
    assert nothing.unchanged == 1.0 and nothing.drift == 0.0


@pytest.mark.parametrize("degrees", [0.01, 1.0, 30.0, 80.0])
def test_a_rotation_has_its_angle_and_no_drift(degrees):
    before = draw(10, 7).double()
    after = turned(before, degrees)
    u0, s0, v0 = decomposed(before, 3)
    u1, s1, v1 = decomposed(after, 3)
    assert torch.allclose(s0, s1)
    assert largest_angle(u0[:, :3], u1[:, :3]) == pytest.approx(degrees, rel=1e-6)
    assert largest_angle(v0[:, :3], v1[:, :3]) < 1e-6
    found = compared("w", before, after, HOW)
    assert found.drift < 1e-5 and found.angle_left == pytest.approx(degrees, rel=0.05, abs=0.05)


def test_a_scaled_matrix_drifts_and_does_not_turn():
    before = draw(9, 5)
    found = compared("w", before, 1.25 * before, HOW)
    assert found.drift == pytest.approx(0.25, rel=1e-5)
    assert found.angle_left < 0.1 and found.unchanged == 0.0
    # All entries changed, so each mask holds its fraction of them.
    assert found.principal == pytest.approx(22 / 45) == found.low


def test_steps_below_what_bf16_holds_are_hidden():
    before = torch.tensor([1.0, 1.0, 1.0, 0.0, -2.0, 0.0])
    after = torch.tensor([1.0001, 1.01, 1.0, 1e-30, 2.0, 0.0])
    assert changed(before, after, 1e-3).tolist() == [False, True, False, True, True, False]
    assert changed(before.double(), after.double(), 1e-3).tolist() == [
        False, True, False, True, True, False]  # fmt: skip
    # Relative to the larger of the two, whichever that is: ¾ of a step is within half of 1¾, not of 1.
    first, second = torch.tensor([1.0, 1.75]), torch.tensor([1.75, 1.0])
    assert not changed(first, second, 0.5).any() and changed(first, second, 0.4).all()
    # 2⁻⁸ of 1 is a step of bf16; a larger tolerance hides it too.
    assert not changed(torch.ones(1), torch.ones(1) + 2**-7, 0.01).any()


def test_masks_and_overlaps_by_hand():
    matrix = torch.tensor([[3.0, -4.0], [1.0, 0.5]])
    assert largest(matrix, 0.5).tolist() == [[True, True], [False, False]]
    assert largest(-matrix.abs(), 0.5, signed=True).tolist() == [[False, False], [True, True]]
    moved = torch.tensor([[True, False], [True, True]])
    assert overlap(largest(matrix, 0.5), moved) == pytest.approx(1 / 3)
    index, chance = alike(moved, largest(matrix, 0.5))
    assert index == pytest.approx(1 / 4) and chance == pytest.approx(0.375 / (1.25 - 0.375))
    assert all(math.isnan(x) for x in alike(~moved & moved, ~moved & moved))


def test_changes_on_small_entries_overlap_with_the_low_mask_alone():
    before = draw(12, 12).sign() * torch.where(torch.rand(12, 12) < 0.5, 5.0, 0.1)
    small = before.abs() < 1
    after = torch.where(small, before * 3, before)
    found = compared("w", before, after, Geometry(rank=6, fraction=0.25))
    assert found.low == pytest.approx(
        36 / int(small.sum())
    ) and found.unchanged == pytest.approx(1 - small.double().mean().item())


def test_vectors_and_filters_and_other_shapes():
    vector = compared("norm", torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 2.0]), HOW)
    assert vector.unchanged == 0.75 and math.isnan(vector.drift)
    conv = compared("patch", draw(4, 3, 2, 2), draw(4, 3, 2, 2, seed=1), HOW)
    assert conv.shape == (4, 3, 2, 2) and conv.drift > 0
    with pytest.raises(ValueError, match=r"w is \[2, 2\] in one model and \[3, 2\]"):
        compared("w", draw(2, 2), draw(3, 2), HOW)


def test_large_matrices_are_decomposed_by_their_leading_directions():
    state = torch.get_rng_state()
    side = EXACT + 16
    u, v = (torch.linalg.qr(draw(side, 6, seed=s))[0] for s in (1, 2))
    sizes = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0])
    left, values, right = decomposed((u * sizes) @ v.T, 4)
    assert torch.allclose(values, sizes[:4], rtol=1e-4)
    assert largest_angle(left, u[:, :4]) < 0.1 and largest_angle(right, v[:, :4]) < 0.1
    assert torch.equal(torch.get_rng_state(), state)
