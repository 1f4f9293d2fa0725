"""NExt: the official reconstruction, straight trajectories, and what a predicted change is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.training.extrapolation import (
    EXACT,
    NExt,
    Trajectories,
    Vectors,
    add_rank_one,
    moved,
    rank_one,
    targets_within,
)

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
CASES = json.loads((GOLDEN / "next_rank1.json").read_text())["cases"]
QUICK = NExt(horizon=20, hidden=16, lr=1e-2, epochs=300)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_change_is_the_official_one(case):
    u, size, v = (
        torch.tensor(case["inputs"][name], dtype=torch.float64).flatten()
        for name in ("ut", "st", "vt")
    )
    expected = torch.tensor(case["outputs"]["delta"], dtype=torch.float64)
    torch.testing.assert_close(add_rank_one(u, size, v), expected, rtol=1e-5, atol=1e-6)
    assert torch.linalg.matrix_rank(add_rank_one(u, size, v)) == 1


@pytest.mark.parametrize("shape", [(5, 3), (3, 7), (EXACT + 8, EXACT + 3)])
def test_the_largest_direction_has_one_sign(shape):
    rng = torch.Generator().manual_seed(1)
    wanted = 9 * torch.outer(
        torch.randn(shape[0], generator=rng), torch.randn(shape[1], generator=rng)
    )
    noise = 1e-3 * torch.randn(shape, generator=rng)
    before = torch.random.get_rng_state()
    for sign in (1, -1):
        u, size, v = rank_one(sign * wanted + noise)
        assert u[u.abs().argmax()] > 0 and size > 0
        torch.testing.assert_close(
            add_rank_one(u, size, v), sign * wanted, rtol=1e-2, atol=1e-1
        )
    assert torch.equal(before, torch.random.get_rng_state()), "draws of a run stay as they are"


def test_a_straight_trajectory_goes_on():
    rng = torch.Generator().manual_seed(2)
    start = torch.randn(6, 4, generator=rng)
    pace = 0.01 * torch.outer(torch.randn(6, generator=rng), torch.randn(4, generator=rng))
    bias = 0.02 * torch.randn(6, generator=rng)
    steps = [0, 10, 20, 30, 40]
    learned = Trajectories(QUICK)
    assert learned.learn("matrix", steps, [start + step * pace for step in steps])
    assert learned.learn("vector", steps, [step * bias for step in steps])
    assert not learned.learn("resting", steps, [start] * len(steps))
    found = dict(learned.predicted())
    assert found.keys() == {"matrix", "vector"}
    last = start + 40 * pace
    change = found["matrix"].change(last)
    assert torch.linalg.matrix_rank(change) == 1
    assert (change - 20 * pace).norm() < 0.15 * (20 * pace).norm()
    assert (found["vector"].change(bias) - 20 * bias).norm() < 0.15 * (20 * bias).norm()
    assert moved(last, found["matrix"], 0.0) is last


def test_nothing_and_patches_are_finite():
    nothing = Vectors.of(torch.zeros(3, 2))
    assert not nothing.change(torch.zeros(3, 2)).any()
    patches = torch.randn(4, 3, 2, 2)
    again = Vectors.of(patches).change(patches)
    assert again.shape == patches.shape and again.isfinite().all()
    half = torch.ones(4, 3, dtype=torch.bfloat16)
    assert moved(half, Vectors.of(torch.ones(4, 3)), 1.0).dtype == torch.bfloat16


def test_targets_lie_exactly_the_horizon_ahead():
    assert targets_within([0, 10, 20, 35, 60], 25) == {10: 35, 35: 60}
    assert targets_within([0, 10], 10) == {}


@pytest.mark.parametrize("bad", [{"alpha": -1}, {"horizon": 0}, {"lr": 0}, {"epochs": 0}])
def test_absurd_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(QUICK, **bad)
