"""Which questions are worth training on, from the IoU that the model to be trained reaches on them. Pure numpy.

    TimeLens    w = exp(-½ ((IoU - μ) / σ)²) / (count of the IoU's histogram bin + 1e-6), μ = 0.05, σ = 0.2, 20 bins;
                drawn without replacement, the same number from each of nine buckets of duration
    Time-R1     first set: IoU > 0 with w = exp(-½ ((IoU - 0.3) / 0.2)²); each epoch: 0 < IoU ≤ 0.7, k of them evenly
                spaced from the easiest to the hardest
    TimeLens2   w = (1 - mean IoU)²

The Gaussian of TimeLens is evaluated on IoU, as in its code; the text of the paper applies it to 1 - IoU. An answer
that cannot be read has IoU 0 and counts as hard, so that mislabelled questions are drawn too: look at what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BUCKETS = (
    *((30.0 * number, 30.0 * (number + 1)) for number in range(8)),
    (240.0, math.inf),
)
"""Seconds; a duration on an edge belongs to the lower bucket."""
AUDIO_WORDS = frozenset(
    ("hear", "heard", "hears", "hearing", "sound", "sounded", "sounds", "sounding", "audio")
)


def difficulty_weights(
    ious: Sequence[float], mean: float = 0.05, std: float = 0.2, bins: int = 20
) -> np.ndarray:
    """float64 [N], sums to 1: the chance of each question so that the IoUs drawn follow the Gaussian."""
    values = np.asarray(ious, dtype=np.float64)
    counts, edges = np.histogram(values, bins=bins, range=(0, 1))
    # An IoU of 1 lies on the last edge, beyond the last bin; it belongs into it.
    place = np.clip(np.digitize(values, edges), 1, bins) - 1
    wanted = np.exp(-0.5 * ((values - mean) / std) ** 2)
    # Divided by how many share the bin, or the commonest IoU would be drawn most.
    weights = wanted / (counts[place] + 1e-6)
    return weights / weights.sum()


def stratified_sample(
    ious: Sequence[float],
    durations: Sequence[float],
    target: int,
    *,
    mean: float = 0.05,
    std: float = 0.2,
    bins: int = 20,
    buckets: Sequence[tuple[float, float]] = BUCKETS,
    seed: int = 42,
) -> list[int]:
    """Questions drawn by TimeLens, in their order: int(target / buckets) from each, all of a bucket that has fewer.

    Weights are those within a bucket. A duration that no bucket takes is kept. A target of 2,500 gives at most 2,493.
    """
    if len(ious) != len(durations) or target < len(buckets):
        raise ValueError(
            f"{len(ious)} IoUs, {len(durations)} durations, target {target}; give one of each per question and a "
            f"target of at least {len(buckets)}, one per bucket of duration."
        )
    members: list[list[int]] = [[] for _ in buckets]
    kept: list[int] = []
    for index, duration in enumerate(durations):
        fits = [k for k, (low, high) in enumerate(buckets) if low <= duration <= high]
        bucket = members[fits[0]] if fits else kept
        bucket.append(index)
    # One generator for all buckets, in their order: another set of buckets draws other questions.
    rng = np.random.default_rng(seed)
    for bucket in members:
        size = min(int(target / len(buckets)), len(bucket))
        if bucket:
            # Weights within the bucket, so that the Gaussian holds for long clips, too.
            weights = difficulty_weights([ious[i] for i in bucket], mean, std, bins)
            kept += rng.choice(bucket, size=size, replace=False, p=weights).tolist()
    return sorted(kept)


def time_r1_first_set(ious: Sequence[float], size: int, seed: int = 42) -> list[int]:
    """Time-R1's first training set: questions with some overlap, drawn around an IoU of 0.3, in their order."""
    values = np.asarray(ious, dtype=np.float64)
    some = np.flatnonzero(values > 0)
    if not len(some):
        return []
    weights = np.exp(-((values[some] - 0.3) ** 2) / (2 * 0.2**2))
    chances = weights / weights.sum()
    rng = np.random.default_rng(seed)
    drawn = rng.choice(some, min(size, len(some)), replace=False, p=chances)
    return sorted(drawn.tolist())


def time_r1_epoch(ious: Sequence[float], size: int) -> list[int]:
    """Time-R1's set for the next epoch: evenly spaced from the easiest to the hardest with 0 < IoU ≤ 0.7."""
    values = np.asarray(ious, dtype=np.float64)
    order = np.argsort(-values, kind="stable")
    order = order[(values[order] > 0) & (values[order] <= 0.7)]
    if not len(order):
        return []
    places = np.linspace(0, len(order) - 1, size).round().astype(int)
    # Where there are fewer than `size` the places repeat; nothing is drawn twice.
    return order[np.unique(places)].tolist()


def timelens2_weights(ious: Sequence[Sequence[float]]) -> np.ndarray:
    """float64 [N], sums to 1: (1 - mean IoU of the stored answers)²; equal chances if every question is solved."""
    weights = np.array([(1 - float(np.mean(answers))) ** 2 for answers in ious])
    if weights.sum() > 0:
        return weights / weights.sum()
    return np.full(len(weights), 1 / len(weights))


def about_sound(query: str) -> bool:
    """Does the question name a sound? Whole words only, as TimeLens tests: "sound." with its period does not count."""
    return not AUDIO_WORDS.isdisjoint(query.strip("?").lower().split())
