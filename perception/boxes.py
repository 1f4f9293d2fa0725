"""Boxes and points: overlap, matching, detection precision, and the one place where coordinates change their space.

A box is (x0, y0, x1, y1), a point (x, y). Two conventions for the area of a box are in use and both are offered:
"half_open", width x1 - x0 (pixels x0 ... x1 - 1), and "inclusive", width x1 - x0 + 1 (pixels x0 ... x1; VisionReasoner
and Seg-Zero). Boxes without area overlap with nothing.

Average precision is COCO's for one picture: per label and IoU threshold, predictions in the order of their scores take
the unmatched truth with the largest IoU at or above the threshold; precision is made non-increasing from the right and
read at the 101 recalls 0, 0.01, ..., 1. The mean goes over thresholds and the labels of the truth.

Coordinate spaces: "original" pixels of the picture as it came, "resized" pixels after the pixel-budget resize (what
Qwen2.5-VL speaks), "thousand", both axes scaled to 0 ... 1000 (Qwen2-VL, Qwen3-VL, InternVL). Which family speaks which
is said by its adapter (`mmrl.model.families`); everything goes through `convert`.

Departure from COCO: boxes of negative area (corners swapped) never match and count as false predictions; COCO's
evaluation ignores them. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmrl.model.families import Space, families

Floats = NDArray[np.float64]
Convention = Literal["half_open", "inclusive"]
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""The IoU thresholds 0.50, 0.55, ..., 0.95."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""Where COCO reads precision."""
MAX_DETECTIONS = 100
"""Predictions per label that COCO looks at."""


@dataclass(frozen=True)
class Canvas:
    """The sizes of one picture."""

    original: tuple[float, float]
    """(width, height) in original pixels."""
    resized: tuple[float, float] | None = None
    """(width, height) after the pixel-budget resize, if known."""

    def size(self, space: Space) -> tuple[float, float]:
        """Width and height of the picture in this space."""
        if space == "thousand":
            return 1000.0, 1000.0
        if space == "original":
            return self.original
        if self.resized is None:
            raise ValueError(
                "coordinates in 'resized' pixels need the size after the resize; give Canvas(resized=(width, height)) "
                "or put 'resized_size' into the row."
            )
        return self.resized


def canvas_of(extra: Mapping[str, Any]) -> Canvas:
    """The canvas of a row from its columns `original_size` and `resized_size`, each (width, height)."""
    if "original_size" not in extra:
        raise ValueError(
            "the row has no column 'original_size' (width, height), which coordinate spaces need; "
            f"it has {sorted(extra)}."
        )
    original = _pair(extra["original_size"])
    resized = extra.get("resized_size")
    return Canvas(original, None if resized is None else _pair(resized))


def _pair(size: Any) -> tuple[float, float]:
    width, height = size
    return float(width), float(height)


def family_space(model_type: str) -> Space:
    """The space in which a model family speaks of places."""
    known: dict[str, Space] = {
        name: family.space for name, family in families().items() if family.space
    }
    if model_type not in known:
        raise ValueError(
            f"no coordinate space is declared for model type {model_type!r}, only for {sorted(known)}; "
            "name the space yourself: 'original', 'resized' or 'thousand'."
        )
    return known[model_type]


def convert(places: ArrayLike, source: Space, target: Space, canvas: Canvas | None) -> Floats:
    """Carry boxes [..., 4] or points [..., 2], x before y, from one space to another; no rounding, no clipping."""
    array = np.asarray(places, dtype=np.float64)
    if source == target:
        return array
    if canvas is None:
        raise ValueError(
            f"going from {source!r} to {target!r} coordinates needs the sizes of the picture (Canvas)."
        )
    scale = np.divide(canvas.size(target), canvas.size(source))  # (x, y)
    pairs = array.shape[-1] // 2  # a box is two points
    return array * np.tile(scale, pairs)


def areas(boxes: ArrayLike, convention: Convention = "half_open") -> Floats:
    """Area of each box [N, 4] -> [N]; 0 if a side is not positive."""
    frames = _as_boxes(boxes)
    sides = frames[:, 2:] - frames[:, :2] + _extra(convention)  # [N, 2]
    # Both sides negative would have a positive product.
    solid = (sides > 0).all(1)
    return np.where(solid, sides.prod(1), 0.0)


def iou(first: ArrayLike, second: ArrayLike, convention: Convention = "half_open") -> Floats:
    """Intersection over union of boxes [M, 4] and [N, 4] -> [M, N]; 0 where a box has no area."""
    shared, union = _shared_and_union(first, second, convention)
    zeros = np.zeros_like(shared)
    return np.divide(shared, union, out=zeros, where=union > 0)


def giou(first: ArrayLike, second: ArrayLike, convention: Convention = "half_open") -> Floats:
    """Generalised IoU, IoU - (hull - union) / hull, in (-1, 1]; -1 where a box has no area. -> [M, N]"""
    shared, union = _shared_and_union(first, second, convention)
    a, b = _crossed(first, second)
    far = np.maximum(a[..., 2:], b[..., 2:])
    near = np.minimum(a[..., :2], b[..., :2])
    hull = (far - near + _extra(convention)).prod(-1)  # [M, N]
    solid_first = areas(first, convention) > 0
    solid_second = areas(second, convention) > 0
    solid = solid_first[:, None] & solid_second[None]
    # Replaced before the division: np.where computes both branches.
    safe_union = np.where(solid, union, 1.0)
    safe_hull = np.where(solid, hull, 1.0)
    emptiness = (safe_hull - safe_union) / safe_hull
    return np.where(solid, shared / safe_union - emptiness, -1.0)


