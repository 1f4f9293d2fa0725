"""PACS: the released code's numbers, what a group pulls, and which rewards are labels."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from mmrl.grpo import GRPO, loss
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import shaped_in_turn
from mmrl.objectives.pacs import PACS, class_weights, compared, labels
from mmrl.types import Now, Scores
from tests.objectives.test_rover import batch_of

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "pacs.json").read_text())
NOW = Now(step=3, progress=0.1)
SCORES = {"log-ratio sum": "ratio", "mean logprob": "mean"}


def value_of(pacs, batch, logp):
    shaped = shaped_in_turn([pacs], [None], batch, NOW)
    totals = Totals.of(batch.mask)
    total, metrics = loss(GRPO(), clipped, shaped, {"raw": Scores(logp)}, [pacs], totals, NOW)
    assert "loss/policy" not in metrics, "it owns the loss"
    return total, metrics


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_golden(case):
    given, expected = case["inputs"], case["outputs"]
    reward = torch.tensor(given["rewards"])
    mask = torch.tensor(given["response_mask"]).bool()
    logp = torch.tensor(given["log_prob"]).requires_grad_()
    old = {"raw": Scores(torch.tensor(given["old_log_prob"]))}
    pacs = PACS(
        beta=given["beta"],
        score=SCORES[given["score"]],
        baseline=given["estimator"],
        weights=given["weight_mode"] if given["use_class_weight"] else "off",
    )
    group = torch.arange(len(reward)) // given["group_size"]
    total, _ = value_of(pacs, batch_of(reward, group, mask, old), logp)
    total.backward()
    near = {"rtol": FILE["rtol"], "atol": FILE["atol"]}
    torch.testing.assert_close(total.detach(), torch.tensor(expected["loss"]), **near)
    theirs = torch.tensor(expected["grad_log_prob"]) * mask
    torch.testing.assert_close(logp.grad, theirs, **near)


def drawn(seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [2], [2], [5]])
    logp = -torch.rand(7, 5, generator=rng, dtype=torch.float64)
    reward = torch.tensor([1.0, 0, 0, 1, 1, 0.25, 1], dtype=torch.float64)
    return logp, reward, torch.tensor([0, 0, 0, 1, 1, 2, 2]), mask


def test_logits_of_a_group_sum_to_nothing_and_a_ragged_batch_is_its_groups():
    score = torch.randn(7, dtype=torch.float64)
    _, _, group, _ = drawn()
    for baseline in ("rloo", "grpo"):
        whole = compared(score, group, baseline)
        for number in range(3):
            own = group == number
            torch.testing.assert_close(
                whole[own], compared(score[own], torch.zeros(int(own.sum())), baseline)
            )
            assert whole[own].sum().abs() < 1e-9
    others = [(score[0] - score[1:3].mean()), (score[1] - score[[0, 2]].mean())]
    torch.testing.assert_close(compared(score, group, "rloo")[:2], torch.stack(others))


@pytest.mark.parametrize("weights", ["question", "off"])
def test_at_the_old_policy_the_loss_is_log_two_times_the_mean_weight(weights):
    logp, reward, group, mask = drawn()
    total, _ = value_of(PACS(weights=weights), batch_of(reward, group, mask), logp)
    expected = math.log(2) * class_weights(reward, group, weights).mean()
    torch.testing.assert_close(total, expected)


@pytest.mark.parametrize("baseline", ["rloo", "grpo"])
def test_an_all_right_group_pulls_nowhere_at_the_old_policy(baseline):
    logp, _, group, mask = drawn()
    hot = logp.clone().requires_grad_()
    batch = batch_of(torch.ones(7, dtype=torch.float64), group, mask)
    value_of(PACS(baseline=baseline), batch, hot)[0].backward()
    assert hot.grad.abs().max() < 1e-9


def test_classes_of_a_mixed_group_weigh_the_same_and_a_group_as_many_as_it_has():
    label = torch.tensor([1.0, 0, 0, 0, 1, 1, 0.5, 0])
    group = torch.tensor([3, 3, 3, 3, 1, 1, 2, 2])
    weight = class_weights(label, group, "question")
    assert weight.tolist() == [2, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1] or torch.allclose(
        weight, torch.tensor([2, 2 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])
    )
    assert class_weights(label, group, "only_positive").tolist() == [1, 0, 0, 0, 1, 1, 0, 0]
    assert class_weights(label, group, "only_negative").tolist() == [0, 1, 1, 1, 0, 0, 1, 1]


def test_a_soft_label_is_a_target_of_its_own():
    logp, reward, group, mask = drawn()
    old = {"raw": Scores(logp - 0.3 * torch.rand(7, 5, dtype=torch.float64))}
    batch = batch_of(reward, group, mask, old)
    total, _ = value_of(PACS(baseline="naive", weights="off"), batch, logp)
    score = ((logp - old["raw"].logp) * mask).sum(1)
    torch.testing.assert_close(total, bce(score, reward))


def test_a_group_of_one_is_compared_with_nobody():
    logp, reward, _, mask = drawn()
    hot = logp.clone().requires_grad_()
    for baseline in ("rloo", "grpo"):
        batch = batch_of(reward, torch.arange(7), mask)
        value_of(PACS(baseline=baseline), batch, hot)[0].backward()
    assert hot.grad.abs().max() == 0


@pytest.mark.parametrize("junk", [torch.nan, 1e30])
def test_what_stands_on_padding_reaches_neither_value_nor_gradient(junk):
    logp, reward, group, mask = drawn()
    found = []
    for value in (0.0, junk):
        hot = torch.where(mask, logp, value).requires_grad_()
        total, _ = value_of(PACS(baseline="grpo"), batch_of(reward, group, mask), hot)
        total.backward()
        found.append((total.detach(), torch.where(mask, hot.grad, 0)))
    assert all(map(torch.equal, *found))


def test_an_unknown_reward_is_no_label():
    assert labels(torch.tensor([1.0, torch.nan, 0.0])).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("reward", [-0.1, 1.5])
def test_rewards_that_are_no_labels_are_refused(reward):
    with pytest.raises(ValueError, match=rf"PACS takes rewards as labels.*got {reward}"):
        labels(torch.tensor([0.0, reward, 1.0]))


def test_a_scale_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"PACS\.beta is 0"):
        PACS(beta=0.0)
