"""Rewards of VisionReasoner and Seg-Zero as in the official code (dvlab-research/Seg-Zero). ViSurf trains with them.

VisionReasoner, 0 to 7: thinking format 1, answer format 0 to 2, accuracy 0 to 3, non-repetition 1. The answer is a JSON
list of {"bbox_2d": [x0, y0, x1, y1], "point_2d": [x, y]} in `<answer>`. A pair of prediction and label earns one each
for IoU > 0.5, mean absolute difference of the box < 10, and point distance < 30 with the point inside its own box; the
best one-to-one matching is summed and divided by the larger count.

Seg-Zero, 0 to 5, each part 0 or 1: thinking format, answer format, IoU > 0.5, box difference < 10, and both points in
the box with a mean distance < 100 to the labelled points in the better order. The "strict" form wants the keys
`bbox`, `points_1`, `points_2`; the plain form takes any keys that contain "bbox" and "point".

Oddities kept on purpose (closed in `mmrl.perception.rewards`):
1. Boxes count inclusive pixels (+1), also where corners are swapped.
2. One unreadable object voids the accuracy of the whole answer, and two empty lists earn none.
3. Objects beyond the 120th are not looked at, on either side.
4. Non-repetition splits at every full stop and forgives one repeated sentence.
5. In Seg-Zero's plain form the format part accepts keys with "point", the point part only those with "points".
6. Seg-Zero's JSON may stand anywhere in the response: the first braces count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mmrl.perception.boxes import Floats, best_matching, inside, mean_distance, point_distance

MAX_OBJECTS = 120
_LAYOUT = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_ANSWER = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
_OBJECT = re.compile(r"{[^}]+}")
_TRUE_BOX = re.compile(r"<box>\((\d+),(\d+)\),\((\d+),(\d+)\)</box>")
_TRUE_POINTS = re.compile(r"<points>\((\d+),(\d+)\),\((\d+),(\d+)\)</points>")
_STRICT_POINTS = ("points_1", "points_2")
# Whatever Python raises on the way through a value that a model wrote.
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def vision_reasoner(response: str, ground_truth: str) -> dict[str, float]:
    """Score an answer: `format` 0 to 3, `accuracy` 0 to 3, `non_repeat` 0 or 1, and their `total`."""
    form = thinking_format(response) + _object_format(response)
    accuracy = object_accuracy(response, ground_truth)
    fresh = non_repeat(response)
    return {
        "format": form,
        "accuracy": accuracy,
        "non_repeat": fresh,
        "total": form + accuracy + fresh,
    }


def seg_zero(response: str, ground_truth: str, *, strict: bool = False) -> dict[str, float]:
    """Score an answer for one object: `think`, `seg_format`, `iou`, `box_l1`, `point_l1` and their `total`."""
    parts = {
        "think": thinking_format(response),
        "seg_format": _single_format(response, strict),
        **_single_accuracy(response, ground_truth, strict),
    }
    return {**parts, "total": sum(parts.values())}


def thinking_format(response: str) -> float:
    """1 if the response is `<think>…</think><answer>…</answer>` with only spaces between, else 0."""
    return float(_LAYOUT.fullmatch(response) is not None)


def non_repeat(response: str) -> float:
    """0 if at least two sentences repeat earlier ones, else 1."""
    stripped = [part.strip() for part in response.split(".")]
    sentences = [sentence for sentence in stripped if sentence]
    repeated = len(sentences) - len(set(sentences))
    return float(repeated < 2)


def object_accuracy(response: str, ground_truth: str) -> float:
    """The matched share of boxes and points, 0 to 3; 0 for an unreadable answer."""
    found = _ANSWER.search(response)
    if found is None:
        return 0.0
    try:
        boxes, points = _objects(json.loads(found.group(1)))
        true_boxes, true_points = _objects(json.loads(ground_truth))
        score = _pair_scores(boxes, points, true_boxes, true_points)
    except _UNREADABLE:
        return 0.0
    matched = sum(score[pair] for pair in best_matching(score))
    return float(matched / max(score.shape))


def _object_format(response: str) -> float:
    """Mean over the objects of [box has 4 entries] + [point has 2 entries], 0 to 2."""
    found = _ANSWER.search(response)
    total = 0.0
    try:
        objects = json.loads(found.group(1)) if found else ()
        for entry in objects:
            shaped = _is_list_of(entry, "bbox_2d", 4) + _is_list_of(entry, "point_2d", 2)
            # Divided at each step, as officially: a sum that is divided at the end rounds differently.
            total += shaped / len(objects)
    except _UNREADABLE:
        pass  # what was counted before the unreadable object stays
    return total


def _is_list_of(entry: Any, key: str, size: int) -> bool:
    return key in entry and isinstance(entry[key], list) and len(entry[key]) == size


def _objects(entries: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
    """Boxes [N, 4] and points [N, 2] of at most 120 objects."""
    # All entries are read before the cut, so that an unreadable 121st object still voids the answer.
    boxes = [entry["bbox_2d"] for entry in entries]
    points = [entry["point_2d"] for entry in entries]
    return _rows_of(boxes, 4), _rows_of(points, 2)


def _rows_of(places: Sequence[Any], size: int) -> Floats:
    """The first 120 places as [N, size]. Raises ValueError for other shapes and for numbers in quotes."""
    array = np.array(places[:MAX_OBJECTS])
    if array.ndim != 2 or array.shape[1] != size or array.dtype.kind in "US":
        raise ValueError(f"objects need {size} numbers")
    return array.astype(np.float64)


def _pair_scores(
    boxes: Floats, points: Floats, true_boxes: Floats, true_points: Floats
) -> Floats:
    """What each pair of prediction and label earns, 0 to 3. [M, N]"""
    first, second = boxes[:, None], true_boxes[None]
    end = np.minimum(first[..., 2:], second[..., 2:])
    start = np.maximum(first[..., :2], second[..., :2])
    shared = np.maximum(end - start + 1, 0).prod(-1)
    area = _inclusive_areas(boxes)[:, None] + _inclusive_areas(true_boxes)[None]
    # Swapped corners may make the union 0, for which NumPy gives an infinity that officially passes the test.
    with np.errstate(divide="ignore", invalid="ignore"):
        overlap = shared / (area - shared)
    own = inside(points, boxes)[:, None]
    near = (point_distance(points, true_points) < 30) & own
    close = mean_distance(boxes, true_boxes) < 10
    return (overlap > 0.5).astype(float) + close + near


def _inclusive_areas(boxes: Floats) -> Floats:
    """(width + 1) · (height + 1) of each box, also where that is negative; [N]."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    return sides.prod(1)


