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
    Spans,
    json_spans,
    last_span,
    lenient_spans,
    timelens_eval_spans,
)

THRESHOLDS = (0.3, 0.5, 0.7)


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
    if not len(values):
        return {f"R1@{m}": float("nan") for m in thresholds} | {"mIoU": float("nan")}
    table = {
        f"R1@{m}": 100 * float(np.mean(values > m if strict else values >= m))
        for m in thresholds
    }
    return table | {"mIoU": 100 * float(values.mean())}


def recall_at(
    answered: Sequence[Answered], n: int, thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """Rn@m in percent: the best IoU among the first n spans of each answer."""
    best = []
    for row in answered:
        spans = [span for span in lenient_spans(row.text)[:n] if span[0] < span[1]]
        best.append(
            max((hull_iou(span, true) for span in spans for true in row.truth), default=0.0)
        )
    return {
        f"R{n}@{m}": value
        for m, value in zip(thresholds, recalls(best, thresholds).values(), strict=False)
    }


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
        columns = {f"R1@{m}": 100 * (ious >= m) for m in thresholds} | {"mIoU": 100 * ious}
        videos = [row.video or f"#{place}" for place, row in enumerate(rows)]
        line: dict[str, float] = {"n": len(rows)}
        for metric, values in columns.items():
            low, high = bootstrap_interval(values, videos, draws=draws, seed=seed)
            line |= {
                metric: float(np.mean(values)),
                f"{metric}_low": low,
                f"{metric}_high": high,
            }
        faults = Counter(span_fault(row.text, row.duration) for row in rows)
        shares = {
            fault: 100 * faults[fault] / len(rows)
            for fault in ("unreadable", "reversed", "empty", "outside")
        }
        table[name] = line | shares
    return table


def set_table(answered: Sequence[Answered], beta: float = 1.0) -> dict[str, dict[str, float]]:
    """Data set -> mean set IoU, W1 reward and QVHighlights' mAP over 0.5 … 0.95 (spans in the order told, no limit of
    length) in percent, for answers of any number of spans; unreadable is 0."""
    groups: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in answered:
        spans = json_spans(row.text) or lenient_spans(row.text)
        good = bool(spans) and all(start < end for start, end in spans)
        found = (
            set_iou(spans, row.truth, 0.0),
            wasserstein_reward(spans, row.truth, beta),
            spans_average_precision(spans, row.truth),
        )
        groups[row.dataset].append(found if good else (0.0, 0.0, 0.0))
    means = {name: 100 * np.mean(rows, axis=0) for name, rows in groups.items()}
    return {
        name: {
            "n": len(groups[name]),
            **dict(zip(("set_IoU", "W1", "mAP"), map(float, values), strict=True)),
        }
        for name, values in means.items()
    }


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
    member = np.unique(
        np.arange(len(values)) if clusters is None else np.array(clusters, dtype=str),
        return_inverse=True,
    )
    counts = np.bincount(member[1])
    sums = np.bincount(member[1], weights=values)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (draws, len(counts)))
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
        if spans and unit:
            spans = [(round(spans[0][0] / unit) * unit, round(spans[0][1] / unit) * unit)]
        ious.append(hull_iou(spans[0], row.truth[0]) if spans else 0.0)
    return recalls(ious)


def time_r1_metrics(answered: Sequence[Answered]) -> dict[str, float]:
    """R1@m (>) and mIoU as the Time-R1 evaluation: the last "x to y" of the text; avg is the mean of all four."""
    spans = [last_span(row.text) for row in answered]
    ious = [
        hull_iou(span, row.truth[0]) if span else 0.0
        for span, row in zip(spans, answered, strict=True)
    ]
    table = recalls(ious, strict=True)
    return table | {"avg": sum(table.values()) / len(table)}


def didemo_metrics(ranked: Sequence[Spans], annotators: Sequence[Spans]) -> dict[str, float]:
    """DiDeMo's Rank@1, Rank@5 and mIoU in percent: ranked segments against the best three of four annotators.

    Rank@k holds if the mean rank of the three best-ranked annotators' segments is at most k.
    """
    rank1, rank5, overlap = [], [], []
    for guesses, marks in zip(ranked, annotators, strict=True):
        ranks = sorted(
            guesses.index(mark) + 1 if mark in guesses else len(guesses) + 1 for mark in marks
        )[:3]
        rank1.append(np.mean(ranks) <= 1)
        rank5.append(np.mean(ranks) <= 5)
        overlap.append(
            np.mean(sorted((hull_iou(guesses[0], mark) for mark in marks), reverse=True)[:3])
        )
    names = {"Rank@1": rank1, "Rank@5": rank5, "mIoU": overlap}
    return {name: 100 * float(np.mean(values)) for name, values in names.items()}
