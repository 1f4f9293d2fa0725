"""What can be measured in pixels without understanding: borders that continue, jumps, colours, sharpness, JPEG blocks.

The strategies of `shortcut_answers` are made of these. Pictures are uint8 [H, W, 3], clips [F, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, pairwise, permutations

import numpy as np

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.degenerate_checks import thumbnail


def solve_grid(tiles: Sequence[Array], rows: int) -> Array:
    """Place tiles so that the squared differences along touching edges are least: int [K], tile index per place.

    Exchanges of two places from 24 random starts until nothing improves."""
    count = len(tiles)
    rng = np.random.Generator(np.random.Philox(key=1))
    cost = _grid_cost(tiles, rows)
    best, least = np.arange(count), np.inf
    for _ in range(24):
        order, reached = _improved(rng.permutation(count), cost)
        if reached < least:
            best, least = order, reached
    return best


def _grid_cost(tiles: Sequence[Array], rows: int) -> Callable[[Array], Array]:
    """The cost of many orders at once: int [N, K] to float [N]."""
    across, below = edge_costs(tiles)
    grid = np.arange(len(tiles)).reshape(rows, len(tiles) // rows)
    lefts, rights = grid[:, :-1].ravel(), grid[:, 1:].ravel()
    uppers, lowers = grid[:-1].ravel(), grid[1:].ravel()

    def cost(orders: Array) -> Array:
        beside = across[orders[:, lefts], orders[:, rights]].sum(axis=1)
        return beside + below[orders[:, uppers], orders[:, lowers]].sum(axis=1)

    return cost


def _improved(order: Array, cost: Callable[[Array], Array]) -> tuple[Array, float]:
    """The order after the best exchange of two places, again and again, and its cost."""
    count = len(order)
    pairs = np.array(list(combinations(range(count), 2)))
    now = float(cost(order[None])[0])
    while len(pairs):
        # One trial per pair of places, all valued in one call.
        trials = np.repeat(order[None], len(pairs), axis=0)
        each = np.arange(len(pairs))
        trials[each, pairs[:, 0]] = order[pairs[:, 1]]
        trials[each, pairs[:, 1]] = order[pairs[:, 0]]
        costs = cost(trials)
        if float(costs.min()) >= now - 1e-9:
            break
        order, now = trials[int(costs.argmin())], float(costs.min())
    return order, now


def edge_costs(tiles: Sequence[Array]) -> tuple[Array, Array]:
    """[K, K] each: mean squared difference of i's right edge and j's left edge; of i's lower and j's upper edge."""
    stack = np.stack([np.asarray(tile, dtype=np.float32) for tile in tiles])
    right, left = stack[:, :, -1], stack[:, :, 0]
    lower, upper = stack[:, -1], stack[:, 0]
    across = ((right[:, None] - left[None]) ** 2).mean(axis=(2, 3))
    below = ((lower[:, None] - upper[None]) ** 2).mean(axis=(2, 3))
    return across, below


def chained(clips: Sequence[Array]) -> Array:
    """Order clips so that last and first frames agree best: int [K], clip index per place. All orders up to seven."""
    starts = np.stack([thumbnail(clip[0]) for clip in clips]).astype(np.float32)
    ends = np.stack([thumbnail(clip[-1]) for clip in clips]).astype(np.float32)
    # [K, K]: from the end of i to the start of j.
    cost = np.abs(ends[:, None] - starts[None, :]).mean(axis=(2, 3, 4))
    if len(clips) <= 7:
        orders = np.array(list(permutations(range(len(clips)))))
        joins = cost[orders[:, :-1], orders[:, 1:]].sum(axis=1)
        return orders[int(joins.argmin())]
    paths = [_greedy(cost, start) for start in range(len(clips))]
    lengths = [sum(cost[a, b] for a, b in pairwise(path)) for path in paths]
    return np.array(paths[lengths.index(min(lengths))])


def frame_jumps(frames: Array) -> Array:
    """float [F − 1]: mean change between neighbouring frames above the local level."""
    small = np.stack([thumbnail(frame, 24) for frame in frames])
    jumps = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    return jumps - np.median(jumps)


def colours(picture: Array) -> Array:
    """float [24]: eight bins per colour plane."""
    flat = picture.reshape(-1, 3) >> 5
    bins = [np.bincount(flat[:, plane], minlength=8) / len(flat) for plane in range(3)]
    return np.concatenate(bins)


def sharpness(picture: Array) -> float:
    """Mean squared difference of neighbouring pixels, relative to the variance."""
    grey = picture.astype(np.float32).mean(axis=2)
    down, across = np.diff(grey, axis=0), np.diff(grey, axis=1)
    edges = (down**2).mean() + (across**2).mean()
    # The addend keeps a plain picture, without variance, from counting as the sharpest.
    return float(edges / (grey.var() + 1.0))


def blockiness(picture: Array) -> float:
    """How much more neighbouring columns differ at the strongest phase of a period of eight than elsewhere."""
    grey = picture.astype(np.float32).mean(axis=2)
    steps = np.abs(np.diff(grey, axis=1)).mean(axis=0)
    phases = [steps[phase::8].mean() for phase in range(min(8, len(steps)))]
    return float(max(phases) / (np.mean(phases) + 1e-6))


def _greedy(cost: Array, start: int) -> list[int]:
    path, left = [start], set(range(len(cost))) - {start}
    while left:
        here = path[-1]
        path.append(min(left, key=lambda clip: cost[here, clip]))
        left.discard(path[-1])
    return path
