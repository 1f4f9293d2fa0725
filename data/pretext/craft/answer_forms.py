"""Three answer forms that many tasks share: one option, an order of labels, a list of words.

A task that fits derives from its form and is left with `propose` and a few class attributes. Truths:
choice  {"answer": "C", "options": ["A", "B", "C", "D"]}       reward 1 or 0
order   {"answer": [3, 1, 2], "gamma": 0.2}                    1, else gamma · share of right places; labels 1..n
words   {"answer": ["pan left", "zoom in"], "names": [...], "gamma": 0.2}     the same over words, repeats allowed
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import factorial
from typing import Any

import numpy as np

from mmrl.data.pretext.contract import Knobs, Score, Task, Truth
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

    def guess(self, truth: Truth, rng: np.random.Generator) -> str:
        return truth["options"][int(rng.integers(len(truth["options"])))]

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
        if not is_permutation(value, truth["answer"]):
            return Score(0.0, parts={"valid": 0.0})
        reward = positional(value, truth["answer"], truth["gamma"])
        return Score(
            reward,
            reward == 1.0 and tuple(value) == tuple(truth["answer"]),
            {"valid": 1.0},
            tuple(value),
        )

    def format(self, truth: Truth) -> str:
        return ", ".join(map(str, truth["answer"]))

    def guess(self, truth: Truth, rng: np.random.Generator) -> str:
        return ", ".join(str(int(i) + 1) for i in rng.permutation(len(truth["answer"])))

    def chance(self, knobs: Knobs) -> float:
        return 1.0 / factorial(self.length(knobs))

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        return exact + float(knobs["gamma"]) * (1.0 / self.length(knobs) - exact)


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
        share = sum(a == b for a, b in zip(value, truth["answer"], strict=True)) / len(value)
        reward = 1.0 if share == 1.0 else float(truth["gamma"]) * share
        return Score(reward, share == 1.0, {"valid": 1.0, "placed": share}, tuple(value))

    def format(self, truth: Truth) -> str:
        return ", ".join(truth["answer"])

    def guess(self, truth: Truth, rng: np.random.Generator) -> str:
        names = truth["names"]
        return ", ".join(
            names[int(i)] for i in rng.integers(len(names), size=len(truth["answer"]))
        )

    def chance(self, knobs: Knobs) -> float:
        return float(len(self.names(knobs))) ** -self.length(knobs)

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        return exact + float(knobs["gamma"]) * (1.0 / len(self.names(knobs)) - exact)


def lettered(count: int) -> list[str]:
    """The option letters A, B, …"""
    return list(LETTERS[:count])
