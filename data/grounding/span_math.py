"""Overlap and distance of spans and of sets of spans. Plain floats, no torch.

    hull_iou(a, b)   = max(0, min(a1, b1) - max(a0, b0)) / (max(a1, b1) - min(a0, b0))
    set_iou(A, B)    = |∪A ∩ ∪B| / |∪A ∪ ∪B|
    wasserstein(A,B) = ∫ |F_A - F_B| dt, F the distribution function of the uniform distribution on ∪A

The denominator of `hull_iou` is the hull of both spans. For spans in order it gives the same as the union, since the
numerator is 0 wherever they differ. Sets are lists of (start, end); where a function merges, overlapping and adjacent
spans become one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmrl.data.grounding.spans import Span, Spans


def hull_iou(a: Span, b: Span) -> float:
    """Intersection over hull, in [0, 1]; 0 where the hull has no length (two equal points)."""
    (start, end), (other_start, other_end) = a, b
    hull = max(end, other_end) - min(start, other_start)
    shared = max(0.0, min(end, other_end) - max(start, other_start))
    return shared / hull if hull > 0 else 0.0


def merged(spans: Sequence[Span]) -> Spans:
    """The same points as disjoint spans in order; spans that touch become one, points stay, reversed ones vanish."""
    joined: Spans = []
    in_order = sorted(span for span in spans if span[0] <= span[1])
    for start, end in in_order:
        if joined and start <= joined[-1][1]:
            # The larger end, because a long span may contain the next one.
            before, until = joined[-1]
            joined[-1] = (before, max(until, end))
        else:
            joined.append((start, end))
    return joined


def total_length(spans: Sequence[Span]) -> float:
    """Sum of the lengths; reversed spans count 0."""
    return sum(max(0.0, end - start) for start, end in spans)


def overlap(a: Sequence[Span], b: Sequence[Span]) -> float:
    """Sum of the pairwise overlaps; what lies in two spans of one set counts twice."""
    shared = []
    for start, end in a:
        for other_start, other_end in b:
            shared.append(max(0.0, min(end, other_end) - max(start, other_start)))
    return sum(shared)


def set_iou(predicted: Sequence[Span], truth: Sequence[Span], empty: float = 1.0) -> float:
    """True IoU of two merged sets; `empty` where neither has length. Splitting spans and order change nothing."""
    a, b = merged(predicted), merged(truth)
    shared = overlap(a, b)
    union = total_length(a) + total_length(b) - shared
    return shared / union if union > 0 else empty


def timelens2_iou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Set IoU with the truth *not* merged, so that overlapping true spans count twice; clipped to [0, 1]."""
    if not predicted or not truth:
        return float(not predicted and not truth)
    shared, union = _half_merged(predicted, truth)
    # Clipped, because overlapping true spans can make the shared length larger than the union.
    return min(1.0, max(0.0, shared / (union + 1e-16)))


def timelens2_giou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """Generalised IoU, in [-1, 1]: IoU minus the share of the hull that neither set covers; truth not merged."""
    if not predicted or not truth:
        return float(not predicted and not truth)
    shared, union = _half_merged(predicted, truth)
    everything = [*merged(predicted), *truth]
    first = min(start for start, _ in everything)
    last = max(end for _, end in everything)
    hull = last - first
    if hull <= 0:
        return 0.0
    value = shared / (union + 1e-16) - (hull - union) / hull
    return min(1.0, max(-1.0, value))


def matched_giou(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """MUSEG's local matching, in [0, 1]: spans in order of time are paired; mean of (1 + GIoU) / 2, unpaired 0."""
    a = sorted(span for span in predicted if span[0] < span[1])
    b = sorted(span for span in truth if span[0] < span[1])
    if not a and not b:
        return 0.0
    # Paired by place in time, not by overlap: the shorter list ends, and what is left over is worth 0.
    paired = zip(a, b, strict=False)
    values = [0.5 * (1 + timelens2_giou([mine], [true])) for mine, true in paired]
    return sum(values) / max(len(a), len(b))


def wasserstein(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """W1 in seconds between the uniform distributions on two merged sets, exact; both must have length."""
    a, b = _solid(predicted), _solid(truth)
    length_a, length_b = total_length(a), total_length(b)
    assert min(length_a, length_b) > 0, f"both sets need length, got {predicted} and {truth}"
    points = sorted({point for span in [*a, *b] for point in span})
    gaps = [_distribution(a, length_a, x) - _distribution(b, length_b, x) for x in points]
    distance = 0.0
    # Between two ends nothing begins or ends, so that F_A - F_B is a straight line and its area exact.
    for place in range(len(points) - 1):
        width = points[place + 1] - points[place]
        y0, y1 = gaps[place], gaps[place + 1]
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
    # In lengths of the truth: five seconds are much for a short event and little for a long one.
    scale = total_length(_solid(truth))
    return math.exp(-beta * wasserstein(predicted, truth) / scale)


def length_ratio_penalty(predicted: Sequence[Span], truth: Sequence[Span]) -> float:
    """-|log10 of the ratio of the summed lengths|; at most 0."""
    ratio = (total_length(predicted) + 1e-6) / (total_length(truth) + 1e-6)
    return -abs(math.log10(ratio))


def _half_merged(predicted: Sequence[Span], truth: Sequence[Span]) -> tuple[float, float]:
    """Overlap and union with a merged prediction and the truth as it is."""
    joined = merged(predicted)
    shared = overlap(joined, truth)
    return shared, total_length(joined) + total_length(truth) - shared


def _solid(spans: Sequence[Span]) -> Spans:
    """The merged set without points, which have no share in a distribution."""
    return merged([span for span in spans if span[0] < span[1]])


def _distribution(spans: Spans, length: float, x: float) -> float:
    """Share of the set that lies before x."""
    return sum(max(0.0, min(x, end) - start) for start, end in spans) / length
