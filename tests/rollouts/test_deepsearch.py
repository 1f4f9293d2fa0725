"""DeepSearch's rollout: how a tree is searched, its budget, the values of its tokens, and the answers that are kept."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from mmrl.ground.seeds import philox
from mmrl.model.ranks import Ranks
from mmrl.objectives.deepsearch import DeepSearch, backed_up
from mmrl.objectives.rose import common
from mmrl.rollouts import forking
from mmrl.rollouts.dars import DARSRollout
from mmrl.rollouts.deepsearch import MOST_KEPT, DeepSearchRollout, Kept, KeptAnswer, searched
from mmrl.rollouts.forking import Piece
from mmrl.rollouts.groups import group_rollout
from mmrl.rollouts.search_tree import Search
from mmrl.rollouts.tree_groups import Growth
from mmrl.types import Now, Prompt, Rollout, Sampling
from tests.rollouts.made_up_forest import END, MadeUpForest, planted
from tests.several import several, values

PROMPTS = [Prompt("a", []), Prompt("b", []), Prompt("c", [])]
SMALL = DeepSearch(chunks=6, width=3, answers=4, nodes=60)


def paid(rollouts, right=lambda one: int(one.tokens.sum()) % 3 == 0):
    """A third of the answers is right."""
    return [
        replace(one, reward=float(right(one)), correct=bool(right(one))) for one in rollouts
    ]


def growth_of(trees, pay=paid):
    return Growth(trees, pay, Sampling(4, max_tokens=trees.longest), Now(1, 0.1), Counter())


def run(settings=SMALL, pay=paid, **forest):
    trees = MadeUpForest(PROMPTS, **forest)
    growth = growth_of(trees, pay)
    return trees, searched(growth, PROMPTS, settings), growth.counters


def test_nodes_are_runs_and_layers_are_as_wide_as_told():
    trees, groups, counters = run()
    for call in trees.calls:
        for prompt in range(3):
            starts = [start for start in call if start.prompt == prompt]
            assert len(starts) in (0, 3) and len({(s.piece, s.cut) for s in starts}) <= 1
    assert {start.max_tokens for call in trees.calls for start in call} == {2}
    assert all(len(piece.tokens) <= 2 for piece in trees.pieces)
    assert counters["deepsearch/nodes"] == len(trees.pieces)
    assert all(1 <= len(group) <= 4 for group in groups)


def test_paths_of_a_group_fit_together_and_are_told_once():
    trees, asked = MadeUpForest(PROMPTS, ends=0.3), []
    told, growth = trees.rollouts, growth_of(trees)
    trees.rollouts = lambda leaves: asked.append(list(leaves)) or told(leaves)
    groups, counters = searched(growth, PROMPTS, SMALL), growth.counters
    assert len(asked[-1]) == sum(map(len, groups)) > max(map(len, asked[:-1]))
    for group in groups:
        for one in group:
            for other in group:
                shared = common(one.path, other.path)
                assert torch.equal(one.tokens[:shared], other.tokens[:shared])
    assert counters["tree/leaves"] == sum(map(len, groups))
    assert counters["tree/tokens"] < counters["tree/answer_tokens"]


@pytest.mark.parametrize("ends", [0.05, 0.4, 1.0])
def test_answers_are_whole_and_valued_to_their_end(ends):
    _, groups, _ = run(ends=ends)
    for group in groups:
        for one in group:
            assert one.tokens[-1] == END or len(one.tokens) == 12
            assert sum(tokens for tokens, _ in one.valued) == len(one.tokens)
            *inner, last = [value for _, value in one.valued]
            assert last == (1.0 if one.correct else -1.0) and all(
                -1 < value < 1 for value in inner
            )


def test_a_search_of_one_layer_is_a_group_of_independent_answers():
    trees, groups, _ = run(replace(SMALL, chunks=1, width=4))
    assert len(trees.calls) == 1 and [len(group) for group in groups] == [4, 4, 4]
    assert all(len(one.valued) == 1 for group in groups for one in group)


def test_a_search_ends_with_enough_answers_or_without_room():
    _, groups, _ = run(replace(SMALL, answers=1), ends=0.4)
    assert [len(group) for group in groups] == [1, 1, 1]
    # Answers of twelve tokens take six layers: where there is room for two, the best leaf is grown to its end.
    trees, groups, _ = run(replace(SMALL, nodes=6), ends=0.0)
    assert [len(group) for group in groups] == [1, 1, 1]
    assert [len(call) for call in trees.calls] == [9, 9, 3]
    assert all(start.max_tokens is None for start in trees.calls[-1])


def test_a_tree_may_be_thousands_of_tokens_deep():
    settings = DeepSearch(chunks=3000, width=1, answers=1, nodes=4000)
    search, number = Search(settings, 0, 1), 0
    while not search.over:
        (start,) = search.starts()
        stop = "length" if number == 2999 else "piece"
        search.add(replace(piece(number, start, tokens=1), stop=stop))
        for node in search.ended():
            search.judge(node, Rollout(PROMPTS[0], 0, *[torch.zeros(1)] * 3, "", stop))
        search.move()
        number += 1
    (leaf,) = search.chosen()
    assert leaf.depth == 3000 and len(leaf.paid(leaf.answer).valued) == 3000


def test_what_could_not_be_paid_is_in_no_group():
    _, groups, _ = run(pay=lambda rollouts: [], ends=1.0)
    assert groups == [[], [], []]


def piece(number, start=None, tokens=2, stop="piece", entropy=0.5):
    return Piece(
        number,
        start,
        tuple(range(tokens)),
        torch.zeros(tokens),
        stop,
        entropy=torch.full((tokens,), entropy),
    )


def layer(search, *pieces, right=()):
    """One layer is grown; `right`: numbers of the pieces that end a right answer."""
    (start, *_) = search.starts()
    for one in pieces:
        search.add(replace(one, start=start))
    for node in search.ended():
        answer = Rollout(Prompt("q", []), 0, torch.zeros(1), torch.zeros(1), torch.zeros(1), "", "eos",
                         reward=1.0, correct=node.number in right)  # fmt: skip
        search.judge(node, answer)
    search.move()


def test_a_right_leaf_is_backed_up_before_wrong_and_cut_ones_and_the_surest_of_these():
    cases = [
        ([piece(0, stop="eos", entropy=0.1), piece(1, stop="eos"), piece(2, stop="length")], (1,), 1),
        ([piece(0, stop="length", entropy=0.1), piece(1, stop="eos"), piece(2, stop="eos", entropy=0.4)], (), 2),
        ([piece(0, stop="eos"), piece(1, stop="eos", entropy=0.2), piece(2, stop="eos")], (0, 1, 2), 1),
    ]  # fmt: skip
    for pieces, right, told in cases:
        search = Search(DeepSearch(width=3), 0, 2)
        layer(search, *pieces, right=right)
        assert [node.number for node in search.root.children if node.backed] == [told]
        assert search.root.value == (0.5 if right else -0.5) and search.root.visits == 1
        assert search.over, "nothing is open"


def test_the_search_goes_down_and_then_to_the_best_open_leaf():
    search = Search(DeepSearch(width=2, chunks=4, by_depth=0.01), 0, 2)
    layer(search, piece(0), piece(1))
    assert [start.piece for start in search.starts()] == [0, 0]  # of equal siblings the first
    layer(search, piece(2), piece(3, stop="eos"), right=(3,))
    way = search.root.children[0].children[1].way()
    told = [backed_up(0.0, 1.0, depth, 3, 0.1) for depth in range(3)]
    assert [node.value for node in way] == told
    # Open are 1 below the prompt and 2 below a better parent.
    assert search.starts()[0].piece == 2 and not search.over
    layer(search, piece(4, stop="eos"), piece(5, stop="eos"))
    assert search.starts()[0].piece == 1
    layer(search, piece(6, stop="eos"), piece(7, stop="eos"))
    assert search.over and search.rounds == 3 and search.nodes == 8
    found = [node.paid(node.answer) for node in search.chosen()]
    assert len(found) == 5 and [one.correct for one in found] == [
        True,
        False,
        False,
        False,
        False,
    ]
    inner = found[0].valued[0]
    assert inner == (2, math.tanh(search.root.children[0].value))


class Supply:
    """One process; its memory is that of one part."""

    per_step = 3

    def __init__(self, memory=None, prompts=PROMPTS):
        self.counters, self.ranks, self.kept, self.prompts = (
            Counter(),
            Ranks.alone(),
            memory,
            prompts,
        )

    def take(self):
        return self.prompts

    def memory(self, part):
        self.kept = part.start_memory() if self.kept is None else self.kept
        return self.kept


def on_two():
    """A step of each rank with a prompt of its own, the right answers of which are few; what is kept afterwards."""
    ranks, into = Ranks.start("cpu"), []
    forking.forest = partial(planted, into)
    supply = Supply(prompts=[PROMPTS[ranks.rank]])
    supply.ranks, first = ranks, []

    def pay(rollouts):
        first.append(rollouts[0].tokens.tolist())
        return paid(rollouts, lambda one: one.tokens.tolist() == first[0])

    step(1, supply, settings=replace(SMALL, chunks=1, width=8, answers=8), pay=pay)
    ranks.end()
    return supply.kept.state(), supply.counters["deepsearch/kept_prompts"]


def test_ranks_remember_what_each_of_them_found():
    (first, counted), (second, nothing) = values(several(2, on_two))
    assert first == second and sorted(first) == ["a", "b"]
    assert (counted, nothing) == (2, 0)  # said once


class Engine:
    abilities = frozenset(("forks", "likely tokens", "counts per prompt"))

    def __init__(self):
        self.calls = []

    def generate(self, prompts, sampling, now, *, counts=None, **more):
        counts = [sampling.group_size] * len(prompts) if counts is None else counts
        self.calls.append(([prompt.id for prompt in prompts], list(counts)))
        out = []
        for i, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
            for n in range(count):
                last = 1 + philox("plain", now.step, prompt.id, n).integers(9)
                tokens = torch.tensor([2, int(last), END])
                out.append(
                    Rollout(
                        prompt,
                        i,
                        torch.tensor([5]),
                        tokens,
                        torch.zeros(3, dtype=torch.uint8),
                        "",
                        "eos",
                    )
                )
        return out


@pytest.fixture
def forests(monkeypatch):
    into = []
    monkeypatch.setattr(forking, "forest", partial(planted, into))
    return into


def step(number, supply, engine=None, settings=SMALL, pay=paid):
    rollout = DeepSearchRollout(deepsearch=settings)
    sampling = Sampling(4, max_tokens=12)
    return rollout(engine or Engine(), pay, supply, sampling, Now(number, 0.1, seed=3))


def test_right_answers_to_hard_prompts_are_kept_and_take_a_place_next_time(forests):
    # Of prompt "a" one answer in four is right, of "b" all, of "c" none.
    seen = Counter()

    def pay(rollouts):
        for one in rollouts:
            seen[one.prompt.id] += 1
        return paid(
            rollouts,
            lambda one: one.prompt.id == "b" or (one.prompt.id == "a" and seen_first(one)),
        )

    def seen_first(one):
        return one.origin == "kept" or (
            first.setdefault("a", one.tokens.tolist()) == one.tokens.tolist()
        )

    first = {}
    settings = replace(SMALL, chunks=1, width=8, answers=8)
    supply, engine = Supply(), Engine()
    found = step(1, supply, engine, settings, pay)
    assert [one.group for one in found] == [0] * 8 + [1] * 8 + [2] * 8 and not engine.calls
    assert (
        list(supply.kept.answers) == ["a"] and supply.counters["deepsearch/kept_prompts"] == 1
    )
    (kept,) = supply.kept.answers["a"]
    assert list(kept.tokens) == first["a"]
    found = step(2, supply, engine, settings, pay)
    assert engine.calls == [(["a"], [3])] and len(forests[-1].prompts) == 2
    group = [one for one in found if one.group == 0]
    assert [one.origin for one in group] == ["policy"] * 3 + ["kept"]
    assert (
        group[-1].tokens.tolist() == first["a"] and group[-1].correct and group[-1].logp is None
    )
    assert supply.counters["deepsearch/replayed"] == 1 and "a" in supply.kept.answers


def test_a_prompt_that_became_easy_is_forgotten_and_searched_again(forests):
    supply = Supply(Kept(), PROMPTS[:1])
    supply.kept.take("a", [KeptAnswer((2, 3, END), "", "eos")])
    step(1, supply, pay=lambda rollouts: paid(rollouts, lambda one: True))
    assert not forests and not supply.kept.answers
    step(2, supply)
    assert len(forests) == 1


def test_a_memory_goes_on_from_its_state():
    kept = Kept()
    kept.take("a", [KeptAnswer((n, END), str(n), "eos") for n in range(MOST_KEPT + 2)])
    kept.take("a", [KeptAnswer((5, END), "5", "eos")])  # is there already
    kept.take("b", [])
    again = Kept()
    again.load(json.loads(json.dumps(kept.state())))
    assert again.answers == kept.answers and len(kept.answers["a"]) == MOST_KEPT
    assert list(kept.answers) == ["a"] and kept.answers["a"][0].tokens == (2, END)


def test_a_run_that_goes_on_draws_the_same(forests):
    through, halves = Supply(), Supply()
    told = [step(n, through) for n in (1, 2, 3)]
    first = step(1, halves)
    resumed = Supply(Kept())
    resumed.kept.load(json.loads(json.dumps(halves.kept.state())))
    found = [first, *(step(n, resumed) for n in (2, 3))]
    for one, other in zip(told, found, strict=True):
        assert [r.tokens.tolist() for r in one] == [r.tokens.tolist() for r in other]
        assert [r.valued for r in one] == [r.valued for r in other]
    assert through.kept.answers == resumed.kept.answers


def test_nothing_is_kept_below_zero(forests):
    rollout = DeepSearchRollout(deepsearch=replace(SMALL, hard=-1))
    assert (
        rollout.brings() == ()
        and rollout.start_memory() is None
        and not rollout.remembers_prompts()
    )
    supply = Supply()
    step(1, supply, settings=replace(SMALL, hard=-1))
    assert supply.kept is None and len(forests) == 1


def test_off_it_asks_for_what_grpo_asks_for():
    off, plain = Engine(), Engine()
    rollout = DeepSearchRollout(deepsearch=DeepSearch(search=False))
    found = rollout(off, paid, Supply(), Sampling(4), Now(1, 0.1))
    told = group_rollout(plain, paid, Supply(), Sampling(4), Now(1, 0.1))
    assert off.calls == plain.calls and len(found) == len(told)
    assert rollout.owns() == rollout.traits() == rollout.brings() == ()


def test_two_who_decide_how_many_answers_there_are_are_refused():
    with pytest.raises(ValueError, match="cannot be used together"):
        DeepSearchRollout(inner=DARSRollout())
