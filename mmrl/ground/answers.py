r"""Finding an answer in a reply, and reading it: what all graders and parsers share. No string raises.

Places: `after_thinking`, `cut_off`, `tagged`, `boxed` and `unfenced` find the *last* place where an answer is
announced. A box or tag that is opened last and never closed gives None: the answer was cut off, an earlier one is not
taken instead. Values: `strict_json`, `finite_numbers`, `box_corners`; `normalise` and `DECIMAL` for written numbers.

Every policy stays with its owner: free text in `mmrl.rewards.answers`, one strict form per puzzle in
`mmrl.data.pretext.marking.parsing`, the exact graders of other projects in their `compat` modules. All scans are linear
in the text.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any, NoReturn

LONGEST_JSON = 100_000
"""Longest answer that is parsed as JSON, in characters."""
BOX = "\\boxed{"
DECIMAL = r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
"""Pattern of a plain number: at most nine digits before and after the point, no exponent."""

_FOLDED = {
    "-": "‐‑‒–—―−﹘﹣",
    ",": "，、",
    ";": "；",
    ":": "：",
    ".": "．",
    ">": "→⇒➔",
    "|": "｜",
    "(": "（",
    ")": "）",
    "[": "［",
    "]": "］",
}
_FOLD = {ord(foreign): plain for plain, many in _FOLDED.items() for foreign in many}


def after_thinking(text: str) -> str:
    """What follows the last `</think>`; all of the text if there is none."""
    return text.rpartition("</think>")[2]


def thought_is_open(text: str) -> bool:
    """Was a `<think>` opened that is never closed? The reply was cut off before it came to an answer."""
    return "<think>" in after_thinking(text)


def cut_off(text: str) -> bool:
    r"""Does the text end inside a thought, an `<answer>` tag or a `\boxed{`? What it says is then no answer."""
    if thought_is_open(text):
        return True
    open_tag = "<answer>" in text and tagged(text) is None
    return open_tag or (BOX in text and boxed(text) is None)


def tagged(text: str, tag: str = "answer") -> str | None:
    """The content of the last `<tag>…</tag>`, which may span lines; None if there is none or it is not closed."""
    _, opened, rest = text.rpartition(f"<{tag}>")
    inside, closed, _ = rest.partition(f"</{tag}>")
    return inside.strip() if opened and closed else None


def boxed(text: str, *, escapes: bool = True) -> str | None:
    r"""The content of the last `\boxed{…}` with balanced braces; None if there is none or it is not closed.

    With `escapes`, `\{` and `\}` are no braces.
    """
    _, opened, rest = text.rpartition(BOX)
    end = closing_brace(rest, escapes=escapes) if opened else None
    return None if end is None else rest[:end].strip()


def closing_brace(text: str, *, escapes: bool = True) -> int | None:
    r"""Where the brace is closed that was opened just before the text; None if it is not.

    With `escapes`, `\{` and `\}` are no braces.
    """
    depth, position = 1, 0
    while position < len(text):
        char = text[position]
        if char == "\\" and escapes:
            position += 1
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def unfenced(text: str) -> str:
    """What stands in the last fenced block, or the text."""
    before, closed, _ = text.rpartition("```")
    _, opened, inside = before.rpartition("```")
    if not (opened and closed):
        return text.strip()
    return inside.strip().removeprefix("json").strip()


def json_answer(text: str) -> Any | None:
    """The JSON value in the last `<answer>` tag, or the last fenced block, or the whole text; None if unreadable."""
    inside = tagged(text) if "<answer>" in text else text
    if inside is None or len(inside) > LONGEST_JSON:
        return None
    return strict_json(unfenced(inside))


def strict_json(text: str) -> Any | None:
    """The value of a JSON text; None if it is not clean.

    NaN and infinities are refused; a key given twice, numbers of more than 4300 digits and nesting beyond Python's
    limit count as unreadable.
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None


def finite_numbers(value: Any, count: int) -> list[float] | None:
    """A list of exactly `count` finite numbers as floats; booleans, text and anything else give None."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    if len(value) != count or not all(map(_is_number, value)):
        return None
    try:
        floats = [float(one) for one in value]
    except OverflowError:  # an integer of more than 308 digits
        return None
    return floats if all(math.isfinite(one) for one in floats) else None


def box_corners(value: Any) -> list[float] | None:
    """Four finite numbers x0 < x1, y0 < y1, or None."""
    corners = finite_numbers(value, 4)
    if corners is None:
        return None
    x0, y0, x1, y1 = corners
    return corners if x0 < x1 and y0 < y1 else None


def normalise(text: str) -> str:
    """ASCII digits, dashes, spaces and separators; everything else unchanged. Ends are stripped."""
    if text.isascii():  # nearly always, and quick to see
        return text.strip()
    folded = text.translate(_FOLD)
    if not folded.isascii():
        folded = "".join(_ascii(character) for character in folded)
    return folded.strip()


def _ascii(character: str) -> str:
    """A digit or space of any script as ASCII; other characters unchanged."""
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return " " if character.isspace() else character


def _is_number(value: Any) -> bool:
    # Python counts True as an integer.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # By default the last value wins in silence; an answer that says two things says nothing.
    entry = dict(pairs)
    if len(entry) != len(pairs):
        raise ValueError("a key is given twice")
    return entry
