r"""Take the final answer out of a text and compare it with the reference. No torch; no string raises.

Extraction (`boxed`, `tagged`, `final_answer`) looks at the *last* place where an answer is announced. A box or tag that
is opened last and never closed gives None: the answer was cut off, an earlier one is not paid in its stead.
Comparison (`same_text`, `same_choice`, `same_number`, `same_math`) takes the answer first, the reference second.

Departures from the graders in use (mathruler, VLM-R1, R1-V; their exact forms are in `easyr1` and `mathruler`):
1. A missing box is None, not the text "None", so a reference that reads "None" cannot be hit by leaving the box out.
2. `<answer>` may span lines; of several only the last counts.
3. "(A)" is a choice; "A or B" and "a cat" are none.
4. A reference in words ("cat") is compared as words: a symbolic grader reads c·a·t and accepts "act".
5. "50%" equals 50 and 0.5: whether a question wants the share or the percentage cannot be read off the answer.
6. math-verify runs without its own signal time-outs, which work in no thread; `same_math` may therefore take for ever
   on a power tower and belongs into a worker of `worker_pool`, where `Rewards` runs it.

All scans are linear in the text; numbers are limited to `DIGITS` characters and exponents to `EXPONENT`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from mmrl.ground.answers import after_thinking, boxed, tagged

Same = Callable[[str, str], bool]
"""(answer, reference) -> are they equal?"""
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
_MATHS_SIGNS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
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
# Short units are listed, since any letter could be a variable; longer ones are known by being words.
_SHORT_UNITS = """m s g l h k n j w v a cm mm km nm µm dm kg mg lb oz ft in yd mi min sec ms hr hrs hz khz mhz ghz kn pa
kpa kj kw kwh mv kv ma ml cl °c °f mph kmh am pm usd eur px rad deg ohm mol"""
# "2 sqrt" and "3 times" begin an expression: what starts so is no unit.
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
    behind = after_thinking(text)
    return "" if "<think>" in behind else behind.strip()


def references(answer: object) -> tuple[str, ...]:
    """The reference answers as strings: a list or tuple names alternatives, a box or tag is opened.

    Raises ValueError if there is none.
    """
    several = answer if isinstance(answer, list | tuple) else [answer]
    if not several or any(one is None for one in several):
        raise ValueError(
            f"The reference answer is {answer!r}; an accuracy reward needs a string, a number or a list."
        )
    texts = [str(one).strip() for one in several]
    return tuple(boxed(text) or tagged(text) or text for text in texts)


def plain(text: str) -> str:
    """Drop LaTeX dressing that does not change the meaning: dollars, text commands, spacing, bold stars."""
    text = text.strip()
    for written, meant in (("−", "-"), ("–", "-"), ("×", "\\times ")):
        text = text.replace(written, meant)
    for command in _SPACING:
        text = text.replace(command, " ")
    for written, meant in (("{,}", ","), ("\\%", "%"), ("\\$", "$"), ("**", "")):
        text = text.replace(written, meant)
    for command in _TEXT_COMMANDS:
        text = text.replace(command + "{", "{")
    text = _strip_pairs(" ".join(text.split()))
    if text.endswith("..."):  # an ellipsis says that digits were left out: it is no full stop
        return text
    return text.rstrip(".").strip()


def same_text(answer: str, reference: str) -> bool:
    """Are the two equal up to case, spaces, text commands and a full stop?"""
    return _words(answer) == _words(reference) != ""


def named_choice(text: str, letters: str = "ABCDE") -> str | None:
    """The one option that an answer names: "B", "(b)", "B. a dog", "the answer is B"; None if it names none or two."""
    text = plain(text)
    alone = text.strip("()[]{}.:,;*'\" ")
    if len(alone) == 1 and alone.upper() in letters:
        return alone.upper()
    some = f"[{letters}]"
    label = re.match(rf"[(\[]?([{letters}{letters.lower()}])[.):\]]", text)
    labels = set(re.findall(rf"(?:^|[\s(,\[])({some})[.):\]]", text))
    if label:
        # "B. a dog" names B, but "A) cat B) dog" only repeats the options.
        unrivalled = labels <= {label.group(1)}
        return label.group(1).upper() if unrivalled else None
    isolated = _isolated_letter(letters)
    # "the answer is B", unless another letter follows: "the answer is B or C" names two.
    pattern = rf"\b(?:answer|option|choice)(?: is)?:? ?[(\[]?({isolated})[)\]]?(?! ?(?:or|and|,|/) ?[(\[]?{some}\b)"
    announced = re.findall(pattern, text)
    # The surest sign that occurs decides: the last announcement, else labels, else letters that stand alone.
    found = set(announced[-1:]) or labels or set(re.findall(isolated, text))
    return found.pop() if len(found) == 1 else None


def _isolated_letter(letters: str) -> str:
    """Pattern of an option's letter as a word of its own."""
    if "A" not in letters:
        return rf"\b[{letters}]\b"
    # "A cat" is an article before a word; "A is", "A or B", "A because" name the option.
    article = r"(?! (?!or\b|and\b|is\b|because\b|since\b|but\b)[a-z])"
    return rf"(?:\bA\b{article}|\b(?!A)[{letters}]\b)"


