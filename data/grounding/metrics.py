"""Metrics of temporal grounding with intervals, for each data set by itself. No torch.

    R1@m   share of questions whose first span has IoU ≥ m (TimeLens, VideoChat-R1, QVHighlights) or > m (Time-R1)
    mIoU   mean IoU; an answer that cannot be read counts 0
    Rn@m   the best of the first n spans instead of the first

All in percent. Intervals are percentile bootstraps over videos, since the questions of one video are not independent;
over questions where no video is named. All of QVHighlights' own metrics are in `mmrl.data.grounding.qvhighlights`.

Our policy (`score_answer`): the first span read outside of the thinking, against the true span it fits best; reversed
and empty spans are worth 0. `timelens_metrics` and `time_r1_metrics` follow the papers' evaluation programs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmrl.data.grounding.qvhighlights import spans_average_precision
from mmrl.data.grounding.rewards import span_fault, span_iou
from mmrl.data.grounding.span_math import hull_iou, set_iou, wasserstein_reward
from mmrl.data.grounding.spans import (
    Span,
    Spans,
    json_spans,
    last_span,
    lenient_spans,
    timelens_eval_spans,
)

THRESHOLDS = (0.3, 0.5, 0.7)
FAULTS = ("unreadable", "reversed", "empty", "outside")
"""What `span_fault` can say of an answer."""


@dataclass(frozen=True)
class Answered:
    """One question with the model's answer."""

    text: str
    truth: Spans
    """True spans in seconds."""
    dataset: str = ""
    video: str = ""
    """Questions of one video are resampled together."""
    duration: float | None = None
    """Seconds; None if unknown."""


def score_answer(answered: Answered) -> float:
    """IoU in [0, 1] under our policy."""
    return span_iou(answered.text, answered.truth, answered.duration)


def recalls(
    ious: Sequence[float] | np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    strict: bool = False,
) -> dict[str, float]:
    """R1@m and mIoU in percent of IoUs [N]; `strict` asks for more than m. nan for no questions."""
    values = np.asarray(ious, dtype=float)
    table = {}
    for m in thresholds:
        table[f"R1@{m}"] = _percent(values > m if strict else values >= m)
    return table | {"mIoU": _percent(values)}


