"""Measures against values by hand, at their edges, and what they refuse."""

import math
from itertools import pairwise

import numpy as np
import pytest

from mmrl.data.benchmarks import measures
from mmrl.perception.measures import detection, pointing, referring


def same(answer, reference):
    return answer.lower() == reference.lower()


def test_mean_at_k_uses_the_first_k_of_each_question():
    assert measures.mean_at_k([[1, 0, 1, 1], [0, 0, 1, 1]], 2) == 0.25
    assert measures.mean_at_k([[1, 0, 1, 1], [0, 0, 1, 1]], 4) == 0.625
    assert math.isnan(measures.mean_at_k([], 8))
    with pytest.raises(ValueError, match="needs 3 answers to every question, one has 2"):
        measures.mean_at_k([[1, 0, 1], [1, 0]], 3)
    with pytest.raises(ValueError, match="k is at least 1"):
        measures.mean_at_k([[1]], 0)


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        (["a", "B", "b", "c"], 1),
        (["a", "b", "b", "A"], 0),  # a tie: the earlier one
        ([None, None, "x"], 2),  # what cannot be read has no vote
        ([None], None),
        ([], None),
    ],
)
def test_majority(answers, place):
    assert measures.majority(answers, same) == place


def test_majority_pays_for_the_chosen_answer():
    assert measures.majority_score(["4", "5", "5"], [1.0, 0.0, 0.0], same) == 0.0
    assert measures.majority_score(["4", "5", "4"], [1.0, 0.0, 1.0], same) == 1.0
    assert measures.majority_score([None], [0.0], same) == 0.0
    with pytest.raises(ValueError, match="2 answers have 1 scores"):
        measures.majority_score(["4", "5"], [1.0], same)


def test_chance_normalised():
    assert measures.chance_normalised(0.25, 0.25) == 0
    assert measures.chance_normalised(1.0, 0.25) == 1
    assert measures.chance_normalised(0.625, 0.25) == 0.5
    assert measures.chance_normalised(0.0, 0.5) == -1
    with pytest.raises(ValueError, match="chance is 1"):
        measures.chance_normalised(0.5, 1)


def test_all_of_a_group_must_be_right():
    assert measures.all_right(["p", "q", "p", "q"], [1, 1, 0, 1]) == 0.5
    assert measures.all_right([1, 1, 1], [1, 1, 1]) == 1
    assert math.isnan(measures.all_right([], []))


def test_counting():
    found = measures.counting([3, 5, None, 10], [3, 4, 2, 8])
    assert found["exact"] == 0.25 and found["within_1"] == 0.5 and found["unread"] == 0.25
    assert found["mae"] == pytest.approx(1.0) and found["bias"] == pytest.approx(1.0)
    assert found["rmse"] == pytest.approx(math.sqrt(5 / 3))
    unread = measures.counting([None], [2])
    assert unread["exact"] == 0 and unread["unread"] == 1 and math.isnan(unread["mae"])
    assert all(math.isnan(value) for value in measures.counting([], []).values())


@pytest.mark.parametrize(
    ("given", "truth", "score"),
    [
        (10, 10, 1.0),
        (11, 10, 0.9),  # exactly 1 - 0.9: passes all thresholds but 0.95
        (15, 10, 0.1),
        (16, 10, 0.0),
        (None, 10, 0.0),
        (math.inf, 10, 0.0),
        (0, 0, 1.0),
        (1, 0, 0.0),
        (-10, -10, 1.0),
    ],
)
def test_relative_accuracy(given, truth, score):
    assert measures.relative_accuracy(given, truth) == pytest.approx(score)


def test_mastery_strict_and_loose():
    asked = [
        (True, [True, True]),
        (True, [True, False]),
        (True, [False, False]),
        (False, [True, True, True]),
        (False, [True, False]),
    ]
    strict, loose = measures.mastery(asked), measures.mastery(asked, loose=True)
    assert strict == measures.Mastery(0.2, 0.2, 0.2, 0.4)
    assert loose == measures.Mastery(0.2, 0.2, 0.4, 0.2)
    assert strict.score == pytest.approx(0.3) and loose.score == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no steps"):
        measures.mastery([(True, [])])


def test_error_split_adds_up_to_the_error_rate():
    right = [True, True, False, False, False, False]
    seen = [True, False, True, False, False, None]
    split = measures.error_split(right, seen)
    assert split["perception"] == pytest.approx(2 / 6)
    assert split["reasoning"] == split["unjudged"] == split["lucky"] == pytest.approx(1 / 6)
    wrong = split["perception"] + split["reasoning"] + split["unjudged"]
    assert wrong == pytest.approx(4 / 6)


def test_blind_split_adds_up_to_one():
    split = measures.blind_split([True, True, False, False], [False, True, True, False])
    assert split == dict.fromkeys(("needs_picture", "guessable", "misled", "lost"), 0.25)


def test_blind_gap_is_paired_by_question():
    scores = {f"q{n}": 1.0 for n in range(8)}
    blind = {f"q{n}": float(n < 2) for n in range(8)} | {"other": 1.0}
    gap = measures.blind_gap(scores, blind)
    assert gap.questions == 8 and gap.difference == 0.75
    assert gap.low > 0.2 and gap.p == pytest.approx(2 / 2**6)
    assert measures.blind_gap(scores, {"other": 1.0}) is None


def test_rac_counts_only_what_was_judged():
    assert measures.rac([True, False, None, True]) == {
        "rac": pytest.approx(2 / 3),
        "judged": 0.75,
    }
    assert math.isnan(measures.rac([None])["rac"])


def test_by_name():
    assert measures.by_name(["b", "a", "b"], [1, 1, 0]) == {"b": 0.5, "a": 1.0}


def test_referring():
    truth = [0, 0, 10, 10]
    pairs = [
        ([0, 0, 10, 10], truth),
        ([0, 0, 10, 5], truth),
        ([0, 0, 10, 4], truth),
        ([], truth),
    ]
    assert referring(pairs) == 0.5
    assert referring([([[0, 0, 10, 10], [0, 0, 1, 1]], truth)]) == 0  # two boxes for one thing
    assert math.isnan(referring([]))
    with pytest.raises(ValueError, match="4 numbers"):
        referring([([1, 2, 3], truth)])


def test_detection_matches_one_to_one():
    box, other = [0, 0, 10, 10], [20, 20, 30, 30]
    found = detection([([box, box], [box, other]), ([], [box]), ([other], [])])
    assert found == pytest.approx(dict.fromkeys(("precision", "recall", "f1"), 1 / 3))
    assert math.isnan(detection([([], [])])["f1"])


def test_pointing_takes_each_target_once():
    mask = np.zeros((4, 6), dtype=bool)
    mask[1, 5] = True
    assert pointing([[[5.9, 1.2]]], [[mask]])["f1"] == 1
    assert (
        pointing([[[1, 5]]], [[mask]])["f1"] == 0
    )  # x is the column; outside of the mask is a miss
    twice = pointing([[[1, 1], [2, 2]]], [[[0, 0, 3, 3], [50, 50, 60, 60]]])
    assert twice == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    with pytest.raises(ValueError, match="box"):
        pointing([[[1, 1]]], [[np.zeros((1, 2, 3))]])


def test_thresholds_of_relative_accuracy():
    steps = [b - a for a, b in pairwise(measures.RELATIVE_THRESHOLDS)]
    assert len(measures.RELATIVE_THRESHOLDS) == 10 and np.allclose(steps, 0.05)
