r"""Criteria of a rubric that a rule scores: `check:` in its file.

    {words: 60}                     at most so many words; {words: [5, 60]} at least and at most
    {sentences: [1, 3]}             the same of sentences
    {contains: [red, blue]}         share of these texts that the answer holds, whatever their case
    {lacks: [great question]}       1 if it holds none of them
    {matches: '\d+ cm'}             1 if the regular expression is found
    {count: {of: '\n- ', is: [3, 5]}}  1 if it is found so often
    {number: true}                  1 if the answer holds a number
    {grader: accuracy}              what a reward function of the recipe pays, in [0, 1]

All but the last look at the text alone. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST = 10**6
KINDS = ("words", "sentences", "contains", "lacks", "matches", "count", "number", "grader")


@dataclass(frozen=True)
class Check:
    """A rule by its kind, with what it looks for."""

    kind: str
    texts: tuple[str, ...] = ()
    """Texts, one regular expression, or the name of a grader."""
    least: int = 0
    most: int = MOST

    def score(self, text: str, graded: Callable[[str], float]) -> float:
        """A share in [0, 1]; `graded`: name of a grader -> what it pays for this answer."""
        if self.kind == "grader":
            return min(max(graded(self.texts[0]), 0.0), 1.0)
        return _SCORES[self.kind](self, text)

    def within(self, count: int) -> float:
        """1 if a count lies within the bounds."""
        return float(self.least <= count <= self.most)


def parsed_check(given: Any, where: str) -> Check:
    """A check as it stands in a file. Raises ValueError."""
    one = isinstance(given, Mapping) and len(given) == 1
    if not one or next(iter(given)) not in KINDS:
        raise ValueError(
            f"{where} has the check {given!r}; it must have one of {', '.join(KINDS)}."
        )
    ((kind, value),) = given.items()
    if kind in ("words", "sentences"):
        return Check(kind, (), *_bounds(value, where))
    if kind in ("contains", "lacks"):
        texts = value if isinstance(value, list) else [value]
        return Check(kind, tuple(_text(one, where) for one in texts))
    if kind == "matches":
        return Check(kind, (_pattern(value, where),))
    if kind == "count":
        if not isinstance(value, Mapping) or value.keys() != {"of", "is"}:
            raise ValueError(
                f"{where} counts {value!r}; write {{of: 'EXPRESSION', is: [LEAST, MOST]}}."
            )
        least, most = _bounds(value["is"], where)
        return Check(kind, (_pattern(value["of"], where),), least, most)
    if kind == "number":
        if value is not True:
            raise ValueError(f"{where} has number: {value!r}; write number: true.")
        return Check(kind)
    return Check(kind, (_text(value, where),))


def _bounds(value: Any, where: str) -> tuple[int, int]:
    least: Any = 0
    most: Any = value
    if isinstance(value, list) and len(value) == 2:
        least, most = value
    whole = type(least) is int and type(most) is int
    if not whole or not 0 <= least <= most <= MOST:
        raise ValueError(
            f"{where} has the bounds {value!r}; they must be a number, or [LEAST, MOST], up to {MOST:,}."
        )
    return least, most


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} looks for {value!r}; it must be a text.")
    return value


def _pattern(value: Any, where: str) -> str:
    try:
        re.compile(_text(value, where))
    except re.error as error:
        raise ValueError(
            f"{where} has the expression {value!r}, which is none ({error})."
        ) from None
    return value


def _held(check: Check, text: str) -> float:
    low = text.lower()
    held = [one.lower() in low for one in check.texts]
    return sum(held) / len(held)


def _words(check: Check, text: str) -> float:
    return check.within(len(text.split()))


def _sentences(check: Check, text: str) -> float:
    found = re.findall(r"[^.!?\s][^.!?]*", text)
    return check.within(len(found))


def _lacks(check: Check, text: str) -> float:
    return float(_held(check, text) == 0)


def _matches(check: Check, text: str) -> float:
    found = re.search(check.texts[0], text)
    return float(found is not None)


def _count(check: Check, text: str) -> float:
    found = re.findall(check.texts[0], text)
    return check.within(len(found))


def _has_number(check: Check, text: str) -> float:
    return float(re.search(r"\d", text) is not None)


_SCORES: Mapping[str, Callable[[Check, str], float]] = {
    "words": _words,
    "sentences": _sentences,
    "contains": _held,
    "lacks": _lacks,
    "matches": _matches,
    "count": _count,
    "number": _has_number,
}
