"""Forests: nothing before a fork is computed again, log-probs are those of a plain forward, draws follow the way."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mmrl.model.policy import Policy
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.forest_book import Book, Place, shared
from mmrl.rollouts.forking import Start, forest
from mmrl.rollouts.growing_forest import GrowingForest
from mmrl.rollouts.stages import OneStep
from mmrl.types import Role, Sampling
from tests.rollouts.test_engine import NOW, PROMPTS, packed_logp

SAMPLING = Sampling(1, 0.9, max_tokens=24)
WORDS = tuple(range(40, 60))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tiny_folder, tiny3_folder):
    folder = tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder
    return Policy.load(folder, device="cpu", dtype="float32")


class Blocks(HFEngine):
    """The engine, with blocks of another size."""

    def __init__(self, policy, block, rows=256):
        super().__init__(policy, rows_at_once=rows)
        self.block = block

    def plant(self, requests):
        return GrowingForest(self.policy, requests, self.rows_at_once, self.block)


def grown(engine, sampling=SAMPLING, prompts=PROMPTS):
    """A ragged tree on each prompt: forks at several depths, at ends, inside given tokens, twice at one place."""
    given = tuple(engine.policy.processing.tokenizer("so it is").input_ids)
    with forest(engine, prompts, sampling, NOW) as trees:
        first = trees.grow(
            [Start(n, max_tokens=9 + n) for n in range(len(prompts)) for _ in range(2)]
        )
        one = [piece for piece in first[::2]]
        again = trees.grow(
            [
                start
                for n, p in enumerate(one)
                for start in (
                    Start(n, p.number, (len(p.tokens) - 1) // 2, max_tokens=3),
                    Start(n, p.number, len(p.tokens) - 1, given, max_tokens=len(given) + 2),
                    Start(n, p.number, None),
                    Start(n, p.number, 0),
                    Start(n, None, None, given, Role.EXPERT),
                )
                if p.stop == "piece" or start.cut is not None or start.piece is None
            ]
        )
        inner = [p for p in again if p.start.given and p.stop == "piece"]
        last = trees.grow(
            [Start(p.start.prompt, p.number, 2) for p in inner]
            + [Start(p.start.prompt, p.number) for p in inner]
        )
        pieces = [*first, *again, *last]
        return pieces, trees.rollouts([p.number for p in pieces])


@pytest.mark.parametrize("block", [1, 5, 64])
def test_log_probs_are_those_of_a_plain_forward_over_the_path(policy, block):
    pieces, rollouts = grown(Blocks(policy, block))
    assert len(pieces) > 20
    logp = packed_logp(policy, rollouts)
    for row, rollout in enumerate(rollouts):
        assert (rollout.logp - logp[row, : len(rollout.tokens)]).abs().max() < 2e-4
        assert sum(count for _, count in rollout.path) == len(rollout.tokens)


def test_in_half_precision_it_is_as_exact_as_half_precision_is(tiny3_folder):
    half = Policy.load(tiny3_folder, device="cpu", dtype="bfloat16")
    _, rollouts = grown(Blocks(half, 5), prompts=PROMPTS[:2])
    logp = packed_logp(half, rollouts)
    for row, rollout in enumerate(rollouts):
        assert rollout.logp.dtype == torch.float32
        assert (rollout.logp - logp[row, : len(rollout.tokens)]).abs().max() < 0.1


def test_pieces_from_the_prompt_are_generate_draw_for_draw(policy):
    for sampling in (
        Sampling(3, 1.0, max_tokens=12, top_p=0.9),
        Sampling(3, 0.0, max_tokens=6, stop=("e",)),
    ):
        engine, prompts = HFEngine(policy, rows_at_once=4), [*PROMPTS, PROMPTS[0]]
        plain = engine.generate(prompts, sampling, NOW)
        with forest(engine, prompts, sampling, NOW) as trees:
            pieces = trees.grow([Start(n) for n in range(4) for _ in range(3)])
            answers = trees.rollouts([piece.number for piece in pieces])
        for ours, theirs in zip(answers, plain, strict=True):
            assert ours.tokens.tolist() == theirs.tokens.tolist()
            assert (ours.stop, ours.group, ours.text) == (
                theirs.stop,
                theirs.group,
                theirs.text,
            )
            assert torch.allclose(ours.logp, theirs.logp, atol=1e-4)


def test_nothing_before_a_fork_is_computed_again(policy):
    sampling = replace(SAMPLING, max_tokens=40)
    policy.counters.clear()
    with forest(HFEngine(policy), PROMPTS[:1], sampling, NOW) as trees:
        assert not policy.counters["tokens/prefill"]
        (root,) = trees.grow([Start(0, given=WORDS, max_tokens=30)])
        prompt = len(policy.encode(PROMPTS[0]).ids)
        assert policy.counters["tokens/prefill"] == prompt + 20
        drawn = len(root.tokens) - 20
        assert drawn >= 1 and policy.counters["tokens/decode"] == drawn - 1
        policy.counters.clear()
        leaves = trees.grow([Start(0, root.number, 18, max_tokens=4) for _ in range(5)])
        own = sum(len(leaf.tokens) - 1 for leaf in leaves)
        # One token again for all five, for the state that they begin with.
        assert policy.counters["tokens/decode"] == own + 1
        trees.grow([Start(0, root.number, 18, max_tokens=1)])
        trees.grow([Start(0, leaves[0].number, 0, max_tokens=1)])
        assert policy.counters["tokens/decode"] == own + 1
        trees.grow([Start(0, root.number, 18, (7, 8, 9), max_tokens=0)])
        assert policy.counters["tokens/prefill"] == 3
        assert trees.keys.tokens == prompt + 20 + drawn - 1 + own + 3


def test_a_fork_disturbs_nobody_and_depends_on_nobody(policy):
    def leaves(alone, rows=256):
        with forest(Blocks(policy, 7, rows), PROMPTS, SAMPLING, NOW) as trees:
            roots = trees.grow([Start(n, given=WORDS[:8], max_tokens=0) for n in range(3)])
            if alone:
                return trees.grow([Start(1, roots[1].number, 5)])[0].tokens
            others = trees.grow(
                [
                    Start(0, roots[0].number, 5),
                    Start(1, roots[1].number, 5),
                    Start(1, roots[1].number, 6),
                    Start(1, roots[1].number, 5),
                    Start(2, roots[2].number),
                ]
            )
            assert others[1].tokens != others[3].tokens
            return others[1].tokens

    assert leaves(True) == leaves(False) == leaves(False, rows=1)


def test_a_prompt_opened_again_in_a_step_draws_anew(policy):
    engine, prompts = OneStep(HFEngine(policy)), [PROMPTS[2], PROMPTS[2]]
    found = []
    for _ in range(2):
        with forest(engine, prompts, SAMPLING, NOW) as trees:
            found += [p.tokens for p in trees.grow([Start(0), Start(1)])]
    found += [tuple(r.tokens.tolist()) for r in engine.generate(prompts, SAMPLING, NOW)]
    assert len(set(found)) == 6


def test_what_is_said_of_each_place(policy):
    with forest(HFEngine(policy), PROMPTS[:2], SAMPLING, NOW) as trees:
        first, second = trees.grow(
            [Start(0, given=(40, 41, 42), max_tokens=6), Start(1, max_tokens=4)],
            entropy=True,
            top=5,
        )
    for piece in (first, second):
        count = len(piece.tokens)
        assert piece.entropy.shape == (count,) and piece.top_logp.shape == (count, 5)
        assert (piece.top_logp.diff(dim=1) <= 0).all()
        hit = piece.top_ids == torch.tensor(piece.tokens)[:, None]
        rows = hit.any(1)
        assert torch.equal(piece.top_logp[hit], piece.logp[rows])
        assert (piece.entropy > 0).all()
    assert first.entropy is not None and second.entropy is not None


def test_stop_strings_of_a_piece_and_roles_of_given_tokens(policy):
    engine = HFEngine(policy)
    with forest(engine, PROMPTS[:1], replace(SAMPLING, max_tokens=40), NOW) as trees:
        (free,) = trees.grow([Start(0)])
        word = policy.processing.spell(list(free.tokens))[3:5]
    with forest(engine, PROMPTS[:1], replace(SAMPLING, max_tokens=40), NOW) as trees:
        (stopped,) = trees.grow([Start(0, stop=(word,))])
        assert stopped.stop == word and stopped.tokens == free.tokens[: len(stopped.tokens)]
        (more,) = trees.grow(
            [Start(0, stopped.number, None, (40, 41), Role.OBSERVATION, max_tokens=6)]
        )
        (answer,) = trees.rollouts([more.number])
    roles = answer.roles.tolist()
    cut = len(stopped.tokens)
    assert roles[:cut] == [int(Role.POLICY)] * cut
    assert roles[cut : cut + 2] == [int(Role.OBSERVATION)] * 2
    assert set(roles[cut + 2 :]) == {int(Role.POLICY)} and answer.stop != "piece"


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start(2), "prompt 2 of a forest of 2"),
        (Start(-1), "counted from 0"),
        (Start(0, piece=9), "Piece 9 was not grown"),
        (Start(1, piece=0), "belongs to prompt 0"),
        (Start(0, piece=0, cut=7), "keep 7 tokens of piece 0, which has 3"),
        (Start(0, piece=0, cut=-1), "keep -1 tokens"),
        (Start(0, cut=2), "of no piece"),
        (Start(0, given=(-7,)), "stands for a picture"),
    ],
)
def test_starts_that_cannot_be_are_refused_and_leave_the_forest_as_it_was(
    policy,
    start,
    message,
):
    if start.given:
        start = replace(start, given=(policy.processing.banned_ids[0],))
    with forest(HFEngine(policy), PROMPTS[:2], SAMPLING, NOW) as trees:
        trees.grow([Start(0, given=(40, 41, 42), max_tokens=0)])
        with pytest.raises(ValueError, match=message):
            trees.grow([Start(0), start])
        assert trees.grow([Start(1, max_tokens=1)])[0].number == 1
    with pytest.raises(ValueError, match="closed"):
        trees.grow([Start(0)])


def test_an_engine_that_cannot_fork_is_refused_by_name(tiny35_folder):
    hybrid = HFEngine(Policy.load(tiny35_folder, device="cpu", dtype="float32"))
    for engine in (hybrid, OneStep(hybrid)):
        with (
            pytest.raises(ValueError, match=r"A forest needs 'forks', which HFEngine cannot"),
            forest(engine, PROMPTS[:1], SAMPLING, NOW),
        ):
            pass


def test_paths_name_what_answers_have_in_common():
    ways = [
        [(0, 5)],
        [(0, 3), (2, 4)],
        [(0, 3), (2, 2), (4, 6)],
        [(1, 5), (5, 2)],
        [(0, 3)],
        [(7, 4)],
    ]
    paths = shared([0, 0, 0, 0, 0, 1], ways)
    # Node 0: three tokens of piece 0, which end one answer and begin three others.
    assert paths[4] == ((0, 3),)
    assert paths[0] == ((0, 3), (1, 2))
    assert paths[1] == ((0, 3), (2, 2), (3, 2))
    assert paths[2] == ((0, 3), (2, 2), (4, 6))
    assert paths[3] == ((5, 7),)
    assert paths[5] == ((0, 4),)


def test_a_way_of_thousands_of_pieces_is_told():
    """Longer than Python's stack is deep."""
    book = Book(policy=None, requests=[])
    places = [Place(0), *(Place(0, number, 1) for number in range(2999))]
    book.pieces = [SimpleNamespace(place=place) for place in places]
    assert book.path(Place(0, 2999, 1)) == [(number, 1) for number in range(3000)]
    assert book.path(Place(0)) == []
