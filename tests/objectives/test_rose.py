"""ROSE: golden metric and segment advantages, telescoping, independent answers, leaf weights, and odd groups."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from mmrl.losses.advantages import group_centered
from mmrl.objectives.rose import (
    ROSE,
    branch_metric,
    common,
    leaf_weights,
    segment_advantages,
    shortened,
)
from mmrl.types import Batch, Now, Prompt, Rollout

NOW = Now(1, 0.1)
FOLDER = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rlvr"


def golden(name):
    file = FOLDER / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else {"cases": []}


METRIC, SEGMENTS = golden("rose_branch_metric"), golden("rose_segment_advantage")


def close(found, told, file):
    told = torch.tensor(told, dtype=torch.float64)
    torch.testing.assert_close(
        found, told, rtol=file["rtol"], atol=file["atol"], check_dtype=False
    )


@pytest.mark.parametrize("case", METRIC["cases"], ids=lambda case: case["name"])
def test_golden_rlvr_rose_branch_metric(case):
    given, told = case["inputs"], case["outputs"]
    logp = torch.tensor(given["top_probs"]).log()[None]
    vectors = torch.tensor(given["embeddings"])[None]
    close(branch_metric(logp, vectors)[0], told["metric"], METRIC)
    close(branch_metric(logp, vectors, "entropy")[0], told["shannon"], METRIC)
    close(-branch_metric(logp, vectors, "cosine")[0], told["weighted_similarity"], METRIC)


def paths_of(parents, places, lengths):
    """Paths of a tree in which each answer leaves its parent at a place."""
    own, begin = {}, {}

    def spans(i):
        """(node, begin) of the nodes on the way to an answer, in their order; a node is (answer, begin)."""
        cuts = sorted({c for j, c in enumerate(places) if parents[j] == i})
        mine = [places[i], *[c for c in cuts if c > places[i]]]
        above = []
        if parents[i] >= 0:
            above = [node for node in spans(parents[i]) if node[1] < places[i]]
        return [*above, *[(i, c) for c in mine]]

    out = []
    for i, length in enumerate(lengths):
        nodes = spans(i)
        ends = [*[node[1] for node in nodes[1:]], length]
        for node in nodes:
            own.setdefault(node, len(own))
        begin.update(dict(nodes))
        out.append([(own[n], end - n[1]) for n, end in zip(nodes, ends, strict=True)])
    return out


@pytest.mark.parametrize("nodes", ["node", "place"])
@pytest.mark.parametrize("case", SEGMENTS["cases"], ids=lambda case: case["name"])
def test_golden_rlvr_rose_segment_advantage(case, nodes):
    given, told = case["inputs"], case["outputs"]
    mask = torch.tensor(given["response_mask"]).bool()
    paths = paths_of(given["parent"], given["branch_pos"], mask.sum(-1).tolist())
    reward = torch.tensor(given["rewards"])
    found = segment_advantages(paths, reward, mask, nodes=nodes)
    found = shortened(found, paths, reward.abs() > 1e-6, mask, given["length_penalty"])
    close(found, told["advantages"], SEGMENTS)


TREE = paths_of([-1, 0, 0, 1, -1], [0, 3, 5, 6, 0], [9, 8, 7, 10, 6])
LENGTHS = torch.tensor([9, 8, 7, 10, 6])
MASK = torch.arange(10) < LENGTHS[:, None]
REWARD = torch.tensor([0.25, 1.0, 0.0, 0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("means", ["answers", "children"])
def test_the_segments_of_an_answer_add_up_to_its_reward_less_the_prompts_value(means):
    found = segment_advantages(TREE, REWARD, MASK, means=means)
    weights = torch.tensor(leaf_weights(TREE)).double()
    root = REWARD.mean() if means == "answers" else (weights * REWARD).sum()
    for row, path in enumerate(TREE):
        begins = torch.tensor([tokens for _, tokens in path]).cumsum(0) - 1
        assert float(found[row, begins].sum()) == pytest.approx(float(REWARD[row] - root))
        assert not found[row, int(LENGTHS[row]) :].any()


def test_answers_have_the_same_advantage_on_what_they_share():
    found = segment_advantages(TREE, REWARD, MASK)
    for i, one in enumerate(TREE):
        for j, other in enumerate(TREE):
            shared = common(one, other)
            assert torch.equal(found[i, :shared], found[j, :shared])
    assert common(TREE[0], TREE[2]) == 5 and common(TREE[1], TREE[3]) == 6
    assert common(TREE[0], TREE[4]) == 0


def test_values_of_equal_places_in_different_subtrees_mix_only_on_request():
    # Two roots, each with a branch behind three tokens.
    paths = paths_of([-1, 0, -1, 2], [0, 3, 0, 3], [5, 5, 5, 5])
    reward, mask = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4, 5).bool()
    own = segment_advantages(paths, reward, mask)
    assert own[:, 0].tolist() == [0.5, 0.5, -0.5, -0.5] and not own[:, 3:].any()
    mixed = segment_advantages(paths, reward, mask, nodes="place")
    assert mixed[:, 0].tolist() == [0.0] * 4 and mixed[:, 3].tolist() == [0.5, 0.5, -0.5, -0.5]


def test_what_goes_on_from_a_node_counts_alike():
    weights = leaf_weights(TREE)
    # Two answers at the prompt; behind three tokens two ways on, and so forth.
    assert weights == [1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 2] and sum(weights) == 1
    assert leaf_weights([[(0, 3)], [(1, 2)]]) == [0.5, 0.5]
    assert leaf_weights([[(0, 3)], [(0, 3)], [(1, 2)]]) == [0.25, 0.25, 0.5]


def batch_of(paths, reward, mask, right=None, group=None):
    blank = torch.zeros(mask.shape, dtype=torch.long)
    rows = [Rollout(Prompt("q", []), 0, blank[0], blank[0][: int(on.sum())], blank[0].byte(), "", "eos",
                    path=tuple(path)) for path, on in zip(paths, mask, strict=True)]  # fmt: skip
    right = reward > 0.4 if right is None else right
    group = torch.zeros(len(rows), dtype=torch.long) if group is None else group
    return Batch(rows, group, blank, mask, reward, torch.ones(mask.shape, dtype=torch.float64),
                 blank.byte(), correct=right)  # fmt: skip


def test_independent_answers_get_their_reward_less_the_mean():
    reward = torch.tensor([0.3, 1.0, 0.1, 0.7, 0.9], dtype=torch.float64)
    batch = batch_of([()] * 5, reward, MASK)
    told = group_centered(reward, batch.group, MASK)[:, None] * MASK
    torch.testing.assert_close(ROSE().shape(batch.advantage, batch, NOW).advantage, told)


def test_off_the_estimators_advantage_stays():
    batch = batch_of(TREE, REWARD, MASK)
    off = ROSE(restart=1.0, length=0.0)
    assert off.shape(batch.advantage, batch, NOW).advantage is batch.advantage
    assert off.owns() == () and ROSE().owns() == ("estimator",)


def test_longer_right_answers_lose_behind_what_they_share_with_the_shortest():
    batch = batch_of(TREE, REWARD, MASK)
    plain = ROSE().shape(batch.advantage, batch, NOW).advantage
    shaped = ROSE(length=1.0).shape(batch.advantage, batch, NOW)
    shorter = shaped.advantage
    # Right are 1, 3 and 4, of 8, 10 and 6 tokens; nobody shares a token with the shortest, the last.
    assert torch.equal(shorter[[0, 2, 4]], plain[[0, 2, 4]])
    for row, share in ((1, 6 / 8), (3, 6 / 10)):
        told = plain[row] - plain[row].abs() * (1 - share)
        torch.testing.assert_close(shorter[row], told)
    torch.testing.assert_close(shaped.logged["length"], plain - shorter)
    assert shaped.logged["branched"][:, 0].tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_equal_single_and_unknown_rewards():
    third = torch.full((5,), 1 / 3, dtype=torch.float64)
    for means in ("answers", "children"):
        assert not segment_advantages(TREE, third, MASK, means=means).any()
    assert not segment_advantages(TREE[:1], REWARD[:1], MASK[:1]).any()
    unknown = torch.where(torch.arange(5) == 3, torch.nan, REWARD)
    found = segment_advantages(TREE, unknown, MASK)
    assert not found[3].any() and found.isfinite().all()
    assert float(found[4, 0]) == pytest.approx(1 - (0.25 + 1 + 0 + 1) / 4)
    assert not segment_advantages(TREE, torch.full((5,), torch.nan), MASK).any()


def test_no_answer_is_too_long_beside_one_whose_pay_is_unknown():
    """The last answer is the shortest right one; with its reward unknown, the others lose what they lose without it."""
    unknown = torch.where(torch.arange(5) == 4, torch.nan, REWARD)
    rose = ROSE(length=1.0)
    beside = rose.shape(
        torch.ones(MASK.shape), batch_of(TREE, unknown, MASK, REWARD > 0.4), NOW
    )
    without = rose.shape(torch.ones(MASK.shape), batch_of(TREE[:4], REWARD[:4], MASK[:4]), NOW)
    torch.testing.assert_close(beside.logged["length"][:4], without.logged["length"])
    assert without.logged["length"].any() and not beside.logged["length"][4].any()


def test_groups_and_rows_may_come_in_any_order():
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    mask, reward = MASK.repeat(2, 1), torch.cat([REWARD, REWARD.flip(0)])
    rose = ROSE(length=0.5)
    batch = batch_of(TREE * 2, reward, mask, group=group)
    told = rose.shape(batch.advantage, batch, NOW).advantage
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    mixed = batch_of(
        [(TREE * 2)[i] for i in order], reward[order], mask[order], group=group[order]
    )
    torch.testing.assert_close(rose.shape(mixed.advantage, mixed, NOW).advantage, told[order])


def test_sure_places_and_alike_candidates_are_no_places_to_branch():
    logp = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]]).log()
    apart, alike = torch.tensor([[1.0, 0], [-1.0, 0]]), torch.tensor([[1.0, 0], [2.0, 0]])
    metric = branch_metric(logp, torch.stack([apart, alike, apart]))
    assert metric[0] > 0 > metric[1] and metric[2] == 0 and metric.isfinite().all()
    assert branch_metric(logp[:1], torch.zeros(1, 2, 2)).tolist() == [0.0]


def test_a_path_longer_than_its_answer_is_refused():
    batch = batch_of([[(0, 11)]], REWARD[:1], MASK[:1])
    with pytest.raises(ValueError, match="its path speaks of 11"):
        ROSE().shape(batch.advantage, batch, NOW)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"restart": 1.5}, "restart"), ({"candidates": 1}, "candidates"), ({"branch_by": "best"}, "branch_by"),
     ({"length": -1.0}, "length"), ({"nodes": "place", "means": "children"}, "--rose.nodes node")],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ROSE(**wrong)
