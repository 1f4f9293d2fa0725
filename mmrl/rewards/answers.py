r"""Take the final answer out of a text and compare it with the reference. No torch; no string raises.

Extraction (`boxed`, `tagged`, `final_answer`) looks at the *last* place where an answer is announced. A box or tag that
is opened last and never closed gives None: the answer was cut off, an earlier one is not paid in its stead.
Comparison (`same_text`, `same_choice`, `same_number`, `same_math`) takes the answer first, the reference second.

Departures from the graders in use (mathruler, VLM-R1, R1-V; their exact forms are in `rewards_compat`):
1. A missing box is None, not the text "None", so a reference that reads "None" cannot be hit by leaving the box out.
2. `<answer>` may span lines; of several only the last counts.
3. "(A)" is a choice; "A or B" and "a cat" are none.
4. A reference in words ("cat") is compared as words: a symbolic grader reads c·a·t and accepts "act".
5. "50%" equals 50 and 0.5: whether a question wants the share or the percentage cannot be read off the answer.
6. math-verify runs without its own signal time-outs, which work in no thread; `same_math` may therefore take for ever
   on a power tower and belongs into the worker of `isolation`, where `Rewards` runs it.

All scans are linear in the text; numbers are limited to `DIGITS` characters and exponents to `EXPONENT`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from mmrl.ground.answers import behind_thinking, boxed, tagged

DIGITS = 200
"""Longest number that is read, in characters."""
EXPONENT = 300
"""Largest power of ten that is read."""
MATH_LENGTH = 2000
"""Longest expression that is given to the symbolic grader, in characters."""

_TEXT_COMMANDS = (
    "\\text",
    "\\mathrm",
    "\\textbf",
    "\\mathbf",
    "\\mathit",
    "\\textit",
    "\\operatorname",
    "\\mbox",
)
_SPACING = ("\\,", "\\;", "\\!", "\\:", "\\ ", "~", "\\left", "\\right", "\\displaystyle")
_PREFIX = re.compile(
    r"^(?:[a-z]\w{0,9} ?= ?|≈ ?|~ ?|\\approx ?|about |approximately |roughly )", re.IGNORECASE
)
_NUMBER = r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,4})?|[+-]?\.\d+(?:[eE][+-]?\d{1,4})?"
_ONE_NUMBER = re.compile(_NUMBER)
_FREE_NUMBER = re.compile(rf"(?<![\w.])(?:{_NUMBER})(?: ?/ ?\d+)?%?")
_LATEX_FRACTION = re.compile(
    r"\\[dtc]?frac ?(?:\{ ?([^{}]{1,60}?) ?\}|(\d)) ?(?:\{ ?([^{}]{1,60}?) ?\}|(\d))"
)
_CURRENCY = "$€£¥"
_SHORT_UNITS = """m s g l h k n j w v a cm mm km nm µm dm kg mg lb oz ft in yd mi min sec ms hr hrs hz khz mhz ghz kn pa
kpa kj kw kwh mv kv ma ml cl °c °f mph kmh am pm usd eur px rad deg ohm mol"""
_FUNCTIONS = (
    "sqrt",
    "sin",
    "cos",
    "tan",
    "log",
    "exp",
    "ln",
    "pi",
    "inf",
    "times",
    "and",
    "or",
    "to",
    "mod",
    "over",
)


def final_answer(text: str) -> str:
    """The tagged answer (its box, if the tag holds one), else the box, else the text behind `</think>`.

    Empty if the thinking was cut off: what stands inside an open `<think>` is no answer.
    """
    inside = tagged(text)
    if inside is not None:
        return boxed(inside) or inside
    box = boxed(text)
    if box is not None:
        return box
    behind = behind_thinking(text)
    return "" if "<think>" in behind else behind.strip()


def references(answer: object) -> tuple[str, ...]:
    """The reference answers as strings: a list or tuple names alternatives, a box or tag is opened.

    Raises ValueError if there is none.
    """
    several = list(answer) if isinstance(answer, list | tuple) else [answer]
    if not several or any(one is None for one in several):
        raise ValueError(
            f"The reference answer is {answer!r}; an accuracy reward needs a string, a number or a list."
        )
    texts = [str(one).strip() for one in several]
    return tuple(boxed(text) or tagged(text) or text for text in texts)


def plain(text: str) -> str:
    """Drop LaTeX dressing that does not change the meaning: dollars, text commands, spacing, bold stars."""
    text = text.strip().replace("−", "-").replace("–", "-").replace("×", "\\times ")
    for command in _SPACING:
        text = text.replace(command, " ")
    text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$").replace("**", "")
    for command in _TEXT_COMMANDS:
        text = text.replace(command + "{", "{")
    text = _strip_pairs(" ".join(text.split()))
    return text.rstrip(".").strip() if not text.endswith("...") else text


def same_text(answer: str, reference: str) -> bool:
    """Are the two equal up to case, spaces, text commands and a full stop?"""
    return _words(answer) == _words(reference) != ""


def choice(text: str, letters: str = "ABCDE") -> str | None:
    """The one option that an answer names: "B", "(b)", "B. a dog", "the answer is B"; None if it names none or two."""
    text = plain(text)
    alone = text.strip("()[]{}.:,;*'\" ")
    if len(alone) == 1 and alone.upper() in letters:
        return alone.upper()
    some, article = f"[{letters}]", r"(?! (?!or\b|and\b|is\b|because\b|since\b|but\b)[a-z])"
    isolated = rf"(?:\bA\b{article}|\b(?!A)[{letters}]\b)" if "A" in letters else rf"\b{some}\b"
    label = re.match(rf"[(\[]?([{letters}{letters.lower()}])[.):\]]", text)
    labels = set(re.findall(rf"(?:^|[\s(,\[])({some})[.):\]]", text))
    if label:
        return label.group(1).upper() if labels <= {label.group(1)} else None
    pattern = rf"\b(?:answer|option|choice)(?: is)?:? ?[(\[]?({isolated})[)\]]?(?! ?(?:or|and|,|/) ?[(\[]?{some}\b)"
    announced = re.findall(pattern, text)
    found = set(announced[-1:]) or labels or set(re.findall(isolated, text))
    return found.pop() if len(found) == 1 else None


def same_choice(answer: str, reference: str, letters: str = "ABCDE") -> bool:
    """Do both name the same option? Raises ValueError if the reference names none."""
    expected = choice(reference, letters)
    if expected is None:
        raise ValueError(
            f"The reference answer {reference[:80]!r} names no option among {letters}."
        )
    return choice(answer, letters) == expected


@dataclass(frozen=True)
class Number:
    """A number as written in an answer."""

    value: Fraction
    percent: bool = False
    """Was it followed by a percent sign? `value` is the number before the sign."""
    unit: str = ""
    """What follows the number, lower case and without spaces."""


def number(text: str) -> Number | None:
    r"""Read "1,234.5 cm", "-3/4", "1\frac{1}{2}", "50\%", "$5", "x = 2e3"; None if the text is no single number."""
    text = plain(text)
    if len(text) > DIGITS:
        return None
    text = _PREFIX.sub("", text).strip(_CURRENCY + " ")
    text = _LATEX_FRACTION.sub(lambda m: f" ({m[1] or m[2]})/({m[3] or m[4]}) ", text)
    text = " ".join(text.replace("(", " ").replace(")", " ").split()).replace(" / ", "/")
    sign = -1 if text.startswith("- ") or re.match(r"-(?=\d+ \d+/)", text) else 1
    text = text[1:].lstrip() if sign < 0 else text
    value, rest = _leading_value(text)
    if value is None:
        return None
    attached = not rest.startswith((" ", "{"))
    rest = rest.strip().replace("\\circ", "°").replace("degrees", "°").replace("degree", "°")
    percent = rest.startswith("%")
    unit = re.sub(r"[\s{}.]|\^(?=[{ ]*°)", "", rest[1:] if percent else rest).lower()
    return Number(sign * value, percent, unit) if _is_unit(unit, attached) else None


def last_number(text: str) -> str:
    """The last number that stands in a free text, or "" if there is none."""
    found = _FREE_NUMBER.findall(text.replace("−", "-"))
    return found[-1] if found else ""


def same_number(
    answer: str, reference: str, tolerance: float = 1e-6, letters: bool = True
) -> bool:
    """Are both numbers, equal within a relative `tolerance`? A unit counts only if both have one.

    With `letters=False` a single letter is a variable rather than a unit: then "5 m" is not 5.
    """
    given, expected = number(answer), number(reference)
    if given is None or expected is None:
        return False
    if given.unit != expected.unit:
        if given.unit and expected.unit:
            return False
        if (
            not letters
            and len(given.unit + expected.unit) == 1
            and given.unit + expected.unit != "°"
        ):
            return False
    if given.percent == expected.percent:
        return _close(given.value, expected.value, tolerance)
    share = given.value / 100 if given.percent else given.value * 100
    return _close(given.value, expected.value, tolerance) or _close(
        share, expected.value, tolerance
    )


def same_math(answer: str, reference: str) -> bool:
    """Are the two equal as text, as numbers or as mathematics (math-verify)? Run it where it can be killed."""
    if same_text(answer, reference) or same_number(answer, reference, letters=False):
        return True
    if not _is_mathematical(reference) or max(len(answer), len(reference)) > MATH_LENGTH:
        return False
    import logging

    from math_verify import parse, verify

    for module in ("parser", "grader"):  # it warns at each start that its own time-out is off
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    expected = parse(f"${_undollar(reference)}$", parsing_timeout=None)  # type: ignore[arg-type]
    given = parse(f"${_undollar(answer)}$", parsing_timeout=None)  # type: ignore[arg-type]
    return bool(verify(expected, given, timeout_seconds=None))


def matches(answer: str | None, answers: Sequence[str], same: object = same_math) -> float:
    """1.0 if the answer equals one of the references, else 0.0; None never matches."""
    assert callable(same)
    return float(answer is not None and any(same(answer, one) for one in answers))


def _words(text: str) -> str:
    return plain(text).casefold().strip("{}\"'` ")


def _undollar(text: str) -> str:
    return text.strip().strip("$").strip()


def _strip_pairs(text: str) -> str:
    r"""Remove dollar signs, \( \) and \[ \] that enclose the whole text."""
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
        ):
            return text[len(opening) : -len(closing)].strip()
    return text


def _is_mathematical(reference: str) -> bool:
    words = re.sub(r"[\s.,'\"-]", "", plain(reference).strip("{}"))
    return not (words.isalpha() and len(words) > 2)


def _is_unit(unit: str, attached: bool) -> bool:
    """Is this what may follow a number without changing it? A word, or a short unit that is known."""
    stem = re.sub(r"\^?[23²³]", "", unit)
    if stem in ("", "°") or all(part in _SHORT_UNITS.split() for part in stem.split("/")):
        return True
    return not attached and len(stem) > 2 and stem.isalpha() and not stem.startswith(_FUNCTIONS)


def _leading_value(text: str) -> tuple[Fraction | None, str]:
    """The value at the start ("3/4", "1 1/2", "2e3") and what follows it."""
    first = _ONE_NUMBER.match(text)
    if first is None:
        return None, text
    value, rest = _fraction(first.group()), text[first.end() :]
    if value is None:
        return None, text
    if mixed := re.match(r" (\d{1,60})/(\d{1,60})(?!\d)", rest):
        if int(mixed[2]) == 0:
            return None, text
        part = Fraction(int(mixed[1]), int(mixed[2]))
        return (value - part if first.group().startswith("-") else value + part), rest[
            mixed.end() :
        ]
    if rest.startswith("/") and (second := _ONE_NUMBER.match(rest, 1)):
        divisor = _fraction(second.group())
        return (value / divisor, rest[second.end() :]) if divisor else (None, text)
    return value, rest


def _fraction(digits: str) -> Fraction | None:
    mantissa, _, exponent = digits.replace(",", "").lower().partition("e")
    if len(mantissa) > DIGITS or (exponent and abs(int(exponent)) > EXPONENT):
        return None
    try:
        return Fraction(mantissa.removesuffix(".")) * Fraction(10) ** int(exponent or 0)
    except ValueError:  # digits of another script, for which int() and Fraction() disagree
        return None


def _close(a: Fraction, b: Fraction, tolerance: float) -> bool:
    return abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b))
