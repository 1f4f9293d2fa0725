"""How well boxes and points were found, over many pictures. All shares lie in [0, 1], nan where there is nothing.

referring   share of expressions whose one box has IoU ≥ the threshold with the truth (RefCOCO: 0.5)
detection   precision, recall and F1 of one-to-one matched boxes; mAP of one picture is in `boxes`
pointing    a point counts if it lies in a box or on a mask that no other point has taken
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.perception.boxes import best_matching, iou

Pairs = Sequence[tuple[ArrayLike, ArrayLike]]
"""(what was given, the truth) of every picture."""


def referring(pairs: Pairs, threshold: float = 0.5) -> float:
    """Share of (box, true box) [4] whose IoU is at least the threshold; an empty list as box is a miss."""
    overlaps = []
    for given, truth in pairs:
        box = _rows(given, 4)
        # Two boxes for one thing are no answer.
        overlap = iou(box, _rows(truth, 4))[0, 0] if len(box) == 1 else 0.0
        overlaps.append(overlap >= threshold)
    return float(np.mean(overlaps)) if overlaps else math.nan


def detection(pairs: Pairs, threshold: float = 0.5) -> dict[str, float]:
    """`precision`, `recall`, `f1` of (boxes [M, 4], true boxes [N, 4]), counted over all pictures."""
    hits = given = wanted = 0
    for boxes, truth in pairs:
        found, expected = _rows(boxes, 4), _rows(truth, 4)
        given, wanted = given + len(found), wanted + len(expected)
        if len(found) and len(expected):
            close = iou(found, expected) >= threshold
            hits += _matched(close)
    return _shares(hits, given, wanted)


def pointing(
    points: Sequence[ArrayLike], targets: Sequence[Sequence[ArrayLike]]
) -> dict[str, float]:
    """`precision`, `recall`, `f1` of points [M, 2], x before y, against the targets of each picture.

    A target is a box [4], its border included, or a mask bool [H, W], where a point lies on the pixel it falls into.
    """
    hits = given = wanted = 0
    for places, wished in zip(points, targets, strict=True):
        found = _rows(places, 2)
        given, wanted = given + len(found), wanted + len(wished)
        if len(found) and len(wished):
            columns = [_lies_on(found, target) for target in wished]
            hits += _matched(np.stack(columns, axis=1))
    return _shares(hits, given, wanted)


def _matched(close: NDArray[np.bool_]) -> int:
    """The most one-to-one pairs among those allowed [M, N]."""
    return sum(bool(close[row, column]) for row, column in best_matching(close))


def _lies_on(points: NDArray[np.float64], target: ArrayLike) -> NDArray[np.bool_]:
    """Which points [M, 2] lie on a box or mask -> [M]."""
    shape = np.asarray(target)
    if shape.ndim == 1:
        low, high = _rows(shape, 4)[0].reshape(2, 2)
        return np.logical_and((points >= low).all(1), (points <= high).all(1))
    if shape.ndim != 2:
        raise ValueError(f"A target has shape {shape.shape}; give a box [4] or a mask [H, W].")
    height, width = shape.shape
    column, row = np.floor(points).astype(int).T
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    on = np.zeros(len(points), dtype=bool)
    on[inside] = shape[row[inside], column[inside]].astype(bool)
    return on


def _rows(values: ArrayLike, size: int) -> NDArray[np.float64]:
    """[..., size] -> [N, size]; an empty list is none. Raises ValueError for another shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.size and array.shape[-1] != size:
        raise ValueError(f"Got shape {array.shape}; the last axis holds {size} numbers.")
    return array.reshape(-1, size)


def _shares(hits: int, given: int, wanted: int) -> dict[str, float]:
    return {
        "precision": hits / given if given else math.nan,
        "recall": hits / wanted if wanted else math.nan,
        "f1": 2 * hits / (given + wanted) if given + wanted else math.nan,
    }
