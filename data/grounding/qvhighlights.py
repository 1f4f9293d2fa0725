"""QVHighlights: moment retrieval (mAP, R1) and highlight detection (mAP, HIT@1), as `standalone_eval` of moment_detr.

Moment retrieval, for each query and each θ in 0.50, 0.55 … 0.95:
    R1@θ    the first window as submitted against the true window that it fits best; hull IoU ≥ θ
    AP@θ    the first ten windows, best score first; each takes the best true window that is still free and has
            IoU ≥ θ, else it is a false positive; area under the running maximum of precision over recall
Length ranges keep the true windows of that length (short ≤ 10 s < middle ≤ 30 s < long ≤ 150 s) and all predictions.
Highlights: clips of two seconds, three annotators; a clip is positive from 2 (Fair), 3 (Good) or 4 (VeryGood) on.

Departures:
1. Windows without a score keep their order: they get 1, 1 - ε, ….
2. A query whose prediction is empty counts 0. There it is left out of mAP and crashes R1.
3. Values are percent, not rounded. `rounded` rounds to two decimals, as reported.
4. A query without true windows is refused with its number; there it crashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

THRESHOLDS = [round(0.5 + 0.05 * i, 2) for i in range(10)]
RANGES = {"short": (0, 10), "middle": (10, 30), "long": (30, 150), "full": (0, 150)}
LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
MOST_WINDOWS, CLIP_SECONDS, ANNOTATORS, EPSILON = 10, 2, 3, 1e-6

Row = Mapping[str, Any]


def qvhighlights_metrics(submission: Sequence[Row], truth: Sequence[Row]) -> dict[str, Any]:
    """All metrics in percent, under the keys of the original: brief, full, short, middle, long, HL-min-*.

    Submission rows hold qid, pred_relevant_windows [[start, end(, score)], ...] and, for highlights,
    pred_saliency_scores (one per two seconds). Raises ValueError if the query ids differ.
    """
    asked, answered = {row["qid"] for row in truth}, {row["qid"] for row in submission}
    if asked != answered:
        lost, extra = sorted(asked - answered)[:5], sorted(answered - asked)[:5]
        raise ValueError(
            f"Query ids differ: not answered {lost}, not asked {extra}; give one row for each query."
        )
    result: dict[str, Any] = {}
    if submission and "pred_relevant_windows" in submission[0]:
        result |= moment_retrieval(submission, truth)
    if submission and "pred_saliency_scores" in submission[0]:
        result |= highlights(submission, truth)
    return {"brief": _brief(result), **result}


def rounded(result: Any) -> Any:
    """The same numbers with two decimals."""
    return (
        {k: rounded(v) for k, v in result.items()}
        if isinstance(result, dict)
        else float(f"{result:.2f}")
    )


def moment_retrieval(
    submission: Sequence[Row], truth: Sequence[Row]
) -> dict[str, dict[str, dict[str, float]]]:
    """Range -> {"MR-mAP": θ -> percent and average, "MR-R1": θ -> percent}."""
    predicted = {row["qid"]: _windows(row) for row in submission}
    result = {}
    for name, (low, high) in RANGES.items():
        kept: dict[Any, np.ndarray] = {}
        for row in truth:
            windows = np.array(row["relevant_windows"], dtype=float).reshape(-1, 2)
            if not len(windows):
                raise ValueError(f"Query {row['qid']} has no true window; leave it out.")
            lengths = windows[:, 1] - windows[:, 0]
            inside = windows if name == "full" else windows[(lengths > low) & (lengths <= high)]
            if len(inside):
                kept[row["qid"]] = inside
        result[name] = _one_range(predicted, kept)
    return result


def highlights(submission: Sequence[Row], truth: Sequence[Row]) -> dict[str, dict[str, float]]:
    """HL-min-<level> -> {"HL-mAP", "HL-Hit1"} in percent."""
    scores = {
        row["qid"]: np.array(row["pred_saliency_scores"], dtype=float) for row in submission
    }
    marks = {row["qid"]: _marks(row) for row in truth}
    result = {}
    for name, lowest in LEVELS.items():
        hits, precisions = [], []
        for qid, predicted in scores.items():
            positive = marks[qid] >= lowest  # [clips, annotators]
            best = int(predicted.argmax())
            hits.append(float(positive[best].max()) if best < len(positive) else 0.0)
            fitted = np.zeros(len(positive))
            fitted[: len(predicted)] = predicted[: len(positive)]
            precisions.append(
                np.mean([average_precision(positive[:, i], fitted) for i in range(ANNOTATORS)])
            )
        result[f"HL-min-{name}"] = {
            "HL-mAP": 100 * float(np.mean(precisions)),
            "HL-Hit1": 100 * float(np.mean(hits)),
        }
    return result


def detection_average_precision(windows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AP [θ] of one query; windows [N, 3] with scores, truth [M, 2]."""
    windows = windows[np.argsort(-windows[:, 2], kind="stable")]
    ious = _cross_iou(windows[:, :2], truth)  # [N, M]
    result = np.zeros(len(THRESHOLDS))
    for place, threshold in enumerate(THRESHOLDS):
        free = np.ones(len(truth), dtype=bool)
        correct = np.zeros(len(windows))
        for number, row in enumerate(ious):
            # Ties go to the later true window, as a reversed sort has it.
            for candidate in row.argsort()[::-1]:
                if row[candidate] < threshold:
                    break
                if free[candidate]:
                    free[candidate], correct[number] = False, 1.0
                    break
        result[place] = _interpolated(correct, len(truth))
    return result


