"""NGRPO: golden advantages and losses, closed forms, ragged groups, and rewards above the largest."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.losses.ngrpo import NGRPO
from mmrl.losses.surrogates import clipped

FILE = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rlvr"
    / "ngrpo.json"
)
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {"cases": []}


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(
        found, tensor(expected), rtol=GOLDEN["rtol"], atol=GOLDEN["atol"], check_dtype=False
    )


def labels(group):
    """Labels of any kind as numbers."""
    names = sorted(set(group), key=str)
    return torch.tensor([names.index(label) for label in group])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_rlvr_ngrpo(case):
    given, told = case["inputs"], case["outputs"]
    mask = tensor(given["response_mask"]).bool()
    ngrpo = NGRPO(given["max_reward"], given["num_virtual"], alone="reward")
    own = ngrpo(tensor(given["rewards"]), labels(given["group"]), mask)
    advantage = own.unsqueeze(-1) * mask
    close(advantage, told["advantages"])
    if "loss" not in told:
        return
    logp = tensor(given["log_prob"]).requires_grad_()
    map_ = clipped(logp, tensor(given["old_log_prob"]), advantage, mask, dual_clip=None,
                   clip_low=given["clip_low"], clip_high=given["clip_high"])  # fmt: skip
    loss = map_.sum() / mask.sum()
    close(loss, told["loss"])
    close(torch.autograd.grad(loss, logp)[0], told["grad_log_prob"])


def of(rewards, group=None, **settings):
    reward = tensor(rewards)
    group = torch.zeros(len(reward), dtype=torch.long) if group is None else torch.tensor(group)
    return NGRPO(**settings)(reward, group, torch.ones(len(reward), 2, dtype=torch.bool))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_an_all_wrong_group_gets_the_closed_form_and_an_all_right_one_exactly_nothing(size):
    expected = torch.full((size,), -1 / (size + 1) ** 0.5, dtype=torch.float64)
    torch.testing.assert_close(of([0.0] * size), expected, rtol=1e-5, atol=1e-5)
    assert (of([1.0] * size) == 0).all() and (of([0.7] * size, r_max=0.7) == 0).all()


@pytest.mark.parametrize("virtual", [1, 3])
def test_a_mixed_group_has_the_sum_of_the_formula(virtual):
    rewards = [0.0, 1.0, 0.25, 0.0]
    whole = tensor([*rewards, *[1.0] * virtual])
    expected = -virtual * (1 - whole.mean()) / (whole.std() + 1e-6)
    assert float(of(rewards, virtual=virtual).sum()) == pytest.approx(float(expected))


def test_without_virtual_answers_it_is_grpo_bit_for_bit():
    reward, group = torch.rand(12), torch.arange(12) % 5
    mask = torch.ones(12, 3, dtype=torch.bool)
    plain = partial(group_normalized, eps=1e-6)(reward, group, mask)
    assert torch.equal(NGRPO(virtual=0)(reward, group, mask), plain)


def test_a_group_of_one_is_compared_with_the_virtual_answer_or_gets_its_reward():
    assert float(of([0.25])) == pytest.approx(-1 / 2**0.5, abs=1e-4)
    assert float(of([0.25], alone="reward")) == 0.25


def test_a_reward_above_the_largest_is_refused_with_the_flag():
    with pytest.raises(
        ValueError, match=r"r_max is 1, but an answer earned 1\.1.*--ngrpo\.r-max"
    ):
        of([0.0, 1.1])
    assert of([1.0 + 1e-9, 0.0]).isfinite().all()
    of([0.0, 1.1], r_max=1.1)


def test_a_number_of_virtual_answers_that_nobody_means_is_refused():
    for wrong in (-1, 10**6):
        with pytest.raises(ValueError, match=r"NGRPO\.virtual"):
            NGRPO(virtual=wrong)
