"""Permutation, interval, box and count rewards over a batch: answers [B, …] and one truth -> float64 [B].

Same formulas as `rewards` (tests compare them), used where many answers are paid at once: chance levels by enumeration
or simulation, auditors, and searches over all orders.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray


def all_orders(n: int) -> Array:
    """int64 [n!, n]: every permutation of 1..n in lexicographic order, for n ≤ 9."""
    if not 1 <= n <= 9:
        raise ValueError(
            f"all_orders lists n! rows, n = {n}; it is meant for 1 ≤ n ≤ 9. Draw a random sample instead."
        )
    return np.array(list(permutations(range(1, n + 1))), dtype=np.int64)


def valid(guesses: ArrayLike, truth: ArrayLike) -> Array:
    """bool [B]: which rows are permutations of the truth (as multisets)."""
    orders, right = np.asarray(guesses), np.asarray(truth)
    return (np.sort(orders, axis=1) == np.sort(right)).all(axis=1)


def positional(guesses: ArrayLike, truth: ArrayLike, gamma: float = 1.0) -> Array:
    """Share of right places times γ; 1 where all are right."""
    share = (np.asarray(guesses) == np.asarray(truth)).mean(axis=1)
    return np.where(share == 1.0, 1.0, gamma * share) * valid(guesses, truth)


def footrule(guesses: ArrayLike, truth: ArrayLike) -> Array:
    """1 − footrule/⌊n²/2⌋."""
    places, good = _places(guesses, truth)
    n = places.shape[1]
    moved = np.abs(places - np.arange(n)).sum(axis=1)
    return np.where(good, 1.0 - moved / max(n * n // 2, 1), 0.0)


def kendall(guesses: ArrayLike, truth: ArrayLike, gamma: float = 1.0) -> Array:
    """γ times the share of concordant pairs; 1 where all are."""
    places, good = _places(guesses, truth)
    left, right = np.triu_indices(places.shape[1], 1)
    share = (
        (places[:, left] < places[:, right]).mean(axis=1) if len(left) else np.ones(len(places))
    )
    return np.where(share == 1.0, 1.0, gamma * share) * good


def count_rel(guesses: ArrayLike, truth: ArrayLike) -> Array:
    """Mean relative count score."""
    counts, right = np.asarray(guesses, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    parts = np.maximum(0.0, 1.0 - np.abs(counts - right) / np.where(right == 0, np.inf, right))
    parts = np.where(right == 0, counts == 0, parts)
    return np.where((counts >= 0).all(axis=1), parts.mean(axis=1), 0.0)


def interval_iou(guesses: ArrayLike, truth: ArrayLike) -> Array:
    """Overlap over union of [B, 2] intervals with one interval."""
    spans, right = np.asarray(guesses, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    both = np.minimum(spans[:, 1], right[1]) - np.maximum(spans[:, 0], right[0])
    either = np.maximum(spans[:, 1], right[1]) - np.minimum(spans[:, 0], right[0])
    overlap = np.where(both > 0, both / np.where(either > 0, either, 1.0), 0.0)
    overlap = np.where((spans == right).all(axis=1), 1.0, overlap)
    return np.where(spans[:, 0] <= spans[:, 1], overlap, 0.0)


def box_iou(guesses: ArrayLike, truth: ArrayLike) -> Array:
    """Intersection over union of [B, 4] boxes with one box."""
    boxes, right = np.asarray(guesses, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    low, high = np.maximum(boxes[:, :2], right[:2]), np.minimum(boxes[:, 2:], right[2:])
    both = np.clip(high - low, 0.0, None).prod(axis=1)
    sides = boxes[:, 2:] - boxes[:, :2]
    either = sides.prod(axis=1) + (right[2:] - right[:2]).prod() - both
    return np.where((sides > 0).all(axis=1), both / np.where(either > 0, either, 1.0), 0.0)


def _places(guesses: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    """int64 [B, n]: the true place of each guessed entry (0 where the row is invalid); bool [B]: valid rows."""
    orders, right = np.asarray(guesses), np.asarray(truth)
    good = valid(orders, right) & (len(np.unique(right)) == len(right))
    sort = np.argsort(right)
    found = np.searchsorted(right, orders, sorter=sort).clip(0, len(right) - 1)
    return np.where(good[:, None], sort[found], 0), good
