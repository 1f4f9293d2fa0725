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
    return [*scaled_point(box[:2], width, height), *scaled_point(box[2:], width, height)]


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
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(
        np.linalg.solve(np.asarray(rows, dtype=np.float64), np.asarray(values)), 1.0
    ).reshape(3, 3)


def project(matrix: Array, points: Array) -> Array:
    """[N, 2] points through a homography."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ matrix.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def warp(picture: Array, matrix: Array, width: int, height: int) -> Array:
    """The picture seen through `matrix` (output to source), bilinear. Every output pixel must have a source."""
    flat = [float(value) for value in (matrix / matrix[2, 2]).reshape(-1)]
    image = Image.fromarray(np.ascontiguousarray(picture))
    if flat[6] == flat[7] == 0.0:
        kind, numbers = Image.Transform.AFFINE, flat[:6]
    else:
        kind, numbers = Image.Transform.PERSPECTIVE, flat[:8]
    return np.asarray(
        image.transform((width, height), kind, numbers, Image.Resampling.BILINEAR)
    )


def corners(width: float, height: float) -> Array:
    """The four corners of a rectangle at the origin, clockwise from the top left. [4, 2]"""
    return np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])


def _clamped(share: float) -> int:
    return int(min(max(round(share * SCALE), 0), SCALE))
