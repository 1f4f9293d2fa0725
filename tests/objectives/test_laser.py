"""LaSeR: the released code's numbers, whose gradient counts, what is measured, and when it is nothing."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrl.grpo import GRPO, loss
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.base import shaped_in_turn
from mmrl.objectives.laser import (
    LaSeR,
    UsualValue,
    balanced,
    mixed,
    self_advantage,
    self_rewards,
    squared_error,
)
from mmrl.types import Now, Scores
from tests.objectives.test_rover import batch_of

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "laser.json").read_text())
NEAR = {"rtol": FILE["rtol"], "atol": FILE["atol"]}
LATE = Now(step=500, progress=0.5)


def cases(kind):
    found = [
        case for case in FILE["cases"] if ("rewards" in case["inputs"]) == (kind == "loss")
    ]
    assert found
    return pytest.mark.parametrize("case", found, ids=lambda case: case["name"])


def slots(given, logp):
    """(ℓ_z, c, not cut off) of each row: the slot is the first place behind the mask."""
    mask = torch.tensor(given["response_mask"])
    whole = mask.sum(1) < mask.shape[1]
    at = (mask == 0).float().argmax(1)  # 0 if there is none
    own = logp.gather(1, at[:, None]).squeeze(1)
    usual = given["c_ref"]
    if isinstance(usual, str):
        theirs = torch.tensor(given["ref_log_prob_incl_special_slot"])
        return own, theirs.gather(1, at[:, None]).squeeze(1), whole
    return own, torch.tensor(usual), whole


@cases("loss")
def test_golden_loss(case):
    given, expected = case["inputs"], case["outputs"]
    logp = torch.tensor(given["log_prob_incl_special_slot"]).requires_grad_()
    own, usual, whole = slots(given, logp)
    label = torch.tensor(given["rewards"])
    weight = torch.where(whole, 1.0, 0.0)
    if "balancedTrue" in case["name"]:
        weight = balanced(label, whole)
        theirs = torch.tensor(given["class_weights"])
        torch.testing.assert_close(weight[whole], theirs[whole], **NEAR)
    found = given["beta_v"] * (own - usual)
    total = given["alpha"] * squared_error(found, label, weight).mean()
    total.backward()
    torch.testing.assert_close(total.item(), expected["weighted_loss"], **NEAR)
    torch.testing.assert_close(logp.grad, torch.tensor(expected["grad_log_prob"]), **NEAR)


@cases("advantage")
def test_golden_advantage(case):
    given, expected = case["inputs"], case["outputs"]
    own, usual, whole = slots(given, torch.tensor(given["log_prob_incl_special_slot"]))
    found = given["beta_v"] * (own - usual)
    group, base = torch.tensor(given["group"]), torch.tensor(given["grpo_advantages"])
    flat, tau = given["std_threshold"], given["mix_tau"]
    # The released code compares an answer that was cut off by what its first token has (departure 4).
    own, counted = found.clamp(0, 1), self_rewards(found, whole)
    ours = self_advantage(own, counted, group, base, flat)
    torch.testing.assert_close(ours, torch.tensor(expected["self_reward_advantages"]), **NEAR)
    blend = mixed(base[:, None], ours, tau)
    torch.testing.assert_close(blend[:, 0], torch.tensor(expected["mixed"]), **NEAR)


def drawn(seed=0, **changes):
    """Seven answers, the third cut off, with slots far from and near to the verdict."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.tensor([[5], [3], [5], [4], [2], [2], [5]])
    slot = -25.0 + 12 * torch.rand(7, 1, generator=rng, dtype=torch.float64)
    logp = -torch.rand(7, 5, generator=rng, dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    batch = batch_of(
        torch.zeros(7, dtype=torch.float64), group, mask, {"raw": Scores(logp, slot=slot)}
    )
    rollouts = [
        replace(r, stop="length" if i == 2 else "eos") for i, r in enumerate(batch.rollouts)
    ]
    correct = torch.tensor([1, 0, 1, 1, 0, 0, 1]).bool()
    advantage = torch.randn(7, 1, generator=rng, dtype=torch.float64) * mask
    return replace(batch, rollouts=rollouts, correct=correct, advantage=advantage, **changes)


def value_of(laser, batch, memory=None, now=LATE):
    raw = batch.scores["raw"]
    slot, logp = (x.clone().requires_grad_() for x in (raw.slot, raw.logp))
    shaped = shaped_in_turn([laser], [memory], batch, now)
    live = {"raw": Scores(logp, slot=slot)}
    total, metrics = loss(GRPO(), clipped, shaped, live, [laser], Totals.of(batch.mask), now)
    total.backward()
    return metrics, slot.grad, logp.grad, shaped


CONSTANT = LaSeR(usual="constant")


def test_who_was_cut_off_learns_nothing_and_both_kinds_weigh_the_same():
    batch = drawn()
    _, grad, _, shaped = value_of(CONSTANT, batch)
    assert grad[2] == 0 and (grad[[0, 1, 3, 4, 5, 6]] != 0).all()
    weight = shaped.shaped[0].kept["weight"][:, 0]
    assert weight[2] == 0
    right = batch.correct & (weight > 0)
    torch.testing.assert_close(weight[right].sum(), weight[~right].sum())
    torch.testing.assert_close(weight.sum().item(), 6.0)


def test_the_term_is_the_mean_over_answers_of_the_weighted_error():
    batch = drawn()
    metrics, _, _, shaped = value_of(CONSTANT, batch)
    found = 0.1 * (batch.scores["raw"].slot[:, 0] + 23)
    weight = shaped.shaped[0].kept["weight"][:, 0]
    expected = 0.1 * (weight * (found - batch.correct.double()).square()).mean()
    torch.testing.assert_close(metrics["loss/self_reward"], expected)


def test_a_model_that_knows_has_nothing_to_learn():
    batch = drawn()
    exact = -23.0 + 10 * batch.correct.double()[:, None]
    raw = replace(batch.scores["raw"], slot=exact)
    metrics, grad, _, shaped = value_of(CONSTANT, replace(batch, scores={"raw": raw}))
    assert metrics["loss/self_reward"] == 0 and grad.abs().max() == 0
    assert shaped.shaped[0].logged["verified"] == 1.0


def test_the_advantage_keeps_until_the_warm_up_is_over_and_in_flat_groups():
    batch = drawn()
    laser = replace(CONSTANT, tau=0.5)
    for now in (Now(step=1, progress=0.0), Now(step=400, progress=0.1)):
        assert torch.equal(value_of(laser, batch, now=now)[3].advantage, batch.advantage)
    after = value_of(laser, batch)[3].advantage
    assert (after != batch.advantage)[batch.mask].any()
    flat = replace(laser, flat=1.0)
    assert torch.equal(value_of(flat, batch)[3].advantage, batch.advantage)
    assert (after * ~batch.mask == 0).all()


def test_the_regression_begins_after_its_own_warm_up():
    for step, begun in ((1, False), (200, False), (201, True)):
        metrics, _, _, _ = value_of(CONSTANT, drawn(), now=Now(step=step, progress=0.1))
        assert ("loss/self_reward" in metrics) == begun


def test_a_single_answer_keeps_its_advantage():
    batch = drawn(group=torch.arange(7))
    assert torch.equal(
        value_of(replace(CONSTANT, tau=1.0), batch)[3].advantage, batch.advantage
    )


def test_measured_once_over_the_answers_that_ended_and_kept_with_the_run():
    batch, laser = drawn(), LaSeR()
    memory = laser.start_memory()
    _, _, _, shaped = value_of(laser, batch, memory)
    whole = [0, 1, 3, 4, 5, 6]
    mean = batch.scores["raw"].slot[whole].mean()
    torch.testing.assert_close(memory.value, mean.item())
    torch.testing.assert_close(shaped.shaped[0].kept["usual"][0, 0], mean)
    again = UsualValue()
    again.load(json.loads(json.dumps(memory.state())))
    _, _, _, later = value_of(laser, drawn(5), again)
    torch.testing.assert_close(later.shaped[0].kept["usual"][0, 0], mean)


def test_the_reference_models_own_value_makes_the_start_a_self_reward_of_nothing():
    batch = drawn()
    batch = replace(batch, scores={"raw": batch.scores["raw"], "ref": batch.scores["raw"]})
    _, _, _, shaped = value_of(LaSeR(usual="model"), batch)
    assert shaped.shaped[0].logged["self_reward"].abs().max() == 0


def test_off_it_asks_for_nothing_and_is_grpo_bit_for_bit():
    off = LaSeR(**LaSeR.off)
    assert off.score_requests() == () and off.start_memory() is None and off.traits() == ()
    batch = drawn()
    _, grad, logp, shaped = value_of(off, batch)
    assert grad is None and torch.equal(shaped.advantage, batch.advantage)
    raw = batch.scores["raw"].logp.clone().requires_grad_()
    live = {"raw": Scores(raw)}
    loss(GRPO(), clipped, batch, live, [], Totals.of(batch.mask), LATE)[0].backward()
    assert torch.equal(raw.grad, logp)


def test_each_half_asks_for_what_it_reads():
    one, other = LaSeR(alpha=0.0), LaSeR(tau=0.0, usual="model")
    assert [(r.branch, r.stage) for r in one.score_requests()] == [("raw", "shape")]
    assert [(r.branch, r.stage) for r in other.score_requests()] == [
        ("raw", "shape"),
        ("raw", "terms"),
        ("ref", "shape"),
    ]
    assert (
        "shapes the advantage" in one.traits() and "shapes the advantage" not in other.traits()
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": -1.0},
        {"beta": 0.0},
        {"tau": 1.5},
        {"loss_warmup": -1},
        {"mix_warmup": -1},
        {"constant": 3.0},
        {"token": ""},
    ],
)
def test_numbers_without_a_meaning_are_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"LaSeR\.{name} is"):
        LaSeR(**wrong)
