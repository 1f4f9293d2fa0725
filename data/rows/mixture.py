"""Several data sets as one: each prompt is of a domain that was drawn by its weight (MoDoMoDo), and new in it.

    Mixture        for training: a domain with its weight's probability, then a row of it that was not drawn before
    Alternating    for evaluation: one row of each domain in turn, whatever the weights

A prompt of a mixture has its domain in `extra["mixed_from"]` and in front of its id, so that equal ids of two data sets
stay apart. The same index always gives the same prompt, and a seed the same order, so that nothing has to be remembered
for a run that goes on.

With `ends="first"` (the paper's rule) the mixture is as long as its draws find a new row: it ends where a domain is
drawn that is used up. With "never" a used-up domain begins again in another order, and the mixture is endless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from mmrl.ground.contents import Content, content_of
from mmrl.ground.domains import COLUMN
from mmrl.ground.faults import BadRow
from mmrl.ground.seeds import philox
from mmrl.types import Prompt, Prompts

Ends = Literal["first", "never"]
BLOCK = 4096
"""Draws that are made together."""


class _Domains(Prompts):
    """Data sets by name; subclasses say which domain and row an index is."""

    def __init__(self, parts: Mapping[str, Prompts]) -> None:
        if not parts:
            raise ValueError("A mixture needs at least one data set.")
        self.parts = dict(parts)
        self.size: int | None = None

    def place(self, index: int) -> tuple[str, int]:
        """(domain, row in it) of an index."""
        raise NotImplementedError(f"{type(self).__name__} has no place.")

    def __getitem__(self, index: int) -> Prompt:
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(f"Index {index} lies outside a mixture of {self.size} prompts.")
        name, row = self.place(index)
        prompt = self.parts[name][row]
        extra = {**prompt.extra, COLUMN: name}
        return replace(prompt, id=f"{name}/{prompt.id}", extra=extra)

    def content(self, index: int) -> Content:
        """Digests of what a prompt asks and shows (`mmrl.ground.contents`)."""
        name, row = self.place(index)
        return content_of(self.parts[name], row)

    def drain(self) -> Mapping[str, int]:
        """What all of them counted since this was last asked."""
        total: Counter[str] = Counter()
        for part in self.parts.values():
            total.update(part.drain())
        return dict(total)

    def left_out(self) -> Sequence[BadRow]:
        """Bad rows of all of them; a collection of the user's need not know any."""
        return [
            bad for part in self.parts.values() for bad in getattr(part, "left_out", tuple)()
        ]


class Mixture(_Domains):
    """Prompts of domains drawn by weight. Raises ValueError for weights that give no mixture."""

    def __init__(
        self,
        parts: Mapping[str, Prompts],
        weights: Mapping[str, float],
        seed: int = 0,
        ends: Ends = "first",
    ) -> None:
        super().__init__(parts)
        self.weights = shares(weights, list(self.parts))
        self.seed, self.ends = seed, ends
        self._blocks: list[np.ndarray] = []
        """Number of the domain of each draw, block by block."""
        self._before: list[np.ndarray] = [np.zeros(len(self.parts), dtype=np.int64)]
        """How often each domain was drawn before a block; one more than there are blocks."""
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        if ends == "first":
            self.size = self._until_used_up()

    def place(self, index: int) -> tuple[str, int]:
        """(domain, row in it) of an index."""
        number, drawn = self._draw(index)
        name = list(self.parts)[number]
        return name, self._row(name, drawn)

    def _draw(self, index: int) -> tuple[int, int]:
        """Number of the domain that is drawn at an index, and how often it was drawn before."""
        block, offset = divmod(index, BLOCK)
        while len(self._blocks) <= block:
            self._add_block()
        draws = self._blocks[block]
        number = int(draws[offset])
        earlier = int((draws[:offset] == number).sum())
        return number, int(self._before[block][number]) + earlier

    def _add_block(self) -> None:
        chances = list(self.weights.values())
        rng = philox(self.seed, "domains", len(self._blocks))
        draws = rng.choice(len(chances), BLOCK, p=chances).astype(np.int16)
        self._blocks.append(draws)
        counts = np.bincount(draws, minlength=len(chances))
        self._before.append(self._before[-1] + counts)

    def _row(self, name: str, drawn: int) -> int:
        """The row of a domain's n-th draw: each pass has an order of its own."""
        size = self.parts[name].size
        if size is None:  # drawn tasks are endless, and in random order by themselves
            return drawn
        turn, place = divmod(drawn, size)
        known = self._orders.get(name)
        if known is None or known[0] != turn:
            order = philox(self.seed, "rows of a domain", name, turn).permutation(size)
            known = self._orders[name] = (turn, order)
        return int(known[1][place])

    def _until_used_up(self) -> int | None:
        """Draws until one finds its domain used up; None if none ever does."""
        drawn = [name for name, weight in self.weights.items() if weight > 0]
        sizes = [self.parts[name].size if name in drawn else None for name in self.parts]
        if all(size is None for size in sizes):
            return None
        block = 0
        while True:
            if len(self._blocks) <= block:
                self._add_block()
            firsts: list[int] = []
            for number, size in enumerate(sizes):
                places = np.flatnonzero(self._blocks[block] == number)
                left = 0 if size is None else size - int(self._before[block][number])
                if size is not None and left < len(places):
                    firsts.append(int(places[left]))
            if firsts:
                return block * BLOCK + min(firsts)
            block += 1


class Alternating(_Domains):
    """One row of each domain in turn; a domain that is used up is passed over."""

    def __init__(self, parts: Mapping[str, Prompts]) -> None:
        super().__init__(parts)
        sizes = [part.size for part in self.parts.values()]
        finite = [size for size in sizes if size is not None]
        self._endless = [name for name, part in self.parts.items() if part.size is None]
        self._listed = list(self._turns(max(finite, default=0)))
        self.size = None if self._endless else len(self._listed)

    def place(self, index: int) -> tuple[str, int]:
        """(domain, row in it) of an index."""
        if index < len(self._listed):
            return self._listed[index]
        # Behind the last row of the longest one only endless ones go on.
        turn, number = divmod(index - len(self._listed), len(self._endless))
        rounds = self._listed[-1][1] + 1 if self._listed else 0
        return self._endless[number], rounds + turn

    def _turns(self, rounds: int) -> Iterator[tuple[str, int]]:
        for row in range(rounds):
            for name, part in self.parts.items():
                if part.size is None or row < part.size:
                    yield name, row


def shares(weights: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Weights of all domains, scaled so that they sum to 1; equal ones where none are given. Raises ValueError."""
    given = {name: weights[name] for name in names if name in weights} if weights else {}
    given = given or dict.fromkeys(names, 1.0)
    unknown, missing = sorted(set(weights) - set(names)), sorted(set(names) - set(given))
    if unknown or missing:
        what = f"weights {unknown}, which are none" if unknown else f"gives {missing} no weight"
        raise ValueError(
            f"The mixture {what}; the data sets are {list(names)}, and each has a weight (0: never drawn), or none has "
            "(all alike)."
        )
    if not all(0 <= weight < float("inf") for weight in given.values()):
        raise ValueError(f"The weights {given} must be 0 or positive, and finite.")
    total = sum(given.values())
    if not total > 0:
        raise ValueError(f"The weights {given} are all 0: no data set would ever be drawn.")
    return {name: weight / total for name, weight in given.items()}