def same_choice(answer: str, reference: str, letters: str = "ABCDE") -> bool:
    """Do both name the same option? Raises ValueError if the reference names none."""
    expected = named_choice(reference, letters)
    if expected is None:
        raise ValueError(
            f"The reference answer {reference[:80]!r} names no option among {letters}."
        )
    return named_choice(answer, letters) == expected


@dataclass(frozen=True)
class Number:
    """A number as written in an answer."""

    value: Fraction
    percent: bool = False
    """Was it followed by a percent sign? `value` is the number before the sign."""
    unit: str = ""
    """What follows the number, lower case and without spaces."""


def read_number(text: str) -> Number | None:
    r"""Read "1,234.5 cm", "-3/4", "1\frac{1}{2}", "50\%", "$5", "x = 2e3"; None if the text is no single number."""
    text = plain(text)
    if len(text) > DIGITS:
        return None
    text = _PREFIX.sub("", text).strip(_CURRENCY + " ")
    text = _LATEX_FRACTION.sub(lambda m: f" ({m[1] or m[2]})/({m[3] or m[4]}) ", text)
    text = text.replace("(", " ").replace(")", " ")
    text = " ".join(text.split()).replace(" / ", "/")
    # The minus of "- 3" stands apart, that of "-1 1/2" belongs to the whole mixed number, not to its 1.
    negative = text.startswith("- ") or re.match(r"-(?=\d+ \d+/)", text) is not None
    value, rest = _leading_value(text[1:].lstrip() if negative else text)
    if value is None:
        return None
    attached = not rest.startswith((" ", "{"))
    rest = rest.strip()
    for degree in ("\\circ", "degrees", "degree"):
        rest = rest.replace(degree, "°")
    percent = rest.startswith("%")
    unit = re.sub(r"[\s{}.]|\^(?=[{ ]*°)", "", rest.removeprefix("%")).lower()
    if not _is_unit(unit, attached):
        return None
    return Number(-value if negative else value, percent, unit)


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
    given, expected = read_number(answer), read_number(reference)
    if given is None or expected is None:
        return False
    if not _units_agree(given.unit, expected.unit, letters):
        return False
    if _close(given.value, expected.value, tolerance):
        return True
    if given.percent == expected.percent:
        return False
    # One of the two has a percent sign: it may also be meant as a share.
    converted = given.value / 100 if given.percent else given.value * 100
    return _close(converted, expected.value, tolerance)


def same_math(answer: str, reference: str) -> bool:
    """Are the two equal as text, as numbers or as mathematics (math-verify)? Run it where it can be killed."""
    if same_text(answer, reference):
        return True
    if same_number(answer, reference, letters=False):
        return True
    if not _is_mathematical(reference):
        return False
    if max(len(answer), len(reference)) > MATH_LENGTH:
        return False
    import logging

    from math_verify import parse, verify

    for module in ("parser", "grader"):  # it warns at each start that its own time-out is off
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    expected = parse(f"${_undollar(reference)}$", parsing_timeout=None)  # type: ignore[arg-type]
    given = parse(f"${_undollar(answer)}$", parsing_timeout=None)  # type: ignore[arg-type]
    return bool(verify(expected, given, timeout_seconds=None))


