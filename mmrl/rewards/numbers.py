r"""Numbers as written in answers, read exactly: "1,234.5 cm", "1\,234", "-1 1/2", "50\%", "\frac{1}{2^{99}}", "2006!".

`plain` takes off the dressing, `read_number` reads one number with its unit, `arithmetic` an expression of digits,
`close` compares. All values are fractions: no float is made, so 10^-300 and 2^-99 stay what they are. Numbers are
limited to `DIGITS` characters, exponents of ten to `EXPONENT`, results to `BITS`; all scans are linear in the text.

How two numbers are compared (`close`):
1. An integer on either side must be hit exactly.
2. Fractions and integers are exact; a decimal may be rounded: within `TOLERANCE`, and, of two decimals, by less than
   one unit of the last place of the shorter.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from mmrl.ground.answers import closing_brace
from mmrl.rewards.units import Unit, read_unit

DIGITS = 200
"""Longest number that is read, in characters."""
EXPONENT = 300
"""Largest power of ten that is read."""
BITS = 100_000
"""Longest numerator or denominator that is computed, in bits."""
LARGEST_FACTORIAL = 5000
TOLERANCE = Fraction(1, 10**6)
"""Relative error of a rounded decimal."""

_TEXT_COMMANDS = re.compile(
    r"\\(?:text|mathrm|textbf|mathbf|mathit|textit|operatorname|mbox)(?=\s*\{)"
)
_TEXT = "\ue000"
"""Stands for a text command while its braces are looked at; a private character that no text holds."""
# Stars of Markdown; those of "2**3" stand between what they raise.
_BOLD = re.compile(r"(?<![\w)])\*\*|\*\*(?![\w(])")
# Sizes and spacing; "\leftarrow" is no "\left".
_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[;: ]|~")
_THIN_SPACES = re.compile(
    r"(?<=\d)(?:\\,|\{,\}|,\\!|\u202f|\u2009|\u00a0|\{ \})(?=\d{3}(?!\d))"
)
_MATHS_SIGNS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_REPLACED = (
    ("{,}", ","),
    (",\\!", ","),
    ("\\,", " "),
    ("\\!", ""),
    ("\\%", "%"),
    ("\\$", "$"),
)
_SIGNS = {ord(sign): "-" for sign in "−–‐‑‒—―"} | {
    ord("×"): "\\times ",
    ord("⁄"): "/",
    ord("÷"): "\\div ",
}
_PREFIX = re.compile(
    r"^(?:[a-z]\w{0,9} ?= ?|≈ ?|~ ?|\\approx ?|about |approximately |roughly )", re.IGNORECASE
)
_NUMBER = r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d*)?(?:[eE][+-]?\d{1,4})?|[+-]?\.\d+(?:[eE][+-]?\d{1,4})?"
_ONE_NUMBER = re.compile(_NUMBER, re.ASCII)
_SPACED_THOUSANDS = re.compile(r"([+-]?[1-9]\d{0,2}(?: \d{3})+)(?![\d/]| ?\d)", re.ASCII)
_FREE_NUMBER = re.compile(rf"(?<![\w.])(?:{_NUMBER})(?: ?/ ?\d+)?%?")
_FRACTION = re.compile(
    r"\\[dtc]?frac ?(?:\{ ?([+-]?[\d.,]{1,60}) ?\}|(\d)) ?(?:\{ ?([+-]?[\d.,]{1,60}) ?\}|(\d))",
    re.ASCII,
)
_CURRENCY = re.compile(r"^([+-]?) ?(?:US ?)?([$€£¥₹]) ?(?=[\d.+-])")
_STARTS = re.compile(r"[-+.(\d\\]|[$€£¥₹]")


class TooLarge(Exception):
    """The value has more than `BITS` bits."""


@dataclass(frozen=True)
class Number:
    """A number as written in an answer."""

    value: Fraction
    percent: bool = False
    """Was it followed by a percent sign? `value` is the number before the sign."""
    unit: Unit | None = None
    """What follows the number."""
    step: Fraction = Fraction(0)
    """One unit of the last decimal place; 0 if it is exact: an integer or a fraction."""


def plain(text: str) -> str:
    """Drop LaTeX dressing that does not change the meaning: dollars, text commands, spacing, bold stars."""
    text = text.strip()
    if not text.isascii():
        text = _folded(text)
    text = _THIN_SPACES.sub(",", text)
    for written, meant in _REPLACED:
        text = text.replace(written, meant)
    text = _BOLD.sub("", _TEXT_COMMANDS.sub(_TEXT, _SPACING.sub(" ", text)))
    text = _strip_pairs(" ".join(text.split()))
    # The braces of a text command that holds everything are not those of a set.
    while text.startswith(_TEXT + "{") and closing_brace(text[2:]) == len(text) - 3:
        text = text[2:-1].strip()
    text = text.replace(_TEXT, "")
    if text.endswith("..."):  # an ellipsis says that digits were left out: it is no full stop
        return text
    return text.rstrip(".").strip()


def read_number(text: str) -> Number | None:
    r"""Read "1,234.5 cm", "-3/4", "1\frac{1}{2}", "50\%", "$5", "x = 2e3"; None if the text is no single number."""
    text = plain(text)
    if len(text) > DIGITS:
        return None
    text = _PREFIX.sub("", text)
    currency = _CURRENCY.match(text)
    if currency:
        text = currency[1] + text[currency.end() :]
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", text)
    while (
        len(text) > 1
        and text[0] + text[-1] in ("()", "{}")
        and not set(text[1:-1]) & set("(){},")
    ):
        text = text[1:-1]
    text = " ".join(text.split()).replace(" / ", "/")
    # The minus of "- 3" stands apart, that of "-1 1/2" belongs to the whole mixed number, not to its 1.
    negative = text.startswith("- ") or re.match(r"-(?=\d+ \d+/)", text) is not None
    value, step, rest = _leading_value(text[1:].lstrip() if negative else text)
    if value is None:
        return None
    attached = not rest.startswith((" ", "{"))
    percent = rest.strip().startswith("%")
    rest = (
        rest.strip()
        .removeprefix("%")
        .strip("{} ^" if "°" not in rest and "circ" not in rest else "{} ")
    )
    unit = read_unit(rest, attached) if rest else None
    if (rest and unit is None) or (currency and rest):
        return None
    if currency:
        unit = read_unit(currency[2])
    return Number(-value if negative else value, percent, unit, step)


def last_number(text: str) -> str:
    """The last number that stands in a free text, or "" if there is none."""
    found = _FREE_NUMBER.findall(text.replace("−", "-"))
    return found[-1] if found else ""


def arithmetic(text: str) -> Fraction | None:
    r"""The exact value of an expression of digits with + - * / ^ !, \frac and \binom; None if it is none.

    Raises TooLarge for a value beyond `BITS`. Takes what `plain` returns.
    """
    if not 0 < len(text) <= DIGITS or not _STARTS.match(text):
        return None
    reader = _Reader(text)
    try:
        value = reader.sum(0)
        return value if not reader.rest() else None
    except (_Unreadable, ZeroDivisionError):
        return None


def close(a: Number, b: Number, tolerance: float | None = None) -> bool:
    """Do two numbers of the same unit agree? By the rules above, or within a relative `tolerance` if one is given."""
    error, scale = abs(a.value - b.value), max(abs(a.value), abs(b.value))
    if error == 0:
        return True
    if tolerance is not None:
        return error <= Fraction(tolerance) * scale
    whole = a.value.denominator == 1 or b.value.denominator == 1
    exact = a.step == 0 and b.step == 0
    if whole or exact:
        return False
    rounded = a.step == 0 or b.step == 0 or error < max(a.step, b.step)
    return rounded and error <= TOLERANCE * scale


def in_base_units(number: Number) -> Number:
    """The same quantity in base units, which two units of the same dimensions share."""
    if number.unit is None:
        return number
    value = (number.value + number.unit.offset) * number.unit.factor
    return Number(value, number.percent, None, number.step * number.unit.factor)


class _Unreadable(Exception):
    """The text is no arithmetic."""


class _Reader:
    """Recursive descent over an expression of digits; each method reads from `at` and moves it."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def rest(self) -> str:
        return self.text[self.at :].strip()

    def take(self, *signs: str) -> str:
        """The first of the signs that comes next, which is passed over; "" if none does."""
        while self.text[self.at : self.at + 1] == " ":
            self.at += 1
        for sign in signs:
            # A command ends where its letters end: "\cdots" is no "\cdot".
            end = self.at + len(sign)
            cut = sign[-1].isalpha() and self.text[end : end + 1].isalpha()
            if self.text.startswith(sign, self.at) and not cut:
                self.at = end
                return sign
        return ""

    def sum(self, depth: int) -> Fraction:
        if depth > 30:
            raise _Unreadable
        value = self.product(depth)
        while sign := self.take("+", "-"):
            term = self.product(depth)
            value = _bounded(value + term if sign == "+" else value - term)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.power(depth)
        while True:
            if self.take("\\times", "\\cdot", "*", "·"):
                value = _bounded(value * self.power(depth))
            elif self.take("\\div", "/"):
                value = _bounded(value / self.power(depth))
            elif self.rest().startswith("("):  # "2(3)" is a product
                value = _bounded(value * self.power(depth))
            else:
                return value

    def power(self, depth: int) -> Fraction:
        if sign := self.take("-", "+"):  # -2^2 is -(2^2)
            value = self.power(depth + 1) if depth < 30 else _fail()
            return -value if sign == "-" else value
        value = self.factorial(depth)
        if not self.take("^"):
            return value
        if sign := self.take("-", "+"):
            exponent = -self.power(depth) if sign == "-" else self.power(depth)
        else:
            exponent = self.power(depth + 1) if depth < 30 else _fail()  # right to left
        return _raised(value, exponent)

    def factorial(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.take("!"):
            if value.denominator != 1 or value < 0:
                raise _Unreadable
            if value > LARGEST_FACTORIAL:
                raise TooLarge
            value = Fraction(math.factorial(int(value)))
        return value

    def atom(self, depth: int) -> Fraction:
        for opening, closing in (("(", ")"), ("{", "}")):
            if self.take(opening):
                value = self.sum(depth + 1)
                return value if self.take(closing) else _fail()
        if self.take("\\frac", "\\dfrac", "\\tfrac", "\\cfrac"):
            top = self.argument(depth)
            return top / self.argument(depth)
        if self.take("\\binom", "\\dbinom", "\\tbinom"):
            return _binomial(self.argument(depth), self.argument(depth))
        return self.numeral(depth)

    def numeral(self, depth: int) -> Fraction:
        found = re.compile(r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+", re.ASCII).match(
            self.text, self.at
        )
        value = _fraction(found[0]) if found else None
        if found is None or value is None:
            raise _Unreadable
        self.at = found.end()
        mixed = self.rest().startswith(("\\frac", "\\dfrac", "\\tfrac"))
        # 2\frac{1}{2} is a mixed number and no product.
        return value + self.atom(depth + 1) if mixed and value.denominator == 1 else value

    def argument(self, depth: int) -> Fraction:
        if self.take("{"):
            value = self.sum(depth + 1)
            return value if self.take("}") else _fail()
        self.take()
        digit = self.text[self.at : self.at + 1]
        if not digit.isascii() or not digit.isdigit():
            raise _Unreadable
        self.at += 1
        return Fraction(int(digit))


def _fail() -> Fraction:
    raise _Unreadable


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise TooLarge
    return value


def _raised(value: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise _Unreadable
    if value in (0, 1, -1):
        odd = exponent.numerator % 2 == 1
        if value == 0:  # 0^0 is 1 by convention, 0^-1 is nothing
            return Fraction(exponent == 0) if exponent >= 0 else _fail()
        return value if odd else Fraction(1)
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    if abs(exponent) * bits > BITS:
        raise TooLarge
    power = abs(exponent.numerator)
    raised = Fraction(value.numerator**power, value.denominator**power)
    return raised if exponent > 0 else 1 / raised


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        raise _Unreadable
    if n > LARGEST_FACTORIAL:
        raise TooLarge
    return Fraction(math.comb(int(n), int(k)))


def _strip_pairs(text: str) -> str:
    r"""Remove dollar signs, \( \) and \[ \] that enclose the whole text."""
    for opening, closing in _MATHS_SIGNS:
        # Longer than both signs together: a lone "$" is not a pair that shares its sign.
        longer = len(text) > len(opening) + len(closing)
        if longer and text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)]
            # "$1$, $2$" are two formulas.
            return text if opening in inside else inside.strip()
    return text


