"""Forests of an engine outside: each piece is asked for with its path as start, through the same protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmrl.model.policy import Policy
from mmrl.rollouts.arpo import ARPORollout
from mmrl.rollouts.forking import Start, forest
from mmrl.rollouts.request import refuse_beyond
from mmrl.rollouts.stages import OneStep
from mmrl.rollouts.vllm_engine import VLLMEngine
from mmrl.types import Now, Role, Sampling
from tests.rollouts.made_up_vllm import MadeUp
from tests.rollouts.test_engine import PROMPTS

NOW, SAMPLING = Now(2, 0.1, seed=5), Sampling(1, 1.0, max_tokens=16)


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


def test_a_piece_is_asked_for_with_all_that_lies_before_it(policy):
    made_up = MadeUp(policy)
    policy.counters.clear()
    with forest(OneStep(VLLMEngine(policy, made_up)), PROMPTS[:2], SAMPLING, NOW) as trees:
        first = trees.grow([Start(0, max_tokens=6), Start(0, max_tokens=6), Start(1)])
        again = trees.grow(
            [
                Start(0, first[0].number, 4),
                Start(0, first[0].number, 4, (30, 31), Role.EXPERT, max_tokens=5),
                Start(0, first[1].number, None, (32,), max_tokens=0),
                Start(0, first[0].number, 0, max_tokens=2),
            ]
        )
        rollouts = trees.rollouts([piece.number for piece in (*first, *again)])
    one, two = made_up.asked
    assert [q.params["max_tokens"] for q in one] == [6, 6, 16]
    assert [q.params["max_tokens"] for q in two] == [12, 3, 2]
    short = one[0].ids
    kept = list(first[0].tokens[:4])
    assert two[0].ids == [*short, *kept] and two[1].ids == [*short, *kept, 30, 31]
    assert two[2].ids == short, "a cut at the beginning is the beginning"
    seeds = [q.params["seed"] for q in (*one, *two)]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**63 - 2**20
    assert first[0].tokens != first[1].tokens
    assert again[1].tokens[:2] == (30, 31) and len(again[1].tokens) == 5
    assert again[2].tokens == (32,) and again[2].stop == "piece"
    assert [p.stop for p in first] == ["piece", "piece", "length"]
    leaf = rollouts[4]
    assert leaf.tokens.tolist() == [*kept, *again[1].tokens]
    roles = [int(Role.POLICY)] * 4 + [int(Role.EXPERT)] * 2 + [int(Role.POLICY)] * 3
    assert leaf.roles.tolist() == roles
    # Made-up log-probs are -1; given tokens have none.
    assert leaf.logp.tolist() == [-1.0] * 4 + [0.0] * 2 + [-1.0] * 3
    assert rollouts[0].path[0] == rollouts[3].path[0] == leaf.path[0] and leaf.path[0][1] == 4
    drawn = sum(len(p.tokens) for p in first) + 12 + 5 + 2
    assert policy.counters["tokens/decode"] == drawn


def test_the_same_way_gives_the_same_question_whatever_else_is_asked(policy):
    def seeds(beside):
        made_up = MadeUp(policy)
        with forest(VLLMEngine(policy, made_up), PROMPTS, SAMPLING, NOW) as trees:
            roots = trees.grow([Start(n, max_tokens=5) for n in range(3)])
            others = [Start(0, roots[0].number, 3), Start(1, roots[1].number, 2)]
            trees.grow([*(others if beside else ()), Start(1, roots[1].number, 3)])
        return made_up.asked[-1][-1]

    alone, among = seeds(False), seeds(True)
    assert alone.ids == among.ids and alone.params == among.params


def test_what_it_cannot_say_is_refused_by_name_before_anything_is_asked(policy):
    made_up = MadeUp(policy)
    engine = VLLMEngine(policy, made_up)
    with (
        forest(engine, PROMPTS[:1], SAMPLING, NOW) as trees,
        pytest.raises(ValueError, match="needs 'likely tokens', which VLLMEngine cannot"),
    ):
        trees.grow([Start(0)], top=5)
    assert not made_up.asked
    with pytest.raises(ValueError, match="ARPORollout needs 'likely tokens', which VLLMEngine"):
        refuse_beyond(engine, ARPORollout(policy=policy).needs, "ARPORollout")


def test_where_log_probs_cannot_be_compared_answers_have_none(policy):
    warm = replace(SAMPLING, temperature=0.7)
    with forest(VLLMEngine(policy, MadeUp(policy)), PROMPTS[:1], warm, NOW) as trees:
        (root,) = trees.grow([Start(0, max_tokens=4)])
        (leaf,) = trees.grow([Start(0, root.number, 2, max_tokens=3)])
        (answer,) = trees.rollouts([leaf.number])
    assert torch.isnan(leaf.logp).all() and answer.logp is None and len(answer.tokens) == 5
