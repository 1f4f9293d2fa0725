"""Temporal grounding in words: questions, target answers, and targets on the grid of what was seen. No torch at import.

    "When does this happen?" -> "The event happens in 12.0 - 17.5 seconds."

Parsers are in `mmrl.data.grounding.spans`, rewards in `mmrl.data.grounding.rewards`, metrics in
`mmrl.data.grounding.metrics`, data sets in `mmrl.data.grounding.sets`, encodings of time in
`mmrl.data.video.time_text`.

The templates say in our words what those of TimeLens and of TimeZero, VideoChat-R1 and Time-R1 ask for; the form of the
answer, which the parsers read, is theirs. To continue a published checkpoint pass its own wording as `template`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmrl.data.grounding.spans import Span, Spans

SPAN_TEMPLATE = (
    "Find the event that this sentence describes: '{query}'. When does it start and when does it end? "
    "Answer in the form: The event happens in <start time> - <end time> seconds."
)
STAMPED_TEMPLATE = (
    "The number before each frame of the video is its time in seconds. " + SPAN_TEMPLATE
)
SET_TEMPLATE = (
    "Find every moment of the video that fits this sentence: '{query}'. "
    "Answer with a JSON list of [start, end] pairs in seconds and nothing else."
)
THINK_TEMPLATE = (
    'When exactly does the event "{query}" happen? Think first, inside <think> </think>; put times that you consider '
    "inside <timestep> </timestep>. Then give the start and the end in seconds with two decimals as "
    '"start to end" inside <answer> </answer>, for example <answer>12.54 to 17.83</answer>.'
)


def clean_query(query: str) -> str:
    """TimeLens: runs of white space become one space; white space and periods at both ends go."""
    return re.sub(r"\s+", " ", query).strip().strip(".").strip()


def plain_query(query: str) -> str:
    """TimeZero, VideoChat-R1, Time-R1: stripped, lower case, without one final period."""
    return query.strip().lower().removesuffix(".")


def span_answer(spans: Sequence[Span]) -> str:
    """The target text of TimeLens, one decimal: `The event happens in 1.0 - 2.2 seconds, 5.0 - 6.0 seconds.`"""
    listed = ", ".join(f"{start:.1f} - {end:.1f} seconds" for start, end in spans)
    return f"The event happens in {listed}."


def think_answer(span: Span, thought: str = "") -> str:
    """The true answer in the form of `THINK_TEMPLATE`, two decimals."""
    return f"<think>{thought}</think>\n<answer>{span[0]:.2f} to {span[1]:.2f}</answer>"


def snap_span(span: Span, stamps: Sequence[float]) -> Span:
    """The span on the grid of stamps, never shorter than it was while it lies within them.

    Start: the last stamp ≤ start (the first stamp if none). End: the first stamp ≥ end from there on (the last one if
    none). TimeLens-7B snaps training targets, not those of evaluation. Stamps: increasing seconds, at least one.
    """
    if not len(stamps):
        raise ValueError(f"The span {span} cannot be snapped: the clip shows no stamps.")
    start, end = span
    before = [place for place, stamp in enumerate(stamps) if stamp <= start]
    first = max(before, default=0)
    # Searched from the first one on: an end before all stamps must not come out before its start.
    after = [stamp for stamp in stamps[first:] if stamp >= end]
    last = after[0] if after else stamps[-1]
    return float(stamps[first]), float(last)


def snap_spans(spans: Spans, stamps: Sequence[float]) -> Spans:
    """`snap_span` for each span."""
    return [snap_span(span, stamps) for span in spans]
