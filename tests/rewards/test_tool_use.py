"""Pay for looking closer: golden groups, the values of the formulas, and what each term is worth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.calls import Action, Call
from mmrl.rewards.tool_use import (
    Curiosity,
    LookedAt,
    Redundancy,
    RightCrop,
    Unrepaired,
    curiosity,
    deep_eyes,
    distinct,
    pixel_reasoner,
    verltool,
    vigorl,
)

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "rewards"
GROUPS = json.loads((GOLDEN / "verl_tool.json").read_text())["functions"][
    "verltool_pixel_reasoner_group"
]
VALID = Call("crop_image", Action("crop_image"), "answered", found={"box": [0, 0, 1, 1]})
REFUSED = Call("crop_image", None, "refused", "why")
CLIPS = "pixel-reasoner-clips"


def answer(*calls, group=0, correct=1.0):
    return SimpleNamespace(calls=calls, group=group, correct=correct)


def accuracy(rollout):
    return rollout.correct


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case["id"])
def test_groups_are_paid_as_by_the_official_code(case):
    calls = case["input"]["valid_actions_per_rollout"]
    counts = [sum(each) for each in calls]
    expected = [one["score"] for one in case["output"]]
    assert verltool(counts, case["input"]["accuracy"]) == pytest.approx(
        expected, rel=1e-6, abs=1e-9
    )
    # The parts of `Rewards` are the terms.
    group = [answer(*(VALID if good else REFUSED for good in each)) for each in calls]
    bonus = [0.5 * value for value in Curiosity()(group)]
    costs = [0.05 * Redundancy()(one) for one in group]
    for place, one in enumerate(case["output"]):
        assert bonus[place] == pytest.approx(one["curiousity_penalty"])
        assert costs[place] == pytest.approx(one["action_redundancy_penalty"])


def test_there_are_golden_groups():
    assert len(GROUPS) == 2


@pytest.mark.parametrize(
    ("calling", "bonus", "of_clips"),
    [(1, 0.175, 0.7 / 3), (2, 0.025, 0.1 / 3), (3, 0.0, 0.0), (8, 0.0, 0.0)],
)
def test_pixel_reasoner_has_the_values_of_its_formula(calling, bonus, of_clips):
    counts = [1] * calling + [0] * (8 - calling)
    assert curiosity(counts, rule="pixel-reasoner")[0] == pytest.approx(bonus)
    assert curiosity(counts, rule=CLIPS)[0] == pytest.approx(of_clips)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.sampled_from(["verltool", "pixel-reasoner", CLIPS]))
def test_the_bonus_falls_with_the_share_and_is_finite_at_its_ends(size, rule):
    def bonus(calling):
        return curiosity([1] * calling + [0] * (size - calling), rule=rule)

    firsts = [bonus(calling)[0] for calling in range(1, size + 1)]
    assert firsts == sorted(firsts, reverse=True) and min(firsts) >= 0
    assert bonus(0) == [0.0] * size and bonus(size) == [firsts[-1]] * size
    assert curiosity([], rule=rule) == []


def test_groups_are_counted_each_by_itself_and_in_any_order():
    one = [answer(VALID, group=1), *(answer(group=1) for _ in range(7))]
    other = [answer(VALID, group=2) for _ in range(4)]
    mixed = [one[0], other[0], *one[1:], *other[1:]]
    assert Curiosity()(mixed) == pytest.approx([0.175, *[0.0] * 11])
    assert Curiosity()(mixed[::-1]) == Curiosity()(mixed)[::-1]


def test_only_verltool_asks_that_calls_were_valid():
    group = [answer(REFUSED), *(answer() for _ in range(7))]
    assert Curiosity()(group) == [0.0] * 8
    assert Curiosity(rule="pixel-reasoner")(group)[0] == pytest.approx(0.175)
    assert (
        Redundancy()(answer(REFUSED, REFUSED)) == 0
        and Redundancy(every=True)(answer(REFUSED, REFUSED)) == -1
    )


def test_a_further_call_costs_a_twentieth():
    few = pixel_reasoner([1, 2], [1, 1], [False, False])
    assert few[0] - few[1] == pytest.approx(0.05)
    assert verltool([1, 2], [1, 1])[0] - verltool([1, 2], [1, 1])[1] == pytest.approx(0.05)


def test_a_refused_call_that_was_not_repaired_costs_the_right_answer():
    assert pixel_reasoner([1, 0], [1, 1], [True, False]) == pytest.approx([0.0, 1.0])
    lost = Unrepaired(accuracy)
    assert [lost(answer(REFUSED)), lost(answer(REFUSED, VALID)), lost(answer())] == [-1, 0, 0]
    assert lost(answer(REFUSED, correct=0.0)) == 0


def test_deep_eyes_pays_a_crop_only_with_a_right_answer():
    assert deep_eyes(1, 0, 1) == pytest.approx(2.0) and deep_eyes(1, 0, 0) == pytest.approx(0.8)
    assert deep_eyes(0.5, -1, 3) == pytest.approx(0.2) and deep_eyes(0, 0, 1) == 0
    assert deep_eyes(1, -1, 1, offered=False) == pytest.approx(0.8)
    paid = RightCrop(accuracy)
    other = Call("search", Action("search"), "answered", found={"page": "a"})
    assert paid(answer(VALID)) == 1 and paid(answer(VALID, correct=0.5)) == 0
    assert paid(answer(REFUSED)) == 0 and paid(answer(other)) == 0 and paid(answer()) == 0


def test_vigorl_counts_points_that_are_apart_up_to_a_limit():
    line = [(20.0 * step, 0.0) for step in range(10)]
    assert vigorl(0, True, line, most=0) == pytest.approx(0.4 * 2.8)
    # Ours: looking around never pays more than the right answer does.
    assert vigorl(0, True, line) < vigorl(1, False, []) == 0.6
    assert vigorl(1, True, line[:1]) == pytest.approx(1.0) and vigorl(
        1, True, []
    ) == pytest.approx(0.92)
    assert distinct([(0, 0), (6, 8), (9, 0), (6, 7)]) == [(0, 0), (6, 8)]
    calls = [
        Call("look_at", Action("look_at", {"point_2d": [x, y]}), "answered") for x, y in line
    ]
    paid = LookedAt(lambda _: 1.0)
    assert paid(answer(*calls)) == pytest.approx(1.4) and paid(
        answer(REFUSED)
    ) == pytest.approx(0.8)
    assert LookedAt(lambda _: 0.0)(answer(*calls)) == 0


@pytest.mark.parametrize(
    ("build", "flag"),
    [
        (lambda: Curiosity(rare=1.5), r"Curiosity\.rare"),
        (lambda: Redundancy(free=-1), r"Redundancy\.free"),
        (lambda: LookedAt(accuracy, most=-1), r"LookedAt\.most"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build, flag):
    with pytest.raises(ValueError, match=flag):
        build()
