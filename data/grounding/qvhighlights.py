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
RANGES = {
    "short": (0, 10),
    "middle": (10, 30),
    "long": (30, 150),
    "full": (0, 150),
}
"""Seconds; the lower end is outside, the upper inside."""
LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}
MOST_WINDOWS, CLIP_SECONDS, ANNOTATORS, EPSILON = 10, 2, 3, 1e-6

Row = Mapping[str, Any]


def qvhighlights_metrics(submission: Sequence[Row], truth: Sequence[Row]) -> dict[str, Any]:
    """All metrics in percent, under the keys of the original: brief, full, short, middle, long, HL-min-*.

    Submission rows hold qid, pred_relevant_windows [[start, end(, score)], ...] and, for highlights,
    pred_saliency_scores (one per two seconds). Raises ValueError if the query ids differ.
    """
    asked = {row["qid"] for row in truth}
    answered = {row["qid"] for row in submission}
    if asked != answered:
        lost = sorted(asked - answered)[:5]
        extra = sorted(answered - asked)[:5]
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
    if isinstance(result, dict):
        return {name: rounded(value) for name, value in result.items()}
    # Through text, as the original.
    return float(f"{result:.2f}")


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
            # "full" has a limit on paper only: windows longer than 150 s are kept, as there.
            if name != "full":
                lengths = windows[:, 1] - windows[:, 0]
                windows = windows[(lengths > low) & (lengths <= high)]
            if len(windows):
                kept[row["qid"]] = windows
        result[name] = _one_range(predicted, kept)
    return result


def highlights(submission: Sequence[Row], truth: Sequence[Row]) -> dict[str, dict[str, float]]:
    """HL-min-<level> -> {"HL-mAP", "HL-Hit1"} in percent."""
    scores = {}
    for row in submission:
        scores[row["qid"]] = np.array(row["pred_saliency_scores"], dtype=float)  # [clips]
    marks = {row["qid"]: _marks(row) for row in truth}
    result = {}
    for name, lowest in LEVELS.items():
        hits, precisions = [], []
        for qid, predicted in scores.items():
            positive = marks[qid] >= lowest  # [clips, annotators]
            # HIT@1 asks any annotator, mAP each of them. A best clip beyond the end of the video is a miss.
            best = int(predicted.argmax())
            hits.append(float(positive[best].max()) if best < len(positive) else 0.0)
            # Predictions may be longer or shorter than the video; clips without a score have 0.
            fitted = np.zeros(len(positive))
            fitted[: len(predicted)] = predicted[: len(positive)]
            per_annotator = [average_precision(column, fitted) for column in positive.T]
            precisions.append(np.mean(per_annotator))
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
    """AP in [0, 1] of one answer: mean over θ, the first ten spans in the order given, windows of any length."""
    if not len(spans):
        return 0.0
    windows = _windows({"pred_relevant_windows": list(spans)[:MOST_WINDOWS]})
    true = np.asarray(truth, dtype=float).reshape(-1, 2)
    return float(detection_average_precision(windows, true).mean())


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Mean interpolated precision over the recalls that thresholds reach; no positive gives 0, all positive 1."""
    if positive.all() or not positive.any():
        return float(positive.all())
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(positive[order])
    # One point per distinct score, from the highest to the lowest.
    changes = np.nonzero(np.diff(scores[order]))[0]
    last = np.append(changes, len(scores) - 1)
    precision = found[last] / (last + 1)
    # float32, as in the original: two recalls that it cannot tell apart are one point of the curve.
    recall = (found[last] / found[-1]).astype(np.float32)
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
        # Cut before sorting: the ten windows that come first, not the ten best. R1, too, takes the first as submitted.
        precisions.append(detection_average_precision(mine[:MOST_WINDOWS], windows))
        # The partner is chosen by IoU over the union, the value is IoU over the hull.
        fits = windows[_cross_iou(mine[:1, :2], windows)[0].argmax()]
        best.append(_hull_iou(mine[0], fits))
    if not precisions:
        nothing = dict.fromkeys(map(str, THRESHOLDS), float("nan"))
        return {"MR-mAP": nothing | {"average": float("nan")}, "MR-R1": nothing}
    mean = np.mean(precisions, axis=0)
    maps, recalls = {}, {}
    for threshold, value in zip(THRESHOLDS, mean, strict=True):
        reached = np.array(best) >= threshold
        maps[str(threshold)] = 100 * float(value)
        recalls[str(threshold)] = 100 * float(np.mean(reached))
    maps["average"] = 100 * float(mean.mean())
    return {"MR-mAP": maps, "MR-R1": recalls}


def _windows(row: Row) -> np.ndarray:
    """[N, 3]: start, end, score."""
    windows = []
    for place, window in enumerate(row["pred_relevant_windows"]):
        window = list(window)
        if len(window) != 3:
            # Falling scores keep the order of windows that come without.
            window.append(1 - EPSILON * place)
        windows.append(window)
    return np.array(windows, dtype=float).reshape(-1, 3)


def _marks(row: Row) -> np.ndarray:
    """[clips, annotators], 0 to 4; 0 where a clip is not relevant."""
    marks = np.zeros((int(row["duration"] / CLIP_SECONDS), ANNOTATORS))
    marks[np.array(row["relevant_clip_ids"], dtype=int)] = row["saliency_scores"]
    return marks


def _cross_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M] over the true union; 0 where it is empty."""
    first_end = np.minimum(a[:, None, 1], b[None, :, 1])
    last_start = np.maximum(a[:, None, 0], b[None, :, 0])
    shared = np.clip(first_end - last_start, 0, None)
    lengths_a = a[:, 1] - a[:, 0]
    lengths_b = b[:, 1] - b[:, 0]
    union = lengths_a[:, None] + lengths_b[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union != 0)


def _hull_iou(a: np.ndarray, b: np.ndarray) -> float:
    (start, end), (other_start, other_end) = a[:2], b[:2]
    hull = max(end, other_end) - min(start, other_start)
    shared = max(0.0, min(end, other_end) - max(start, other_start))
    return float(shared / hull) if hull else 0.0


def _interpolated(correct: np.ndarray, total: int) -> float:
    """Area under the running maximum of precision over recall; `correct` [N] by falling score."""
    found = np.cumsum(correct)
    # Sentinels at both ends: recall starts at 0, and what is never found has precision 0.
    among = np.arange(1, len(correct) + 1)
    precision = np.concatenate([[0.0], found / among, [0.0]])
    recall = np.concatenate([[0.0], found / total, [1.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    step = np.nonzero(np.diff(recall))[0] + 1
    width = recall[step] - recall[step - 1]
    return float(np.sum(width * precision[step]))


def _brief(result: Mapping[str, Any]) -> dict[str, float]:
    brief = {}
    if "full" in result:
        for name in RANGES:
            brief[f"MR-{name}-mAP"] = result[name]["MR-mAP"]["average"]
        full = result["full"]
        brief |= {f"MR-full-mAP@{t}": full["MR-mAP"][t] for t in ("0.5", "0.75")}
        brief |= {f"MR-full-R1@{t}": full["MR-R1"][t] for t in ("0.5", "0.7")}
    for level in LEVELS:
        name = f"HL-min-{level}"
        if name in result:
            brief[f"{name}-mAP"] = result[name]["HL-mAP"]
            brief[f"{name}-Hit1"] = result[name]["HL-Hit1"]
    return brief
