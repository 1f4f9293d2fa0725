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
        _check_spaces(self)
        _check_share(self, "iou")
        for name in ("box_distance", "point_distance"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"GroundingReward.{name} is {getattr(self, name)}; it must be positive."
                )

    def __call__(self, rollout: Rollout) -> float:
        truth = _labels(rollout.prompt)
        given = answers.json_answer(rollout.text)
        if not isinstance(given, list):
            return 0.0
        if not truth or not given:
            return float(not truth and not given)
        boxes, points = _places(given, self, rollout.prompt)
        passed = self._passed(boxes, points, *_true_places(truth, rollout.prompt))
        return float(
            sum(passed[pair] for pair in best_matching(passed)) / max(len(given), len(truth))
        )

    def _passed(
        self, boxes: Floats, points: Floats, true_boxes: Floats, true_points: Floats
    ) -> Floats:
        """Share of tests that each pair passes, 0 to 1. Unreadable predictions and missing points are NaN. [M, N]"""
        pointed = np.logical_not(np.isnan(true_points).any(1))[None]  # [1, N]
        with np.errstate(invalid="ignore"):
            own = inside(points, boxes)[:, None]
            tests = [
                iou(boxes, true_boxes) > self.iou,
                mean_distance(boxes, true_boxes) < self.box_distance,
            ]
            near = (point_distance(points, true_points) < self.point_distance) & own & pointed
        return (tests[0].astype(float) + tests[1] + near) / (2.0 + pointed)


def grounding_format(rollout: Rollout) -> float:
    """Share of the answered objects with a readable box (and point, if a label has one); 1 for an empty list."""
    given = answers.json_answer(rollout.text)
    if not isinstance(given, list):
        return 0.0
    wants_point = any("point_2d" in label for label in _labels(rollout.prompt))
    readable = [
        isinstance(entry, Mapping)
        and answers.box_corners(entry.get("bbox_2d")) is not None
        and (not wants_point or answers.finite_numbers(entry.get("point_2d"), 2) is not None)
        for entry in given
    ]
    return sum(readable) / len(readable) if readable else 1.0


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
        _check_spaces(self)

    def __call__(self, rollout: Rollout) -> float:
        truth = _labels(rollout.prompt)
        given = answers.json_answer(rollout.text)
        if not isinstance(given, list):
            return 0.0
        if not truth or not given:
            return float(not truth and not given)
        boxes, _ = _places(given, self, rollout.prompt)
        names = [_name(entry) for entry in given]
        readable = [
            index
            for index in range(len(given))
            if names[index] and not np.isnan(boxes[index]).any()
        ]
        predicted = Detections(boxes[readable], tuple(names[index] for index in readable))
        wanted = Detections(
            _true_places(truth, rollout.prompt)[0],
            tuple(_true_name(x, rollout.prompt) for x in truth),
        )
        thresholds = COCO_THRESHOLDS if self.kind == "map" else (0.5,)
        return mean_average_precision(predicted, wanted, thresholds) * min(
            1.0, len(truth) / len(given)
        )


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
        _check_spaces(self)

    def __call__(self, rollout: Rollout) -> float:
        label = _value(rollout.prompt)
        truth = answers.box_corners(
            label.get("bbox_2d") if isinstance(label, Mapping) else label
        )
        if truth is None:
            raise ValueError(_unreadable(rollout.prompt, "one box [x0, y0, x1, y1]", label))
        given = _single(answers.json_answer(rollout.text), "bbox_2d")
        if (corners := answers.box_corners(given)) is None:
            return 0.0
        seen = _converted([corners], self, rollout.prompt)
        if self.kind == "iou":
            return float(iou(seen, [truth])[0, 0])
        return float((1.0 + giou(seen, [truth])[0, 0]) / 2.0)


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
        _check_spaces(self)
        if self.distance <= 0:
            raise ValueError(f"PointReward.distance is {self.distance}; it must be positive.")

    def __call__(self, rollout: Rollout) -> float:
        truth = _value(rollout.prompt)
        truth = (
            [truth] if answers.finite_numbers(truth, 2) or answers.box_corners(truth) else truth
        )
        given = answers.json_answer(rollout.text)
        given = (
            [given] if answers.finite_numbers(given, 2) or isinstance(given, Mapping) else given
        )
        if not isinstance(truth, list | tuple):
            raise ValueError(_unreadable(rollout.prompt, "a list of points or boxes", truth))
        if not isinstance(given, list):
            return 0.0
        if not truth or not given:
            return float(not truth and not given)
        points = [answers.finite_numbers(_single(entry, "point_2d"), 2) for entry in given]
        seen = _converted([point or [np.nan, np.nan] for point in points], self, rollout.prompt)
        hits = np.stack([self._hits(seen, label, rollout.prompt) for label in truth], axis=1)
        return float(
            sum(hits[pair] for pair in best_matching(hits)) / max(len(given), len(truth))
        )

    def _hits(self, points: Floats, label: Any, prompt: Prompt) -> Floats:
        """Which points are right for this label; NaN never is. [M]"""
        label = (
            label.get("bbox_2d", label.get("point_2d")) if isinstance(label, Mapping) else label
        )
        with np.errstate(invalid="ignore"):
            if (frame := answers.box_corners(label)) is not None:
                return inside(points, [frame] * len(points)).astype(float)
            if (place := answers.finite_numbers(label, 2)) is not None:
                return (point_distance(points, [place])[:, 0] < self.distance).astype(float)
        raise ValueError(_unreadable(prompt, "points [x, y] or boxes [x0, y0, x1, y1]", label))


