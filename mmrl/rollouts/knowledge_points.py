"""Which knowledge points a question needs: the fewest with which it is answered best (KnowRL).

A row brings n points, short texts that help to answer it. `table` says how its answers fared with some of them: points
that were given -> (right answers, judged answers). With a(S) the share of right ones when S is given, F all points and
K the answers that a(F) was measured with, a point is removable if

    a(F) - a(F without i) ≤ slack / K

Then `css`, the constrained subset search, takes of all S = F without D, where D is any set of removable points, the one
of the highest a(S), of several the one with the fewest points, and of these the first in the order of the row. Leaving
out all removable points at once, as `s-loo` (slack 0) and `t-loo` do, ignores that they stand in for each other: of two
points that say the same, each is removable, but not both.

What is reconstructed: the official code (github.com/Hasuer/KnowRL, commit bed9a053) names the strategies and releases
data that was chosen with them, not how. The search is ours after its description; so are the two leave-one-out rules.
CBRS, consensus-based selection, is named there without a rule, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Literal, get_args

from mmrl.ground.require import require

__all__ = ["Given", "KnowRL", "Score", "Table", "accuracy", "chosen", "removable", "wanted"]

Given = tuple[int, ...]
"""Numbers of the points that are given, from 0, rising."""
Score = tuple[int, int]
"""Right answers and judged answers."""
Table = Mapping[Given, Score]
Strategy = Literal["css", "s-loo", "t-loo", "all", "none"]


@dataclass(frozen=True)
class KnowRL:
    """How knowledge points are chosen and given."""

    choose: Strategy = "css"
    """css: search among subsets; s-loo, t-loo: without the points that can be left out singly (strict, tolerant);
    all: every point, and nothing is measured; none: no points, plain GRPO."""
    samples: int = 8
    """Answers by which each set of points is measured (K), once for each question."""
    slack: int = 1
    """Right answers of K that leaving a point out may cost, for css and t-loo."""
    subsets: int = 64
    """Most sets that css compares; points whose removal costs most are kept where there would be more."""
    sentence: str = "\n\nThese facts are of use:\n{}"
    """What is added to the question, with one place {} for the points, one a line."""

    def __post_init__(self) -> None:
        strategies = get_args(Strategy)
        require(
            self,
            choose=(self.choose in strategies, f"one of {list(strategies)}"),
            samples=(1 <= self.samples <= 4096, "1 to 4096"),
            slack=(0 <= self.slack <= self.samples, "0 to samples"),
            subsets=(2 <= self.subsets <= 4096, "2 to 4096"),
            sentence=(self.sentence.count("{}") == 1, "a text with exactly one {}"),
        )


def accuracy(table: Table, given: Given) -> Fraction | None:
    """The share of right answers with these points, in [0, 1]; None if it is not known."""
    right, known = table.get(given, (0, 0))
    return Fraction(right, known) if known else None


def removable(points: int, table: Table, slack: int) -> list[int]:
    """Points without which answers are as good as with all `points`, up to `slack` right answers; rising."""
    everything = tuple(range(points))
    _, known = table.get(everything, (0, 0))
    full = accuracy(table, everything)
    if full is None:
        return []
    found: list[int] = []
    for point in everything:
        without = accuracy(table, _without(everything, [point]))
        if without is not None and full - without <= Fraction(slack, known):
            found.append(point)
    return found


def wanted(points: int, table: Table, knowrl: KnowRL) -> list[Given]:
    """Which sets must be measured next, before the choice among `points`; none: it can be made."""
    if knowrl.choose in ("all", "none"):
        return []
    everything = tuple(range(points))
    singly = [everything, *(_without(everything, [point]) for point in everything)]
    first = [given for given in singly if given not in table]
    if first or knowrl.choose != "css":
        return first
    return [given for given in _searched(points, table, knowrl) if given not in table]


def chosen(points: int, table: Table, knowrl: KnowRL) -> Given | None:
    """Which of `points` are given; None where answers with all of them could not be judged."""
    everything = tuple(range(points))
    if knowrl.choose == "none":
        return ()
    if knowrl.choose == "all":
        return everything
    if accuracy(table, everything) is None:
        return None
    if knowrl.choose == "css":
        return _best(list(_searched(points, table, knowrl)), table)
    slack = knowrl.slack if knowrl.choose == "t-loo" else 0
    return _without(everything, removable(points, table, slack))


def left_alone(points: int, table: Table, knowrl: KnowRL) -> int:
    """How many removable points css keeps because `subsets` leaves no room for their sets."""
    if knowrl.choose != "css":
        return 0
    return max(0, len(removable(points, table, knowrl.slack)) - _room(knowrl))


def _best(sets: Sequence[Given], table: Table) -> Given:
    """The set of the highest accuracy, then the smallest, then the first one; those not known are left out."""
    known = [(accuracy(table, given), given) for given in sets]
    ranked = [(-share, len(given), given) for share, given in known if share is not None]
    return min(ranked)[2]


def _searched(points: int, table: Table, knowrl: KnowRL) -> Iterator[Given]:
    """All points without each set of removable ones, the whole first."""
    everything = tuple(range(points))
    free = removable(points, table, knowrl.slack)

    def costs(point: int) -> Fraction:
        return -(accuracy(table, _without(everything, [point])) or Fraction(0))

    # Python's sort is stable: of equals those come first that stand first in the row.
    free = sorted(sorted(free, key=costs)[: _room(knowrl)])
    for size in range(len(free) + 1):
        for dropped in combinations(free, size):
            yield _without(everything, dropped)


def _room(knowrl: KnowRL) -> int:
    """Of how many points all subsets may be compared: 2^room ≤ subsets."""
    return knowrl.subsets.bit_length() - 1


def _without(everything: Given, dropped: Sequence[int]) -> Given:
    return tuple(point for point in everything if point not in dropped)
