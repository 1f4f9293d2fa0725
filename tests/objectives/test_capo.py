"""CAPO: the ladder of rewards, votes, statistics over a group's tokens, and GRPO where nobody reads."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.objectives.capo import CAPO, token_advantage, token_reward, voted
from mmrl.types import Batch, Now

NOW = Now(1, 0.1)


def batch(valued, rewards, groups=None, lengths=None):
    """Answers of 4 tokens, or fewer, with GRPO's advantage."""
    count, width = len(rewards), 4
    lengths = lengths or [width] * count
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)
    group = torch.tensor(groups or [0] * count)
    reward = torch.tensor(rewards)
    given = group_normalized(reward, group, mask).unsqueeze(-1).expand(count, width)
    rollouts = [
        SimpleNamespace(valued=own, tokens=range(long), prompt=SimpleNamespace(id="q"))
        for own, long in zip(valued, lengths, strict=True)
    ]
    roles = torch.zeros(count, width, dtype=torch.uint8)
    tokens = torch.zeros(count, width, dtype=torch.long)
    return Batch(rollouts, group, tokens, mask, reward, given.clone(), roles)  # type: ignore[arg-type]


def shaped(batch, **changes):
    return CAPO(**changes).shape(batch.advantage, batch, NOW)


CLEAN, WRONG = ((4, 0.0),), ((2, -1.0), (2, 0.0))


def test_the_ladder_of_the_paper():
    wrong = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    paid = token_reward(torch.tensor([1.0, 1.0, 0.0, 0.0]), wrong, 2.0, 1.0)
    assert paid.flatten().tolist() == [2.0, 1.0, 0.0, -1.0]


@pytest.mark.parametrize("process", [0.1, 0.5, 1.0, 1.9])
def test_a_right_answer_with_wrong_steps_stays_above_a_wrong_one(process):
    found = shaped(batch([WRONG, CLEAN], [1.0, 0.0]), process=process).advantage
    assert found[0].min() > found[1].max()


def test_by_hand():
    # R: 1 1 2 2 / 0 0 0 0, means 1.5 and 0, μ 0.75; variance (0.25·… ) with n - 1.
    paid = torch.tensor([[1.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    mean, second = 0.75, (1 + 1 + 4 + 4) / 8
    sigma = ((second - mean**2) * 2) ** 0.5
    expected = (paid.double() - mean) / (sigma + 1e-6)
    torch.testing.assert_close(token_advantage(paid, torch.ones(2, 4).bool()), expected)


def test_answers_weigh_alike_however_long():
    short = batch([CLEAN[:1], ((1, -1.0),), CLEAN], [1.0, 1.0, 0.0], lengths=[4, 1, 4])
    long = batch([CLEAN, ((4, -1.0),), CLEAN], [1.0, 1.0, 0.0])
    first, second = shaped(short).advantage, shaped(long).advantage
    torch.testing.assert_close(first[1, 0], second[1, 0])
    torch.testing.assert_close(first[0], second[0])
    assert not first[1, 1:].any()


@pytest.mark.parametrize("vote", ["intersection", "majority", "union", "average"])
def test_without_wrong_steps_it_is_grpo_for_each_token(vote):
    given = batch([CLEAN] * 4, [1.0, 0.0, 1.0, 0.5])
    torch.testing.assert_close(
        shaped(given, vote=vote).advantage, given.advantage, rtol=1e-5, atol=1e-6
    )


def test_off_it_is_grpo_bit_for_bit():
    given = batch([WRONG, CLEAN], [1.0, 0.0])
    off = CAPO(process=0.0)
    assert off.shape(given.advantage, given, NOW).advantage is given.advantage
    assert off.answer_kinds() == () and off.owns() == () and off.traits() == ()


def test_a_group_that_was_not_read_as_a_whole_keeps_its_advantage():
    given = batch([WRONG, (), WRONG, CLEAN], [1.0, 0.0, 1.0, 0.0], groups=[0, 0, 1, 1])
    found = shaped(given)
    assert torch.equal(found.advantage[:2], given.advantage[:2])
    assert not torch.equal(found.advantage[2:], given.advantage[2:])
    assert found.logged["read"][:, 0].tolist() == [0, 0, 1, 1]


def test_what_is_not_available_is_in_no_statistic():
    nan = float("nan")
    given = batch([WRONG, CLEAN, ()], [1.0, 0.0, nan])
    found = shaped(given).advantage
    torch.testing.assert_close(found[:2], shaped(batch([WRONG, CLEAN], [1.0, 0.0])).advantage)
    assert not found[2].any() and found.isfinite().all()


@pytest.mark.parametrize(
    ("valued", "rewards"),
    [([CLEAN], [1.0]), ([CLEAN] * 3, [0.3] * 3), ([((4, -1.0),)] * 2, [1.0, 1.0])],
)
def test_groups_of_one_mind_teach_nothing(valued, rewards):
    assert not shaped(batch(valued, rewards)).advantage.any()


def test_votes_contain_each_other_and_numbers_out_of_range_are_ignored():
    readings = [[1, 2], [1, 2, 3], [1], [1, 99, 0, -4, 1]]
    assert voted(readings, 4, "intersection") == [1, 0, 0, 0]
    assert voted(readings, 4, "majority") == [1, 1, 0, 0]
    assert voted(readings, 4, "union") == [1, 1, 1, 0]
    assert voted(readings, 4, "average") == [1, 0.5, 0.25, 0]
    assert all(voted([[], []], 2, vote) == [0, 0] for vote in ("intersection", "majority"))  # type: ignore[arg-type]


def test_runs_longer_than_the_answer_are_refused():
    with pytest.raises(ValueError, match="has 4 tokens, but its steps have 5"):
        shaped(batch([((5, 0.0),), CLEAN], [1.0, 0.0]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"whole": 0.0}, "whole"),
        ({"process": -1.0}, "process"),
        ({"critiques": 0}, "critiques"),
        ({"vote": "some"}, "vote"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, said):
    with pytest.raises(ValueError, match=rf"CAPO\.{said}"):
        replace(CAPO(), **changes)
