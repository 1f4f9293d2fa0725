"""Mixtures of data sets: frequencies, nothing twice, where they end, resuming, and what is refused."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from mmrl.data.rows.mixture import BLOCK, Alternating, Mixture, shares
from mmrl.ground.contents import contents
from mmrl.ground.domains import COLUMN
from mmrl.ground.faults import BadRow
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Prompt, Prompts


class Rows(Prompts):
    """Numbered prompts; some cannot be read."""

    def __init__(self, size, bad=()):
        self.size, self.bad = size, bad

    def __getitem__(self, index):
        if index in self.bad:
            raise BadRow(f"row {index}")
        return Prompt(
            str(index), f"question {index}", answer=str(index), extra={COLUMN: "mine"}
        )

    def drain(self):
        return {"read": 1}

    def left_out(self):
        return [BadRow("one")]


def drawn(mixture, count):
    return [mixture.place(index) for index in range(count)]


@pytest.mark.parametrize("sizes", [(50_000, 50_000, 50_000), (None, None, None)])
@pytest.mark.parametrize("given", [{}, {"a": 1, "b": 2, "c": 3}, {"a": 0.5, "b": 0, "c": 1.5}])
def test_domains_are_drawn_by_weight(sizes, given):
    parts = {name: Rows(size) for name, size in zip("abc", sizes, strict=True)}
    mixture, count = Mixture(parts, given, seed=3), 3 * BLOCK
    found = Counter(name for name, _ in drawn(mixture, count))
    for name, share in shares(given, list("abc")).items():
        # Five deviations of a binomial.
        assert abs(found[name] - share * count) <= 5 * math.sqrt(share * (1 - share) * count)


def test_no_row_comes_twice_and_it_ends_where_one_is_used_up():
    parts = {"small": Rows(7), "large": Rows(6 * BLOCK), "endless": Rows(None)}
    mixture = Mixture(parts, {"small": 1, "large": 2000, "endless": 8}, seed=1)
    assert mixture.size is not None and mixture.size > 2 * BLOCK
    rows = drawn(mixture, mixture.size)
    assert len(set(rows)) == len(rows) and sum(name == "small" for name, _ in rows) == 7
    # The draw behind the end would have been an eighth one.
    assert mixture._draw(mixture.size) == (0, 7)
    with pytest.raises(IndexError, match="mixture of"):
        mixture[mixture.size]


def test_a_weight_of_zero_is_never_drawn_and_ends_nothing():
    mixture = Mixture({"a": Rows(100), "b": Rows(1)}, {"a": 1, "b": 0})
    assert mixture.size == 100 and {name for name, _ in drawn(mixture, 100)} == {"a"}


def test_without_an_end_small_sets_begin_again_in_another_order():
    mixture = Mixture({"a": Rows(5), "b": Rows(3)}, {}, seed=2, ends="never")
    assert mixture.size is None
    rows = [row for name, row in drawn(mixture, 60) if name == "a"]
    passes = [rows[start : start + 5] for start in range(0, len(rows) - 4, 5)]
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len(set(map(tuple, passes))) > 1


def test_the_order_is_of_the_seed_and_of_nothing_else():
    def rows(seed, order):
        mixture = Mixture({"a": Rows(9000), "b": Rows(9000)}, {}, seed=seed)
        return {index: mixture.place(index) for index in order}

    places = [0, 1, 4095, 4096, 9001]
    assert rows(4, places) == rows(4, reversed(places))
    assert rows(4, places) != rows(5, places)


def test_a_prompt_says_where_it_is_from_and_ids_stay_apart():
    parts = {"a": Rows(4), "b": Rows(4)}
    prompts = [Alternating(parts)[index] for index in range(8)]
    assert [p.id for p in prompts] == ["a/0", "b/0", "a/1", "b/1", "a/2", "b/2", "a/3", "b/3"]
    assert [p.extra[COLUMN] for p in prompts[:2]] == ["a", "b"]
    mixture = Mixture(parts, {})
    assert mixture.drain() == {"read": 2} and len(mixture.left_out()) == 2
    changed = Mixture({"a": Rows(4), "b": Rows(4, bad=range(4))}, {}, ends="never")
    endless = Mixture(parts, {}, ends="never")
    assert contents(endless)["texts"] != contents(changed)["texts"]


def test_alternating_passes_over_what_is_used_up():
    mixed = Alternating({"a": Rows(1), "b": Rows(None), "c": Rows(2)})
    found = [mixed.place(index) for index in range(7)]
    assert mixed.size is None
    assert found == [("a", 0), ("b", 0), ("c", 0), ("b", 1), ("c", 1), ("b", 2), ("b", 3)]


@pytest.mark.parametrize("ends", ["first", "never"])
def test_a_supply_goes_on_where_it_was(ends):
    def supply():
        parts = {"a": Rows(40, bad=(3, 4)), "b": Rows(30)}
        return Supply(Mixture(parts, {"a": 2, "b": 1}, 7, ends), 4, 7)

    whole, first, second = supply(), supply(), supply()
    taken = [[p.id for p in whole.take()] for _ in range(6)]
    assert [[p.id for p in first.take()] for _ in range(3)] == taken[:3]
    second.load(first.state())
    assert [[p.id for p in second.take()] for _ in range(3)] == taken[3:]


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"a": 1}, r"gives \['b'\] no weight.*0: never drawn"),
        ({"a": 1, "b": 1, "c": 1}, r"weights \['c'\], which are none"),
        ({"a": 0, "b": 0}, "all 0"),
        ({"a": -1, "b": 1}, "0 or positive"),
        ({"a": math.nan, "b": 1}, "0 or positive"),
        ({"a": math.inf, "b": 1}, "finite"),
    ],
)
def test_weights_that_are_no_mixture_are_refused(weights, told):
    with pytest.raises(ValueError, match=told):
        Mixture({"a": Rows(2), "b": Rows(2)}, weights)
