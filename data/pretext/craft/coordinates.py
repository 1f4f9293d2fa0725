"""Coordinates in questions, and exact plane geometry.

Answers give x and y on a grid from 0 (left, top) to `SCALE` (right, bottom) of the named picture, whatever its pixels:
models disagree about pixels after resizing, not about shares. Homographies are 3×3 matrices that map output pixel
coordinates to source pixel coordinates, the direction in which pictures are warped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmrl.data.pretext.contract import Array

SCALE = 1000
RULE = f"x and y run from 0 (left, top) to {SCALE} (right, bottom)"


def scaled_point(point: Sequence[float], width: int, height: int) -> list[int]:
    """[x, y] on the answer grid."""
    return [_clamped(point[0] / width), _clamped(point[1] / height)]


def scaled_box(box: Sequence[float], width: int, height: int) -> list[int]:
    """[x0, y0, x1, y1] on the answer grid."""
    first = scaled_point(box[:2], width, height)
    second = scaled_point(box[2:], width, height)
    return [*first, *second]


def is_box(values: Sequence[float]) -> bool:
    """Four numbers on the grid with positive width and height."""
    return (
        len(values) == 4
        and 0 <= values[0] < values[2] <= SCALE
        and 0 <= values[1] < values[3] <= SCALE
    )


def homography(source: Array, target: Array) -> Array:
    """The 3×3 matrix that maps four points `source` [4, 2] to `target` [4, 2]."""
    rows, values = [], []
    # Two linear equations per point, in the eight entries of a matrix whose last entry is 1.
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
        values += [u, v]
    entries = np.linalg.solve(np.asarray(rows, dtype=np.float64), np.asarray(values))
    return np.append(entries, 1.0).reshape(3, 3)


def project(matrix: Array, points: Array) -> Array:
    """[N, 2] points through a homography."""
    ones = np.ones((len(points), 1))
    homogeneous = np.concatenate([points, ones], axis=1) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def warp(picture: Array, matrix: Array, width: int, height: int) -> Array:
    """The picture seen through `matrix` (output to source), bilinear. Every output pixel must have a source."""
    flat = [float(value) for value in (matrix / matrix[2, 2]).reshape(-1)]
    image = Image.fromarray(np.ascontiguousarray(picture))
    # Without perspective Pillow's affine path gives the same view, much quicker.
    if flat[6] == flat[7] == 0.0:
        kind, numbers = Image.Transform.AFFINE, flat[:6]
    else:
        kind, numbers = Image.Transform.PERSPECTIVE, flat[:8]
    view = image.transform((width, height), kind, numbers, Image.Resampling.BILINEAR)
    return np.asarray(view)


def corners(width: float, height: float) -> Array:
    """The four corners of a rectangle at the origin, clockwise from the top left. [4, 2]"""
    top_left, top_right = [0.0, 0.0], [width, 0.0]
    bottom_right, bottom_left = [width, height], [0.0, height]
    return np.array([top_left, top_right, bottom_right, bottom_left])


def _clamped(share: float) -> int:
    place = round(share * SCALE)
    return int(min(max(place, 0), SCALE))