def _folded(text: str) -> str:
    """Digits of any script, ½ and ² in ASCII; dashes and signs of multiplication as LaTeX writes them."""
    return "".join(_ascii(character) for character in text.translate(_SIGNS))


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    kind, _, parts = unicodedata.decomposition(character).partition(" ")
    if kind not in ("<fraction>", "<super>"):
        return character
    written = "".join(chr(int(code, 16)) for code in parts.split())
    if kind == "<fraction>":  # 1½ is 1 1/2
        return " " + written.replace("\N{FRACTION SLASH}", "/")
    return f"^{written}" if written.isdigit() else character


def _leading_value(text: str) -> tuple[Fraction | None, Fraction, str]:
    """The value at the start ("3/4", "1 1/2", "2e3"), its last decimal place, and what follows it."""
    spaced = _SPACED_THOUSANDS.match(text)
    if spaced:
        text = spaced[0].replace(" ", "") + text[spaced.end() :]
    none = None, Fraction(0), text
    first = _ONE_NUMBER.match(text)
    if first is None:
        return none
    value, rest = _fraction(first.group()), text[first.end() :]
    if value is None:
        return none
    if mixed := re.match(r" (\d{1,60})/(\d{1,60})(?!\d)", rest):
        top, bottom = int(mixed[1]), int(mixed[2])
        if bottom == 0 or value.denominator != 1:
            return none
        # The sign of "-1 1/2" is that of the whole number, so the part leads away from 0.
        part = Fraction(top, bottom)
        signed = -part if first.group().startswith("-") else part
        return value + signed, Fraction(0), rest[mixed.end() :]
    second = _ONE_NUMBER.match(rest, 1) if rest.startswith("/") else None
    if second is None:
        return value, _last_place(first.group()), rest
    divisor = _fraction(second.group())
    if not divisor:
        return none
    return value / divisor, Fraction(0), rest[second.end() :]


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
    except ValueError:  # a sign or a point without digits
        return None


def _last_place(digits: str) -> Fraction:
    """One unit of the last decimal place; 0 for an integer, which is exact."""
    mantissa, _, power = digits.lower().partition("e")
    places = len(mantissa.partition(".")[2])
    return Fraction(10) ** (int(power or 0) - places) if places else Fraction(0)
