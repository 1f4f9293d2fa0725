"""Answers that have tokens in common: numbers and gradients as of answers apart, every token computed once."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.model.answer_trees import answer_tree, check_path, unique_tokens
from mmrl.model.load import LoRA
from mmrl.model.packing import collate, fed_tokens, pack
from mmrl.model.row_layout import ROOT
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.types import Role, Rollout
from tests.model.test_open_prompts import groups_of, load, prompt, words
from tests.model.test_packing import encoded, group

torch.set_num_threads(1)
CPU = torch.device("cpu")
ALL = ScoreOutputs(entropy=True, top=3, grad=True, slot=(70, 71), suffix=True, states=True)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request, tiny_folder, tiny3_folder):
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


def random_ways(rng, nodes, twice=True):
    """Ways (node, tokens) of some ends of a random tree: inner nodes too, one of them twice, some without a token."""
    parents, counts = [ROOT], [rng.randint(1, 4)]
    for _ in range(nodes - 1):
        parents.append(rng.randint(0 if rng.random() < 0.9 else ROOT, len(parents) - 1))
        counts.append(rng.randint(0, 4))
    ends = [n for n in range(nodes) if n not in parents or rng.random() < 0.2]
    ends += rng.sample(ends, twice)
    rng.shuffle(ends)
    found = []
    for end in ends:
        way = []
        while end != ROOT:
            way.insert(0, (end, counts[end]))
            end = parents[end]
        found.append(tuple(way))
    return found


def tree_rollouts(policy, seed, groups=2, nodes=7, twice=True):
    """Answers of random trees, some of a group without a path."""
    chance = random.Random(seed)
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number in range(groups):
        question = prompt(number)
        ids = policy.encode(question).ids
        said = {n: words(policy, 4, rng) for n in range(nodes)}
        for way in random_ways(chance, nodes, twice):
            tokens = torch.cat([said[node][:count] for node, count in way])
            roles = torch.full((len(tokens),), int(Role.POLICY), dtype=torch.uint8)
            path = way if chance.random() < 0.9 else ()
            found.append(
                Rollout(question, number, ids, tokens, roles, "", "eos", reward=1.0, path=path)
            )
    return found


def with_paths(groups, batch, rows):
    """The groups with the paths of their answers."""
    paths = [tuple(batch.rollouts[rows[place]].path for place in one.rows) for one in groups]
    return [replace(one, paths=own) for one, own in zip(groups, paths, strict=True)]


def learned(policy, batch, parts, shared, noisy_shared=True):
    """Scores of all rows and gradients of a loss that reads them; `shared`: with paths."""
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    policy.counters.clear()
    width = batch.tokens.shape[1]
    weight = torch.linspace(-1.0, 1.5, len(batch) * width).view(len(batch), width)
    kept = []
    for part in parts:
        rows = part.tolist()
        views = {}
        for name, inverted in (("raw", False), ("noisy", True)):
            groups = groups_of(policy, batch, rows, noisy=inverted)
            if shared and (name == "raw" or noisy_shared):
                groups = with_paths(groups, batch, rows)
            if name == "raw":
                suffix = torch.tensor([75, 80, 85])
                groups = [
                    replace(one, suffixes=tuple(suffix[: rows[row] % 4] for row in one.rows))
                    for one in groups
                ]
            views[name] = groups
        wanted = {"raw": ALL, "noisy": ScoreOutputs(divergence="forward", grad=True)}
        scores = score_packed(policy, views, wanted, (len(rows), width))
        raw = scores["raw"]
        terms = (raw.logp, raw.entropy, scores["noisy"].divergence, scores["noisy"].logp)
        loss = sum((weight[part] * term).sum() for term in terms) + raw.slot.sum()
        loss.backward()
        kept.append({n: x.detach() for n, x in raw.present().items()})
        kept[-1]["divergence"] = scores["noisy"].divergence.detach()
        policy.end_part()
    policy.vision.backward()
    grads = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    return kept, grads


def assert_alike(found, expected, value, gradient):
    for ours, right in zip(found[0], expected[0], strict=True):
        for name, number in right.items():
            if number.is_floating_point():
                assert (ours[name] - number).abs().max() <= value, name
            else:
                assert torch.equal(ours[name], number), name
    for name, right in expected[1].items():
        gap = (found[1][name] - right).norm() / right.norm().clamp_min(1e-6)
        assert gap <= gradient, f"{name}: {gap}"


CASES = {
    "fp64": ("float64", {}, 1e-9, 1e-6),
    "fp32": ("float32", {}, 2e-5, 1e-4),
    "adapters": (
        "float64",
        {"lora": LoRA(rank=2, vision=True), "checkpointing": True},
        1e-9,
        1e-6,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_random_trees_score_and_learn_what_answers_apart_do(folder, case):
    """Log-probs, entropies, divergences, top tokens, slots, suffixes, states and every gradient."""
    dtype, set_up, value, gradient = CASES[case]
    policy = load(folder, dtype, **set_up)
    saved = 0
    for seed in range(4 if case == "fp64" else 1):
        batch = collate(tree_rollouts(policy, seed))
        whole = [torch.arange(len(batch))]
        expected = learned(policy, batch, whole, shared=False)
        apart = policy.counters["tokens/update"], policy.counters["tokens/head"]
        found = learned(policy, batch, whole, shared=True)
        assert_alike(found, expected, value, gradient)
        saved += apart[0] - policy.counters["tokens/update"]
        assert policy.counters["tokens/head"] < apart[1]
    assert saved > 0
    # One view that each answer has for itself, as with a draw per answer.
    assert_alike(
        learned(policy, batch, whole, True, noisy_shared=False), expected, value, gradient
    )


@pytest.mark.parametrize(
    "set_up", [{}, {"lora": LoRA(rank=2, vision=True), "checkpointing": True}]
)
def test_slices_of_a_tree_learn_what_one_row_learns(folder, set_up):
    """At budgets from nearly all to nothing: every gradient, and each segment through the network once."""
    policy = load(folder, "float64", **set_up)
    for seed in (11, 12) if not set_up else (12,):
        batch = collate(tree_rollouts(policy, seed, groups=2, nodes=9, twice=False))
        (whole,) = policy.prompts.parts(batch, 10_000)
        expected = learned(policy, batch, [whole], shared=True)
        tokens = policy.counters["tokens/update"]
        prompt_length = len(batch.rollouts[0].prompt_ids)
        for budget in (prompt_length + 8, 1):
            parts = policy.prompts.parts(batch, budget)
            assert len(parts) > 2
            assert sorted(torch.cat(parts).tolist()) == list(range(len(batch)))
            pieces, grads = learned(policy, batch, parts, shared=True)
            assert policy.counters["tokens/update"] == tokens
            for part, piece in zip(parts, pieces, strict=True):
                for name in ("logp", "entropy", "divergence", "slot"):
                    assert (piece[name] - expected[0][0][name][part]).abs().max() < 1e-9, name
            for name, right in expected[1].items():
                gap = (grads[name] - right).norm() / right.norm().clamp_min(1e-6)
                assert gap <= 1e-6, f"{name}: {gap}"


def test_every_token_of_a_binary_tree_goes_through_the_model_once(folder):
    """Depth 3, segments of 4: 7 nodes, 4 leaves of 12 tokens."""
    policy = load(folder, "float32")
    rng = torch.Generator().manual_seed(5)
    said = {n: words(policy, 4, rng) for n in range(7)}
    question = prompt(0)
    ids = policy.encode(question).ids
    rollouts = []
    for leaf in range(3, 7):
        way = [0, (leaf - 1) // 2, leaf]
        tokens = torch.cat([said[n] for n in way])
        roles = torch.zeros(12, dtype=torch.uint8)
        path = tuple((n, 4) for n in way)
        rollouts.append(
            Rollout(question, 0, ids, tokens, roles, "", "eos", reward=1.0, path=path)
        )
    batch = collate(rollouts)
    (one,) = with_paths(groups_of(policy, batch, range(4)), batch, range(4))
    policy.counters.clear()
    score_packed(policy, {"raw": [one]}, {"raw": ScoreOutputs(grad=True)}, (4, 12))
    in_tree = len(ids) + 7 * 4
    # The last token of a leaf predicts nothing.
    assert policy.counters["tokens/update"] == in_tree - 4 == one.size
    assert policy.counters["tokens/head"] == 7 * 4
    assert fed_tokens(rollouts) == 7 * 4 - 4


def test_a_row_of_a_tree_by_hand():
    """[prompt of 4 | shared 2 | end of 3 | end of 1], and an answer that is the shared part alone."""
    answers = (
        torch.tensor([10, 11, 20, 21, 22]),
        torch.tensor([10, 11, 30]),
        torch.tensor([10, 11]),
    )
    paths = (((7, 2), (1, 3)), ((7, 2), (2, 1)), ((7, 2),))
    one = replace(group(4, [5, 3, 2]), answers=answers, paths=paths)
    row = pack([one], CPU)
    assert row.ids.tolist() == [100, 101, 102, 103, 10, 11, 20, 21]
    assert row.positions[0].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert row.tokens.tolist() == [10, 11, 20, 21, 22, 30]
    assert row.predict.tolist() == [3, 4, 5, 6, 7, 5]
    assert row.where.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 0, 1]
    assert row.rows.tolist() == [0] * 5 + [1] * 3 + [2] * 2
    assert row.columns.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert row.layout.parents == (ROOT, 0, 0) and row.layout.lengths == (6, 2, 0)
    assert one.size == 8


def test_paths_that_share_nothing_change_no_bit_of_a_row():
    flat = group(4, [3, 1, 0, 5])
    apart = replace(flat, paths=(((0, 1), (1, 2)), ((5, 1),), (), ((2, 5),)))
    ours, right = pack([apart], CPU), pack([flat], CPU)
    assert ours.where is None and right.where is None
    for name in ("ids", "positions", "predict", "tokens", "rows", "columns", "temperature"):
        assert torch.equal(getattr(ours, name), getattr(right, name)), name
    assert (ours.layout.lengths, ours.layout.parents) == (
        right.layout.lengths,
        right.layout.parents,
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_the_count_of_a_tree_is_the_length_of_its_row(seed, nodes):
    chance = random.Random(seed)
    ways = random_ways(chance, nodes)
    said = {n: torch.randint(0, 50, (4,)) for n in range(nodes)}
    answers = tuple(torch.cat([said[n][:count] for n, count in way]) for way in ways)
    one = replace(
        group(3, [len(a) for a in answers]),
        encoded=encoded(3),
        answers=answers,
        paths=tuple(ways),
    )
    row = pack([one], CPU)
    assert len(row.ids) == one.size == 3 + unique_tokens(ways, [len(a) for a in answers])
    where = torch.arange(len(row.tokens)) if row.where is None else row.where
    assert torch.equal(row.tokens[where], torch.cat(answers))


def test_a_way_of_thousands_of_nodes_is_laid_out():
    """Longer than Python's stack is deep: two answers that part after their first token and go on token by token."""
    length = 1500
    ways = [
        tuple((0 if n == 0 else 1 + n + side * length, 1) for n in range(length))
        for side in (0, 1)
    ]
    answers = (
        torch.arange(length) % 50,
        (torch.arange(length) + (torch.arange(length) > 0)) % 50,
    )
    one = replace(group(3, [length] * 2), answers=answers, paths=tuple(ways))
    row = pack([one], CPU)
    assert len(row.ids) == one.size == 3 + 2 * length - 1 - 2
    assert torch.equal(row.tokens[row.where], torch.cat(answers))


def test_paths_that_do_not_fit_are_refused():
    same = torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match=r"3 tokens has the path .* add up"):
        check_path(((0, 2),), 3)
    with pytest.raises(ValueError, match="0 or more"):
        check_path(((0, 4), (1, -1)), 3)
    with pytest.raises(ValueError, match="share the tokens 0 to 1 by their paths, but differ"):
        answer_tree([same, same + 1], [((0, 2), (1, 1)), ((0, 2), (2, 1))])
    with pytest.raises(ValueError, match="share the temperatures"):
        answer_tree([same, same], [((0, 3),), ((0, 3),)], [1.0, 0.5])
    with pytest.raises(ValueError, match="must be cut wherever answers part"):
        answer_tree([same, same], [((0, 2), (1, 1)), ((0, 3),)])