def spans_average_precision(
    spans: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]
) -> float:
    """AP in [0, 1] of one answer: mean over θ, the first ten spans in the order told, windows of any length."""
    if not len(spans):
        return 0.0
    windows = _windows({"pred_relevant_windows": list(spans)[:MOST_WINDOWS]})
    return float(
        detection_average_precision(
            windows, np.asarray(truth, dtype=float).reshape(-1, 2)
        ).mean()
    )


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Mean interpolated precision over the recalls that thresholds reach; no positive gives 0, all positive 1."""
    if positive.all() or not positive.any():
        return float(positive.all())
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])
    # One point per distinct score, from the highest to the lowest.
    last = np.append(np.nonzero(np.diff(scores[order]))[0], len(scores) - 1)
    precision, recall = found[last] / (last + 1), (found[last] / found[-1]).astype(np.float32)
    # The running maximum is taken from the low scores upwards, as the original walks its curve.
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    new = np.diff(recall, prepend=np.float32(0)) > 0
    return float(precision[new].mean())


def _one_range(
    predicted: Mapping[Any, np.ndarray], truth: Mapping[Any, np.ndarray]
) -> dict[str, dict[str, float]]:
    precisions, best = [], []
    for qid, windows in truth.items():
        mine = predicted[qid]
        if not len(mine):
            precisions.append(np.zeros(len(THRESHOLDS)))
            best.append(0.0)
            continue
        precisions.append(detection_average_precision(mine[:MOST_WINDOWS], windows))
        fits = windows[_cross_iou(mine[:1, :2], windows)[0].argmax()]
        best.append(_hull_iou(mine[0], fits))
    if not precisions:
        nothing = dict.fromkeys(map(str, THRESHOLDS), float("nan"))
        return {"MR-mAP": nothing | {"average": float("nan")}, "MR-R1": nothing}
    mean = np.mean(precisions, axis=0)
    maps = {str(t): 100 * float(value) for t, value in zip(THRESHOLDS, mean, strict=True)}
    recalls = {str(t): 100 * float(np.mean(np.array(best) >= t)) for t in THRESHOLDS}
    return {"MR-mAP": maps | {"average": 100 * float(mean.mean())}, "MR-R1": recalls}


def _windows(row: Row) -> np.ndarray:
    """[N, 3]: start, end, score."""
    windows = [
        list(w) if len(w) == 3 else [*w, 1 - EPSILON * place]
        for place, w in enumerate(row["pred_relevant_windows"])
    ]
    return np.array(windows, dtype=float).reshape(-1, 3)


def _marks(row: Row) -> np.ndarray:
    """[clips, annotators], 0 to 4; 0 where a clip is not relevant."""
    marks = np.zeros((int(row["duration"] / CLIP_SECONDS), ANNOTATORS))
    marks[np.array(row["relevant_clip_ids"], dtype=int)] = row["saliency_scores"]
    return marks


def _cross_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M] over the true union; 0 where it is empty."""
    shared = np.clip(
        np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0]),
        0,
        None,
    )
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)


def _hull_iou(a: np.ndarray, b: np.ndarray) -> float:
    hull = max(a[1], b[1]) - min(a[0], b[0])
    return float(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / hull) if hull else 0.0


def _interpolated(correct: np.ndarray, total: int) -> float:
    found = np.cumsum(correct)
    precision = np.concatenate([[0.0], found / np.arange(1, len(correct) + 1), [0.0]])
    recall = np.concatenate([[0.0], found / total, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    step = np.nonzero(np.diff(recall))[0] + 1
    return float(np.sum((recall[step] - recall[step - 1]) * precision[step]))


def _brief(result: Mapping[str, Any]) -> dict[str, float]:
    brief = {}
    if "full" in result:
        for name in RANGES:
            brief[f"MR-{name}-mAP"] = result[name]["MR-mAP"]["average"]
        brief |= {f"MR-full-mAP@{t}": result["full"]["MR-mAP"][t] for t in ("0.5", "0.75")}
        brief |= {f"MR-full-R1@{t}": result["full"]["MR-R1"][t] for t in ("0.5", "0.7")}
    for name in (f"HL-min-{level}" for level in LEVELS):
        if name in result:
            brief |= {
                f"{name}-mAP": result[name]["HL-mAP"],
                f"{name}-Hit1": result[name]["HL-Hit1"],
            }
    return brief
