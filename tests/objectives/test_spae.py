"""SPAE's potentials, what steps gain and lose by them, and that without steps it is a normalised Dr.GRPO."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmrl.losses.advantages import group_centered
from mmrl.objectives.spae import (
    SPAE,
    confidence,
    faded,
    potential,
    standardised,
    step_gains,
    top_entropy,
)
from mmrl.types import Batch, Now

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "spae_potential.json").read_text(encoding="utf-8"))
NOW = Now(1, 0.1)


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_entropy_and_potential_are_those_of_the_official_probe(case):
    given, near = case["inputs"], {"rel": FILE["rtol"], "abs": FILE["atol"]}
    if "top_logprobs" in given:
        found = float(top_entropy(torch.tensor([*given["top_logprobs"].values()])))
        assert found == pytest.approx(case["outputs"]["entropy"], **near)
    else:
        found = potential(given["acc"], given["conf"])
        assert found == pytest.approx(case["outputs"]["potential"], **near)


def test_potentials_have_their_corners_and_stay_between_minus_one_and_one():
    corners = [potential(acc, conf) for acc, conf in ((0, 0), (1, 1), (0, 1), (1, 0))]
    assert corners == [0.0, 1.0, -1.0, 0.5]
    grid = [n / 20 for n in range(21)]
    assert all(-1 <= potential(acc, conf) <= 1 for acc in grid for conf in grid)


def test_confidence_is_the_mean_over_probes_whatever_their_lengths():
    sure, torn = torch.zeros(7), torch.full((2,), math.log(2))
    assert confidence([sure]) == 1.0 and confidence([torn]) == pytest.approx(0.5)
    assert confidence([sure, torn]) == pytest.approx(0.75)
    assert top_entropy(torch.tensor([0.0, -math.inf])) == 0.0


def test_the_advantage_fades_once_the_result_is_settled():
    assert faded([0.1, 0.95, 0.2, 0.99], settled=0.9, fade=0.5) == pytest.approx(
        [1, 1, 1 - 0.5 * (1 - math.exp(-1)), 1 - 0.5 * (1 - math.exp(-1)), 1 - 0.5 * (1 - math.exp(-2))]
    )  # fmt: skip
    long = faded([1.0] * 30, settled=0.9, fade=0.5)
    assert long == sorted(long, reverse=True) and long[-1] == pytest.approx(0.5)
    assert faded([1.0] * 3, settled=0.9, fade=0.0) == [1.0] * 4


def test_gains_add_up_to_nothing_and_follow_the_rise():
    gains = step_gains([[0.2, 0.9], [], [-0.5]])
    flat = [gain for own in gains for gain in own]
    assert [len(own) for own in gains] == [2, 0, 1] and sum(flat) == pytest.approx(0, abs=1e-12)
    assert gains[0][1] > gains[0][0] > gains[2][0]
    least, middle, most = (math.exp(x) for x in (0.0, (0.2 + 0.5) / 1.2, 1.0))
    mean = (least + middle + most) / 3
    expected = [middle - mean, most - mean, least - mean]
    assert flat == pytest.approx(expected)
    assert step_gains([[0.3], []]) == [[0.0], []] and step_gains([[], []]) == [[], []]


def batch(valued, rewards, width=4):
    """One group of answers as long as the batch is wide."""
    rollouts = [
        SimpleNamespace(valued=own, tokens=range(width), prompt=SimpleNamespace(id="q"))
        for own in valued
    ]
    mask = torch.ones(len(rollouts), width, dtype=torch.bool)
    reward = torch.tensor(rewards)
    made = Batch(rollouts, torch.zeros(len(rollouts), dtype=torch.long), mask.long(), mask, reward,
                 torch.zeros(mask.shape), torch.zeros(mask.shape, dtype=torch.uint8))  # fmt: skip
    return made, group_centered(reward, made.group, mask)[:, None] * mask


def test_tokens_are_paid_by_their_step_and_normalised_over_the_batch():
    steps = ((1, 0.95), (2, 0.1))
    made, advantage = batch([steps, ()], [1.0, 0.0])
    shaped = SPAE().shape(advantage, made, NOW)
    gains, fades = step_gains([[0.95, 0.1]])[0], faded([0.95, 0.1], 0.9, 0.5)
    first = [
        0.5 * fades[0] + 0.5 * gains[0],
        *[0.5 * fades[1] + 0.5 * gains[1]] * 2,
        0.5 * fades[2],
    ]
    plain = torch.tensor([first, [-0.5] * 4], dtype=torch.float64)
    expected = (plain - plain.mean()) / (plain.std() + 1e-6)
    torch.testing.assert_close(shaped.advantage.double(), expected, rtol=1e-5, atol=1e-6)
    assert shaped.logged["potential"][0].tolist() == pytest.approx([0.95, 0.1, 0.1, 0.0])
    assert shaped.logged["fade"][1].tolist() == [1.0] * 4


def test_without_steps_it_is_dr_grpo_normalised_over_the_batch():
    made, advantage = batch([(), (), ()], [1.0, 0.0, 0.5])
    expected = standardised(advantage, made.mask)
    torch.testing.assert_close(SPAE().shape(advantage, made, NOW).advantage, expected)
    assert float(expected.mean()) == pytest.approx(0, abs=1e-6)


def test_degenerate_batches_are_finite_and_off_changes_no_bit():
    made, advantage = batch([((4, 0.3),), ((4, 0.3),)], [1.0, 1.0])
    assert not SPAE().shape(advantage, made, NOW).advantage.any()
    unpaid, advantage = batch([((2, 0.9),), ((2, -0.9),), ()], [1.0, math.nan, 0.0])
    found = SPAE().shape(advantage, unpaid, NOW)
    assert found.advantage.isfinite().all() and not found.advantage[1].any()
    assert SPAE(weight=0.0, fade=0.0).shape(advantage, unpaid, NOW).advantage is advantage


def test_steps_longer_than_their_answer_are_refused():
    made, advantage = batch([((9, 0.3),), ()], [1.0, 0.0])
    with pytest.raises(ValueError, match="no longer than the answer"):
        SPAE().shape(advantage, made, NOW)
