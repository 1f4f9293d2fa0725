"""Worked solutions as steps: what each step needs, and a generator of calculations.

`dependencies` works on the steps of any solution; `calculation` draws one whose values are known: each step introduces
a letter, "k = m + 7 = 31.", from letters introduced before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.craft.draws import one_of, some_of

LETTERS = "abcdefghkmnpqrstuvwxyz"
"""Names of quantities; those that look like digits or signs are left out."""
LEAST, MOST = 10, 99
"""Range of every value, so that values and the small constants never look alike."""

_INTRODUCED = re.compile(r"\b([A-Za-z])\b[ \t]*=")
_SYMBOL = re.compile(r"(?<![A-Za-z])([A-Za-z])(?![A-Za-z])")


@dataclass(frozen=True)
class Step:
    """One line of a drawn calculation."""

    letter: str
    terms: tuple[str, ...]
    """Letters and constants in the order of the expression; a single constant for a given quantity."""
    sign: str
    """"+", "-" or "×"; "" for a given quantity."""
    value: int

    @property
    def expression(self) -> str:
        return f" {self.sign} ".join(self.terms)

    @property
    def text(self) -> str:
        if not self.sign:
            return f"Let {self.letter} = {self.value}."
        return f"{self.letter} = {self.expression} = {self.value}."


def dependencies(steps: Sequence[str]) -> set[tuple[int, int]]:
    """(earlier, later) for every step that uses a letter which another step introduces (before its first "=")."""
    source: dict[str, int] = {}
    for index, step in enumerate(steps):
        introduced = _INTRODUCED.search(step)
        if introduced:
            # A letter that is set again keeps its first step.
            source.setdefault(introduced[1], index)
    pairs = set()
    for index, step in enumerate(steps):
        for letter in _SYMBOL.findall(step):
            if source.get(letter, index) != index:
                pairs.add((source[letter], index))
    return pairs


def closure(pairs: set[tuple[int, int]], count: int) -> set[tuple[int, int]]:
    """All pairs (earlier, later) that follow."""
    reach = np.zeros((count, count), dtype=bool)
    for a, b in pairs:
        reach[a, b] = True
    # Warshall: with every further step allowed in the middle, all that reach it reach what it reaches.
    for middle in range(count):
        reach |= np.outer(reach[:, middle], reach[middle])
    return {(int(a), int(b)) for a, b in np.argwhere(reach)}


def calculation(count: int, rng: Generator, *, pair: bool = False) -> list[Step] | None:
    """A chain of `count` steps, each using the one before; None if the values leave their range.

    With `pair`, two neighbouring steps use only what comes before both, and the next one uses both: they may be
    exchanged, and nothing else."""
    letters = some_of(LETTERS, count, rng)
    twin = int(rng.integers(1, count - 2)) if pair else None
    steps = [Step(letters[0], (), "", int(rng.integers(LEAST, 40)))]
    known: dict[str, int] = {letters[0]: steps[0].value}
    for index in range(1, count):
        after_twin = twin is not None and index == twin + 1
        after_both = twin is not None and index == twin + 2
        before = letters[index - 2] if after_twin else letters[index - 1]
        other = letters[index - 2] if after_both else None
        step = _derived(letters[index], before, other, known, rng)
        if step is None:
            return None
        steps.append(step)
        known[step.letter] = step.value
    return steps


def _derived(
    letter: str,
    before: str,
    other: str | None,
    known: Mapping[str, int],
    rng: Generator,
) -> Step | None:
    """A step from `before` and another quantity or a constant, with a new value."""
    for _ in range(40):
        sign = one_of("+-×", rng)
        second = other if other else str(int(rng.integers(2, 10)))
        # The coin is tossed for differences too, whose order is fixed: every try takes the same draws.
        before_first = rng.random() < 0.5 or sign == "-"
        terms = (before, second) if before_first else (second, before)
        a, b = (known[term] if term in known else int(term) for term in terms)
        value = {"+": a + b, "-": a - b, "×": a * b}[sign]
        # Values that occur once only: a number in the text names its quantity.
        if LEAST <= value <= MOST and value not in known.values():
            return Step(letter, terms, sign, value)
    return None
