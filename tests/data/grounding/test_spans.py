"""Parsers of spans: every code base's own, and ours."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.grounding.spans import (
    answer_span,
    as_spans,
    first_two_numbers,
    glue_spans,
    json_spans,
    last_span,
    lenient_spans,
    strict_spans,
    timelens_answer,
    timelens_eval_spans,
    timelens_spans,
)
from mmrl.ground.answers import after_thinking

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[2] / "golden")) / "vtg"


def pair(span: tuple[float, float] | None) -> list[float | None]:
    return list(span) if span else [None, None]


PARSERS: dict[tuple[str, str], Any] = {
    ("timelens_train", "extract_answer"): timelens_answer,
    ("timelens_train", "extract_time"): lambda text: [list(s) for s in timelens_spans(text)],
    ("timelens_eval", "extract_time"): lambda text: [
        list(s) for s in timelens_eval_spans(text)
    ],
    ("videochat_r1", "parse"): lambda text: (s := answer_span(text, ordered=True)) and list(s),
    ("videochat_r1", "eval_parse"): lambda text: pair(last_span(text)),
    ("time_zero", "parse"): lambda text: (s := answer_span(text)) and list(s),
    ("time_r1", "parse"): lambda text: (s := answer_span(text)) and list(s),
    ("time_r1", "eval_extract"): lambda text: pair(last_span(text)),
    ("time_r1", "force_extract"): lambda text: pair(first_two_numbers(text)),
}


def test_golden_vtg_single_span_parsers() -> None:
    cases = json.loads((GOLDEN / "single_span_rewards.json").read_text())["cases"]
    checked = 0
    for case in cases:
        for (base, name), parser in PARSERS.items():
            if name in case["expected"].get(base, {}):
                assert parser(case["completion"]) == case["expected"][base][name], (
                    base,
                    name,
                    case["completion"],
                )
                checked += 1
    assert checked >= len(cases) > 0
    names = {
        (base, name)
        for case in cases
        for base, values in case["expected"].items()
        for name in values
    }
    parsing = {found for found in names if "parse" in found[1] or "extract" in found[1]}
    if parsing - set(PARSERS):
        warnings.warn(f"parsers without a test: {sorted(parsing - set(PARSERS))}", stacklevel=1)


def test_golden_vtg_interval_set_w1_parser() -> None:
    cases = json.loads((GOLDEN / "interval_set_w1_rewards.json").read_text())["cases"]
    assert cases
    for case in cases:
        assert [list(span) for span in json_spans(case["completion"])] == case["parsed"], case[
            "completion"
        ]


def test_training_and_evaluation_parsers_differ_where_documented() -> None:
    assert timelens_spans("<think>3 to 5</think><answer>10 to 20</answer>") == [(10, 20)]
    assert timelens_eval_spans("<think>3 to 5</think><answer>10 to 20</answer>") == [
        (3, 5),
        (10, 20),
    ]
    assert lenient_spans("<think>3 to 5</think>\nThe event happens in 10 - 20 seconds.") == [
        (10, 20)
    ]
    for text in ("The event happens in 1.0 - 2.5 seconds.", "00:10 to 00:20", "no time"):
        assert timelens_spans(text) == timelens_eval_spans(text) == lenient_spans(text)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("The event happens in 1.0 - 2.5 seconds.", [(1.0, 2.5)]),
        ("The event happens in 1 - 2 seconds", [(1, 2)]),
        (
            "<think>maybe 3 - 4</think>\n<answer>The event happens in 1 - 2 seconds.</answer>",
            [(1, 2)],
        ),
        ("The event happens in 1 - 2 seconds, 5 - 6 seconds.", [(1, 2), (5, 6)]),
        ("The event happens in 1-2 seconds.", None),
        ("It happens in 1 - 2 seconds.", None),
        ("The event happens in 1 - 2 seconds. Surely.", None),
        ("", None),
    ],
)
def test_strict_parser_takes_the_template_only(text: str, spans: Any) -> None:
    assert strict_spans(text) == spans
    if spans:
        assert lenient_spans(text) == spans


def test_thinking_is_what_comes_before_its_last_end() -> None:
    assert after_thinking("a</think>b</think> c") == " c"
    assert after_thinking("<think>never ends 3 to 4") == "<think>never ends 3 to 4"


seconds = st.floats(0, 5000).map(lambda x: round(x, 1))


@given(seconds, seconds)
def test_templates_come_back(start: float, end: float) -> None:
    text = f"The event happens in {start:.1f} - {end:.1f} seconds."
    assert strict_spans(text) == lenient_spans(text) == timelens_spans(text) == [(start, end)]
    answer = f"<think>x</think>\n<answer>{start:.2f} to {end:.2f}</answer>"
    assert answer_span(answer) == last_span(answer) == (start, end)
    assert answer_span(answer, ordered=True) == ((start, end) if start <= end else None)
    assert timelens_spans(answer) == [(start, end)], (
        "the TimeLens parser reads all that the others read"
    )
    assert json_spans(json.dumps([[start, end]])) == (
        [(min(start, end), max(start, end))] if start != end else []
    )


TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>"]
MARKS = [*"[](,{}- \n", " to ", " and "]
pieces = st.sampled_from(
    [
        *TAGS,
        *MARKS,
        "1",
        "2.5",
        "0:10",
        "1e400",
        "9" * 400,
        "to",
        "seconds",
        '"3"',
        "null",
        "NaN",
    ]
)


def test_a_number_beyond_floats_is_no_span() -> None:
    assert last_span(f"{'9' * 400} to 3") is None


@settings(deadline=None, max_examples=300)
@given(st.lists(pieces, max_size=25).map("".join) | st.text(max_size=80))
def test_no_text_breaks_a_parser_and_all_numbers_are_finite(text: str) -> None:
    single = [answer_span(text), answer_span(text, ordered=True), last_span(text)]
    many = [
        timelens_spans(text),
        timelens_eval_spans(text),
        lenient_spans(text),
        json_spans(text),
    ]
    spans = (
        [s for s in single if s]
        + [s for found in many for s in found]
        + (glue_spans(text) or [])
    )
    assert all(math.isfinite(x) for span in spans for x in span)
    assert strict_spans(text) is None or lenient_spans(text)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("<glue>[(1, 2.5),]</glue>", [(1, 2.5)]),
        ("<glue>[]</glue>", []),
        ("<glue>[(2, 1)]</glue>", None),
        ("<glue>[[1, 2]]</glue>", None),
        ("<glue>[(01, 2)]</glue>", None),
        ("[(1, 2)]", None),
    ],
)
def test_glue_lists(text: str, spans: Any) -> None:
    assert glue_spans(text) == spans


@pytest.mark.parametrize("value", [[1, 2], (1.0, 2.0), [[1, 2]], [(1, 2), [3, 4]]])
def test_spans_of_data_are_normalised(value: Any) -> None:
    assert as_spans(value)[0] == (1.0, 2.0)


@pytest.mark.parametrize(
    "value", [None, "1-2", [1], [1, 2, 3], [[1, math.nan]], [["1", 2]], [True, 2]]
)
def test_values_that_are_no_spans_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"give \[start, end\]"):
        as_spans(value)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("2.5s - 4.5s", [(2.5, 4.5)]),
        ("2.5s – 4.5s", [(2.5, 4.5)]),
        ("2.5s–4.5s, 7s–9s", [(2.5, 4.5), (7, 9)]),
        ("2.5sec-4.5sec", [(2.5, 4.5)]),
        ("from 2.5 s to 4.5 s", [(2.5, 4.5)]),
        ("10s to 20s", [(10, 20)]),
        ("[15.5s, 20.5s]", [(15.5, 20.5)]),
        ('[["2.5", "4.5"]]', [(2.5, 4.5)]),
        ("12:34.56s - 12:40.25s", [(754.56, 760.25)]),
        ("12:34.56s - 760.25s", [(754.56, 760.25)]),
        ("01:02:03s - 01:02:05s", [(3723, 3725)]),
        ("[00:15, 00:32]", [(15, 32)]),
        ("00:15.5 to 00:32", [(15.5, 32)]),
        ("2m5s - 2m9s", [(125, 129)]),
        ("1 minute 5 s to 1 minute 9 s", [(65, 69)]),
        ("1 h 2 min to 1 h 3 min", [(3720, 3780)]),
        ("1,002.0 - 1,004.5", [(1002, 1004.5)]),
        ("[100,200]", [(100, 200)]),
        ("[1,100, 1,200]", [(1100, 1200)]),
        ("12:34.56s", []),
        ("5s", []),
    ],
)
def test_ours_reads_units_clocks_and_thousands(text: str, spans: Any) -> None:
    assert lenient_spans(text) == spans
    assert lenient_spans(f"<think>1 to 2</think><answer>{text}</answer>") == spans


@pytest.mark.parametrize(
    "text",
    [
        "<think>2 to 4",
        "<think>a</think> no, <think>2 to 4",
        "<think>x</think><answer>2 - 4",
        "<answer>1 to 2</answer> no, <answer>2 to 4",
        "<answer>[2.5, 4",
        "[[2.5, 4.5], [7",
        "(2.5, 4.5",
        "\\boxed{2 to 4",
    ],
)
def test_what_never_closes_holds_no_span(text: str) -> None:
    assert lenient_spans(text) == [] and strict_spans(text) is None


@pytest.mark.parametrize("unit", ["1,", "1,000 ", "1 h ", "1:", "5s", "9", "5 - ", "1,000 to "])
def test_our_parser_takes_linear_time(unit: str) -> None:
    began = time.perf_counter()
    lenient_spans(unit * (50_000 // len(unit)))
    assert time.perf_counter() - began < 2.0
