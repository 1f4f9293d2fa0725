"""DeepSearch's values: golden advantages and backup, sign rules, trees of depth one, and odd groups."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from mmrl.losses.advantages import group_centered
from mmrl.objectives.deepsearch import (
    DeepSearch,
    backed_up,
    frontier_score,
    search_advantages,
    sibling_score,
)
from mmrl.types import Batch, Now, Prompt, Rollout

NOW = Now(1, 0.1)
FILE = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rlvr"
    / "deepsearch.json"
)
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {"cases": []}


def close(found, told):
    found, told = (torch.as_tensor(one, dtype=torch.float64) for one in (found, told))
    torch.testing.assert_close(found, told, rtol=GOLDEN["rtol"], atol=GOLDEN["atol"])


@pytest.mark.parametrize(
    "case",
    [case for case in GOLDEN["cases"] if "node_q_per_token" in case["inputs"]],
    ids=lambda case: case["name"],
)
def test_golden_rlvr_deepsearch_advantage(case):
    given = case["inputs"]
    pay, mask = torch.tensor(given["node_q_per_token"]), torch.tensor(given["response_mask"])
    found = search_advantages(pay, mask, torch.tensor(given["group"]), scaled=given["use_std"])
    close(found, case["outputs"]["advantages"])


@pytest.mark.parametrize(
    "case",
    [case for case in GOLDEN["cases"] if "leaf_values" in case["inputs"]],
    ids=lambda case: case["name"],
)
def test_golden_rlvr_deepsearch_backup(case):
    given, told = case["inputs"], case["outputs"]
    values, visits = [0.0] * len(given["depths"]), len(given["leaf_values"])
    for verdict in given["leaf_values"]:
        for node, depth in enumerate(given["depths"]):
            values[node] = backed_up(
                values[node], verdict, depth, given["traj_len"], given["backup_threshold"]
            )
    close(values, told["values"])
    close([value / visits for value in values], told["q"])
    scores = [sibling_score(value, visits, visits, 2.0) for value in values]
    close([0, *scores[1:]], told["uct"])


def test_signs_of_what_is_backed_up():
    # A right leaf takes the place of what was only wrong; a wrong one takes nothing from what is right.
    assert backed_up(-0.7, 1, 0, 4, 0.1) == 0.25 and backed_up(0.7, -1, 0, 4, 0.1) == 0.7
    assert backed_up(0.5, 1, 3, 4, 0.1) == 1.5 and backed_up(-0.5, -1, 3, 4, 0.1) == -1.5
    assert backed_up(0.0, -1, 1, 4, 0.1) == -0.5
    # Far above the leaf at least a tenth arrives.
    assert backed_up(0.0, 1, 0, 64, 0.1) == 0.1


def test_where_the_search_looks_next():
    assert sibling_score(0.0, 0, 1, 2.0) == 0 < sibling_score(0.0, 0, 5, 2.0)
    assert sibling_score(0.5, 1, 5, 2.0) > sibling_score(0.5, 4, 5, 2.0)
    search = DeepSearch(chunks=16, by_entropy=0.4, by_own=0.2)
    place = {"parent": 0.3, "own": -0.2, "entropy": 0.7, "depth": 4}
    told = 0.4 * math.tanh(0.3) + 0.2 * math.tanh(-0.2) + 0.4 * 0.7 + 0.01 * 0.5
    assert frontier_score(search, **place) == pytest.approx(told)


def batch_of(right, mask, valued=None, reward=None, group=None, parts=None):
    blank = torch.zeros(mask.shape, dtype=torch.long)
    valued = valued or [()] * len(mask)
    rows = [Rollout(Prompt("q", []), 0, blank[0], blank[0][: int(on.sum())], blank[0].byte(), "", "eos",
                    valued=tuple(one), parts=parts or {}) for on, one in zip(mask, valued, strict=True)]  # fmt: skip
    right = torch.tensor(right)
    group = torch.zeros(len(mask), dtype=torch.long) if group is None else group
    reward = right.double() if reward is None else reward
    return Batch(rows, group, blank, mask, reward, torch.ones(mask.shape, dtype=torch.float64),
                 blank.byte(), correct=right)  # fmt: skip


MASK = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]


def shaped(batch, **settings):
    return DeepSearch(**settings).shape(batch.advantage, batch, NOW)


def test_a_tree_of_depth_one_is_the_reward_less_the_mean():
    batch = batch_of([True, False, True], MASK)
    told = group_centered(2 * batch.reward - 1, batch.group, MASK)[:, None] * MASK
    assert torch.equal(shaped(batch).advantage, told)
    ends = [[(6, 1.0)], [(4, -1.0)], [(5, 1.0)]]
    assert torch.equal(shaped(batch_of([True, False, True], MASK, ends)).advantage, told)


def test_tokens_are_paid_what_their_nodes_are_worth():
    valued = [[(2, 0.25), (4, 1.0)], [(2, 0.25), (2, -1.0)], [(5, -1.0)]]
    found = shaped(batch_of([True, False, False], MASK, valued))
    mean = -1 / 3
    torch.testing.assert_close(
        found.advantage[0],
        torch.tensor([0.25, 0.25, 1, 1, 1, 1], dtype=torch.float64) - mean,
    )
    assert found.advantage[1].tolist() == pytest.approx(
        [0.25 - mean] * 2 + [-1 - mean] * 2 + [0] * 2
    )
    # What two answers share has one advantage.
    assert torch.equal(found.advantage[0, :2], found.advantage[1, :2])
    late = shaped(batch_of([True, False, False], MASK, valued, parts={"overlong": -0.5}))
    torch.testing.assert_close(
        late.advantage, found.advantage
    )  # all alike: the mean takes it away
    assert late.logged["value"][0, 0] == found.logged["value"][0, 0] - 0.5


def test_searched_groups_of_one_mind_leave_the_batch():
    group, mask = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.ones(8, 4, dtype=torch.bool)
    right = [False, False, True, True, True, False, False, False]
    tree = [(2, -0.5), (2, -1.0)]
    valued = [tree, tree, tree, tree, tree, tree, (), ()]
    batch = batch_of(right, mask, valued, group=group)
    stays = shaped(batch).trained
    assert (
        stays.tolist() == [False] * 4 + [True] * 4
    )  # the last was not searched, and gets 0 all the same
    kept = shaped(batch, even_groups=True)
    # What the formula has of a tree that is all wrong: every token inside it rises.
    assert kept.trained is None and kept.advantage[0].tolist() == [0.5, 0.5, 0.0, 0.0]
    mask = mask.clone()
    mask[4], valued[4] = False, ()  # a right answer of which nothing is trained says nothing
    assert not shaped(batch_of(right, mask, valued, group=group)).trained[5]


def test_off_the_estimators_advantage_stays():
    batch = batch_of([True, False, True], MASK)
    assert shaped(batch, search=False).advantage is batch.advantage
    assert DeepSearch(search=False).owns() == () and DeepSearch().owns() == ("estimator",)


@pytest.mark.parametrize("scaled", [False, True])
def test_odd_groups_are_finite(scaled):
    same = batch_of([True] * 3, MASK)
    assert not shaped(same, scaled=scaled).advantage.any()
    alone = batch_of([False], MASK[:1], [[(2, 0.25), (4, -1.0)]])
    assert shaped(alone, scaled=scaled).advantage[0].tolist() == [1.25, 1.25, 0, 0, 0, 0]
    empty = torch.cat([MASK, torch.zeros(1, 6, dtype=torch.bool)])
    batch = batch_of([True, False, False, True], empty)
    found = shaped(batch, scaled=scaled).advantage
    torch.testing.assert_close(
        found[:3], shaped(batch_of([True, False, False], MASK), scaled=scaled).advantage
    )
    assert not found[3].any()
    unknown = batch_of(
        [True, False, False], MASK, reward=torch.tensor([1.0, 0.0, torch.nan]).double()
    )
    found = shaped(unknown, scaled=scaled).advantage
    assert not found[2].any() and found.isfinite().all() and found[0, 0] == -found[1, 0] > 0
    nothing = torch.zeros(2, 0)
    assert search_advantages(nothing, nothing, torch.zeros(2)).shape == (2, 0)


def test_groups_and_rows_may_come_in_any_order():
    mask, group = MASK.repeat(2, 1), torch.tensor([0, 0, 0, 1, 1, 1])
    right = [True, False, True, False, False, True]
    valued = [[(1, 0.1 * i), (3, 1.0 if right[i] else -1.0)] for i in range(6)]
    told = shaped(batch_of(right, mask, valued, group=group)).advantage
    order = [4, 0, 3, 2, 5, 1]
    mixed = batch_of(
        [right[i] for i in order], mask[order], [valued[i] for i in order], group=group[order]
    )
    torch.testing.assert_close(shaped(mixed).advantage, told[order])


def test_values_of_more_tokens_than_there_are_are_refused():
    with pytest.raises(ValueError, match="its values speak of 7"):
        shaped(batch_of([True, False, True], MASK, [[(7, 1.0)], (), ()]))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"chunks": 0}, "chunks"), ({"width": 0}, "width"), ({"nodes": 3}, "nodes"), ({"hard": 2.0}, "hard"),
     ({"explore": float("nan")}, "explore"), ({"least": -1.0}, "least"), ({"answers": 0}, "answers")],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        DeepSearch(**wrong)
