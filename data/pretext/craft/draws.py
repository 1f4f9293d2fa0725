"""Uniform draws from a list, by name.

Each function makes exactly one call of the generator. The kind and the order of these calls are part of what a sample
is: another call in the same place, though equally uniform, would change every sample that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from numpy.random import Generator

Option = TypeVar("Option")


def one_of(options: Sequence[Option], rng: Generator) -> Option:
    """One option."""
    return options[int(rng.integers(len(options)))]


def some_of(options: Sequence[Option], count: int, rng: Generator) -> list[Option]:
    """`count` different options in random order."""
    # A whole permutation is drawn even for a few entries, so that the count moves no later draw.
    order = rng.permutation(len(options))
    return [options[int(place)] for place in order[:count]]


def repeatedly(options: Sequence[Option], count: int, rng: Generator) -> list[Option]:
    """`count` options, each drawn from all of them."""
    return [options[int(place)] for place in rng.integers(len(options), size=count)]


def shuffled_numbers(count: int, rng: Generator) -> list[int]:
    """1 to `count` in random order: nodes, items, places, which all count from 1."""
    return [int(place) + 1 for place in rng.permutation(count)]
