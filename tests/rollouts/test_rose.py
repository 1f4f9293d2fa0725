"""ROSE's rollout: where trees branch, who begins at the prompt, what the engine is asked, and that off it is GRPO."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from mmrl.objectives.canon import CANON
from mmrl.objectives.deepsearch import DeepSearch
from mmrl.objectives.nsr import NSR
from mmrl.objectives.rose import ROSE, branch_metric, path_of
from mmrl.rollouts import forking
from mmrl.rollouts.deepsearch import DeepSearchRollout
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.rose import ROSERollout, grow_trees, place_metrics
from mmrl.training.clashes import refuse_clashes
from mmrl.types import Now, Prompt, Sampling
from tests.rollouts.made_up_forest import MadeUpForest, planted

PROMPTS = [Prompt("a", []), Prompt("b", [])]
SEED = (3, 1)


def by_token(pieces):
    """The metric of a place is the number that was drawn there."""
    return [torch.tensor(piece.tokens).double() for piece in pieces]


def grown(restart, answers=6, metrics=by_token, **forest):
    trees = MadeUpForest(PROMPTS, **forest)
    leaves, branched = grow_trees(trees, PROMPTS, ROSE(restart=restart), answers, metrics, SEED)
    return trees, leaves, branched


def test_a_tree_branches_at_its_largest_metric():
    trees, leaves, branched = grown(restart=0.0)
    assert len(trees.calls) == 6 and [len(one) for one in leaves] == [6, 6]
    assert branched == sum(piece.start.piece is not None for piece in trees.pieces) > 5
    for index in range(2):
        first, *later = [trees.pieces[leaf] for leaf in leaves[index]]
        assert first.start.piece is None
        for number, piece in enumerate(later):
            earlier = [trees.pieces[leaf] for leaf in leaves[index][: number + 1]]
            largest = max(max(one.tokens) for one in earlier)
            start = piece.start
            if start.piece is None:  # the best place is the first token of all
                assert max(earlier[0].tokens) == earlier[0].tokens[0] == largest
            else:
                assert trees.pieces[start.piece].tokens[start.cut] == largest and start.cut > 0


def test_nothing_branches_where_every_answer_begins_at_the_prompt():
    trees, _, branched = grown(restart=1.0, metrics=None)
    assert branched == 0 and all(piece.start.piece is None for piece in trees.pieces)
    assert all(piece.top_ids is None for piece in trees.pieces)


def test_who_begins_at_the_prompt_is_drawn_by_prompt_step_and_number():
    trees, leaves, branched = grown(restart=0.5, answers=40, ends=0.0)
    assert 20 <= branched <= 58  # of 78 half, four deviations wide
    again, _, _ = grown(restart=0.5, answers=40, ends=0.0)
    assert [p.start for p in trees.pieces] == [p.start for p in again.pieces]
    own = [[trees.pieces[leaf].start.piece is None for leaf in one] for one in leaves]
    assert own[0] != own[1]


def test_branches_share_what_lies_before_them():
    trees, leaves, _ = grown(restart=0.0, ends=0.0, longest=9)
    rollouts = trees.rollouts([leaf for one in leaves for leaf in one])
    for rollout, leaf in zip(rollouts, [leaf for one in leaves for leaf in one], strict=True):
        assert sum(tokens for _, tokens in path_of(rollout, 0)) == len(rollout.tokens) == 9
        start = trees.pieces[leaf].start
        if start.piece is not None:
            before = trees.tokens(trees.way(start.piece, start.cut))
            assert rollout.tokens[: len(before)].tolist() == before
    sampled = sum(len(piece.tokens) for piece in trees.pieces)
    assert sampled < sum(len(one.tokens) for one in rollouts)


def policy_of(table):
    return SimpleNamespace(
        device=torch.device("cpu"), table=lambda function, *more: function(table, *more)
    )


def test_metrics_come_from_the_embedding_of_the_likely_tokens(monkeypatch):
    trees = MadeUpForest(PROMPTS)
    pieces = trees.grow([forking.Start(0), forking.Start(1)], top=4)
    table = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    told = [branch_metric(piece.top_logp, table[piece.top_ids]) for piece in pieces]
    found = place_metrics(policy_of(table), pieces, "cosine-entropy")
    assert [len(one) for one in found] == [len(piece.tokens) for piece in pieces]
    for one, other in zip(found, told, strict=True):
        torch.testing.assert_close(one, other)
    monkeypatch.setattr("mmrl.rollouts.rose.NUMBERS_AT_ONCE", 1)  # one place at a time
    for one, other in zip(
        place_metrics(policy_of(table), pieces, "cosine-entropy"), told, strict=True
    ):
        torch.testing.assert_close(one, other)


class Supply:
    per_step = 2

    def __init__(self):
        self.counters = Counter()

    def take(self):
        return PROMPTS


class Engine:
    abilities = frozenset(("forks", "likely tokens", "counts per prompt"))

    def __init__(self):
        self.calls = []

    def generate(self, prompts, sampling, now, **more):
        self.calls.append((prompts, sampling, more))
        return MadeUpForest(prompts).rollouts([])


def paid(rollouts):
    return [
        replace(one, reward=float(one.tokens[-1] % 2), correct=bool(one.tokens[-1] % 2))
        for one in rollouts
    ]


def test_groups_are_trees_of_as_many_answers(monkeypatch):
    forests = []
    monkeypatch.setattr(forking, "forest", partial(planted, forests))
    supply = Supply()
    rollout = ROSERollout(
        policy=policy_of(torch.randn(20, 4)), rose=ROSE(restart=0.2, candidates=5)
    )
    found = rollout(Engine(), paid, supply, Sampling(4, max_tokens=8), Now(1, 0.1, seed=3))
    assert [one.group for one in found] == [0] * 4 + [1] * 4 and forests[0].closed
    assert all(one.reward is not None and one.path for one in found)
    assert supply.counters["rose/answers"] == 8 and 0 < supply.counters["rose/branches"] < 8
    assert {len(call) for call in forests[0].calls} == {2} and len(forests[0].calls) == 4


def test_off_it_asks_for_what_grpo_asks_for():
    off, plain = Engine(), Engine()
    rollout = ROSERollout(rose=ROSE(restart=1.0))
    rollout(off, paid, Supply(), Sampling(4), Now(1, 0.1))
    group_rollout(plain, paid, Supply(), Sampling(4), Now(1, 0.1))
    (asked,), (told,) = off.calls, plain.calls
    assert asked[:2] == told[:2] and rollout.owns() == () == rollout.traits()
    assert set(asked[2]) <= {"first"} and not any(asked[2].get("first", [0]))


def test_without_an_embedding_nothing_can_branch():
    with pytest.raises(ValueError, match="policy=policy"):
        ROSERollout()
    branching = ROSERollout(policy=policy_of(torch.zeros(1, 1)))
    assert branching.owns() == ("tree",) and branching.traits() == ("samples trees",)


def test_an_engine_that_cannot_fork_is_refused_by_name():
    class Plain(Engine):
        abilities = frozenset()

    rollout = ROSERollout(policy=policy_of(torch.zeros(1, 1)))
    with pytest.raises(ValueError, match="forks"):
        rollout(Plain(), paid, Supply(), Sampling(4), Now(1, 0.1))


@pytest.mark.filterwarnings("error")
def test_what_excludes_trees_is_refused_or_warned_of():
    tree = ROSERollout(policy=policy_of(torch.zeros(1, 1)))
    search = DeepSearchRollout()
    refuse_clashes([ROSE()], [tree])
    with pytest.raises(ValueError, match="each decides where answers branch"):
        refuse_clashes([], [tree, search])
    for other in (NSR(), DeepSearch(), CANON()):
        with pytest.raises(ValueError, match="each replaces the advantage"):
            refuse_clashes([ROSE(), other], [tree])
    for part in (tree, search):
        with pytest.raises(UserWarning, match="not independent"):
            refuse_clashes([CANON()], [part])
    refuse_clashes([CANON()], [ROSERollout(rose=ROSE(restart=1.0))])
