"""Curves: thinned without losing their extremes, smoothed without bias, laid out within their frame."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.report.curves import (
    POINTS,
    Chart,
    Curve,
    Frame,
    Point,
    chart_groups,
    ends,
    label,
    smoothed,
    thinned,
    ticks,
)
from mmrl.report.run_files import read_run

numbers = st.floats(-1e6, 1e6, allow_nan=False)


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=2000))
def test_thinning_keeps_ends_extremes_and_mean(values):
    pairs = list(enumerate(values))
    points = thinned(pairs)
    assert len(points) <= POINTS
    assert points[0].step == 0 and points[-1].step == len(values) - 1
    assert min(point.low for point in points) == min(values)
    assert max(point.high for point in points) == max(values)
    assert [point.step for point in points] == sorted({point.step for point in points})
    if len(values) == POINTS * (len(values) // POINTS):  # buckets of one size
        mean = sum(point.mean for point in points) / len(points)
        assert mean == pytest.approx(sum(values) / len(values), abs=1e-3)


def test_smoothing_is_unbiased_from_the_start():
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50)
    # Span 3 keeps a half: (0.5 · 0 + 1) / (0.5 + 1).
    assert smoothed([0.0, 1.0], span=3) == pytest.approx([0.0, 2 / 3])
    assert smoothed([1.0, 5.0], span=1) == [1.0, 5.0]


@settings(deadline=None)
@given(numbers, numbers)
def test_ticks_are_round_and_inside(one, two):
    low, high = sorted((one, two))
    if high - low < 1e-3:
        return
    marks = ticks(low, high, 4)
    assert 1 <= len(marks) <= 6
    slack = 1e-6 * (high - low)
    assert all(low - slack <= mark <= high + slack for mark in marks)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), numbers), min_size=1, max_size=40))
def test_everything_is_drawn_within_the_frame(pairs):
    points = [
        Point(step, value, value - 1, value + 1) for step, value in sorted(dict(pairs).items())
    ]
    drawn = Chart("a", [Curve("a", points)]).svg()
    for path in (drawn["curves"][0]["line"], drawn["curves"][0]["band"]):
        for x, y in re.findall(r"([\d.]+) ([\d.]+)", path):
            assert 46 <= float(x) <= 352 and 8 <= float(y) <= 140
    assert "nan" not in str(drawn) and "e+" not in drawn["curves"][0]["line"]


def test_one_point_and_no_change_have_a_frame():
    frame = Frame.around([Curve("a", [Point(3, 0.0, 0.0, 0.0)])])
    assert frame.last > frame.first and frame.high > frame.low


def test_ends_are_tenths():
    assert ends([(n, float(n)) for n in range(20)]) == (0.5, 18.5)
    assert ends([(1, 2.0)]) == (2.0, 2.0) and ends([]) is None


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "0"), (0.25, "0.25"), (12345.678, "1.235e+04"), (2e-7, "2.0e-07")]
)
def test_labels_are_short(value, said):
    assert label(value) == said


def test_parts_of_the_reward_share_a_chart_and_constants_are_said(make_run):
    metrics = [
        {
            "step": n,
            "reward/total": n,
            "reward/good": n,
            "reward/std": n,
            "x/rest": 2.0,
            "x/up": n,
        }
        for n in range(5)
    ]
    folder = make_run(settings={"rewards": {"good": 1.0}}, metrics=metrics)
    groups = {group.title: group for group in chart_groups([read_run(folder)], ["run"])}
    joined, alone = groups["Reward and its parts"].charts
    assert [curve.label for curve in joined.curves] == ["reward/total", "reward/good"]
    assert alone.title == "reward/std"
    assert [chart.title for chart in groups["x"].charts] == ["x/up"]
    assert groups["x"].constant == [("x/rest", "2")]


def test_accuracy_has_its_interval_and_what_is_told_in_words_is_not_drawn(make_run):
    metrics = [
        {"step": n, "eval/accuracy": 0.1 * n, "eval/accuracy_error": 0.05, "alarm/entropy": n}
        for n in range(3)
    ]
    folder = make_run(metrics=[{**row, "report/failures": row["step"]} for row in metrics])
    (group,) = chart_groups([read_run(folder)], ["run"])
    (chart,) = group.charts
    last = chart.curves[0].points[-1]
    assert (last.low, last.high) == pytest.approx((0.2 - 0.098, 0.2 + 0.098))
    assert chart.svg()["curves"][0]["band"]
    frame = Frame.around(chart.curves)
    assert frame.low < -0.098 and frame.high > 0.2 + 0.098, "an interval is never cut"


def test_each_run_keeps_its_colour(make_run):
    one = make_run("one", metrics=[{"step": n, "a/x": n} for n in range(3)])
    two = make_run("two", metrics=[{"step": n, "a/x": n, "a/y": n} for n in range(3)])
    (group,) = chart_groups([read_run(one), read_run(two)], ["one", "two"])
    both, only = group.charts
    assert [(curve.label, curve.colour) for curve in both.curves] == [("one", 0), ("two", 1)]
    assert [(curve.label, curve.colour) for curve in only.curves] == [("two", 1)]
