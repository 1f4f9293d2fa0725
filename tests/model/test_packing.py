"""Packing groups into one row, collating answers, cutting a batch by tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.model.encoded import Encoded
from mmrl.model.packing import Group, collate, pack, rows_of, split
from mmrl.types import Prompt, Role, Rollout, Scores

CPU = torch.device("cpu")


def encoded(length, offset=0):
    """A text prompt of `length` tokens whose answer positions start beyond its length, as after a picture."""
    ids = torch.arange(100, 100 + length) + offset
    return Encoded(
        ids, torch.arange(length).expand(3, -1), length + 2, (), (), torch.zeros(length), ""
    )


def group(prompt, lengths, first_row=0, temperature=1.0):
    answers = tuple(torch.arange(n) + 10 * (i + 1) for i, n in enumerate(lengths))
    rows = tuple(range(first_row, first_row + len(lengths)))
    return Group(encoded(prompt), (), answers, rows, (temperature,) * len(lengths))


def rollout(number, length, reward=1.0, roles=None, logp=True):
    tokens = torch.arange(1, length + 1)
    kinds = (
        torch.full((length,), int(Role.POLICY), dtype=torch.uint8)
        if roles is None
        else torch.tensor(roles)
    )
    values = -torch.arange(1.0, length + 1) if logp else None
    prompt = Prompt(f"p{number}", [])
    return Rollout(
        prompt,
        number,
        torch.arange(7),
        tokens,
        kinds.to(torch.uint8),
        "",
        "eos",
        values,
        reward=reward,
    )


def test_a_packed_row_by_hand():
    stream = pack([group(4, [3, 1], first_row=5, temperature=0.5)], CPU)
    # The last token of each answer predicts nothing and is not fed: 4 prompt tokens, 2 + 0 answer tokens.
    assert stream.ids.tolist() == [100, 101, 102, 103, 10, 11]
    assert stream.positions[1].tolist() == [0, 1, 2, 3, 6, 7]
    assert stream.tokens.tolist() == [10, 11, 12, 20]
    assert stream.predict.tolist() == [3, 4, 5, 3], (
        "first tokens of both answers come from the prompt's last token"
    )
    assert stream.rows.tolist() == [5, 5, 5, 6] and stream.columns.tolist() == [0, 1, 2, 0]
    assert stream.temperature.tolist() == [0.5] * 4
    assert stream.layout.prompts == ((0, 4),) and stream.layout.answers == (((4, 6), (6, 6)),)


def test_a_single_answer_goes_on_where_its_prompt_ends():
    stream = pack([group(4, [3]), group(2, [2, 2], first_row=1)], CPU)
    assert stream.layout.prompts == ((0, 6), (6, 8)) and stream.layout.answers == (
        (),
        ((8, 9), (9, 10)),
    )
    assert stream.predict.tolist() == [3, 4, 5, 7, 8, 7, 9]


def test_visual_slots_move_with_their_prompt():
    first, second = group(4, [2]), group(5, [1])
    first = replace(first, encoded=replace(first.encoded, slots=(torch.tensor([1, 2]),)))
    second = replace(
        second, encoded=replace(second.encoded, slots=(torch.tensor([0]), torch.tensor([3, 4])))
    )
    stream = pack([first, second], CPU)
    assert stream.visual.tolist() == [1, 2, 5, 8, 9]


def test_answers_without_tokens_are_carried():
    stream = pack([group(3, [0, 2]), group(2, [0], first_row=2)], CPU)
    assert stream.rows.tolist() == [1, 1] and len(stream.ids) == 3 + 1 + 2
    assert group(3, [0, 2]).size + group(2, [0]).size == len(stream.ids)


def test_collate_pads_right_and_trains_policy_tokens_only():
    hint, policy, tool = int(Role.HINT), int(Role.POLICY), int(Role.OBSERVATION)
    batch = collate([rollout(0, 4, 0.5, [hint, policy, tool, policy]), rollout(1, 2, -1.0)])
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert batch.mask.tolist() == [[False, True, False, True], [True, True, False, False]]
    assert batch.roles[1].tolist() == [policy, policy, tool, tool], (
        "padding counts as observation"
    )
    assert batch.reward.tolist() == [0.5, -1.0] and batch.group.tolist() == [0, 1]
    assert batch.scores["sampler"].logp.tolist() == [[-1, -2, -3, -4], [-1, -2, 0, 0]]
    assert batch.advantage.shape == batch.tokens.shape and not batch.advantage.any()


def test_collate_needs_pay_and_takes_sampler_scores_from_all_or_none():
    with pytest.raises(AssertionError, match="without a reward"):
        collate([rollout(0, 2, reward=None)])
    assert "sampler" not in collate([rollout(0, 2), rollout(0, 3, logp=False)]).scores
    assert len(collate([])) == 0


def test_rows_of_takes_everything_along():
    batch = collate([rollout(n, n + 1, float(n)) for n in range(4)])
    entropy = torch.arange(16.0).view(4, 4)
    batch = replace(
        batch, scores={**batch.scores, "masked": Scores(entropy - 1, entropy, None)}
    )
    some = rows_of(batch, torch.tensor([3, 1]))
    assert [r.prompt.id for r in some.rollouts] == ["p3", "p1"] and some.reward.tolist() == [
        3.0,
        1.0,
    ]
    assert some.tokens.shape == (2, 4) and some.group.tolist() == [3, 1]
    assert torch.equal(some.scores["masked"].entropy, entropy[[3, 1]])
    assert some.scores["masked"].divergence is None
    assert torch.equal(some.mask, batch.mask[[3, 1]]) and torch.equal(
        some.roles, batch.roles[[3, 1]]
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=6),
    st.integers(1, 60),
)
def test_parts_hold_every_row_once_and_fit_where_they_can(shapes, budget):
    prompts = {number: 3 + 2 * number for number in range(len(shapes))}
    rollouts = [rollout(number, n) for number, lengths in enumerate(shapes) for n in lengths]
    batch = collate(rollouts)
    parts = split(batch, prompts, budget)
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(rollouts)))
    spread = {number: 0 for number in prompts}
    for part in parts:
        rows = part.tolist()
        numbers = {int(batch.group[r]) for r in rows}
        size = sum(prompts[n] for n in numbers) + sum(
            max(len(rollouts[r].tokens) - 1, 0) for r in rows
        )
        assert rows and (size <= budget or len(rows) == 1), (
            "only an answer that fits nowhere may stand alone"
        )
        for number in numbers:
            spread[number] += 1
    for number, lengths in enumerate(shapes):
        whole = prompts[number] + sum(max(n - 1, 0) for n in lengths)
        assert spread[number] == 1 or whole > budget, "a group that fits is not cut"


def test_a_large_budget_gives_one_part_in_order():
    batch = collate([rollout(n // 2, 3) for n in range(6)])
    (part,) = split(batch, {0: 5, 1: 5, 2: 5}, 10_000)
    assert part.tolist() == list(range(6))
