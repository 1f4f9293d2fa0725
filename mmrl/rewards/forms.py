r"""What form an answer has: a list, a set, a chain of relations; or something written in digits that is no number.

`read_series` takes a text apart: "3, 1, 2", "(1, 2]", "\{1, 2\}", "A > B > C", "3 → 1 → 2", "2 and 1", "3 1 2". Order
counts everywhere but in a set, and a set is only what is written in braces.

`read_label` recognises what is written in digits and yet must not be computed: ranges (3-5), dates (2024-01-02), clock
times (10:30), ratios (2:1), versions and addresses (1.2.3), identifiers (A12, B-17). Read as mathematics, 3-5 is -2,
10:30 is a third and A12 equals 12A.

Texts are those that `numbers.plain` returns. All scans are linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmrl.rewards.numbers import read_number

LONGEST_LABEL = 60
"""Longest label, in characters."""
_PAIRS = {"(": ")[]", "[": "])", "{": "}"}
_OPENING, _CLOSING = "([{", ")]}"
_ARROW = re.compile(
    r"-+>|=+>|→|⇒|➔|\\(?:long)?(?:right)?arrow(?![a-z])|\\(?:to|Rightarrow|implies)(?![a-z])"
)
_RELATION = re.compile(r"<=|>=|≤|≥|<|>|\\(?:leq?|geq?|lt|gt|prec|succ)(?![a-z])")
_RELATIONS = {"≤": "<=", "≥": ">=", "\\le": "<=", "\\leq": "<=", "\\ge": ">=", "\\geq": ">="}
_RELATIONS |= {"\\lt": "<", "\\gt": ">", "\\prec": "<", "\\succ": ">"}
_JOINED = re.compile(r",? (?:and|or|then|&|\{ ?(?:and|or) ?\}) ")
_THOUSANDS = re.compile(r"[+-]?[$€£]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?[^,\d]*", re.ASCII)
_SPACED = re.compile(r"\d+(?:\.\d+)?(?: \d+(?:\.\d+)?)+|[A-Z](?: [A-Z])+", re.ASCII)
_ATOM = re.compile(r"[+-]?\d+(?:\.\d+)?|[A-Za-z]+", re.ASCII)

_PLAIN_NUMBER = r"\d+(?:[.,]\d+)*"
_END = rf"-?[$€£]?{_PLAIN_NUMBER} ?[a-z°%€$£]{{0,12}}"
_RANGE = re.compile(
    rf"(?:from )?{_END} ?(?:-{{1,2}}|~|\.\.\.?|to|\{{ ?to ?\}}) ?{_END}|between {_END} and {_END}",
    re.IGNORECASE,
)
_CHAIN = re.compile(r"\d+(?:[-/.:]\d+){2,}|[A-Z](?:-[A-Z]){2,}")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2})(?::(\d{2}(?:\.\d+)?))?)? ?(?:([ap])\.? ?m)?")
_RATIO = re.compile(r"\d+(?:\.\d+)?(?: ?: ?\d+(?:\.\d+)?)+")
# "A12", "12B", "B-17", "AB 12"; "x-1" and "2x" are mathematics, "x_1" is a variable.
_IDENTIFIER = re.compile(
    r"[A-Za-z]+\d[A-Za-z0-9]*|[A-Z]{2,}[- ]?\d[\w-]*|[A-Z]-\d{2,}|\d+[A-Z]+[A-Z\d]*|[A-Z]{2,}"
)
_FUNCTION = re.compile(r"(?:sqrt|log|ln|sin|cos|tan|exp|pi|e)\d", re.IGNORECASE)


@dataclass(frozen=True)
class Series:
    """Several answers in the order in which they are written."""

    items: tuple[str, ...]
    opening: str = ""
    closing: str = ""
    relations: tuple[str, ...] = ()
    """What stands between the items of a chain such as A > B; nothing for a list."""

    @property
    def is_set(self) -> bool:
        return self.opening == "{"

    def turned(self) -> Series:
        """The same chain read from its other end: A < B is B > A."""
        mirrored = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
        relations = tuple(mirrored[sign] for sign in reversed(self.relations))
        return Series(self.items[::-1], relations=relations)


def read_series(text: str, *, split_thousands: bool = False) -> Series | None:
    """The parts of an answer that has several, else None.

    "1,234" is one number; with `split_thousands` it is the list 1, 234, as which it may be compared with a list.
    """
    if len(text) > 1 and text.startswith("\\{") and text.endswith("\\}"):
        text = "{" + text[2:-2] + "}"
    opening = closing = ""
    inside = text
    if _encloses(text):
        opening, closing, inside = text[0], text[-1], text[1:-1].strip()
    else:
        # "x = 1, 2" names the variable once; in "x = 1, y = 2" each label belongs to its item.
        head, equals, tail = text.partition("=")
        if equals and re.fullmatch(r"\w{1,10} ?", head) and "=" not in tail:
            inside = tail.strip()
    items = _items(inside, bool(opening) or split_thousands)
    if items is not None:
        return Series(items, opening, closing) if len(items) > 1 else None
    if not opening:
        return _chain(inside)
    # "[3-1-2]" is an order in brackets and no difference.
    return chain_items(inside) if _CHAIN.fullmatch(inside) else None


def read_label(text: str) -> str | None:
    """A range, date, clock time, ratio or identifier in one spelling, else None."""
    if not 0 < len(text) <= LONGEST_LABEL or "\\" in text.replace("\\%", ""):
        return None
    clock = _CLOCK.fullmatch(text.lower().rstrip("."))
    if clock and (clock[2] or clock[4]):
        hours, minutes, seconds, half = clock.groups()
        return f"{int(hours)}:{minutes or '00'}:{seconds or '00'} {half or ''}"
    if _CHAIN.fullmatch(text) or _RATIO.fullmatch(text):
        return text.replace(" ", "")
    if read_number(text) is not None:
        return None
    if _RANGE.fullmatch(text):
        spelled = re.sub(r"^(?:from|between) ", "", text.casefold())
        spelled = re.sub(
            r" ?(?:--?|~|\.\.\.?|\{? ?\bto\b ?\}?|(?<=[\d\w])to| and ) ?", "-", spelled, count=1
        )
        return spelled.replace(" ", "").replace(",", "")
    if _IDENTIFIER.fullmatch(text) and not _FUNCTION.match(text):
        return re.sub(r"[- ]", "", text.casefold())
    return None


def same_label(given: str, expected: str) -> bool:
    """Are two labels the same? A clock time may leave out whether it is before noon."""
    if given == expected:
        return True
    (time, _, half), (wanted, _, wanted_half) = given.partition(" "), expected.partition(" ")
    return time == wanted and ":" in time and (half == "") != (wanted_half == "")


def chain_items(text: str) -> Series | None:
    """The parts of "3-1-2" or "A-B-C", as which a chain may be compared with a list; of two, "3-5" is a range."""
    return Series(tuple(text.split("-"))) if re.fullmatch(r"\w+(?:-\w+){2,}", text) else None


def _encloses(text: str) -> bool:
    """Is the bracket that opens the text closed at its end and not before?"""
    if len(text) < 2 or text[0] not in _PAIRS or text[-1] not in _PAIRS[text[0]]:
        return False
    depth = 0
    for place, char in enumerate(text):
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth == 0:
            return place == len(text) - 1
    return False


def _items(text: str, split_thousands: bool) -> tuple[str, ...] | None:
    """The parts between semicolons, else commas, arrows, "and", else spaces between digits; None if there are none."""
    for items in (
        _split(text, re.compile(";")),
        _comma_items(text, split_thousands),
        _split(text, _ARROW),
        _split(text, _JOINED),
    ):
        if items is not None:
            return items
    if _SPACED.fullmatch(text) and (split_thousands or read_number(text) is None):
        return tuple(text.split())
    return None


def _comma_items(text: str, split_thousands: bool) -> tuple[str, ...] | None:
    """Parts between commas. In "1,234, 5" the comma without a space is one of thousands."""
    outer = _split(text, re.compile(r"[，、]|,(?= )(?! ?(?:and|or) )|, (?:and|or)(?= )"))
    if outer is None and not split_thousands and _THOUSANDS.fullmatch(text):
        return None
    parts: list[str] = []
    for part in outer or (text,):
        kept = outer is not None and _THOUSANDS.fullmatch(part)
        parts += [part] if kept else _split(part, re.compile(",")) or (part,)
    last = _split(parts[-1], _JOINED) if len(parts) > 1 else None
    parts[-1:] = last or parts[-1:]
    return tuple(parts) if len(parts) > 1 else None


def _split(text: str, separator: re.Pattern[str]) -> tuple[str, ...] | None:
    """The parts between separators outside of all brackets; None if it does not occur there or a part is empty."""
    if separator.search(text) is None:
        return None
    depths, depth = [], 0
    for char in text:
        depth += char in _OPENING
        depths.append(depth)
        depth -= char in _CLOSING
    parts, start = [], 0
    for found in separator.finditer(text):
        # A word in braces, such as {and}, is a separator though a bracket opens in it.
        if found[0].strip(" ,").startswith("{") or depths[found.start()] == 0:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    parts.append(text[start:].strip())
    if parts[-1] == "":  # a separator at the end
        parts.pop()
    return tuple(parts) if len(parts) > 1 and all(parts) else None


def _chain(text: str) -> Series | None:
    """A > B > C as a chain of single numbers, words and letters; larger expressions are left to mathematics."""
    items = _split(text, _RELATION)
    if items is None or not all(_ATOM.fullmatch(item) for item in items):
        return None
    signs = [sign[0] for sign in _RELATION.finditer(text)]
    relations = tuple(_RELATIONS.get(sign, sign) for sign in signs)
    return Series(items, relations=relations) if len(relations) == len(items) - 1 else None