def mean_distance(first: ArrayLike, second: ArrayLike) -> Floats:
    """Mean absolute difference of the four numbers of boxes [M, 4] and [N, 4] -> [M, N]."""
    a, b = _crossed(first, second)
    return np.abs(a - b).mean(-1)


def point_distance(first: ArrayLike, second: ArrayLike) -> Floats:
    """Euclidean distance of points [M, 2] and [N, 2] -> [M, N]."""
    a = _as_points(first)[:, None]  # [M, 1, 2]
    b = _as_points(second)[None]  # [1, N, 2]
    return np.sqrt(((a - b) ** 2).sum(-1))


def inside(points: ArrayLike, boxes: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point [N, 2] lies in its own box [N, 4], border included -> [N]."""
    at = _as_points(points)
    frames = _as_boxes(boxes)
    behind_start = (at >= frames[:, :2]).all(1)
    before_end = (at <= frames[:, 2:]).all(1)
    return np.logical_and(behind_start, before_end)


def best_matching(score: ArrayLike) -> list[tuple[int, int]]:
    """The one-to-one pairs (row, column) of a score matrix [M, N] with the largest total score."""
    from scipy.optimize import linear_sum_assignment

    matrix = np.asarray(score, dtype=np.float64)
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


@dataclass(frozen=True)
class Detections:
    """Labelled boxes of one picture."""

    boxes: Floats
    """float [N, 4]."""
    labels: tuple[str, ...]
    """N names."""
    scores: Floats | None = None
    """float [N]; None: all alike, in the given order."""

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.labels), 4):
            raise ValueError(
                f"Detections have boxes {self.boxes.shape} for {len(self.labels)} labels; give [N, 4] for N."
            )


def mean_average_precision(
    predicted: Detections, truth: Detections, thresholds: Sequence[float] = COCO_THRESHOLDS
) -> float:
    """COCO's mAP of one picture over the labels of the truth, in [0, 1]; both empty -> 1, truth alone empty -> 0."""
    if not truth.labels:
        return float(not predicted.labels)
    values = [
        _label_precision(predicted, truth, label, thresholds)
        for label in dict.fromkeys(truth.labels)
    ]
    return float(np.mean(values))


def _label_precision(
    predicted: Detections, truth: Detections, label: str, thresholds: Sequence[float]
) -> float:
    """Average precision of one label, averaged over the thresholds."""
    mine = np.flatnonzero([name == label for name in predicted.labels])
    if predicted.scores is not None:
        # Stable, so that equal scores keep the order of the answer.
        order = np.argsort(-predicted.scores[mine], kind="stable")
        mine = mine[order]
    mine = mine[:MAX_DETECTIONS]
    wanted = truth.boxes[[name == label for name in truth.labels]]
    overlap = iou(predicted.boxes[mine], wanted)
    precisions: list[float] = []
    for threshold in thresholds:
        hits = _hits(overlap, threshold)
        precisions.append(_interpolated_precision(hits, len(wanted)))
    return float(np.mean(precisions))


def _hits(overlap: Floats, threshold: float) -> NDArray[np.bool_]:
    """Which predictions, taken in order, find a free truth at or above the threshold. [M, N] -> [M]."""
    free = np.ones(overlap.shape[1], dtype=bool)
    hits = np.zeros(overlap.shape[0], dtype=bool)
    for row, values in enumerate(overlap):
        allowed = np.where(free, values, -1.0)
        # Of equal overlaps the last wins, as in COCO's loop.
        best = allowed.size - 1 - int(np.argmax(allowed[::-1]))
        # COCO starts its search a hair below 1, so that a threshold of 1 can be met.
        if allowed[best] >= min(threshold, 1.0 - 1e-10):
            hits[row], free[best] = True, False
    return hits


def _interpolated_precision(hits: NDArray[np.bool_], wanted: int) -> float:
    """Mean over the 101 recalls of the best precision at that recall or a higher one."""
    if not hits.size:
        return 0.0
    found = np.cumsum(hits)
    precision = found / np.arange(1, hits.size + 1)
    # From the right: precision at a recall is the best at that recall or any higher one.
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / wanted, RECALLS, side="left")  # [101]
    # Recalls that are never reached have precision 0.
    last = hits.size - 1
    read = np.where(at <= last, best[np.minimum(at, last)], 0.0)
    return float(read.mean())


def _as_boxes(boxes: ArrayLike) -> Floats:
    """Boxes as float [N, 4], also for an empty list."""
    array = np.asarray(boxes, dtype=np.float64)
    return array.reshape(-1, 4)


def _as_points(points: ArrayLike) -> Floats:
    """Points as float [N, 2], also for an empty list."""
    array = np.asarray(points, dtype=np.float64)
    return array.reshape(-1, 2)


def _crossed(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Boxes as [M, 1, 4] and [1, N, 4], so that an operation on both gives every pair."""
    return _as_boxes(first)[:, None], _as_boxes(second)[None]


def _extra(convention: Convention) -> float:
    """What a side is longer than the difference of its ends."""
    if convention not in ("half_open", "inclusive"):
        raise ValueError(
            f"the box convention is {convention!r}; it must be 'half_open' or 'inclusive'."
        )
    return 1.0 if convention == "inclusive" else 0.0


def _shared_and_union(
    first: ArrayLike, second: ArrayLike, convention: Convention
) -> tuple[Floats, Floats]:
    """Areas of intersection and union, each [M, N]; no intersection where a box has no area."""
    a, b = _crossed(first, second)
    end = np.minimum(a[..., 2:], b[..., 2:])
    start = np.maximum(a[..., :2], b[..., :2])
    sides = end - start + _extra(convention)  # [M, N, 2]
    meet = (sides > 0).all(-1)
    shared = np.where(meet, sides.prod(-1), 0.0)
    both = areas(first, convention)[:, None] + areas(second, convention)[None]
    return shared, both - shared
