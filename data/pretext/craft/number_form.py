"""The answer form of scene questions: one whole number in a known range.

Truth {"answer": 7, "least": 0, "most": 12}. Digits, a decimal that is whole ("7.0") and English words up to twenty are
read; several numbers are an error. Reward: 1 if equal, else 0.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from numpy.random import Generator

from mmrl.data.pretext.contract import Knobs, Score, Task, Truth
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen"),
    *("fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
"""Each at the place of its value."""


class NumberTask(Task):
    """A whole number; `span` gives the smallest and largest that can occur."""

    hint = "one whole number"

    @abstractmethod
    def span(self, knobs: Knobs) -> tuple[int, int]:
        """Smallest and largest answer at these knobs."""

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return whole_number(body)

    def verify(self, value: Any, truth: Truth) -> Score:
        right = value == truth["answer"]
        return Score(float(right), right, key=value)

    def format(self, truth: Truth) -> str:
        return str(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return str(int(rng.integers(truth["least"], truth["most"] + 1)))

    def chance(self, knobs: Knobs) -> float:
        least, most = self.span(knobs)
        return 1.0 / (most - least + 1)

    def chance_reward(self, knobs: Knobs) -> float:
        return self.chance(knobs)


def whole_number(body: str) -> int | ParseError:
    """7, +7, 7.0 or seven."""
    text = body.strip().rstrip(".").casefold()
    if text in WORDS:
        return WORDS.index(text)
    value = parsing.number(text)
    if isinstance(value, ParseError):
        return value
    # "7.0" is a whole number, "7.5" is none.
    return int(value) if value == int(value) else ParseError("malformed", body[:40])
