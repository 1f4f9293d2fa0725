"""ROVER: the released code's numbers, the gradient at the old policy, and what ends a sum."""

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
from mmrl.objectives.rover import ROVER, following
from mmrl.types import Batch, Now, Prompt, Role, Rollout, Scores

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"
FILE = json.loads((GOLDEN / "rover.json").read_text())
NOW = Now(step=3, progress=0.1)


def batch_of(reward, group, mask, scores=None):
    nothing = torch.zeros(0, dtype=torch.long)
    rollout = Rollout(Prompt("p", []), 0, nothing, nothing, nothing, "", "eos")
    return Batch(
        rollouts=[rollout] * len(mask),
        group=group,
        tokens=torch.zeros(mask.shape, dtype=torch.long),
        mask=mask,
        reward=reward,
        advantage=torch.zeros(mask.shape, dtype=reward.dtype),
        roles=torch.where(mask, Role.POLICY, Role.OBSERVATION).to(torch.uint8),
        scores=scores or {},
    )


def value_of(rover, batch, live):
    shaped = shaped_in_turn([rover], [None], batch, NOW)
    totals = Totals.of(batch.mask)
    total, metrics = loss(GRPO(), clipped, shaped, live, [rover], totals, NOW)
    assert set(metrics) & {"loss/policy"} == set(), "it owns the loss"
    return total, metrics, shaped


def scores_of(logits, tokens):
    logp = logits.log_softmax(-1)
    own = logp.gather(-1, tokens[..., None]).squeeze(-1)
    return Scores(own, vocabulary_mean=logp.mean(-1))


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_golden(case):
    given, expected = case["inputs"], case["outputs"]
    mask = torch.tensor(given["response_mask"]).bool()
    tokens, group = torch.tensor(given["tokens"]), torch.tensor(given["group"])
    logits = torch.tensor(given["logits"]).requires_grad_()
    old = scores_of(torch.tensor(given["old_logits"]), tokens)
    batch = batch_of(torch.tensor(given["rewards"]), group, mask, {"raw": old})
    rover = ROVER(scaled=given["normalise_std"])
    live = {"raw": scores_of(logits, tokens)}
    total, _, shaped = value_of(rover, batch, live)
    total.backward()
    near = {"rtol": FILE["rtol"], "atol": FILE["atol"]}
    centred = torch.tensor(expected["centred_reward"]) * mask
    torch.testing.assert_close(shaped.advantage, centred, **near)
    target = torch.tensor(expected["target"]) * mask
    torch.testing.assert_close(rover.values(live, shaped)[1].detach(), target, **near)
    for ours, theirs in (
        (total, expected["loss"]),
        (logits.grad.norm(), expected["grad_logits_norm"]),
        (logits.grad[0], expected["grad_logits_first_row"]),
    ):
        torch.testing.assert_close(ours.detach(), torch.tensor(theirs), **near)


def drawn(seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1], [4], [0], [2]])
    logits = torch.randn(6, 5, 7, generator=rng, dtype=torch.float64)
    tokens = torch.randint(7, (6, 5), generator=rng)
    reward = torch.tensor([1.0, 0, 0, 1, 0, 1], dtype=torch.float64)
    return logits, tokens, reward, torch.tensor([0, 0, 0, 1, 1, 1]), mask


def test_at_the_old_policy_it_is_reinforce_with_twice_the_centred_reward():
    logits, tokens, reward, group, mask = drawn()
    logp = scores_of(logits, tokens).logp.requires_grad_()
    mean = scores_of(logits, tokens).vocabulary_mean
    total, _, shaped = value_of(
        ROVER(rho=0.5),
        batch_of(reward, group, mask),
        {"raw": Scores(logp, vocabulary_mean=mean)},
    )
    total.backward()
    expected = -2 * 0.5 * shaped.advantage / mask.sum()
    torch.testing.assert_close(logp.grad, expected)


@pytest.mark.parametrize("scaled", [True, False])
def test_equal_rewards_and_single_answers_pull_nowhere(scaled):
    logits, tokens, _, _, mask = drawn()
    for reward, group in (
        (torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.long)),
        (torch.rand(6, dtype=torch.float64), torch.arange(6)),
    ):
        hot = logits.clone().requires_grad_()
        total, _, _ = value_of(
            ROVER(scaled=scaled),
            batch_of(reward, group, mask),
            {"raw": scores_of(hot, tokens)},
        )
        total.backward()
        assert hot.grad.abs().max() == 0


def test_what_follows_ends_with_the_answer_and_where_nothing_is_trained():
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]]).bool()
    values = torch.tensor([[1.0, 2, torch.nan, 4, 5], [6, torch.nan, 8, 9, 7]])
    assert following(values, mask).tolist() == [[2, 0, 0, 5, 0], [0, 0, 0, 0, 0]]


def test_what_stands_on_padding_reaches_neither_value_nor_gradient():
    logits, tokens, reward, group, mask = drawn()
    found = []
    for junk in (0.0, torch.nan, 1e30):
        hot = logits.clone().requires_grad_()
        live = scores_of(hot, tokens)
        live = replace(
            live,
            logp=torch.where(mask, live.logp, junk),
            vocabulary_mean=torch.where(mask, live.vocabulary_mean, junk),
        )
        old = scores_of(drawn(1)[0], tokens)
        batch = batch_of(reward, group, mask, {"raw": old})
        total, _, _ = value_of(ROVER(), batch, {"raw": live})
        total.backward()
        found.append((total.detach(), hot.grad))
    for total, grad in found[1:]:
        assert torch.equal(total, found[0][0]) and torch.equal(grad, found[0][1])


def test_it_asks_for_the_mean_only_if_it_looks_ahead():
    assert ROVER().score_requests()[0].vocabulary_mean
    assert not ROVER(gamma=0.0).score_requests()[0].vocabulary_mean
    logits, tokens, reward, group, mask = drawn()
    bare = {"raw": Scores(scores_of(logits, tokens).logp)}
    value_of(ROVER(gamma=0.0), batch_of(reward, group, mask), bare)
    with pytest.raises(ValueError, match="ROVER reads the mean log-prob"):
        value_of(ROVER(), batch_of(reward, group, mask), bare)


@pytest.mark.parametrize(
    "wrong", [{"rho": 0.0}, {"rho": -1.0}, {"gamma": -0.1}, {"gamma": 1.1}]
)
def test_numbers_without_a_meaning_are_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=rf"ROVER\.{name} is"):
        ROVER(**wrong)