def yes_no_accuracy(rollout: Rollout) -> float:
    """1 if the final answer has exactly one of the words yes and no, the one of the reference; else 0."""
    expected = {word.lower() for word in _YES_NO.findall(str(rollout.prompt.answer))}
    if len(expected) != 1:
        raise ValueError(_unreadable(rollout.prompt, "yes or no", rollout.prompt.answer))
    return float(
        {word.lower() for word in _YES_NO.findall(final_answer(rollout.text))} == expected
    )


def _value(prompt: Prompt) -> Any:
    """The reference as a Python value, whether it is one or JSON."""
    return (
        answers.strict_json(prompt.answer) if isinstance(prompt.answer, str) else prompt.answer
    )


def _labels(prompt: Prompt) -> list[Mapping[str, Any]]:
    """The labelled objects."""
    value = _value(prompt)
    if not isinstance(value, list | tuple) or not all(
        isinstance(label, Mapping) for label in value
    ):
        raise ValueError(
            _unreadable(
                prompt, 'a list of objects {"bbox_2d": [x0, y0, x1, y1], ...}', prompt.answer
            )
        )
    return list(value)


def _true_places(truth: list[Mapping[str, Any]], prompt: Prompt) -> tuple[Floats, Floats]:
    """Labelled boxes [N, 4] and points [N, 2], NaN where a label has no point."""
    boxes = [answers.box_corners(label.get("bbox_2d")) for label in truth]
    points = [
        answers.finite_numbers(label["point_2d"], 2)
        if "point_2d" in label
        else [np.nan, np.nan]
        for label in truth
    ]
    for label, frame, point in zip(truth, boxes, points, strict=True):
        if frame is None or point is None:
            raise ValueError(
                _unreadable(
                    prompt, '"bbox_2d": [x0, y0, x1, y1] and maybe "point_2d": [x, y]', label
                )
            )
    return np.array(boxes, dtype=np.float64), np.array(points, dtype=np.float64)


def _places(
    given: list[Any], reward: GroundingReward | DetectionReward, prompt: Prompt
) -> tuple[Floats, Floats]:
    """Predicted boxes [M, 4] and points [M, 2] in the space of the labels, NaN where unreadable."""
    entries = [entry if isinstance(entry, Mapping) else {} for entry in given]
    boxes = [answers.box_corners(entry.get("bbox_2d")) or [np.nan] * 4 for entry in entries]
    points = [
        answers.finite_numbers(entry.get("point_2d"), 2) or [np.nan] * 2 for entry in entries
    ]
    return _converted(boxes, reward, prompt), _converted(points, reward, prompt)


def _converted(places: list[list[float]], reward: Any, prompt: Prompt) -> Floats:
    """Predicted places in the space of the labels."""
    canvas = canvas_of(prompt.extra) if reward.predicted != reward.labelled else None
    return convert(places, reward.predicted, reward.labelled, canvas)


def _single(given: Any, key: str) -> Any:
    """The place in a value that may be the place, an object that holds it, or a list of one object."""
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    return given.get(key) if isinstance(given, Mapping) else given


def _name(entry: Any) -> str:
    """The label of a prediction in lower case; empty if there is none."""
    label = entry.get("label") if isinstance(entry, Mapping) else None
    return label.strip().lower() if isinstance(label, str) else ""


def _true_name(label: Mapping[str, Any], prompt: Prompt) -> str:
    """The label of the truth in lower case."""
    if not (name := _name(label)):
        raise ValueError(_unreadable(prompt, 'a "label" in every object', label))
    return name


def _unreadable(prompt: Prompt, wanted: str, found: Any) -> str:
    """What is wrong with a row's reference."""
    return (
        f"prompt {prompt.id!r}: this reward needs {wanted} as reference, found "
        f"{str(found)[:120]!r}; correct the row."
    )


def _check_spaces(reward: Any) -> None:
    """Raise ValueError unless both spaces exist."""
    for name in ("predicted", "labelled"):
        if getattr(reward, name) not in SPACES:
            raise ValueError(
                f"{type(reward).__name__}.{name} is {getattr(reward, name)!r}; it must be one of {', '.join(SPACES)}."
            )


def _check_share(reward: Any, name: str) -> None:
    """Raise ValueError unless a field lies in [0, 1)."""
    if not 0.0 <= getattr(reward, name) < 1.0:
        raise ValueError(
            f"{type(reward).__name__}.{name} is {getattr(reward, name)}; it must lie in [0, 1)."
        )