def _single_object(response: str) -> dict[str, Any]:
    """The first JSON object of the response."""
    found = _OBJECT.search(response)
    if found is None:
        raise ValueError("no object")
    return json.loads(found.group(0))


def _single_format(response: str, strict: bool) -> float:
    """1 if the object has a box of four and two points of two entries, else 0."""
    try:
        entry = _single_object(response)
        if strict:
            box_key, point_keys = "bbox", list(_STRICT_POINTS)
            shaped = all(isinstance(entry[key], list) for key in (box_key, *point_keys))
        else:
            box_key = _box_key(entry)
            others = [key for key in entry if key != box_key]
            # "point" here, "points" in the accuracy part: oddity 5.
            point_keys = [key for key in others if "point" in key.lower()][:2]
            shaped = len(point_keys) == 2
        if not shaped or len(entry[box_key]) != 4:
            return 0.0
        return float(all(len(entry[key]) == 2 for key in point_keys))
    except (*_UNREADABLE, StopIteration):
        return 0.0


def _single_accuracy(response: str, ground_truth: str, strict: bool) -> dict[str, float]:
    """The parts iou, box_l1 and point_l1; what a part cannot read costs that part only."""
    tests = {"iou": _overlaps, "box_l1": _box_close, "point_l1": _points_close}
    parts = dict.fromkeys(tests, 0.0)
    for name, test in tests.items():
        # The object is read anew for each part, whose failure is its own.
        try:
            parts[name] = float(test(_single_object(response), ground_truth, strict))
        except (*_UNREADABLE, StopIteration):
            continue
    return parts


def _overlaps(entry: Mapping[str, Any], ground_truth: str, strict: bool) -> bool:
    """IoU > 0.5."""
    truth = _label_numbers(_TRUE_BOX, ground_truth)
    return _inclusive_iou(_single_box(entry, strict), truth) > 0.5


def _box_close(entry: Mapping[str, Any], ground_truth: str, strict: bool) -> bool:
    """Mean absolute difference of the box < 10."""
    truth = _label_numbers(_TRUE_BOX, ground_truth)
    pairs = zip(_single_box(entry, strict), truth, strict=True)
    return sum(abs(one - other) for one, other in pairs) / 4 < 10


def _points_close(entry: Mapping[str, Any], ground_truth: str, strict: bool) -> bool:
    """Both points lie in the predicted box, at a mean distance < 100 from the labelled points."""
    x0, y0, x1, y1 = _single_box(entry, strict)
    keys = [key for key in entry if "points" in key.lower()][:2]
    if strict:
        keys = list(_STRICT_POINTS)
    points: list[tuple[int, int]] = []
    for key in keys:
        x, y = entry[key][0], entry[key][1]
        points.append((int(x), int(y)))  # cut off, not rounded
    if len(points) != 2:
        return False
    for x, y in points:
        if not (x0 <= x <= x1 and y0 <= y <= y1):
            return False
    truth = np.reshape(_label_numbers(_TRUE_POINTS, ground_truth), (2, 2))
    return _swap_distance(points, truth) < 100


def _box_key(entry: Mapping[str, Any]) -> str:
    """The first key that speaks of a box. Raises StopIteration if there is none."""
    return next(key for key in entry if "bbox" in key.lower())


def _single_box(entry: Mapping[str, Any], strict: bool) -> Sequence[float]:
    """The four numbers of the box."""
    box = entry["bbox"] if strict else entry[_box_key(entry)]
    if len(box) != 4:
        raise ValueError("a box has four numbers")
    return box


def _label_numbers(pattern: re.Pattern[str], ground_truth: str) -> list[int]:
    """The four integers of a label."""
    found = pattern.search(ground_truth)
    if found is None:
        raise ValueError("no such label")
    return [int(value) for value in found.groups()]


def _inclusive_iou(box: Sequence[float], other: Sequence[float]) -> float:
    """IoU with inclusive areas; an intersection one pixel wide counts as none."""
    left, right = max(box[0], other[0]), min(box[2], other[2])
    top, bottom = max(box[1], other[1]), min(box[3], other[3])
    shared = 0
    if left < right and top < bottom:
        shared = (right - left + 1) * (bottom - top + 1)
    return shared / (_inclusive_area(box) + _inclusive_area(other) - shared)


def _inclusive_area(box: Sequence[float]) -> float:
    width = box[2] - box[0] + 1
    height = box[3] - box[1] + 1
    return width * height


def _swap_distance(points: ArrayLike, others: ArrayLike) -> float:
    """Mean distance of two pairs of points in the better order."""
    distance = point_distance(points, others)  # [2, 2]
    straight = distance[0, 0] + distance[1, 1]
    crossed = distance[0, 1] + distance[1, 0]
    return float(min(straight, crossed) / 2)
