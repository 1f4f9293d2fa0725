"""Read structured answers: the JSON in the last `<answer>` tag, or the last fenced block, or the whole text.

Nothing raises, whatever the text: what cannot be read is None. JSON is taken strictly: NaN and infinities are refused,
a key given twice, numbers of more than 4300 digits and nesting beyond Python's limit count as unreadable. No torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from mmrl.rewards.answers import tagged

LONGEST = 100_000
"""Longest answer that is parsed, in characters."""


def json_answer(text: str) -> Any | None:
    """The JSON value that the text answers with; None if there is none or it is not clean JSON."""
    inside = tagged(text) if "<answer>" in text else text
    if inside is None or len(inside) > LONGEST:
        return None
    return parsed(_unfenced(inside))


def parsed(text: str) -> Any | None:
    """The value of a strict JSON text, or None."""
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None


def numbers(value: Any, count: int) -> list[float] | None:
    """A list of exactly `count` finite numbers as floats; booleans, text and anything else give None."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
        return None
    try:
        floats = [float(one) for one in value]
    except OverflowError:
        return None
    return floats if all(math.isfinite(one) for one in floats) else None


def box(value: Any) -> list[float] | None:
    """Four finite numbers x0 < x1, y0 < y1, or None."""
    corners = numbers(value, 4)
    return corners if corners and corners[0] < corners[2] and corners[1] < corners[3] else None


def _unfenced(text: str) -> str:
    """What stands in the last fenced block, or the text."""
    end = text.rfind("```")
    start = text.rfind("```", 0, end) if end >= 0 else -1
    if start < 0:
        return text.strip()
    return text[start + 3 : end].strip().removeprefix("json").strip()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        raise ValueError("a key is given twice")
    return entry
