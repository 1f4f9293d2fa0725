"""Properties of the reward algebra: bounds, exactness, symmetry, and closed forms on hand-made cases."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.pretext.marking import rewards

ORDERS = (rewards.positional, rewards.footrule, rewards.kendall)
anything = st.lists(
    st.one_of(st.integers(-3, 12), st.text(max_size=2), st.none(), st.floats()), max_size=9
)
reals = st.floats(allow_nan=True, allow_infinity=True)
fast = settings(max_examples=60, deadline=None)


def permuted(n: int = 7):
    return st.integers(1, n).flatmap(
        lambda k: st.tuples(*[st.permutations(range(1, k + 1))] * 2)
    )


def in_unit(value: float) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


@fast
@given(permuted())
def test_orders_are_bounded_exact_and_symmetric(pair):
    guess, truth = pair
    for reward in ORDERS:
        assert reward(truth, truth) == 1.0
        assert in_unit(reward(guess, truth))
        assert (reward(guess, truth) == 1.0) == (guess == truth)
        assert reward(guess, truth) == pytest.approx(reward(truth, guess))
    relabel = {value: chr(96 + value) for value in truth}
    for reward in ORDERS:
        renamed = reward([relabel[v] for v in guess], [relabel[v] for v in truth])
        assert renamed == reward(guess, truth)


@fast
@given(anything, st.integers(1, 7).flatmap(lambda k: st.permutations(range(1, k + 1))))
def test_non_permutations_earn_nothing(guess, truth):
    if sorted(map(repr, guess)) == sorted(map(repr, truth)):
        return
    if rewards.is_permutation(guess, truth):  # 1.0 and True count as 1
        return
    for reward in ORDERS:
        assert reward(guess, truth) == 0.0


def test_known_holes_are_closed():
    truth = [5, 1, 3, 7, 9, 2, 4, 8, 6]
    for reward in ORDERS:
        assert reward([5, 1, 3, 7, 9, 2, 4, 8, 10], truth) == 0.0
        assert reward([5, 1, 3, 7, 9, 2, 4, 8, 6, 6], truth) == 0.0
        assert reward([1] * 9, truth) == 0.0
        assert reward([], truth) == 0.0


def test_positional_values():
    swapped = [2, 1, 3, 4, 5, 6, 7, 8, 9]
    assert rewards.positional(swapped, sorted(swapped), gamma=0.2) == pytest.approx(0.2 * 7 / 9)
    assert rewards.positional([1, 2, 4, 3], [1, 2, 3, 4]) == 0.5


def test_footrule_values_and_random_level():
    assert rewards.footrule("351462", "341562") == pytest.approx(1 - 4 / 18)
    assert rewards.footrule([4, 3, 2, 1], [1, 2, 3, 4]) == 0.0
    for n in (2, 3, 4, 5, 6):
        truth = range(1, n + 1)
        orders = list(permutations(truth))
        closed = 1 - (n * n - 1) / 3 / (n * n // 2)
        assert np.mean([rewards.footrule(order, truth) for order in orders]) == pytest.approx(
            closed
        )
        assert np.mean([rewards.kendall(order, truth) for order in orders]) == pytest.approx(
            0.5
        )


def test_kendall_counts_pairs():
    assert rewards.kendall([2, 1, 3], [1, 2, 3]) == pytest.approx(2 / 3)
    assert rewards.kendall([3, 2, 1], [1, 2, 3]) == 0.0
    assert rewards.kendall([2, 1, 3], [1, 2, 3], gamma=0.5) == pytest.approx(1 / 3)


@fast
@given(st.tuples(reals, reals), st.tuples(reals, reals))
def test_interval_iou_wild(a, b):
    value = rewards.interval_iou(a, b)
    assert in_unit(value)
    assert value == rewards.interval_iou(b, a)
    if np.isfinite(a).all() and a[0] <= a[1]:
        assert rewards.interval_iou(a, a) == 1.0
    else:
        assert value == 0.0


def test_interval_iou_values_and_shift():
    assert rewards.interval_iou((10, 20), (15, 25)) == pytest.approx(1 / 3)
    assert rewards.interval_iou((110, 120), (115, 125)) == pytest.approx(1 / 3)
    assert rewards.interval_iou((0, 5), (5, 9)) == 0.0


@fast
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5))
def test_multi_interval_matches_brute_force(spans):
    guess = [(min(s), max(s) + 1) for s in spans]
    truth = [(1.0, 4.0), (8.0, 12.0), (15.0, 16.0)]
    size = max(len(guess), len(truth))
    padded = guess + [None] * (size - len(guess))
    best = max(
        sum(rewards.interval_iou(g, t) for g, t in zip(order, truth, strict=False) if g)
        for order in permutations(padded, len(truth))
    )
    assert rewards.multi_interval_iou(guess, truth) == pytest.approx(best / size)
    assert rewards.multi_interval_iou(truth, truth) == 1.0


def test_multi_interval_empty_and_surplus():
    assert rewards.multi_interval_iou([], []) == 1.0
    assert rewards.multi_interval_iou([], [(0, 1)]) == 0.0
    assert rewards.multi_interval_iou([(0, 1), (0, 1)], [(0, 1)]) == 0.5


@fast
@given(st.tuples(reals, reals, reals, reals), st.tuples(reals, reals, reals, reals))
def test_boxes_wild(a, b):
    assert in_unit(rewards.box_iou(a, b))
    assert rewards.box_iou(a, b) == pytest.approx(rewards.box_iou(b, a))
    if np.isfinite(a).all() and a[0] < a[2] and a[1] < a[3]:
        assert rewards.box_iou(a, a) == 1.0
    else:
        assert rewards.box_iou(a, b) == 0.0


def test_box_values():
    assert rewards.box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


@fast
@given(
    st.lists(st.integers(-2, 12), max_size=4),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_count_rel(guess, truth):
    value = rewards.count_rel(guess, truth)
    assert in_unit(value)
    assert (value == 1.0) == (guess == truth)
    if len(guess) != len(truth) or min(guess, default=-1) < 0:
        assert value == 0.0


def test_count_rel_values():
    assert rewards.count_rel([2, 1, 4], [3, 1, 4]) == pytest.approx((2 / 3 + 2) / 3)
    assert rewards.count_rel([0, 0, 0], [3, 1, 4]) == 0.0
    assert rewards.count_rel([1, 1, 4], [1, 0, 4]) == pytest.approx(2 / 3)


@fast
@given(reals, reals)
def test_ordinal_and_angle(a, b):
    for reward in (lambda x, y: rewards.ordinal(x, y, 2.0), rewards.angle_circular):
        assert in_unit(reward(a, b))
        assert reward(a, b) == reward(b, a)


def test_angle_wraps():
    assert rewards.angle_circular(350, 10) == pytest.approx(1 - 20 / 180)
    assert rewards.angle_circular(-90, 270) == 1.0
    assert rewards.angle_circular(0, 180) == 0.0
    assert rewards.angle_circular(10, 170, period=180) == pytest.approx(1 - 20 / 90)


@fast
@given(st.text("abc é", max_size=12), st.text("abc é", max_size=12))
def test_edit_is_levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row = row, [i] + [0] * len(b)
        for j, y in enumerate(b, 1):
            row[j] = min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y))
    assert rewards.edit_distance(a, b) == row[-1]
    assert rewards.edit(a, b) == rewards.edit(b, a)
    assert (rewards.edit(a, b) == 1.0) == (a == b)


def test_render_similarity():
    canvas = np.full((20, 20, 3), 255, np.uint8)
    shape = canvas.copy()
    shape[5:10, 5:10] = 0
    assert rewards.render_similarity(shape, shape) == 1.0
    assert rewards.render_similarity(canvas, shape) == 0.0
    half = canvas.copy()
    half[5:10, 5:8] = 0
    assert rewards.render_similarity(half, shape) == pytest.approx(0.6)
    assert rewards.render_similarity(shape[:5], shape) == 0.0
    assert rewards.render_similarity(shape, canvas) == 0.0


@fast
@given(st.floats(0, 1), st.floats(0.1, 5), st.floats(0, 1))
def test_sharpen_and_chance(reward, power, bonus):
    assert 0.0 <= rewards.sharpen(reward, power, bonus) <= 1.0
    assert rewards.sharpen(1.0, power, bonus) == pytest.approx(1.0)
    assert rewards.above_chance(1.0, 0.352) == pytest.approx(1.0)
    assert rewards.above_chance(0.1, 0.352) == 0.0


def test_interval_ious_equal_the_scalar():
    spans = np.random.default_rng(0).integers(0, 9, (50, 2))
    truth = (2.0, 6.0)
    expected = [rewards.interval_iou((float(s), float(e)), truth) for s, e in spans]
    assert rewards.interval_ious(spans, truth) == pytest.approx(expected)
