"""The reward algebra: what a well-formed answer earns, in [0, 1], in closed form.

Every function takes a value that a parser returned and the truth; 1 means exactly right, 0 nothing right. None raises
on any value of its type: NaN, infinity, wrong lengths, non-permutations, duplicates and inverted intervals earn 0.
Lists that should be an order are paid only if they hold exactly the entries of the truth (as a multiset), so constant
answers, extra entries and foreign numbers earn nothing. `sharpen` adds an exponent and a bonus for exact answers.
`reward_arrays` has the same formulas over a batch of answers.

Random levels for K pieces: positional γ/K (up to the exact share), footrule 1 − (K² − 1)/(3⌊K²/2⌋), kendall γ/2.

Departures from the papers' scorers (their exact behaviour is in `compat`):
1. An order must be a permutation of the truth; Visual Jigsaw checks distinctness only, Jigsaw-R1 and SSL4RL nothing.
2. Partial credit of `positional` applies for every K; Visual Jigsaw's code pays it for K > 4 only, its paper for all K.
3. `count_rel` is exactly 0 at a relative error of 1; VideoSSR leaves about 5e-10 there.
4. An identical zero-length interval earns 1 (reward of the truth is always 1); VideoSSR gives it 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

Interval = tuple[float, float]
Box = tuple[float, float, float, float]
Point = tuple[float, float]


def is_permutation(guess: Sequence[Hashable], truth: Sequence[Hashable]) -> bool:
    """Whether the guess holds exactly the entries of the truth, each as often."""
    return len(guess) == len(truth) and Counter(guess) == Counter(truth)


def sharpen(reward: float, power: float = 1.0, bonus: float = 0.0) -> float:
    """(1 − bonus)·reward^power, plus `bonus` if the reward is 1. Keeps [0, 1]; power > 1 pays near misses less."""
    return (1.0 - bonus) * reward**power + (bonus if reward >= 1.0 else 0.0)


def above_chance(reward: float, chance_reward: float) -> float:
    """(r − c)/(1 − c), clipped at 0: tasks with different random levels become comparable before they are mixed."""
    return (
        max(0.0, (reward - chance_reward) / (1.0 - chance_reward))
        if chance_reward < 1.0
        else 0.0
    )


def exact(guess: object, truth: object) -> float:
    """1 if equal, else 0."""
    return float(guess == truth)


def positional(
    guess: Sequence[Hashable], truth: Sequence[Hashable], gamma: float = 1.0
) -> float:
    """1 if all places are right, else γ·(share of right places); Visual Jigsaw γ = 0.2, PuzzleCraft γ = 1."""
    if not is_permutation(guess, truth):
        return 0.0
    right = sum(a == b for a, b in zip(guess, truth, strict=True))
    return 1.0 if right == len(truth) else gamma * right / len(truth)


def footrule(guess: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """1 − Σ_v |place of v in guess − place of v in truth| / ⌊n²/2⌋ (VideoSSR Eq. 7–8). Entries must be distinct."""
    place = {value: index for index, value in enumerate(truth)}
    if len(place) != len(truth) or not is_permutation(guess, truth):
        return 0.0
    worst = len(truth) ** 2 // 2
    moved = sum(abs(index - place[value]) for index, value in enumerate(guess))
    return 1.0 - moved / worst if worst else 1.0


def kendall(guess: Sequence[Hashable], truth: Sequence[Hashable], gamma: float = 1.0) -> float:
    """1 if equal, else γ·(share of pairs in the true order). Entries must be distinct."""
    place = {value: index for index, value in enumerate(truth)}
    if len(place) != len(truth) or not is_permutation(guess, truth):
        return 0.0
    ranks = [place[value] for value in guess]
    pairs = len(ranks) * (len(ranks) - 1) // 2
    good = sum(ranks[i] < ranks[j] for i in range(len(ranks)) for j in range(i + 1, len(ranks)))
    return 1.0 if good == pairs else gamma * good / pairs


def adjacency(
    guess: Sequence[Hashable], truth: Sequence[Hashable], grid: tuple[int, int] | None = None
) -> float:
    """Share of the true neighbour pairs (a directly before b) that the guess keeps. Entries must be distinct.

    `grid` = (rows, columns) reads both as rasters and counts "right of" and "below" pairs, 2mn − m − n of them."""
    rows, columns = grid or (1, len(truth))
    if (
        rows * columns != len(truth)
        or len(set(truth)) != len(truth)
        or not is_permutation(guess, truth)
    ):
        return 0.0
    kept = _neighbours(truth, rows, columns)
    if not kept:
        return 1.0
    return len(kept & _neighbours(guess, rows, columns)) / len(kept)


def interval_iou(guess: Interval, truth: Interval) -> float:
    """Overlap over union of closed intervals; 0 if one ends before it starts."""
    if not (
        _finite(guess) and _finite(truth) and guess[0] <= guess[1] and truth[0] <= truth[1]
    ):
        return 0.0
    if tuple(guess) == tuple(truth):
        return 1.0
    both = max(0.0, min(guess[1], truth[1]) - max(guess[0], truth[0]))
    either = max(guess[1], truth[1]) - min(guess[0], truth[0])
    return both / either if both > 0 else 0.0


def multi_interval_iou(guess: Sequence[Interval], truth: Sequence[Interval]) -> float:
    """Best one-to-one matching by IoU (Hungarian), summed and divided by the larger number of intervals.

    Missing and surplus intervals both cost. Two empty lists are equal: 1."""
    if not guess or not truth:
        return float(len(guess) == len(truth))
    if len(guess) == len(truth) == 1:
        return interval_iou(guess[0], truth[0])
    from scipy.optimize import linear_sum_assignment

    overlap = np.array([[interval_iou(a, b) for b in truth] for a in guess])
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return min(1.0, float(overlap[rows, columns].sum()) / max(len(guess), len(truth)))


def box_iou(guess: Box, truth: Box) -> float:
    """Intersection over union of (x0, y0, x1, y1); 0 for an empty or inverted box."""
    if not (_is_box(guess) and _is_box(truth)):
        return 0.0
    if tuple(guess) == tuple(truth):
        return 1.0
    both, either, _ = _overlap(guess, truth)
    return _unit(both / either)


def box_giou(guess: Box, truth: Box) -> float:
    """(1 + GIoU)/2 with GIoU = IoU − (hull − union)/hull: pays disjoint boxes for coming nearer. 0 for an empty box."""
    if not (_is_box(guess) and _is_box(truth)):
        return 0.0
    if tuple(guess) == tuple(truth):
        return 1.0
    both, either, hull = _overlap(guess, truth)
    return _unit((both / either + either / hull) / 2)


def point_gauss(guess: Point, truth: Point, sigma: float) -> float:
    """exp(−d²/2σ²) with d the distance in the unit of σ."""
    if not (_finite(guess) and _finite(truth) and len(guess) == len(truth) == 2):
        return 0.0
    distance = math.dist(guess, truth) / sigma
    return math.exp(-0.5 * min(distance, 1e3) ** 2)


def count_rel(guess: Sequence[float], truth: Sequence[float]) -> float:
    """Mean over the counts of max(0, 1 − |ŷ − y|/y); where y = 0, 1 for 0 and 0 for anything else.

    A negative count or another number of counts earns 0 altogether."""
    if len(guess) != len(truth) or not truth or not _finite(guess) or min(guess) < 0:
        return 0.0
    parts = [
        1.0 if a == b else max(0.0, 1.0 - abs(a - b) / b) if b else 0.0
        for a, b in zip(guess, truth, strict=True)
    ]
    return sum(parts) / len(parts)


def set_f1(guess: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """F1 of two sets; a guess that repeats an entry earns 0. Two empty sets are equal: 1."""
    chosen, right = set(guess), set(truth)
    if len(chosen) != len(guess):
        return 0.0
    total = len(chosen) + len(right)
    return 2 * len(chosen & right) / total if total else 1.0


def ordinal(guess: float, truth: float, tau: float) -> float:
    """exp(−|guess − truth|/τ) for ranks and levels."""
    if not _finite((guess, truth)):
        return 0.0
    return math.exp(-min(abs(guess - truth) / tau, 700.0))


def angle_circular(guess: float, truth: float, period: float = 360.0) -> float:
    """1 − (shortest way round)/(half a period)."""
    if not _finite((guess, truth)):
        return 0.0
    away = math.fmod(abs(guess - truth), period)
    return _unit(1.0 - min(away, period - away) / (period / 2))


def edit(guess: str, truth: str) -> float:
    """1 − Levenshtein distance / length of the longer text. Two empty texts are equal: 1."""
    longer = max(len(guess), len(truth))
    return 1.0 - edit_distance(guess, truth) / longer if longer else 1.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance, bit-parallel over the shorter text (Myers 1999; Hyyrö 2003): linear in the longer one."""
    if len(first) > len(second):
        first, second = second, first
    if not first:
        return len(second)
    full, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    where: dict[str, int] = {}
    for index, letter in enumerate(first):
        where[letter] = where.get(letter, 0) | 1 << index
    up, down, distance = full, 0, len(first)
    for letter in second:
        match = where.get(letter, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        plus, minus = down | (full & ~(diagonal | up)), up & diagonal
        distance += bool(plus & last) - bool(minus & last)
        plus, minus = (plus << 1 | 1) & full, (minus << 1) & full
        up, down = minus | (full & ~(diagonal | plus)), plus & diagonal
    return distance


def render_similarity(guess: np.ndarray, truth: np.ndarray) -> float:
    """max(0, 1 − MAE(guess, truth)/MAE(blank, truth)); blank is the truth's own median colour, so that an empty
    drawing earns 0. Both uint8 [H, W, 3]; another shape earns 0."""
    if guess.shape != truth.shape or truth.ndim != 3 or not truth.size:
        return 0.0
    drawn, wanted = guess.astype(np.float64), truth.astype(np.float64)
    error = float(np.abs(drawn - wanted).mean())
    blank = float(np.abs(np.median(wanted, axis=(0, 1)) - wanted).mean())
    if error == 0.0:
        return 1.0
    return max(0.0, 1.0 - error / blank) if blank > 0 else 0.0


def _neighbours(
    order: Sequence[Hashable], rows: int, columns: int
) -> set[tuple[Hashable, Hashable, str]]:
    """Pairs (left, right, "h") and (upper, lower, "v") of a raster."""
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    across = {
        (order[r * columns + c], order[r * columns + c + 1], "h")
        for r, c in cells
        if c + 1 < columns
    }
    return across | {
        (order[r * columns + c], order[(r + 1) * columns + c], "v")
        for r, c in cells
        if r + 1 < rows
    }


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _is_box(box: Sequence[float]) -> bool:
    return len(box) == 4 and _finite(box) and box[0] < box[2] and box[1] < box[3]


def _overlap(first: Box, second: Box) -> tuple[float, float, float]:
    """Areas of intersection, union and hull, in units of the hull's larger side (no overflow for huge boxes)."""
    x0, y0, x1, y1 = (
        min(first[0], second[0]),
        min(first[1], second[1]),
        max(first[2], second[2]),
        max(first[3], second[3]),
    )
    width, height = x1 - x0, y1 - y0
    if not (math.isfinite(width) and math.isfinite(height)):
        return 0.0, 1e-300, 1.0
    a, b = (
        ((box[2] - box[0]) / width) * ((box[3] - box[1]) / height) for box in (first, second)
    )
    across = max(0.0, min(first[2], second[2]) - max(first[0], second[0])) / width
    down = max(0.0, min(first[3], second[3]) - max(first[1], second[1])) / height
    both = across * down
    return both, max(a + b - both, 1e-300), 1.0


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
