"""Tables of temporal grounding: the papers' own, ours with intervals, QVHighlights."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.grounding.metrics import (
    Answered,
    bootstrap_interval,
    didemo_metrics,
    grounding_table,
    recall_at,
    recalls,
    score_answer,
    set_table,
    time_r1_metrics,
    timelens_metrics,
)
from mmrl.data.grounding.qvhighlights import average_precision, qvhighlights_metrics, rounded
from mmrl.data.grounding.span_math import hull_iou
from mmrl.data.grounding.spans import as_spans, timelens_eval_spans

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def test_golden_vtg_aggregate_metrics() -> None:
    batches = json.loads((GOLDEN / "aggregate_metrics.json").read_text())["batches"]
    assert batches
    for batch in batches:
        rows = [Answered(item["answers"], as_spans(item["gt"])) for item in batch["items"]]
        expected = batch["expected"]
        if "timelens" in expected:
            found = timelens_metrics(rows, unit=None)
            assert found["mIoU"] == pytest.approx(expected["timelens"]["mIoU"], abs=1e-9)
            for m in ("0.3", "0.5", "0.7"):
                assert found[f"R1@{m}"] == pytest.approx(expected["timelens"][m], abs=1e-9)
            spans = [timelens_eval_spans(row.text) for row in rows]
            ious = [
                hull_iou(s[0], r.truth[0]) if s else 0.0
                for s, r in zip(spans, rows, strict=True)
            ]
            assert ious == pytest.approx(expected["timelens"]["ious"], abs=1e-9)
        if "time_r1" in expected:
            found = time_r1_metrics(rows)
            for name, value in expected["time_r1"].items():
                key = name if name in found else f"R1@{name}"
                assert found[key] == pytest.approx(value, abs=1e-9), name


def test_golden_vtg_qvhighlights_metrics() -> None:
    sets = json.loads((GOLDEN / "qvhighlights_metrics.json").read_text())["sets"]
    assert sets
    for case in sets:
        found = rounded(qvhighlights_metrics(case["submission"], case["ground_truth"]))
        assert set(found) == set(case["expected"])
        for part, values in case["expected"].items():
            assert found[part] == values, part


def test_thresholds_are_inclusive_unless_strict() -> None:
    assert recalls([0.5])["R1@0.5"] == 100 and recalls([0.5], strict=True)["R1@0.5"] == 0
    assert all(math.isnan(value) for value in recalls([]).values())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_recalls_fall_with_the_threshold(ious: list[float]) -> None:
    table = recalls(ious)
    assert table["R1@0.3"] >= table["R1@0.5"] >= table["R1@0.7"]


def test_timelens_rounds_to_whole_seconds_by_default() -> None:
    rows = [Answered("The event happens in 10.4 - 19.6 seconds.", [(10.0, 20.0)])]
    assert timelens_metrics(rows)["mIoU"] == 100
    assert timelens_metrics(rows, unit=None)["mIoU"] == pytest.approx(92)
    half = [Answered("0.5 - 2.5", [(0.0, 2.0)])]
    assert timelens_metrics(half)["mIoU"] == 100, "halves go to the even second"


def rows_for(name: str, ious: list[float], videos: list[str] | None = None) -> list[Answered]:
    return [
        Answered(
            f"The event happens in 0.0 - {100 * iou:.3f} seconds.",
            [(0.0, 100.0)],
            name,
            video,
            120.0,
        )
        for iou, video in zip(ious, videos or [""] * len(ious), strict=True)
    ]


def test_table_is_per_data_set_and_has_intervals_around_the_value() -> None:
    rng = np.random.default_rng(0)
    rows = rows_for("a", rng.uniform(0.1, 1, 80).tolist()) + rows_for("b", [0.9] * 20)
    rows += [Answered("no idea", [(0.0, 1.0)], "b"), Answered("5 - 2", [(0.0, 1.0)], "b")]
    table = grounding_table(rows, draws=300)
    assert set(table) == {"a", "b"} and table["a"]["n"] == 80 and table["b"]["n"] == 22
    for line in table.values():
        for metric in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU"):
            assert line[f"{metric}_low"] <= line[metric] <= line[f"{metric}_high"]
    assert table["b"]["unreadable"] == table["b"]["reversed"] == pytest.approx(100 / 22)
    assert table["b"]["mIoU"] == pytest.approx(100 * 0.9 * 20 / 22)
    assert grounding_table(rows, draws=300) == table, "same seed, same interval"


def test_interval_covers_the_mean_about_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(rng.normal(0, 1, 60), draws=300, seed=seed)
        hits += low <= 0 <= high
    assert 175 <= hits <= 200


def test_videos_are_resampled_whole() -> None:
    values = np.repeat(np.random.default_rng(0).uniform(size=10), 20)
    videos = np.repeat(np.arange(10), 20).tolist()
    narrow, wide = bootstrap_interval(values), bootstrap_interval(values, videos)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


@pytest.mark.parametrize(
    "wrong", [{"values": []}, {"values": [1.0], "level": 1.0}, {"values": [1.0], "draws": 0}]
)
def test_impossible_bootstraps_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="need one value"):
        bootstrap_interval(**wrong)


def test_best_of_n() -> None:
    rows = [Answered("1 - 2, 10 - 20", [(10.0, 20.0)])]
    assert recall_at(rows, 1) == {"R1@0.3": 0, "R1@0.5": 0, "R1@0.7": 0}
    assert recall_at(rows, 2)["R2@0.7"] == 100


def test_set_table_reads_json_and_text() -> None:
    rows = [
        Answered("[[0, 5], [5, 10]]", [(0.0, 10.0)], "s"),
        Answered("?", [(0.0, 10.0)], "s"),
    ]
    assert set_table(rows) == {
        "s": {"n": 2, "set_IoU": 50.0, "W1": 50.0, "mAP": 5.0}
    }  # IoU 0.5 reaches one of ten θ


def test_mean_average_precision_of_spans_equals_the_program_of_qvhighlights() -> None:
    rng, rows, truth, answered = np.random.default_rng(0), [], [], []
    for qid in range(40):
        ends = np.sort(rng.uniform(0, 140, size=(int(rng.integers(1, 4)), 2)), axis=1)
        told = np.sort(
            np.concatenate([ends + rng.normal(0, 2, ends.shape), rng.uniform(0, 140, (2, 2))]),
            axis=1,
        )
        told = told[rng.permutation(len(told))].round(2)
        rows.append({"qid": qid, "pred_relevant_windows": told.tolist()})
        truth.append({"qid": qid, "relevant_windows": ends.tolist()})
        answered.append(
            Answered(json.dumps(told.tolist()), [(float(a), float(b)) for a, b in ends], "qv")
        )
    wanted = qvhighlights_metrics(rows, truth)["full"]["MR-mAP"]["average"]
    assert 0 < wanted < 100 and set_table(answered)["qv"]["mAP"] == pytest.approx(wanted)
    assert set_table([Answered("nothing", [(0.0, 1.0)], "qv")])["qv"]["mAP"] == 0


def test_our_score_ignores_thinking() -> None:
    assert score_answer(Answered("<think>1 to 2</think> 10 - 20", [(10.0, 20.0)])) == 1


def test_didemo_takes_the_best_three_annotators() -> None:
    ranked = [[(0.0, 5.0), (5.0, 10.0), (0.0, 10.0)]]
    marks = [[(0.0, 5.0), (0.0, 5.0), (0.0, 5.0), (25.0, 30.0)]]
    assert didemo_metrics(ranked, marks) == {"Rank@1": 100, "Rank@5": 100, "mIoU": 100}
    two = [[(0.0, 5.0), (0.0, 5.0), (5.0, 10.0), (25.0, 30.0)]]
    assert didemo_metrics(ranked, two)["Rank@1"] == 0
    assert didemo_metrics(ranked, two)["mIoU"] == pytest.approx(200 / 3)


def perfect() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    truth = [
        {"qid": i, "duration": 150, "relevant_windows": windows, "relevant_clip_ids": [0, 1],
         "saliency_scores": [[4] * 3] * 2}
        for i, windows in enumerate([[[0, 8]], [[10, 30], [40, 100]], [[0, 150]]])
    ]  # fmt: skip
    submission = [
        {"qid": row["qid"], "pred_relevant_windows": [[*w, 1 - 0.1 * k] for k, w in enumerate(row["relevant_windows"])],
         "pred_saliency_scores": [1.0, 1.0] + [0.0] * 73}
        for row in truth
    ]  # fmt: skip
    return submission, truth


def test_perfect_submission_has_a_hundred_percent_in_full() -> None:
    result = qvhighlights_metrics(*perfect())
    assert (
        set(result["full"]["MR-mAP"].values())
        == {100.0}
        == set(result["full"]["MR-R1"].values())
    )
    assert result["HL-min-VeryGood"] == {"HL-mAP": 100.0, "HL-Hit1": 100.0}
    assert result["middle"]["MR-mAP"]["average"] < 101


def test_later_windows_never_raise_and_the_tail_is_ignored() -> None:
    submission, truth = perfect()
    doubled = copy.deepcopy(submission)
    for row in doubled:
        row["pred_relevant_windows"] += [[*w[:2], 0.01] for w in row["pred_relevant_windows"]]
    assert (
        qvhighlights_metrics(doubled, truth)["full"]["MR-mAP"]
        == qvhighlights_metrics(submission, truth)["full"]["MR-mAP"]
    )
    long = copy.deepcopy(submission)
    long[0]["pred_relevant_windows"] = [[100 + i, 101 + i, 0.5] for i in range(10)] + [
        [0, 8, 1.0]
    ]
    assert qvhighlights_metrics(long, truth)["full"]["MR-mAP"]["0.5"] == pytest.approx(200 / 3)


def test_windows_without_scores_keep_their_order() -> None:
    submission, truth = perfect()
    for row in submission:
        row["pred_relevant_windows"] = [w[:2] for w in row["pred_relevant_windows"]] + [
            [120, 121]
        ]
    assert qvhighlights_metrics(submission, truth)["full"]["MR-mAP"][
        "average"
    ] == pytest.approx(100)


def test_empty_prediction_counts_zero_and_bad_ids_are_refused() -> None:
    submission, truth = perfect()
    submission[0]["pred_relevant_windows"] = []
    assert qvhighlights_metrics(submission, truth)["full"]["MR-R1"]["0.5"] == pytest.approx(
        200 / 3
    )
    with pytest.raises(ValueError, match="not answered"):
        qvhighlights_metrics(submission[1:], truth)
    truth[0]["relevant_windows"] = []
    with pytest.raises(ValueError, match="Query 0 has no true window"):
        qvhighlights_metrics(submission, truth)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=20))
def test_highlight_precision_follows_the_sklearn_curve(items: list[tuple[bool, int]]) -> None:
    curve = pytest.importorskip("sklearn.metrics").precision_recall_curve
    positive, scores = (
        np.array([i[0] for i in items]),
        np.array([i[1] for i in items], dtype=float),
    )
    if positive.all() or not positive.any():
        assert average_precision(positive, scores) == positive.all()
        return
    precision, recall, _ = curve(positive, scores)
    precision = np.maximum.accumulate(precision)
    expected = precision[np.nonzero(np.diff(recall.astype(np.float32)))[0]].mean()
    assert average_precision(positive, scores) == pytest.approx(expected, abs=1e-9)
