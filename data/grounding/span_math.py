"""Overlap and distance of spans and of sets of spans. Plain floats, no torch.

    hull_iou(a, b)   = max(0, min(a1, b1) - max(a0, b0)) / (max(a1, b1) - min(a0, b0))
    set_iou(A, B)    = |∪A ∩ ∪B| / |∪A ∪ ∪B|
    wasserstein(A,B) = ∫ |F_A - F_B| dt, F the distribution function of the uniform distribution on ∪A

The denominator of `hull_iou` is the hull of both spans. For spans in order it gives the same as the union, since the
numerator is 0 wherever they differ. Sets are lists of (start, end); where a function merges, overlapping and adjacent
spans become one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from mmrl.data.grounding.spans import Span, Spans


def hull_iou(a: Span, b: Span) -> float:
    """Intersection over hull, in [0, 1]; 0 where the hull has no length (two equal points)."""
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / hull if hull > 0 else 0.0


def merged(spans: Sequence[Span]) -> Spans:
    """The same points as disjoint spans in order; spans that touch become one, points stay, reversed ones vanish."""
    joined: Spans = []
    for start, end in sorted(span for span in spans if span[0] <= span[1]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def total_length(spans: Sequence[Span]) -> float:
    """Sum of the lengths; reversed spans count 0."""
    return sum(max(0.0, end - start) for start, end in spans)


def overlap(a: Sequence[Span], b: Sequence[Span]) -> float:
    """Sum of the pairwise overlaps; what lies in two spans of one set counts twice."""
    return sum(max(0.0, min(p[1], q[1]) - max(p[0], q[0])) for p in a for q in b)


def set_iou(predicted: Sequence[Span], truth: Sequence[Span], empty: float = 1.0) -> float:
    """True IoU of two merged sets; `empty` where neither has length. Splitting spans and order change nothing."""
    a, b = merged(predicted), merged(truth)
    shared = overlap(a, b)
    union = total_length(a) + total_length(b) - shared
    return shared / union if union > 0 else empty


def timelens2_iou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Set IoU with the truth *not* merged, so that overlapping true spans count twice; clipped to [0, 1]."""
    shared, union = _half_merged(predicted, truth)
    return (
        min(1.0, max(0.0, shared / (union + 1e-16)))
        if predicted and truth
        else float(not predicted and not truth)
    )


def timelens2_giou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Generalised IoU, in [-1, 1]: IoU minus the share of the hull that neither set covers; truth not merged."""
    if not predicted or not truth:
        return float(not predicted and not truth)
    shared, union = _half_merged(predicted, truth)
    everything = [*merged(predicted), *truth]
    hull = max(end for _, end in everything) - min(start for start, _ in everything)
    if hull <= 0:
        return 0.0
    return min(1.0, max(-1.0, shared / (union + 1e-16) - (hull - union) / hull))


def matched_giou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """MUSEG's local matching, in [0, 1]: spans in order of time are paired; mean of (1 + GIoU) / 2, unpaired 0."""
    a, b = (sorted(span for span in spans if span[0] < span[1]) for spans in (predicted, truth))
    if not a and not b:
        return 0.0
    pairs = zip(a, b, strict=False)
    return sum(0.5 * (1 + timelens2_giou([p], [q])) for p, q in pairs) / max(len(a), len(b))


def wasserstein(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """W1 in seconds between the uniform distributions on two merged sets, exact; both must have length."""
    a, b = _solid(predicted), _solid(truth)
    lengths = total_length(a), total_length(b)
    assert min(lengths) > 0, f"both sets need length, got {predicted} and {truth}"
    points = sorted({point for span in [*a, *b] for point in span})
    gaps = [_distribution(a, lengths[0], x) - _distribution(b, lengths[1], x) for x in points]
    distance = 0.0
    for (left, right), (y0, y1) in zip(
        itertools.pairwise(points), itertools.pairwise(gaps), strict=True
    ):
        width = right - left
        if y0 * y1 < 0:
            # Both triangles beside the crossing.
            distance += width * (y0 * y0 + y1 * y1) / (2 * (abs(y0) + abs(y1)))
        else:
            distance += width * (abs(y0) + abs(y1)) / 2
    return distance


def wasserstein_reward(
    predicted: Sequence[Span], truth: Sequence[Span], beta: float = 1.0
) -> float:
    """exp(-β · W1 / |∪truth|), in [0, 1]: orders answers that do not overlap, unlike IoU.

    1 if neither set has length, 0 if only one has. One revision of the code divides by the length of both sets joined.
    """
    lengths = total_length(predicted), total_length(truth)
    if min(lengths) == 0:
        return float(max(lengths) == 0)
    return math.exp(-beta * wasserstein(predicted, truth) / total_length(_solid(truth)))


def length_ratio_penalty(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """-|log10 of the ratio of the summed lengths|; at most 0."""
    return -abs(math.log10((total_length(predicted) + 1e-6) / (total_length(truth) + 1e-6)))


def _half_merged(predicted: Sequence[Span], truth: Sequence[Span]) -> tuple[float, float]:
    """Overlap and union with a merged prediction and the truth as it is."""
    joined = merged(predicted)
    shared = overlap(joined, truth)
    return shared, total_length(joined) + total_length(truth) - shared


def _solid(spans: Sequence[Span]) -> Spans:
    return merged([span for span in spans if span[0] < span[1]])


def _distribution(spans: Spans, length: float, x: float) -> float:
    return sum(max(0.0, min(x, end) - start) for start, end in spans) / length
