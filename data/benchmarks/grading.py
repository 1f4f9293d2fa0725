"""Is an answer right by the rules of its benchmark? No torch: it runs in the workers of `Rewards`.

The answer is what stands in <answer>, in the last box, or behind the thinking. One that never ends earns nothing.

    choice    one option: its letter however it is put, or its text word for word; two letters are none
    letters   all letters and no other
    yes_no    the one of the two words that the answer says
    number    equal after rounding to the row's decimals; without these by `mmrl.rewards.numbers`
    relative  VSI-Bench's share of thresholds, in [0, 1]
    math      `mmrl.rewards.answers.same_math`
    text      the same words
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mmrl.data.benchmarks.measures import relative_accuracy
from mmrl.rewards.answers import (
    final_answer,
    last_number,
    named_choice,
    named_option,
    read_number,
    references,
    same_math,
    same_number,
    same_text,
    same_wording,
    several_numbers,
)

if TYPE_CHECKING:
    from mmrl.types import Rollout

# The names of options; not from `record`, which loads what reads pictures.
LETTERS = string.ascii_uppercase
MOST_WAYS = 10
"""Letters that an option may have where the row does not list them."""


@dataclass(frozen=True)
class BenchmarkAccuracy:
    """The score of an answer to a row of a benchmark, in [0, 1]; the row's `form` says which rule applies."""

    preload: ClassVar[tuple[str, ...]] = ("math_verify",)

    def __call__(self, rollout: Rollout) -> float:
        return graded(rollout.text, rollout.prompt.answer, rollout.prompt.extra)


def graded(text: str, answer: Any, row: Mapping[str, Any]) -> float:
    """The score of a whole reply. `row` holds `form` and, where there are any, `options` and `precision`."""
    form = str(row.get("form"))
    if form not in RULES:
        raise ValueError(
            f"A row has the form {form!r}, which is none of {sorted(RULES)}; rows of benchmark: have one."
        )
    said = final_answer(text).strip()
    if not said:
        return 0.0
    return max(RULES[form](said, wanted, row) for wanted in references(answer))


def _choice(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    options: Sequence[str] = row.get("options") or ()
    letters = LETTERS[: len(options) or MOST_WAYS]
    named = [LETTERS[place] for place, text in enumerate(options) if same_text(said, text)]
    # The text of an option first: "A cat" is an article and an animal.
    if len(named) == 1:
        return float(named[0] == wanted)
    return float((named_option(said) or named_choice(said, letters)) == wanted)


def _letters(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    return float(_set_of(said) == _set_of(wanted) != set())


def _set_of(text: str) -> set[str]:
    """Letters that stand alone or side by side: "A, C", "A and C", "(A)(C)", "AC"."""
    words = re.findall(r"\b[A-J]{1,10}\b", re.sub(r"\band\b", " ", text))
    return {letter for word in words for letter in word}


def _yes_no(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    words = {word.lower() for word in re.findall(r"\b(?:yes|no)\b", said, re.IGNORECASE)}
    return float(words == {wanted.lower()})


def _number(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    number = _value_text(said)
    given, expected = read_number(number), read_number(wanted)
    decimals = row.get("precision")
    if given is None or expected is None:
        return float(expected is None and same_math(said, wanted))
    if decimals is None:
        return float(same_number(number, wanted))
    places = int(float(decimals))
    return float(round(float(given.value), places) == round(float(expected.value), places))


def _relative(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    given, expected = read_number(_value_text(said)), read_number(wanted)
    if expected is None:
        raise ValueError(f"The reference answer {wanted[:80]!r} is no number.")
    return relative_accuracy(
        None if given is None else float(given.value), float(expected.value)
    )


def _value_text(said: str) -> str:
    """The number that an answer says; of a sentence its last one. Nothing for a list, a date or a time."""
    if read_number(said) is not None:
        return said
    return "" if several_numbers(said) else last_number(said)


def _math(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    return float(same_math(said, wanted))


def _text(said: str, wanted: str, row: Mapping[str, Any]) -> float:
    return float(same_wording(said, wanted))


RULES: dict[str, Callable[[str, str, Mapping[str, Any]], float]] = {
    "choice": _choice,
    "letters": _letters,
    "yes_no": _yes_no,
    "number": _number,
    "relative": _relative,
    "math": _math,
    "text": _text,
}
