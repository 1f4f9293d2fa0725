"""Spans of time: reading them out of answers. Imports no torch.

A span is (start, end) in seconds from the start of the clip. Parsers return what is written, reversed and empty spans
included; what such a span is worth is decided in `mmrl.data.grounding.rewards`. Numbers that are not finite are no
numbers.

`strict_spans` accepts the answer template only and serves a format metric; `lenient_spans` is ours. It reads what
`timelens_spans` reads, behind the thinking, and besides: a unit of seconds written at its number ("2.5s - 4.5s",
"12:34.56s"), thousands ("1,002.5"), quoted numbers. An answer that ends inside a thought, a tag or a bracket was cut
off and holds no span. The other parsers follow one code base each, faults included, because published numbers depend
on them:

    timelens_spans      TimeLens, training reward       first: inside of <answer>; "to" is "-" even inside words
    timelens_eval_spans TimeLens, evaluation            reads the whole text, thinking included
    answer_span         TimeZero, VideoChat-R1, Time-R1 last "x to y" in the last <answer> block, single spaces
    last_span           VideoChat-R1, Time-R1 evaluation: last "x to y" in the whole text, lower case
    first_two_numbers   Time-R1, difficulty filter       when the parse fails
    json_spans          TimeLens2                        first JSON candidate that yields pairs, each sorted
    glue_spans          VideoChat-R1 grounded answers    literal list of (a, b) tuples
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Iterable
from typing import Any

from mmrl.ground.answers import after_thinking, cut_off

Span = tuple[float, float]
Spans = list[Span]

LARGEST = sys.float_info.max
NUMBER = r"(?<!\d)\d++(?:\.\d*+)?+"
"""Digits with an optional point, never cut and never tried twice: answers of digits only must not take cubic time."""
THINK_ANSWER = re.compile(r"<think>.*?</think>\s*<answer>(.*?)</answer>", re.DOTALL)
CLOCK = re.compile(r"\b(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?|\d{1,2}:\d{2}(?:\.\d+)?)\b")
DASHED = re.compile(rf"({NUMBER})\s*-\s*({NUMBER})")
SPOKEN = re.compile(rf"({NUMBER})\s*to\s*({NUMBER})")
DURATION = re.compile(
    r"(?<![\w.:])(?:(\d{1,4}(?:\.\d+)?) ?h(?:ours?|rs?)?\b[ ,]*)?(?:(\d{1,6}(?:\.\d+)?) ?m(?:in(?:ute)?s?)?(?![a-z]))"
    r"(?:[ ,]*(?:and )?(\d{1,2}(?:\.\d+)?) ?s(?:ec(?:ond)?s?)?\b)?"
)
"""A time in minutes: "2m 5s", "1 h 2 min", "3 minutes"."""
SECONDS = re.compile(r"(\d) ?s(?:ec(?:ond)?s?)?\b\.?")
"""A unit of seconds behind a digit."""
_LONG = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d+)?"
THOUSANDS = re.compile(rf"(?<![\d.,]){_LONG}\s*(?:-|to|and|,\s)\s*{_LONG}(?![\d,]*\d)")
"""Two numbers between which no bare comma stands: commas inside them are thousands, those of "[100,200]" are not."""
_DASHES_AND_QUOTES = {
    **dict.fromkeys(map(ord, "‐‑‒–—―−~～"), "-"),
    **dict.fromkeys(map(ord, "\"'"), " "),
}
BARE = re.compile(r"\b(\d+\.\d+|\d+)\b")
ONE_SPACE = rf"({NUMBER}) (?:to|and) ({NUMBER})"
TEMPLATE = re.compile(
    rf"The event happens in ({NUMBER} - {NUMBER} seconds(?:, {NUMBER} - {NUMBER} seconds)*)\.?",
    re.IGNORECASE,
)


def as_spans(value: Any) -> Spans:
    """A pair, or a list of pairs, of seconds as a list of spans. Raises ValueError for anything else."""
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{value!r} is no span; give [start, end] or a list of such pairs, in seconds."
        )
    pairs = [value] if _is_pair(value) else value
    spans = []
    for pair in pairs:
        if not _is_pair(pair):
            raise ValueError(
                f"{pair!r} in {value!r} is no span; give [start, end] in seconds, both finite."
            )
        spans.append((float(pair[0]), float(pair[1])))
    return spans


def inside_answer(text: str) -> str:
    """The inside of the last <answer> block; all of the text if there is none."""
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return blocks[-1] if blocks else text


def strict_spans(text: str) -> Spans | None:
    """Spans of an answer that is the template and nothing else, a finished thinking block aside; else None."""
    found = TEMPLATE.fullmatch(inside_answer(after_thinking(text)).strip())
    return _pairs(DASHED.findall(found.group(1))) if found else None


def lenient_spans(text: str) -> Spans:
    """Spans of any text with numbers in it: as TimeLens reads, outside of the thinking; none if it was cut off."""
    if cut_off(text):
        return []
    answer = inside_answer(after_thinking(text)).lower()
    if any(answer.count(opening) > answer.count(closing) for opening, closing in ("[]", "()")):
        return []
    answer = answer.translate(_DASHES_AND_QUOTES)
    answer = SECONDS.sub(r"\1", DURATION.sub(_in_seconds, answer))
    if len(CLOCK.findall(answer)) == 1:  # "12:34" alone is one time, not the span from 12 to 34
        answer = CLOCK.sub(lambda clock: f"{_seconds(clock[0]):.3f}", answer)
    return timelens_spans(THOUSANDS.sub(_without_thousands, answer))


def timelens_answer(text: str) -> str:
    """The inside of the first answer block if the text starts with a thinking and an answer block, else the text."""
    found = THINK_ANSWER.match(text)
    return found.group(1) if found else text


def timelens_spans(text: str) -> Spans:
    """The parser of the TimeLens training reward.

    Every "to" becomes a dash, also inside words. A minus sign is a dash, exponents and thousands separators break
    numbers, "10s to 20s" gives nothing.
    """
    return _read_spans(timelens_answer(text).lower().replace("to", "-"))


def timelens_eval_spans(text: str) -> Spans:
    """The parser of the TimeLens evaluation: the whole text, with the first spans of the thinking if there is one."""
    return _read_spans(text.lower())


def answer_span(text: str, *, ordered: bool = False) -> Span | None:
    """The last "x to y" or "x and y" of the last answer block, with single spaces, in any case.

    `ordered` refuses a reversed span, as VideoChat-R1 does; TimeZero and Time-R1 return it.
    """
    blocks = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    found = re.findall(ONE_SPACE, blocks[-1], re.IGNORECASE) if blocks else []
    if not found:
        return None
    start, end = _pairs(found[-1:])[0]
    if ordered and start > end:
        return None
    return start, end


def last_span(text: str) -> Span | None:
    """The last "x to y" or "x and y" of the whole text, thinking included, lower case and single spaces only."""
    found = re.findall(ONE_SPACE, text)
    usable = _pairs(found[-1:])  # empty if a number is too large to be finite
    return usable[0] if usable else None


def first_two_numbers(text: str) -> Span | None:
    """The first two numbers of the text; Time-R1 takes them while filtering when nothing else can be read."""
    found = re.findall(r"\d+(?:\.\d+)?", text)
    if len(found) < 2:
        return None
    return float(found[0]), float(found[1])


def json_spans(text: str) -> Spans:
    """Spans of a JSON answer, each put in order; empty if there are none or if one of them is a point.

    Looks, in this order, at the whole answer, a fenced block, and each part that starts with [[. An answer is what
    stands in an answer block, if there is one.
    """
    thought = r"<(?:redacted_)?thinking>.*?</(?:redacted_)?thinking>\s*<answer>(?P<answer>.*?)</answer>"
    block = r"<answer>(?P<answer>.*?)</answer>"
    found = None
    # Without the closing tag no pattern can match, and trying them costs quadratic time.
    if "</answer>" in text:
        found = re.search(thought, text, re.DOTALL) or re.search(block, text, re.DOTALL)
    answer = (found["answer"] if found else text).strip()
    candidates = [answer]
    fence = re.search(r"```(?:json)?\s*([\s\S]*?)```", answer, re.IGNORECASE)
    if fence:
        candidates.append(fence.group(1).strip())
    candidates += _nested_arrays(answer)
    for candidate in candidates:
        try:
            spans = _json_pairs(json.loads(candidate))
        # A thousand nested brackets are valid JSON and too deep for its reader.
        except (ValueError, RecursionError):
            continue
        if spans:
            ordered = [(min(span), max(span)) for span in spans]
            return ordered if all(start < end for start, end in ordered) else []
    return []


def glue_spans(text: str) -> Spans | None:
    """Spans of the first <glue> block; None unless it is literally a list of (a, b) tuples with 0 ≤ a ≤ b."""
    block = re.search(r"<glue>(.*?)</glue>", text, re.DOTALL)
    pair = r"\(\d+(\.\d+)?,\s*\d+(\.\d+)?\)"
    listed = rf"\[({pair}(,\s*{pair})*(,)?|)\]"
    if block is None or not re.fullmatch(listed, block.group(1)):
        return None
    try:
        literal = ast.literal_eval(block.group(1))
        spans = [(float(start), float(end)) for start, end in literal]
    except (SyntaxError, ValueError):
        # Numbers such as 007 have the right shape and are no literals.
        return None
    return spans if all(start <= end for start, end in spans) else None


def _read_spans(text: str) -> Spans:
    """TimeLens' reader of lower-case text: the first notation of which there is any wins, and is read throughout."""
    clocks = [_seconds(clock) for clock in CLOCK.findall(text)]
    if len(clocks) >= 2:
        return _pairs(zip(clocks[0::2], clocks[1::2], strict=False))
    for pattern in (DASHED, SPOKEN):
        if found := pattern.findall(text):
            return _pairs(found)
    numbers = BARE.findall(text)
    return _pairs(zip(numbers[0::2], numbers[1::2], strict=False))


def _in_seconds(duration: re.Match[str]) -> str:
    hours, minutes, seconds = (float(part or 0) for part in duration.groups())
    return f"{3600 * hours + 60 * minutes + seconds:.3f} "


def _without_thousands(pair: re.Match[str]) -> str:
    # The comma between the two has a space behind it; those inside have a digit.
    return re.sub(r",(?=\d)", "", pair[0])


def _seconds(clock: str) -> float:
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _pairs(found: Iterable[Any]) -> Spans:
    """Pairs of texts or numbers as spans; digits beyond the largest float are not finite and are left out."""
    spans = [(float(start), float(end)) for start, end in found]
    return [span for span in spans if math.isfinite(span[0]) and math.isfinite(span[1])]


def _is_pair(value: Any) -> bool:
    """Two numbers in a list or tuple."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return _is_number(value[0]) and _is_number(value[1])


def _is_number(value: Any) -> bool:
    # JSON's true is an int in Python and no second.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An integer may be too large for a float; comparing does not convert it.
    return -LARGEST <= value <= LARGEST


def _nested_arrays(text: str) -> list[str]:
    """Each part that starts with [[ and ends at the bracket that closes it."""
    parts = []
    place = text.find("[[")
    while place != -1:
        end = _closing_bracket(text, place)
        if end is None:
            # A part that is never closed ends the scan, as there, though a later one may be closed.
            return parts
        parts.append(text[place : end + 1])
        place = text.find("[[", end + 1)
    return parts


def _closing_bracket(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed; None if it is not."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "[":
            depth += 1
        elif text[place] == "]":
            depth -= 1
        if depth == 0:
            return place
    return None


def _json_pairs(data: Any) -> Spans:
    """Pairs of a JSON list: [a, b], [[a, b], ...], or these inside further brackets."""
    if not isinstance(data, list):
        return []
    while len(data) == 1 and isinstance(data[0], list):
        data = data[0]
    if data and isinstance(data[0], list):
        pairs = [_json_pair(item) for item in data]
        return [pair for pair in pairs if pair is not None]
    pair = _json_pair(data)
    return [pair] if pair is not None else []


def _json_pair(item: Any) -> Span | None:
    """The first two numbers of a list, written as numbers or as strings, through single nested brackets."""
    while isinstance(item, list) and len(item) == 1:
        item = item[0]
    if not isinstance(item, list) or len(item) < 2:
        return None
    start, end = _json_number(item[0]), _json_number(item[1])
    if start is None or end is None:
        return None
    return start, end


def _json_number(value: Any) -> float | None:
    number = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
    # The pattern keeps out what float() would also take: "nan", "1_000", "infinity".
    if isinstance(value, str) and re.fullmatch(number, value.strip()):
        value = float(value)
    return float(value) if _is_number(value) else None
