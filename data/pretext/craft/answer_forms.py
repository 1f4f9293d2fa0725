"""Three answer forms that many tasks share: one option, an order of labels, a list of words.

A task that fits derives from its form and is left with `propose` and a few class attributes. Truths:
choice  {"answer": "C", "options": ["A", "B", "C", "D"]}       reward 1 or 0
order   {"answer": [3, 1, 2], "gamma": 0.2}                    1, else gamma · share of right places; labels 1..n
words   {"answer": ["pan left", "zoom in"], "names": [...], "gamma": 0.2}     the same over words, repeats allowed
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from math import factorial
from typing import Any

from numpy.random import Generator

from mmrl.data.pretext.contract import Knobs, Score, Task, Truth
from mmrl.data.pretext.craft.draws import one_of, repeatedly, shuffled_numbers
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import is_permutation, positional

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ChoiceTask(Task):
    """One of some options; `option_count` says how many."""

    @abstractmethod
    def option_count(self, knobs: Knobs) -> int:
        """Number of options at these knobs."""

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.choice(body, truth["options"])

    def verify(self, value: Any, truth: Truth) -> Score:
        right = value == truth["answer"]
        return Score(float(right), right, key=value)

    def format(self, truth: Truth) -> str:
        return truth["answer"]

    def guess(self, truth: Truth, rng: Generator) -> str:
        return one_of(truth["options"], rng)

    def chance(self, knobs: Knobs) -> float:
        return 1.0 / self.option_count(knobs)

    def chance_reward(self, knobs: Knobs) -> float:
        return self.chance(knobs)


class OrderTask(Task):
    """A permutation of the shown numbers 1..n; `length` says n. Pays `knobs["gamma"]` for partly right orders."""

    @abstractmethod
    def length(self, knobs: Knobs) -> int:
        """Number of entries at these knobs."""

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.integers(body, len(truth["answer"]))

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        if not is_permutation(value, answer):
            return Score(0.0, parts={"valid": 0.0})
        reward = positional(value, answer, truth["gamma"])
        # The entries are compared too: a gamma of 1 or more can pay 1 for an order that is not the true one.
        right = reward == 1.0 and tuple(value) == tuple(answer)
        return Score(reward, right, {"valid": 1.0}, tuple(value))

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return listed(shuffled_numbers(len(truth["answer"]), rng))

    def chance(self, knobs: Knobs) -> float:
        return 1.0 / factorial(self.length(knobs))

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        # A random permutation has one fixed point on average; its exact hits are paid 1 already.
        partly_right = 1.0 / self.length(knobs) - exact
        return exact + float(knobs["gamma"]) * partly_right


class WordsTask(Task):
    """A list of names from a fixed set, drawn independently and uniformly; `length` and `names` say from what."""

    @abstractmethod
    def length(self, knobs: Knobs) -> int:
        """Number of entries at these knobs."""

    @abstractmethod
    def names(self, knobs: Knobs) -> Sequence[str]:
        """What an entry may be, in lower case."""

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.words(body, len(truth["answer"]))

    def verify(self, value: Any, truth: Truth) -> Score:
        if not set(value) <= set(truth["names"]):
            return Score(0.0, parts={"valid": 0.0})
        hits = [given == right for given, right in zip(value, truth["answer"], strict=True)]
        share = sum(hits) / len(value)
        reward = 1.0 if share == 1.0 else float(truth["gamma"]) * share
        return Score(reward, share == 1.0, {"valid": 1.0, "placed": share}, tuple(value))

    def format(self, truth: Truth) -> str:
        return ", ".join(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        names = truth["names"]
        return ", ".join(repeatedly(names, len(truth["answer"]), rng))

    def chance(self, knobs: Knobs) -> float:
        return float(len(self.names(knobs))) ** -self.length(knobs)

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        partly_right = 1.0 / len(self.names(knobs)) - exact
        return exact + float(knobs["gamma"]) * partly_right


def lettered(count: int) -> list[str]:
    """The option letters A, B, …"""
    return list(LETTERS[:count])


def listed(values: Iterable[object]) -> str:
    """ "3, 1, 2": the form in which lists are asked for."""
    return ", ".join(str(value) for value in values)


def all_or_error(parts: Sequence[Any | ParseError]) -> Any | ParseError:
    """The parts of an answer as they are, or the first of them that could not be read."""
    for part in parts:
        if isinstance(part, ParseError):
            return part
    return parts


def shuffled_order(count: int, rng: Generator) -> list[int]:
    """A uniform order of 0 to count − 1; from four pieces on never the identity."""
    while True:
        order = [int(piece) for piece in rng.permutation(count)]
        # Below four pieces leaving the identity out would give much of the answer away: of two pieces, all of it.
        if count < 4 or order != list(range(count)):
            return order
