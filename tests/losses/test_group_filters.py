"""Dynamic sampling and overlong shaping: golden values and edges."""

import json
import os
from pathlib import Path

import pytest
import torch

from mmrl.losses.group_filters import (
    keeps_by_mean,
    keeps_by_spread,
    overlong_penalty,
    without_truncated,
)
from mmrl.rewards.easyr1 import easyr1_dapo

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "objectives"
)


def golden_cases(name):
    path = GOLDEN / name
    return json.loads(path.read_text())["cases"] if path.exists() else []


@pytest.mark.parametrize(
    "case", golden_cases("dynamic_sampling.json"), ids=lambda case: case["name"]
)
def test_golden_objectives_dynamic_sampling(case):
    known = False
    for key, expected in case.items():
        if key.startswith("keep_mean_range_"):
            low, high = (
                float(bound) for bound in key.removeprefix("keep_mean_range_").split("_")
            )
            assert keeps_by_mean(case["scores"], low, high) == expected
            known = True
        elif key == "keep_std_nonzero_or_single":
            if 0 < case["std_population"] < 1e-12:
                expected = False  # equal rewards whose computed deviation is a rounding error
            assert keeps_by_spread(case["scores"]) == expected
            known = True
    assert known, f"no rule that we have in {sorted(case)}"


@pytest.mark.parametrize(
    "case", golden_cases("overlong_penalty.json"), ids=lambda case: str(case["length"])
)
def test_golden_objectives_overlong_penalty(case):
    got = overlong_penalty(
        case["length"],
        case["max_resp_len"],
        buffer=case["overlong_buffer_len"],
        factor=case["penalty_factor"],
    )
    assert got == pytest.approx(case["reward_add"], rel=1e-6, abs=1e-9)


def test_penalty_rises_within_the_buffer_and_can_be_floored():
    assert overlong_penalty(80, 100, buffer=20) == 0
    assert overlong_penalty(90, 100, buffer=20, factor=2.0) == -1.0
    assert overlong_penalty(120, 100, buffer=20) == -2.0
    assert overlong_penalty(120, 100, buffer=20, floored=True) == -1.0
    assert overlong_penalty(100, 100, buffer=0) == 0
    for buffer in (-1, 101):
        with pytest.raises(ValueError, match="must lie in"):
            overlong_penalty(10, 100, buffer=buffer)


def test_floored_penalty_is_easyr1s():
    for length in (0, 80, 81, 95, 100, 101, 500):
        official = easyr1_dapo("Answer: 4", "4", length, 100, 20, 1.0)["overlong"]
        assert overlong_penalty(length, 100, buffer=20, floored=True) == official


def test_mean_bounds_are_strict():
    assert not keeps_by_mean([0.01, 0.01])
    assert not keeps_by_mean([1.0] + [0.0] * 99)  # a single success in a hundred
    assert keeps_by_mean([1.0] + [0.0] * 98)
    assert not keeps_by_mean([0.99])
    assert keeps_by_mean([0.5])


def test_a_format_reward_hides_a_group_without_signal():
    all_wrong_but_formatted = [0.1] * 5
    assert keeps_by_mean(all_wrong_but_formatted)
    assert not keeps_by_mean([0.0] * 5)
    assert not keeps_by_spread(all_wrong_but_formatted)


def test_spread_survives_rounding_and_groups_of_one():
    assert not keeps_by_spread([0.1] * 3)
    assert keeps_by_spread([0.3])
    assert keeps_by_spread([0.1, 0.1, 0.2])


def test_unavailable_scores_are_left_out():
    assert not keeps_by_mean([None, None])
    assert not keeps_by_spread([None])
    assert not keeps_by_spread([None, 1.0, 1.0])
    assert keeps_by_mean([None, 1.0, 0.0])


def test_truncated_answers_leave_the_mask():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    got = without_truncated(mask, torch.tensor([False, True]))
    assert got.tolist() == [[True, True, False], [False, False, False]]
    with pytest.raises(ValueError, match="one bool per answer"):
        without_truncated(mask, torch.tensor([True]))
