"""Who is sampled when: rows and blocks within the budget, pieces of a prefill, seats for those who wait. No tensors."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrl.model.budget import GIB, Budget, Costs
from mmrl.model.decoding import blocks_of
from mmrl.rollouts.seating import Lengths, Queue, fill, pieces

COSTS = Costs(token=1000, prefill=3000, patch=500, row=40_000)
WIDE = Budget.of(1000 * GIB)
# A busy machine is no finding.
CASES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def asked(tokens):
    return [Lengths(n, 4 * (n // 2)) for n in tokens]


@CASES
@given(LENGTHS, st.integers(1, 9), st.integers(1, 50), st.integers(1, 64), st.integers(18, 30))
def test_keys_values_and_logits_stay_within_the_budget(tokens, group, most, rows, power):
    budget = replace(WIDE, keys_values=2**power, logits=2**power // 4)
    found = fill(asked(tokens), group, most, rows, 64, COSTS, budget)
    assert 1 <= found.rows <= min(rows, group * len(tokens))
    taken = (found.room * found.block + found.rows * most) * COSTS.token
    if found.rows > 1:
        assert taken <= budget.keys_values and found.rows * COSTS.row <= budget.logits
    # The largest prompts that may be there at a time have room.
    sizes = sorted((blocks_of(n, found.block) for n in tokens), reverse=True)
    assert found.room == sum(sizes[: found.most]) and found.parts == sizes[0]


@CASES
@given(LENGTHS, st.integers(1, 9))
def test_without_need_nothing_is_divided(tokens, group):
    found = fill(asked(tokens), group, 10, 10_000, 64, COSTS, WIDE)
    assert found.rows == group * len(tokens) and found.most == len(tokens)
    assert list(pieces(range(len(tokens)), asked(tokens), COSTS, WIDE)) == [
        list(range(len(tokens)))
    ]


@CASES
@given(LENGTHS, st.integers(10_000, 3_000_000))
def test_no_piece_is_larger_than_the_budget_unless_one_prompt_is(tokens, most):
    prompts, budget = asked(tokens), replace(WIDE, prefill=most)
    found = list(pieces(range(len(tokens)), prompts, COSTS, budget))
    assert [n for piece in found for n in piece] == list(range(len(tokens)))
    for piece in found:
        size = sum(
            prompts[n].tokens * COSTS.prefill + prompts[n].patches * COSTS.patch for n in piece
        )
        assert size <= most or len(piece) == 1


@CASES
@given(LENGTHS, st.integers(1, 9), st.integers(1, 20), st.booleans(), st.randoms())
def test_everyone_gets_a_seat_once_and_a_prompt_is_read_once(
    tokens, group, rows, ragged, chance
):
    """Whoever ends first: no seat is given twice, no prompt is read without room, and nobody waits for ever."""
    counts = [chance.randint(1, group) if ragged else group for _ in tokens]
    plan = fill(asked(tokens), sum(counts) / len(counts), 5, rows, 16, COSTS, WIDE)
    assert plan.rows <= min(rows, sum(counts))
    blocks = [blocks_of(n, plan.block) for n in tokens]
    queue = Queue(range(len(tokens)), counts, plan, blocks)
    sitting, served, read, free = [], [], [], plan.room
    while queue or sitting:
        taken, new = queue.take(plan.rows - len(sitting), free, idle=not sitting)
        read += new
        free -= sum(blocks[n] for n in new)
        assert free >= 0
        assert taken or sitting, "somebody waits and nobody advances"
        sitting += taken
        assert len(sitting) <= plan.rows and {seat.prompt for seat in sitting} <= set(read)
        for seat in chance.sample(sitting, chance.randint(1, len(sitting))):
            sitting.remove(seat)
            served.append(seat.answer)
            if queue.ended(seat.prompt):
                free += blocks[seat.prompt]
    assert sorted(served) == list(range(sum(counts)))
    assert read == list(range(len(tokens))) and free == plan.room


@CASES
@given(LENGTHS, st.integers(1, 100))
def test_prompts_of_alike_lengths_have_one_block_each(tokens, most):
    found = fill(asked(tokens), 1, 10, 10_000, most, COSTS, WIDE)
    small = min(most, max(tokens))
    ordinary = sum(blocks_of(n, small) * small for n in tokens)
    # Never more room than blocks of the usual size take.
    assert found.room * found.block <= ordinary
    assert found.together == (len(tokens) * max(tokens) <= ordinary)
    alike = fill(asked([tokens[0]] * len(tokens)), 1, 10, 10_000, most, COSTS, WIDE)
    assert alike.together and alike.block == tokens[0]
