"""Questions, target texts and snapping."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrl.data.grounding.questions import (
    clean_query,
    plain_query,
    snap_span,
    snap_spans,
    span_answer,
    think_answer,
)
from mmrl.data.grounding.spans import answer_span, as_spans, strict_spans, timelens_spans

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def timelens_data() -> dict[str, Any]:
    content = json.loads((GOLDEN / "timelens_data.json").read_text())
    unknown = set(content) - {
        "align_to_sampled",
        "queries",
        "sft_targets",
        "difficulty_sampling",
    }
    if unknown:
        warnings.warn(
            f"timelens_data.json: keys without a test: {sorted(unknown)}", stacklevel=2
        )
    return content


def test_golden_vtg_timelens_snapping() -> None:
    cases = timelens_data()["align_to_sampled"]
    assert cases
    for case in cases:
        stamps = [index / case["fps"] for index in case["frames_indices"][0::2]]
        assert stamps == pytest.approx(case["sampled_timestamps"], abs=1e-9)
        snapped = snap_spans(as_spans(case["spans"]), stamps)
        assert [list(span) for span in snapped] == [
            pytest.approx(span, abs=1e-9) for span in case["aligned"]
        ]


def test_golden_vtg_timelens_queries_and_targets() -> None:
    data = timelens_data()
    assert data["queries"] and data["sft_targets"]
    for case in data["queries"]:
        assert clean_query(case["query"]) == case["clean"]
    for case in data["sft_targets"]:
        assert span_answer(as_spans(case["spans"])) == case["text"]


stamps = st.lists(st.floats(0, 300), min_size=1, max_size=40, unique=True).map(sorted)


@given(stamps, st.floats(0, 300), st.floats(0, 300))
def test_snapping_never_shrinks_and_is_idempotent(
    grid: list[float], a: float, b: float
) -> None:
    span = (min(a, b), max(a, b))
    snapped = snap_span(span, grid)
    assert snapped == snap_span(snapped, grid) and set(snapped) <= set(grid)
    assert snapped[0] <= span[0] or span[0] < grid[0]
    assert snapped[1] >= span[1] or span[1] > grid[-1]


def test_a_clip_without_stamps_cannot_be_snapped_to() -> None:
    with pytest.raises(ValueError, match="no stamps"):
        snap_span((1, 2), [])


@given(st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 9999)), min_size=1, max_size=4))
def test_answers_are_read_back(tenths: list[tuple[int, int]]) -> None:
    spans = [(a / 10, b / 10) for a, b in tenths]
    assert strict_spans(span_answer(spans)) == timelens_spans(span_answer(spans)) == spans
    assert answer_span(think_answer(spans[0], "a thought")) == spans[0]


def test_plain_queries_lose_case_and_one_period() -> None:
    assert plain_query(" A Dog runs.. ") == "a dog runs."
