"""ACE: only wrong answers with a negative advantage pay more, and more the surer the policy has become."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.objectives.ace import ACE
from mmrl.types import Batch, Now, Prompt, Rollout, Scores

NOW = Now(1, 0.1)


def batch_of(correct, gain, length=4):
    """Answers whose tokens together gained `gain` over the reference; NaN on padding."""
    count = len(correct)
    mask = torch.ones(count, length, dtype=torch.bool)
    mask[:, -1] = False
    ref = torch.full((count, length), -1.0, dtype=torch.float64)
    raw = ref + torch.tensor(gain, dtype=torch.float64)[:, None] / (length - 1)
    raw[~mask] = math.nan
    blank = torch.zeros(count, length, dtype=torch.long)
    rows = [Rollout(Prompt("q", []), 0, blank[0], blank[0], blank[0], "", "eos")] * count
    return Batch(rows, blank[:, 0], blank, mask, blank[:, 0].float(), ref * 0, blank.byte(),
                 {"raw": Scores(raw), "ref": Scores(ref)}, correct=torch.tensor(correct))  # fmt: skip


def factors(ace, batch, value=-1.0):
    given = torch.where(batch.mask, value, 0.0).double()
    found = ace.shape(given, batch, NOW).advantage
    assert found.isfinite().all() and (found[~batch.mask] == 0).all()
    return found[:, 0] / value


def test_the_factor_is_one_plus_alpha_softplus_of_the_whole_log_ratio():
    gains = [-3.0, 0.0, 2.0]
    found = factors(ACE(alpha=0.5), batch_of([False] * 3, gains))
    expected = [1 + 0.5 * math.log1p(math.exp(c)) for c in gains]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert float(found[1]) == pytest.approx(1 + 0.5 * math.log(2))


def test_it_rises_with_confidence_goes_to_one_below_and_is_clamped_above():
    gains = [-1e4, -20.0, -5.0, 0.0, 5.0, 9.0, 50.0, 1e4]
    found = factors(ACE(), batch_of([False] * 8, gains))
    assert (found.diff() >= 0).all() and float(found[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(found[-1]) == float(found[-2]) == pytest.approx(11.0, abs=1e-3)


def test_right_answers_and_positive_advantages_are_left_bit_for_bit():
    batch = batch_of([True, False, False], [4.0, 4.0, 4.0])
    given = torch.randn(3, 4, dtype=torch.float64)
    given[1], given[2] = given[1].abs(), -given[2].abs()
    found = ACE().shape(given, batch, NOW).advantage
    assert torch.equal(found[:2], given[:2]) and (found[2] < given[2]).all()


def test_off_nothing_is_scored_and_the_same_tensor_comes_back():
    given = torch.randn(2, 4)
    assert (
        ACE(alpha=0.0).shape(given, batch_of([False] * 2, [1.0, 1.0]), NOW).advantage is given
    )
    assert ACE(alpha=0.0).score_requests() == ()
    assert {request.branch for request in ACE().score_requests()} == {"raw", "ref"}


def test_the_mean_over_tokens_does_not_grow_with_the_length():
    ace = ACE(per_token=20.0)
    short, long = batch_of([False], [3.0], 4), batch_of([False], [9.0], 10)
    assert float(factors(ace, short)) == pytest.approx(float(factors(ace, long)))


def test_answers_that_nobody_judged_are_refused():
    with pytest.raises(
        ValueError, match=r"ACE reads whether answers are right.*Rewards\(correct="
    ):
        ACE().shape(torch.zeros(1, 4), replace(batch_of([False], [0.0]), correct=None), NOW)
    with pytest.raises(ValueError, match=r"ACE\.clamp is 0"):
        ACE(clamp=0.0)