def recall_at(
    answered: Sequence[Answered], n: int, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """Rn@m in percent: the best IoU among the first n spans of each answer."""
    best = []
    for row in answered:
        # Cut first: a reversed span takes a place among the first n and earns nothing there.
        spans = [span for span in lenient_spans(row.text)[:n] if span[0] < span[1]]
        ious = [hull_iou(span, true) for span in spans for true in row.truth]
        best.append(max(ious, default=0.0))
    values = recalls(best, thresholds)
    return {f"R{n}@{m}": values[f"R1@{m}"] for m in thresholds}


def grounding_table(
    answered: Sequence[Answered],
    thresholds: Sequence[float] = THRESHOLDS,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Data set -> R1@m and mIoU in percent, `<metric>_low` and `<metric>_high` (95 %), n, and shares of faults.

    Data sets are never pooled. Faults are those of `span_fault`, in percent of the answers.
    """
    groups: defaultdict[str, list[Answered]] = defaultdict(list)
    for row in answered:
        groups[row.dataset].append(row)
    table = {}
    for name, rows in groups.items():
        ious = np.array([score_answer(row) for row in rows])
        columns = {f"R1@{m}": 100 * (ious >= m) for m in thresholds}
        columns["mIoU"] = 100 * ious
        # A question without a video is a cluster of its own.
        videos = [row.video or f"#{place}" for place, row in enumerate(rows)]
        line: dict[str, float] = {"n": len(rows)}
        for metric, values in columns.items():
            # The same seed for every metric: their intervals come from the same resampled videos.
            low, high = bootstrap_interval(values, videos, draws=draws, seed=seed)
            line[metric] = float(np.mean(values))
            line[f"{metric}_low"], line[f"{metric}_high"] = low, high
        faults = Counter(span_fault(row.text, row.duration) for row in rows)
        for fault in FAULTS:
            line[fault] = 100 * faults[fault] / len(rows)
        table[name] = line
    return table


def set_table(answered: Sequence[Answered], beta: float = 1.0) -> dict[str, dict[str, float]]:
    """Data set -> mean set IoU, W1 reward and QVHighlights' mAP over 0.5 … 0.95 (spans in the order given, no limit of
    length) in percent, for answers of any number of spans; unreadable is 0."""
    groups: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in answered:
        groups[row.dataset].append(_set_scores(row, beta))
    table = {}
    for name, scores in groups.items():
        iou, w1, precision = 100 * np.mean(scores, axis=0)
        table[name] = {
            "n": len(scores),
            "set_IoU": float(iou),
            "W1": float(w1),
            "mAP": float(precision),
        }
    return table


def _set_scores(row: Answered, beta: float) -> tuple[float, float, float]:
    """(set IoU, W1 reward, mAP) of one answer."""
    spans = json_spans(row.text) or lenient_spans(row.text)
    # One span that is none spoils the answer: leaving it out would pay for guessing many.
    if not spans or any(start >= end for start, end in spans):
        return 0.0, 0.0, 0.0
    return (
        set_iou(spans, row.truth, 0.0),
        wasserstein_reward(spans, row.truth, beta),
        spans_average_precision(spans, row.truth),
    )


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    clusters: Sequence[object] | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean of values [N], resampling whole clusters (each value is one if None)."""
    values = np.asarray(values, dtype=float)
    if not len(values) or not 0 < level < 1 or draws < 1:
        raise ValueError(
            f"{len(values)} values, level {level}, {draws} draws; need one value, 0 < level < 1, one draw."
        )
    names = np.arange(len(values)) if clusters is None else np.array(clusters, dtype=str)
    _, cluster = np.unique(
        names, return_inverse=True
    )  # [N], the number of each value's cluster
    counts = np.bincount(cluster)
    sums = np.bincount(cluster, weights=values)
    shape = (draws, len(counts))
    drawn = np.random.default_rng(seed).integers(0, len(counts), shape)
    # Sum over sum, not a mean of means: a video with many questions weighs as much as they do.
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def timelens_metrics(
    answered: Sequence[Answered], unit: float | None = 1.0
) -> dict[str, float]:
    """R1@m (≥) and mIoU as the TimeLens evaluation: it reads the whole text and rounds to whole seconds.

    `unit` None does not round. Only the first true span counts; an answer that cannot be read is worth 0.
    """
    ious = []
    for row in answered:
        spans = timelens_eval_spans(row.text)
        if not spans:
            ious.append(0.0)
            continue
        start, end = spans[0]
        if unit:
            # Python's round: halves go to the even second, as there.
            start, end = round(start / unit) * unit, round(end / unit) * unit
        ious.append(hull_iou((start, end), row.truth[0]))
    return recalls(ious)


def time_r1_metrics(answered: Sequence[Answered]) -> dict[str, float]:
    """R1@m (>) and mIoU as the Time-R1 evaluation: the last "x to y" of the text; avg is the mean of all four."""
    ious = []
    for row in answered:
        span = last_span(row.text)
        ious.append(hull_iou(span, row.truth[0]) if span else 0.0)
    table = recalls(ious, strict=True)
    return table | {"avg": sum(table.values()) / len(table)}


def didemo_metrics(ranked: Sequence[Spans], annotators: Sequence[Spans]) -> dict[str, float]:
    """DiDeMo's Rank@1, Rank@5 and mIoU in percent: ranked segments against the best three of four annotators.

    Rank@k holds if the mean rank of the three best-ranked annotators' segments is at most k.
    """
    rank1, rank5, overlap = [], [], []
    for guesses, marks in zip(ranked, annotators, strict=True):
        ranks = [_rank(guesses, mark) for mark in marks]
        ious = [hull_iou(guesses[0], mark) for mark in marks]
        # The annotator who agrees least is left out, for ranks and for IoUs by itself.
        mean_rank = np.mean(sorted(ranks)[:3])
        rank1.append(mean_rank <= 1)
        rank5.append(mean_rank <= 5)
        overlap.append(np.mean(sorted(ious, reverse=True)[:3]))
    names = {"Rank@1": rank1, "Rank@5": rank5, "mIoU": overlap}
    return {name: 100 * float(np.mean(values)) for name, values in names.items()}


def _rank(guesses: Spans, mark: Span) -> int:
    """The place of a segment among the guesses, from 1; one behind the last if it is not there."""
    return guesses.index(mark) + 1 if mark in guesses else len(guesses) + 1


def _percent(values: np.ndarray) -> float:
    """100 × mean; nan for none, without numpy's warning."""
    return 100 * float(np.mean(values)) if len(values) else float("nan")
