"""Overlap, matching, average precision and coordinate spaces."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.perception.boxes import (
    Canvas,
    Detections,
    areas,
    best_matching,
    canvas_of,
    convert,
    family_space,
    giou,
    inside,
    iou,
    mean_average_precision,
    mean_distance,
    point_distance,
)

corner = st.integers(0, 12)
any_box = st.tuples(corner, corner, corner, corner)
CANVAS = Canvas((800, 400), (560, 280))


def pixels(box, inclusive):
    """The pixels of a box, counted one by one."""
    more = 1 if inclusive else 0
    return set(itertools.product(range(box[0], box[2] + more), range(box[1], box[3] + more)))


@settings(max_examples=100, deadline=None)
@given(first=any_box, second=any_box, inclusive=st.booleans())
def test_iou_counts_pixels(first, second, inclusive):
    convention = "inclusive" if inclusive else "half_open"
    one, two = pixels(first, inclusive), pixels(second, inclusive)
    assert areas([first], convention)[0] == len(one)
    union = len(one | two)
    expected = len(one & two) / union if union else 0.0
    assert iou([first], [second], convention)[0, 0] == pytest.approx(expected)
    assert iou([second], [first], convention)[0, 0] == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(first=any_box, second=any_box)
def test_giou_is_at_most_iou_and_falls_with_distance(first, second):
    overlap, general = iou([first], [second])[0, 0], giou([first], [second])[0, 0]
    assert -1.0 <= general <= overlap
    solid = all(box[0] < box[2] and box[1] < box[3] for box in (first, second))
    assert solid or general == -1.0
    if solid:
        far = [value + 100 for value in second]
        farther = [value + 200 for value in second]
        assert giou([first], [first])[0, 0] == 1.0
        assert giou([first], [farther])[0, 0] < giou([first], [far])[0, 0] < 0.0


def test_giou_by_hand():
    # union 8, hull 4 x 3 = 12 of boxes 2x2 at (0, 0) and 2x2 at (2, 1): no overlap
    assert giou([[0, 0, 2, 2]], [[2, 1, 4, 3]])[0, 0] == pytest.approx(-(12 - 8) / 12)


def test_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="'half_open' or 'inclusive'"):
        iou([[0, 0, 1, 1]], [[0, 0, 1, 1]], "closed")  # type: ignore[arg-type]


def test_distances_and_inside():
    assert mean_distance([[0, 0, 4, 4]], [[1, 1, 4, 8]])[0, 0] == 1.5
    assert point_distance([[0, 0], [3, 0]], [[3, 4]]).tolist() == [[5.0], [4.0]]
    assert inside([[0, 0], [5, 1]], [[0, 0, 2, 2], [0, 0, 4, 4]]).tolist() == [True, False]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_matching_is_the_best_of_all(rows, columns, seed):
    score = np.random.default_rng(seed).random((rows, columns))
    pairs = best_matching(score)
    assert (
        len(pairs)
        == min(rows, columns)
        == len({r for r, _ in pairs})
        == len({c for _, c in pairs})
    )
    wide = score if rows <= columns else score.T
    best = max(
        sum(wide[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert sum(score[pair] for pair in pairs) == pytest.approx(best)


def detections(*entries, scores=None):
    boxes = np.array([box for box, _ in entries], dtype=float).reshape(-1, 4)
    return Detections(boxes, tuple(label for _, label in entries), scores)


def test_average_precision_by_hand():
    truth = detections(([0, 0, 10, 10], "cat"), ([20, 0, 30, 10], "cat"))
    right, other, wrong = (
        ([0, 0, 10, 10], "cat"),
        ([20, 0, 30, 10], "cat"),
        ([50, 50, 60, 60], "cat"),
    )
    assert mean_average_precision(detections(right, other), truth, [0.5]) == pytest.approx(1.0)
    # one of two found: precision 1 up to recall 0.5, that is at 51 of 101 recalls
    assert mean_average_precision(detections(right), truth, [0.5]) == pytest.approx(51 / 101)
    # wrong first: precision 1/2 and 2/3 at recalls 0.5 and 1, made non-increasing from the right: 2/3 everywhere
    assert mean_average_precision(
        detections(wrong, right, other), truth, [0.5]
    ) == pytest.approx(2 / 3)
    assert mean_average_precision(
        detections(wrong, right, other, scores=np.array([0.1, 0.9, 0.8])), truth, [0.5]
    ) == pytest.approx(1.0)


def test_average_precision_over_labels_and_empty_sides():
    truth = detections(([0, 0, 10, 10], "cat"), ([0, 0, 10, 10], "dog"))
    assert mean_average_precision(detections(([0, 0, 10, 10], "cat")), truth) == pytest.approx(
        0.5
    )
    assert mean_average_precision(
        detections(([0, 0, 10, 8], "cat")), detections(([0, 0, 10, 10], "cat"))
    ) == (pytest.approx(0.7))
    assert mean_average_precision(detections(), detections()) == 1.0
    assert mean_average_precision(detections(([0, 0, 1, 1], "cat")), detections()) == 0.0
    assert mean_average_precision(detections(), truth) == 0.0
    with pytest.raises(ValueError, match="labels"):
        Detections(np.zeros((2, 4)), ("cat",))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["original", "resized", "thousand"]),
    st.sampled_from(["original", "resized", "thousand"]),
)
def test_conversion_there_and_back(source, target):
    places = np.array([[0.0, 0.0, 3.5, 250.0], [10.0, 20.0, 300.0, 1000.0]])
    there = convert(places, source, target, CANVAS)
    assert np.allclose(convert(there, target, source, CANVAS), places)
    assert np.allclose(convert(places[:, :2], source, target, CANVAS), there[:, :2])


def test_conversion_by_hand():
    assert convert([560, 280], "resized", "original", CANVAS).tolist() == [800, 400]
    assert convert([400, 100, 800, 400], "original", "thousand", CANVAS).tolist() == [
        500,
        250,
        1000,
        1000,
    ]
    assert convert([1, 2], "original", "original", None).tolist() == [1, 2]


def test_missing_sizes_and_families_are_named():
    with pytest.raises(ValueError, match="resized_size"):
        convert([1, 2], "original", "resized", Canvas((10, 10)))
    with pytest.raises(ValueError, match="Canvas"):
        convert([1, 2], "original", "thousand", None)
    with pytest.raises(ValueError, match="original_size"):
        canvas_of({"width": 3})
    with pytest.raises(
        ValueError, match="no coordinate space is declared for model type 'llava'"
    ):
        family_space("llava")
    assert canvas_of({"original_size": [800, 400], "resized_size": (560, 280)}) == CANVAS
    assert family_space("qwen2_5_vl") == "resized" and family_space("qwen3_vl") == "thousand"
