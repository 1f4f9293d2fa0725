"""Rewards for pointing at the right place: boxes, points, detections, referring, yes/no. All in [0, 1].

These are our default forms. They are close to VisionReasoner's and VLM-R1's rewards (in compatible form in
`mmrl.perception.compat`) and close these holes:
1. Two empty lists pay 1 ("there is no such object"), one empty list pays 0. VisionReasoner pays 0 for both.
2. An unreadable object costs itself: it counts as a prediction without match, instead of voiding the whole answer
   (VisionReasoner) or being forgotten (VLM-R1).
3. There is no number of objects beyond which predictions are free; every surplus one lowers the pay (VLM-R1's mAP lets
   duplicates pass).
4. Boxes are half-open and must have an area; corners in the wrong order, NaN, infinities, booleans and numbers in
   quotes are unreadable.
5. The last `<answer>` counts, over several lines and with or without a fence; an answer that is cut off has none.
6. Predictions and labels name their coordinate space, and are compared in the space of the labels.
7. Yes/no wants exactly one of the two words, as words: "know" is no "no", "yes and no" is neither.
8. Overlap of a single pixel counts.

Labels: `prompt.answer` is a list of objects {"bbox_2d": ...,
"point_2d": ..., "label": ...} as Python values or as JSON; for `ReferringReward` one box of four numbers; for
`PointReward` points or boxes. A label that cannot be read raises ValueError: the row is wrong, not the answer.
Conversions need the columns `original_size` and, for Qwen2.5-VL, `resized_size`, each (width, height).

No torch, so that a reward worker stays small.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from mmrl.ground import answers
from mmrl.ground.require import require
from mmrl.perception.boxes import (
    COCO_THRESHOLDS,
    Detections,
    Floats,
    Space,
    best_matching,
    canvas_of,
    convert,
    giou,
    inside,
    iou,
    mean_average_precision,
    mean_distance,
    point_distance,
)
from mmrl.rewards.answers import final_answer

if TYPE_CHECKING:
    from mmrl.types import Prompt, Rollout

SPACES = ("original", "resized", "thousand")
NO_BOX = [np.nan] * 4
NO_POINT = [np.nan] * 2
"""What stands for a place that is missing or unreadable: it never compares as near."""
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class GroundingReward:
    """Boxes and points, matched one to one: the share of tests that the predictions pass (VisionReasoner's accuracy).

    A pair is tested for IoU > `iou`, mean box difference < `box_distance`, and, where the label has a point, point
    distance < `point_distance` with the point inside the predicted box. The mean over the tests is summed over the best
    matching and divided by the larger count.
    """

    predicted: Space = "original"
    """Coordinate space in which the model speaks."""
    labelled: Space = "original"
    """Coordinate space of the labels; distances are measured in it."""
    iou: float = 0.5
    """Overlap that a box must exceed, in [0, 1)."""
    box_distance: float = 10.0
    """Mean absolute difference of the four numbers that a box must stay below."""
    point_distance: float = 30.0
    """Distance that a point must stay below."""

    preload: ClassVar[tuple[str, ...]] = ("scipy.optimize",)

    def __post_init__(self) -> None:
        _require_spaces(self)
        require(
            self,
            iou=(0.0 <= self.iou < 1.0, "in [0, 1)"),
            box_distance=(self.box_distance > 0, "positive"),
            point_distance=(self.point_distance > 0, "positive"),
        )

    def __call__(self, rollout: Rollout) -> float:
        truth = _labels(rollout.prompt)
        given = answers.json_answer(rollout.text)
        if not isinstance(given, list):
            return 0.0
        if not truth or not given:
            return float(not truth and not given)
        boxes, points = _places(given, self, rollout.prompt)
        true_boxes, true_points = _true_places(truth, rollout.prompt)
        passed = self._passed(boxes, points, true_boxes, true_points)
        # The larger count: surplus predictions cost as much as missed objects.
        return _matched(passed) / max(len(given), len(truth))

    def _passed(
        self, boxes: Floats, points: Floats, true_boxes: Floats, true_points: Floats
    ) -> Floats:
        """Share of tests that each pair passes, 0 to 1. Unreadable predictions and missing points are NaN. [M, N]"""
        pointed = np.logical_not(np.isnan(true_points).any(1))[None]  # [1, N]
        # NaN compares as False, so what is unreadable passes no test.
        with np.errstate(invalid="ignore"):
            own = inside(points, boxes)[:, None]  # [M, 1]
            overlap = iou(boxes, true_boxes) > self.iou
            close = mean_distance(boxes, true_boxes) < self.box_distance
            near = point_distance(points, true_points) < self.point_distance
        passed = overlap.astype(float) + close + (near & own & pointed)
        # Two tests, or three where the label has a point.
        return passed / (2.0 + pointed)


def grounding_format(rollout: Rollout) -> float:
    """Share of the answered objects with a readable box (and point, if a label has one); 1 for an empty list."""
    given = answers.json_answer(rollout.text)
    if not isinstance(given, list):
        return 0.0
    wants_point = any("point_2d" in label for label in _labels(rollout.prompt))
    if not given:
        return 1.0
    readable = sum(_is_readable(entry, wants_point) for entry in given)
    return readable / len(given)


@dataclass(frozen=True)
class DetectionReward:
    """Labelled boxes: COCO's mAP of the picture, times labels / predictions where there are more predictions.

    Labels are compared without case and surrounding spaces.
    """

    predicted: Space = "original"
    """Coordinate space in which the model speaks."""
    labelled: Space = "original"
    """Coordinate space of the labels."""
    kind: Literal["map", "ap50"] = "map"
    """Mean over the IoU thresholds 0.50 to 0.95, or 0.50 alone."""

    def __post_init__(self) -> None:
        _require_spaces(self)

    def __call__(self, rollout: Rollout) -> float:
        truth = _labels(rollout.prompt)
        given = answers.json_answer(rollout.text)
        if not isinstance(given, list):
            return 0.0
        if not truth or not given:
            return float(not truth and not given)
        boxes, _ = _places(given, self, rollout.prompt)
        names = [_label_name(entry) for entry in given]
        seen = np.logical_not(np.isnan(boxes).any(1))
        readable = [index for index, name in enumerate(names) if name and seen[index]]
        predicted = Detections(boxes[readable], tuple(names[index] for index in readable))
        true_boxes, _ = _true_places(truth, rollout.prompt)
        true_names = tuple(_true_name(label, rollout.prompt) for label in truth)
        thresholds = COCO_THRESHOLDS if self.kind == "map" else (0.5,)
        precision = mean_average_precision(
            predicted, Detections(true_boxes, true_names), thresholds
        )
        # mAP forgives predictions behind the last right one; this does not. Unreadable ones count here.
        return precision * min(1.0, len(truth) / len(given))


@dataclass(frozen=True)
class ReferringReward:
    """One box: its overlap with the labelled one."""

    predicted: Space = "original"
    """Coordinate space in which the model speaks."""
    labelled: Space = "original"
    """Coordinate space of the label."""
    kind: Literal["iou", "giou"] = "iou"
    """IoU, or (1 + GIoU) / 2, which also tells how far a box without overlap is away."""

    def __post_init__(self) -> None:
        _require_spaces(self)

    def __call__(self, rollout: Rollout) -> float:
        label = _reference(rollout.prompt)
        place = label.get("bbox_2d") if isinstance(label, Mapping) else label
        truth = answers.box_corners(place)
        if truth is None:
            raise ValueError(_unreadable(rollout.prompt, "one box [x0, y0, x1, y1]", label))
        corners = answers.box_corners(_single(answers.json_answer(rollout.text), "bbox_2d"))
        if corners is None:
            return 0.0
        seen = _converted([corners], self, rollout.prompt)  # [1, 4]
        if self.kind == "iou":
            return float(iou(seen, [truth])[0, 0])
        overlap = giou(seen, [truth])[0, 0]  # in (-1, 1]
        return float((1.0 + overlap) / 2.0)


@dataclass(frozen=True)
class PointReward:
    """Points: matched one to one with labels, each right if inside its labelled box or near its labelled point."""

    predicted: Space = "original"
    """Coordinate space in which the model speaks."""
    labelled: Space = "original"
    """Coordinate space of the labels."""
    distance: float = 30.0
    """Distance that a point must stay below where the label is a point."""

    preload: ClassVar[tuple[str, ...]] = ("scipy.optimize",)

    def __post_init__(self) -> None:
        _require_spaces(self)
        require(self, distance=(self.distance > 0, "positive"))

    def __call__(self, rollout: Rollout) -> float:
        truth = _reference(rollout.prompt)
        if answers.finite_numbers(truth, 2) or answers.box_corners(truth):
            truth = [truth]  # one place may stand without a list around it
        given = answers.json_answer(rollout.text)
        if answers.finite_numbers(given, 2) or isinstance(given, Mapping):
            given = [given]
        if not isinstance(truth, list | tuple):
            raise ValueError(_unreadable(rollout.prompt, "a list of points or boxes", truth))
        if not isinstance(given, list):
            return 0.0
        if not truth or not given:
            return float(not truth and not given)
        points: list[list[float]] = []
        for entry in given:
            point = answers.finite_numbers(_single(entry, "point_2d"), 2)
            points.append(point or NO_POINT)
        seen = _converted(points, self, rollout.prompt)  # [M, 2]
        columns = [self._hits(seen, label, rollout.prompt) for label in truth]
        hits = np.stack(columns, axis=1)  # [M, N]
        return _matched(hits) / max(len(given), len(truth))

    def _hits(self, points: Floats, label: Any, prompt: Prompt) -> Floats:
        """Which points are right for this label; NaN never is. [M]"""
        if isinstance(label, Mapping):
            # A box says more than a point: it is how far off a point may be.
            label = label.get("bbox_2d", label.get("point_2d"))
        with np.errstate(invalid="ignore"):
            if (frame := answers.box_corners(label)) is not None:
                return inside(points, [frame] * len(points)).astype(float)
            if (place := answers.finite_numbers(label, 2)) is not None:
                distance = point_distance(points, [place])[:, 0]
                return (distance < self.distance).astype(float)
        raise ValueError(_unreadable(prompt, "points [x, y] or boxes [x0, y0, x1, y1]", label))


def yes_no_accuracy(rollout: Rollout) -> float:
    """1 if the final answer has exactly one of the words yes and no, the one of the reference; else 0."""
    expected = _yes_no_words(str(rollout.prompt.answer))
    if len(expected) != 1:
        raise ValueError(_unreadable(rollout.prompt, "yes or no", rollout.prompt.answer))
    # As sets: an answer that says both words hedges, and is no answer.
    return float(_yes_no_words(final_answer(rollout.text)) == expected)


def _yes_no_words(text: str) -> set[str]:
    return {word.lower() for word in _YES_NO.findall(text)}


def _matched(score: Floats) -> float:
    """Sum of a score matrix [M, N] over the best one-to-one pairs."""
    return float(sum(score[pair] for pair in best_matching(score)))


def _reference(prompt: Prompt) -> Any:
    """The reference as a Python value, whether it is one or JSON."""
    if isinstance(prompt.answer, str):
        return answers.strict_json(prompt.answer)
    return prompt.answer


def _is_readable(entry: Any, wants_point: bool) -> bool:
    """Is it an object with a box, and with a point where one is wanted?"""
    if not isinstance(entry, Mapping) or answers.box_corners(entry.get("bbox_2d")) is None:
        return False
    return not wants_point or answers.finite_numbers(entry.get("point_2d"), 2) is not None


def _labels(prompt: Prompt) -> list[Mapping[str, Any]]:
    """The labelled objects."""
    value = _reference(prompt)
    listed = isinstance(value, list | tuple)
    if not listed or not all(isinstance(label, Mapping) for label in value):
        wanted = 'a list of objects {"bbox_2d": [x0, y0, x1, y1], ...}'
        raise ValueError(_unreadable(prompt, wanted, prompt.answer))
    return list(value)


def _true_places(truth: list[Mapping[str, Any]], prompt: Prompt) -> tuple[Floats, Floats]:
    """Labelled boxes [N, 4] and points [N, 2], NaN where a label has no point."""
    boxes: list[list[float]] = []
    points: list[list[float]] = []
    for label in truth:
        frame = answers.box_corners(label.get("bbox_2d"))
        # A missing point is no fault, one that cannot be read is.
        point = (
            answers.finite_numbers(label["point_2d"], 2) if "point_2d" in label else NO_POINT
        )
        if frame is None or point is None:
            wanted = '"bbox_2d": [x0, y0, x1, y1] and maybe "point_2d": [x, y]'
            raise ValueError(_unreadable(prompt, wanted, label))
        boxes.append(frame)
        points.append(point)
    return np.array(boxes, dtype=np.float64), np.array(points, dtype=np.float64)


def _places(
    given: list[Any], reward: GroundingReward | DetectionReward, prompt: Prompt
) -> tuple[Floats, Floats]:
    """Predicted boxes [M, 4] and points [M, 2] in the space of the labels, NaN where unreadable."""
    boxes: list[list[float]] = []
    points: list[list[float]] = []
    for entry in given:
        place = entry if isinstance(entry, Mapping) else {}
        # NaN keeps the row, so that an unreadable object counts as a prediction.
        boxes.append(answers.box_corners(place.get("bbox_2d")) or NO_BOX)
        points.append(answers.finite_numbers(place.get("point_2d"), 2) or NO_POINT)
    return _converted(boxes, reward, prompt), _converted(points, reward, prompt)


def _converted(places: list[list[float]], reward: Any, prompt: Prompt) -> Floats:
    """Predicted places in the space of the labels."""
    # Rows need sizes only where spaces differ.
    canvas = canvas_of(prompt.extra) if reward.predicted != reward.labelled else None
    return convert(places, reward.predicted, reward.labelled, canvas)


def _single(given: Any, key: str) -> Any:
    """The place in a value that may be the place, an object that holds it, or a list of one object."""
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return given.get(key) if isinstance(given, Mapping) else given


def _label_name(entry: Any) -> str:
    """The label of a prediction in lower case; empty if there is none."""
    label = entry.get("label") if isinstance(entry, Mapping) else None
    return label.strip().lower() if isinstance(label, str) else ""


def _true_name(label: Mapping[str, Any], prompt: Prompt) -> str:
    """The label of the truth in lower case."""
    if not (name := _label_name(label)):
        raise ValueError(_unreadable(prompt, 'a "label" in every object', label))
    return name


def _unreadable(prompt: Prompt, wanted: str, found: Any) -> str:
    """What is wrong with a row's reference."""
    return (
        f"prompt {prompt.id!r}: this reward needs {wanted} as reference, found "
        f"{str(found)[:120]!r}; correct the row."
    )


def _require_spaces(reward: Any) -> None:
    """Raise ValueError unless both spaces exist."""
    rule = f"one of {', '.join(SPACES)}"
    require(
        reward,
        predicted=(reward.predicted in SPACES, rule),
        labelled=(reward.labelled in SPACES, rule),
    )
