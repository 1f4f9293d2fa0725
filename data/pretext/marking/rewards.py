"""The reward algebra: what a well-formed answer earns, in [0, 1], in closed form.

Every function takes a value that a parser returned and the truth; 1 means exactly right, 0 nothing right. None raises
on any value of its type: NaN, infinity, wrong lengths, non-permutations, duplicates and inverted intervals earn 0.
Lists that should be an order are paid only if they hold exactly the entries of the truth (as a multiset), so constant
answers, extra entries and foreign numbers earn nothing. `sharpen` adds an exponent and a bonus for exact answers.
`interval_ious` is the same formula over many intervals, for chance levels by enumeration.

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
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

Interval = tuple[float, float]
Box = tuple[float, float, float, float]


def is_permutation(guess: Sequence[Hashable], truth: Sequence[Hashable]) -> bool:
    """Whether the guess holds exactly the entries of the truth, each as often."""
    return len(guess) == len(truth) and Counter(guess) == Counter(truth)


def sharpen(reward: float, power: float = 1.0, bonus: float = 0.0) -> float:
    """(1 − bonus)·reward^power, plus `bonus` if the reward is 1. Keeps [0, 1]; power > 1 pays near misses less."""
    return (1.0 - bonus) * reward**power + (bonus if reward >= 1.0 else 0.0)


def above_chance(reward: float, chance_reward: float) -> float:
    """(r − c)/(1 − c), clipped at 0: tasks with different random levels become comparable before they are mixed."""
    # Where a guess always earns everything, nothing can be learned above chance.
    if chance_reward >= 1.0:
        return 0.0
    return max(0.0, (reward - chance_reward) / (1.0 - chance_reward))


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
    ordered = [before < after for before, after in combinations(ranks, 2)]
    # A single entry has no pair: it is right as it stands, whatever γ is.
    return 1.0 if all(ordered) else gamma * sum(ordered) / len(ordered)


def interval_iou(guess: Interval, truth: Interval) -> float:
    """Overlap over union of closed intervals; 0 if one ends before it starts."""
    if not (_is_interval(guess) and _is_interval(truth)):
        return 0.0
    # Before the division: two equal intervals of length zero have no union.
    if tuple(guess) == tuple(truth):
        return 1.0
    both = max(0.0, min(guess[1], truth[1]) - max(guess[0], truth[0]))
    either = max(guess[1], truth[1]) - min(guess[0], truth[0])
    return both / either if both > 0 else 0.0


def interval_ious(guesses: ArrayLike, truth: Interval) -> np.ndarray:
    """`interval_iou` of intervals [B, 2] with one interval -> float64 [B]."""
    spans, right = np.asarray(guesses, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    start, end = spans[:, 0], spans[:, 1]
    both = np.minimum(end, right[1]) - np.maximum(start, right[0])
    either = np.maximum(end, right[1]) - np.minimum(start, right[0])
    # An empty union is divided by 1 instead of 0; the overlap is then not positive and the quotient unused.
    quotient = both / np.where(either > 0, either, 1.0)
    overlap = np.where(both > 0, quotient, 0.0)
    overlap = np.where((spans == right).all(axis=1), 1.0, overlap)
    return np.where(start <= end, overlap, 0.0)


def multi_interval_iou(guess: Sequence[Interval], truth: Sequence[Interval]) -> float:
    """Best one-to-one matching by IoU (Hungarian), summed and divided by the larger number of intervals.

    Missing and surplus intervals both cost. Two empty lists are equal: 1."""
    if not guess or not truth:
        return float(len(guess) == len(truth))
    if len(guess) == len(truth) == 1:
        return interval_iou(guess[0], truth[0])
    from scipy.optimize import linear_sum_assignment  # here: scipy is slow to import

    overlap = np.array([[interval_iou(a, b) for b in truth] for a in guess])
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    matched = float(overlap[rows, columns].sum())
    # The sum of rounded quotients can exceed the number of pairs by an ulp.
    return min(1.0, matched / max(len(guess), len(truth)))


def box_iou(guess: Box, truth: Box) -> float:
    """Intersection over union of (x0, y0, x1, y1); 0 for an empty or inverted box."""
    if not (_is_box(guess) and _is_box(truth)):
        return 0.0
    # Exactly 1 for the truth itself: the shares below are rounded.
    if tuple(guess) == tuple(truth):
        return 1.0
    both, either = _overlap(guess, truth)
    return _unit(both / either)


def count_rel(guess: Sequence[float], truth: Sequence[float]) -> float:
    """Mean over the counts of max(0, 1 − |ŷ − y|/y); where y = 0, 1 for 0 and 0 for anything else.

    A negative count or another number of counts earns 0 altogether."""
    if len(guess) != len(truth) or not truth or not _finite(guess) or min(guess) < 0:
        return 0.0
    parts = [_relative_hit(count, right) for count, right in zip(guess, truth, strict=True)]
    return sum(parts) / len(parts)


def ordinal(guess: float, truth: float, tau: float) -> float:
    """exp(−|guess − truth|/τ) for ranks and levels."""
    if not _finite((guess, truth)):
        return 0.0
    # exp(−700) is still an ordinary float; further off the reward would underflow into denormal numbers.
    return math.exp(-min(abs(guess - truth) / tau, 700.0))


def angle_circular(guess: float, truth: float, period: float = 360.0) -> float:
    """1 − (shortest way round)/(half a period)."""
    if not _finite((guess, truth)):
        return 0.0
    away = math.fmod(abs(guess - truth), period)
    shorter_way = min(away, period - away)
    return _unit(1.0 - shorter_way / (period / 2))


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
    full = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    # One bit per letter of the shorter text: where does this letter stand?
    where: dict[str, int] = {}
    for index, letter in enumerate(first):
        where[letter] = where.get(letter, 0) | 1 << index
    # A column of the distance table is kept as its steps from row to row: bit set in `up` means +1, in `down` −1.
    up, down, distance = full, 0, len(first)
    for letter in second:
        match = where.get(letter, 0)
        # The carry of the addition runs along the stretches in which a match can be prolonged.
        diagonal = (((match & up) + up) ^ up) | match | down
        plus = down | (full & ~(diagonal | up))
        minus = up & diagonal
        distance += bool(plus & last) - bool(minus & last)
        plus = (plus << 1 | 1) & full
        minus = (minus << 1) & full
        up = minus | (full & ~(diagonal | plus))
        down = plus & diagonal
    return distance


def render_similarity(guess: np.ndarray, truth: np.ndarray) -> float:
    """max(0, 1 − MAE(guess, truth)/MAE(blank, truth)); blank is the truth's own median colour, so that an empty
    drawing earns 0. Both uint8 [H, W, 3]; another shape earns 0."""
    if guess.shape != truth.shape or truth.ndim != 3 or not truth.size:
        return 0.0
    # float64, as a difference of uint8 would wrap around.
    drawn, wanted = guess.astype(np.float64), truth.astype(np.float64)
    error = float(np.abs(drawn - wanted).mean())
    median_colour = np.median(wanted, axis=(0, 1))
    blank = float(np.abs(median_colour - wanted).mean())
    if error == 0.0:
        return 1.0
    return max(0.0, 1.0 - error / blank) if blank > 0 else 0.0


def _relative_hit(count: float, right: float) -> float:
    if count == right:
        return 1.0
    return max(0.0, 1.0 - abs(count - right) / right) if right else 0.0


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _is_interval(span: Interval) -> bool:
    return _finite(span) and span[0] <= span[1]


def _is_box(box: Sequence[float]) -> bool:
    return len(box) == 4 and _finite(box) and box[0] < box[2] and box[1] < box[3]


def _overlap(first: Box, second: Box) -> tuple[float, float]:
    """Areas of intersection and union, as shares of the hull of both (no overflow for huge boxes)."""
    width = max(first[2], second[2]) - min(first[0], second[0])
    height = max(first[3], second[3]) - min(first[1], second[1])
    # Two finite corners can lie further apart than the largest float: no overlap that could be measured.
    if not (math.isfinite(width) and math.isfinite(height)):
        return 0.0, 1e-300
    one, two = _share(first, width, height), _share(second, width, height)
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    both = (max(0.0, across) / width) * (max(0.0, down) / height)
    return both, max(one + two - both, 1e-300)


def _share(box: Box, width: float, height: float) -> float:
    # Each side is divided first: the product of two huge sides would overflow.
    across = (box[2] - box[0]) / width
    down = (box[3] - box[1]) / height
    return across * down


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