def matches(answer: str | None, answers: Sequence[str], same: Same = same_math) -> float:
    """1.0 if the answer equals one of the references, else 0.0; None never matches."""
    if answer is None:
        return 0.0
    return float(any(same(answer, reference) for reference in answers))


def _words(text: str) -> str:
    """What is compared as text: without dressing, case, braces and quotes."""
    return plain(text).casefold().strip("{}\"'` ")


def _undollar(text: str) -> str:
    return text.strip().strip("$").strip()


def _strip_pairs(text: str) -> str:
    r"""Remove dollar signs, \( \) and \[ \] that enclose the whole text."""
    for opening, closing in _MATHS_SIGNS:
        # Longer than both signs together: a lone "$" is not a pair that shares its sign.
        longer = len(text) > len(opening) + len(closing)
        if longer and text.startswith(opening) and text.endswith(closing):
            return text[len(opening) : -len(closing)].strip()
    return text


def _is_mathematical(reference: str) -> bool:
    """Is this more than words? One or two letters may be variables; "cat" read as c·a·t would pay "act"."""
    undressed = plain(reference).strip("{}")
    letters = re.sub(r"[\s.,'\"-]", "", undressed)
    return not (letters.isalpha() and len(letters) > 2)


def _units_agree(given: str, expected: str, letters: bool) -> bool:
    """Are two units compatible? One may be missing, unless the other is a letter that may be a variable."""
    if given == expected:
        return True
    if given and expected:
        return False
    only = given + expected
    return letters or len(only) != 1 or only == "°"


def _is_unit(unit: str, attached: bool) -> bool:
    """Is this what may follow a number without changing it? A word, or a short unit that is known."""
    stem = re.sub(r"\^?[23²³]", "", unit)
    if stem in ("", "°"):
        return True
    known = _SHORT_UNITS.split()
    if all(part in known for part in stem.split("/")):
        return True
    # "5 apples" is a number of things; "5x" and "5abc" are products of letters.
    word = stem.isalpha() and len(stem) > 2
    return word and not attached and not stem.startswith(_FUNCTIONS)


def _leading_value(text: str) -> tuple[Fraction | None, str]:
    """The value at the start ("3/4", "1 1/2", "2e3") and what follows it."""
    first = _ONE_NUMBER.match(text)
    if first is None:
        return None, text
    value = _fraction(first.group())
    rest = text[first.end() :]
    if value is None:
        return None, text
    if mixed := re.match(r" (\d{1,60})/(\d{1,60})(?!\d)", rest):
        top, bottom = int(mixed[1]), int(mixed[2])
        if bottom == 0:
            return None, text
        # The sign of "-1 1/2" is that of the whole number, so the part leads away from 0.
        part = Fraction(top, bottom)
        signed = -part if first.group().startswith("-") else part
        return value + signed, rest[mixed.end() :]
    second = _ONE_NUMBER.match(rest, 1) if rest.startswith("/") else None
    if second is None:
        return value, rest
    divisor = _fraction(second.group())
    if not divisor:
        return None, text
    return value / divisor, rest[second.end() :]


def _fraction(digits: str) -> Fraction | None:
    """The exact value of decimal digits, so that 0.1 + 0.2 is 0.3; None beyond the limits."""
    mantissa, _, power = digits.replace(",", "").lower().partition("e")
    if len(mantissa) > DIGITS:
        return None
    exponent = int(power or 0)
    if abs(exponent) > EXPONENT:  # 1e9999 would be built digit by digit
        return None
    try:
        return Fraction(mantissa.removesuffix(".")) * Fraction(10) ** exponent
    except ValueError:  # digits of another script, for which int() and Fraction() disagree
        return None


def _close(a: Fraction, b: Fraction, tolerance: float) -> bool:
    scale = max(abs(a), abs(b))
    return abs(a - b) <= Fraction(tolerance) * scale
