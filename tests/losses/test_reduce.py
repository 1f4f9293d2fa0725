"""Reductions: hand values, and independence of padding, split and ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.losses.reduce import (
    Totals,
    constant_norm,
    keep,
    reduced,
    sequence_mean,
    sequence_sum,
    token_mean,
)

X = torch.tensor([[1.0, 2.0, 3.0], [10.0, torch.nan, torch.inf], [torch.nan, 5.0, 5.0]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
RULES = ("token", "sequence", "sequence_sum", "constant")


def test_hand_values_ignore_padding_and_answers_without_tokens():
    totals = Totals.of(MASK)
    assert totals == Totals(tokens=4, sequences=2)
    assert token_mean(X, MASK, totals) == 4.0
    assert sequence_mean(X, MASK, totals) == 6.0
    assert sequence_sum(X, MASK, totals) == 8.0
    assert constant_norm(X, MASK, totals, 4) == 2.0
    # EasyR1 and TRL count the empty answer as a zero.
    assert sequence_mean(X, MASK, Totals(4, 3)) == 4.0


@pytest.mark.parametrize("rule", RULES)
def test_garbage_in_padding_never_reaches_the_gradient(rule):
    x = X.clone().requires_grad_()
    reduced(x, MASK, Totals.of(MASK), rule, 4.0).backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[MASK == 0] == 0).all() and (x.grad[MASK == 1] != 0).all()


def random_batch(seed, rows, columns):
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, columns + 1, (rows, 1), generator=rng)
    mask = torch.arange(columns) < lengths
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64), mask


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 7),
    st.integers(1, 6),
    st.sampled_from(RULES),
    st.data(),
)
def test_split_padding_and_row_order_do_not_matter(seed, rows, columns, rule, draw):
    x, mask = random_batch(seed, rows, columns)
    totals = Totals.of(mask)
    whole = reduced(x, mask, totals, rule, 5.0)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    cut = draw.draw(st.integers(0, rows))
    parts = [order[:cut], order[cut:]]
    assert (
        Totals.sum(Totals.of(mask[part]) for part in parts)
        == totals
        == Totals.of(*(mask[part] for part in parts))
    )
    torch.testing.assert_close(
        sum(reduced(x[part], mask[part], totals, rule, 5.0) for part in parts), whole
    )
    wide = torch.cat([x, torch.full((rows, 3), torch.nan, dtype=torch.float64)], 1)
    wide_mask = torch.cat([mask, torch.zeros(rows, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(reduced(wide, wide_mask, totals, rule, 5.0), whole)


def test_equal_lengths_make_token_and_sequence_mean_agree():
    x, _ = random_batch(3, 4, 5)
    mask = torch.ones(4, 5)
    totals = Totals.of(mask)
    torch.testing.assert_close(token_mean(x, mask, totals), sequence_mean(x, mask, totals))
    torch.testing.assert_close(constant_norm(x, mask, totals, 5), token_mean(x, mask, totals))


@pytest.mark.parametrize("rule", RULES)
def test_nothing_trained_gives_zero_with_a_gradient_of_zero(rule):
    x = torch.full((2, 3), torch.nan, requires_grad=True)
    mask = torch.zeros(2, 3)
    value = reduced(x, mask, Totals.of(mask), rule, 1.0)
    value.backward()
    assert value == 0 and (x.grad == 0).all()


@pytest.mark.parametrize("constant", [0, -1.0, float("nan")])
def test_constant_must_be_a_length(constant):
    with pytest.raises(ValueError, match="must be positive"):
        constant_norm(X, MASK, Totals.of(MASK), constant)


def test_keep_accepts_any_mask_type():
    torch.testing.assert_close(keep(X, MASK), keep(X, MASK.bool()))
    torch.testing.assert_close(keep(X, MASK.float())[1], torch.tensor([10.0, 0.0, 0.0]))
