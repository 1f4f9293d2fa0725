"""Intervals and tests, against values from tables and from SciPy."""

import pytest
from scipy import stats

from mmrl.ground.intervals import wilson
from mmrl.report.evaluation import (
    bootstrap,
    change,
    evaluations,
    flips,
    mcnemar,
    scores_at,
)
from mmrl.report.run_files import read_run


@pytest.mark.parametrize(
    ("right", "count"), [(0, 10), (10, 10), (3, 10), (81, 263), (1, 1), (500, 1000)]
)
def test_wilson_is_scipys(right, count):
    expected = stats.binomtest(right, count).proportion_ci(0.95, "wilson")
    found = wilson(right / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found[0] <= right / count <= found[1]


@pytest.mark.parametrize(("one", "two"), [(0, 0), (0, 6), (3, 3), (1, 9), (40, 61), (700, 900)])
def test_mcnemar_is_the_exact_binomial_test(one, two):
    expected = stats.binomtest(one, one + two).pvalue if one + two else 1.0
    assert mcnemar(one, two) == pytest.approx(expected, rel=1e-9)


def test_the_bootstrap_covers_as_a_normal_interval_does():
    values = [0.0] * 60 + [1.0] * 40
    low, high = bootstrap(values)
    half = 1.96 * (0.24 / 100) ** 0.5
    assert low == pytest.approx(0.4 - half, abs=0.02) and high == pytest.approx(
        0.4 + half, abs=0.02
    )
    assert bootstrap([0.5] * 7) == (0.5, 0.5)


def test_changes_are_paired_by_question_and_others_are_left_out():
    first = {"a": {"score": 1.0}, "b": {"score": 0.0}, "only": {"score": 1.0}}
    second = {"b": {"score": 0.6}, "a": {"score": 1.0}, "new": {"score": 0.0}}
    found = change(first, second)
    assert (found.questions, found.first, found.second) == (2, 0.5, 0.8)
    assert (found.both, found.only_first, found.only_second, found.neither) == (1, 0, 1, 0)
    assert found.low <= found.difference <= found.high
    assert [row["prompt"] for row in flips(first, second, {})] == ["b"]
    assert change({"a": {"score": 1.0}}, {"b": {"score": 1.0}}) is None


def test_the_interval_uses_the_number_of_questions(make_run):
    folder = make_run(
        metrics=[
            {"step": 0, "eval/accuracy": 0.5, "eval/accuracy_error": 0.1},
            {"step": 4, "eval/accuracy": 0.5, "eval/accuracy_error": 0.1},
        ],
        eval=[{"step": 4, "prompt": str(n), "score": n % 2} for n in range(10)],
    )
    unknown, known = evaluations(read_run(folder))
    assert (unknown.low, unknown.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert (known.questions, known.low, known.high) == (10, *wilson(0.5, 10))
    assert len(scores_at(read_run(folder))) == 10 and scores_at(read_run(folder), 0) == {}
