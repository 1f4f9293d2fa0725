"""Beyond Variance: what a z-score takes away, statistics of pairs, weights of rare answers, choice of questions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.objectives.beyond_variance import BeyondVariance, hard_and_easy, mapped
from mmrl.types import Batch, Now, Prompt, Rollout

NOW = Now(1, 0.1)


def batch_of(*groups, pairs=True):
    """Groups of right (1) and wrong (0) answers: hard, easy, hard, easy, …"""
    right, rows = [], []
    blank = torch.zeros(2, dtype=torch.long)
    for number, group in enumerate(groups):
        extra = {"pair": number // 2, "side": "easy" if number % 2 else "hard"} if pairs else {}
        prompt = Prompt(f"q{number}", [], extra=extra)
        for one in group:
            right.append(bool(one))
            rows.append(Rollout(prompt, number, blank, blank, blank, "", "eos"))
    count = len(rows)
    mask = torch.ones(count, 2, dtype=torch.bool)
    mask[:, 1] = False
    zero = torch.zeros(count, 2)
    number = torch.tensor([row.group for row in rows])
    right = torch.tensor(right)
    return Batch(rows, number, zero.long(), mask, right.double(), zero.double(), zero.byte(),
                 correct=right)  # fmt: skip


def advantages(batch, **settings):
    shaped = BeyondVariance(**settings).shape(batch.advantage, batch, NOW)
    assert shaped.advantage.isfinite().all() and (shaped.advantage[:, 1] == 0).all()
    return shaped.advantage[:, 0]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_right_answer_of_a_group_gets_the_root_of_its_odds(count):
    right = [1] * count + [0] * (8 - count)
    p = count / 8
    found = advantages(batch_of(right))
    expected = math.sqrt((1 - p) / p) * math.sqrt(7 / 8)
    assert float(found[0]) == pytest.approx(expected, rel=1e-5)


def test_the_z_score_of_a_group_takes_the_map_away_so_that_it_is_refused_there():
    right = torch.tensor([True, False, False, True, False])
    group, mask = torch.zeros(5, dtype=torch.long), torch.ones(5, 1)
    of = [group_normalized(mapped(right, failure), group, mask) for failure in (0.0, 1.0, 5.0)]
    for other in of[1:]:
        torch.testing.assert_close(other, of[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"failure is 2 with scope 'group'.*--beyond-variance\.scope pair"
    ):
        BeyondVariance(failure=2.0)


def test_a_pair_has_one_mean_and_one_deviation_wherever_its_rows_stand():
    batch = batch_of([1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 1])
    found = advantages(batch, scope="pair", failure=2.0)
    for rows in (slice(0, 8), slice(8, 16)):
        paid = torch.where(batch.correct[rows], 1.0, -2.0).double()
        expected = (paid - paid.mean()) / (paid.std() + 1e-6)
        torch.testing.assert_close(found[rows], expected)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    moved = replace(batch, rollouts=[batch.rollouts[i] for i in order], group=batch.group[order],
                    reward=batch.reward[order], correct=batch.correct[order])  # fmt: skip
    torch.testing.assert_close(advantages(moved, scope="pair", failure=2.0), found[order])


def test_weights_are_of_rare_answers_alone():
    batch = batch_of([1, 0, 0, 0], [1, 1, 1, 0])
    plain = advantages(batch)
    found = advantages(batch, right_on_hard=3.0, wrong_on_easy=2.0)
    factor = torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 2], dtype=torch.float64)
    torch.testing.assert_close(found, plain * factor)


@pytest.mark.parametrize("scope", ["group", "pair"])
def test_degenerate_groups_are_finite(scope):
    assert (advantages(batch_of([1, 1, 1], [1, 1]), scope=scope) == 0).all()
    assert (advantages(batch_of([1]), scope=scope) == 0).all()
    batch = batch_of([1, 0, 0], [1, 0])
    unknown = replace(batch, reward=torch.tensor([math.nan, 0, 0, 1, 0], dtype=torch.float64))
    assert float(advantages(unknown, scope=scope)[0]) == 0


def test_rows_without_a_pair_and_settings_that_mean_nothing_are_refused():
    bare = batch_of([1, 0], pairs=False)
    with pytest.raises(ValueError, match=r"scope is 'pair', but row q0 .*scope group"):
        advantages(bare, scope="pair")
    with pytest.raises(ValueError, match="reads whether answers are right"):
        advantages(replace(bare, correct=None))
    with pytest.raises(ValueError, match=r"BeyondVariance\.wrong_on_easy"):
        BeyondVariance(wrong_on_easy=-1.0)
    given = torch.randn(2, 2)
    off = BeyondVariance(scope="off")
    assert off.shape(given, bare, NOW).advantage is given and off.owns() == ()


def test_hard_questions_are_solved_rarely_and_easy_ones_fail_rarely():
    right = [0, 8, 2, 1, 6, 7, 4, 7]
    assert hard_and_easy(right, [8] * 8, 2) == ([3, 2], [5, 7, 4])
    assert hard_and_easy(right, [8] * 8, 1) == ([3], [5, 7])
    assert hard_and_easy([1, 0, 1], [2, 0, 1], 1) == ([0], [0]), "no answers, or both ways rare"
