"""What reward parts say of answers, one cell each, before policies and weights make a number of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from mmrl.rewards.parts import Failure, Outcome

if TYPE_CHECKING:
    from mmrl.types import Rollout

Cell = float | Failure | None
"""What one part says of one answer: its pay, why it failed, or that it is not available."""
Table = dict[str, list[Cell]]
"""Part -> one cell per answer."""


def completed(outcome: Outcome, expected: int) -> Outcome:
    """The outcome, or a failure if it has not one value per answer."""
    if isinstance(outcome, Failure) or len(outcome) == expected:
        return outcome
    return Failure("exception", f"it returned {len(outcome)} values for {expected} answers")


def enter(outcome: Outcome, rows: Sequence[int], column: list[Cell]) -> None:
    """Write a call's values into a part's column; a failed call fails for all its answers."""
    for index, row in enumerate(rows):
        column[row] = outcome if isinstance(outcome, Failure) else cell_of(outcome[index])


def cell_of(value: float | str | None) -> Cell:
    """A value, or the failure that it is: what is no number arrives as its description."""
    if isinstance(value, str):  # a worker describes what it may not send
        return Failure("not_a_number", f"it returned {value}; a reward is a number or None")
    if value is not None and not math.isfinite(value):
        return Failure("nonfinite", f"it returned {value}")
    return value


def lacks(
    rollouts: Sequence[Rollout], table: Table, alone: Collection[str] = ()
) -> set[tuple[str, int]]:
    """(part, group) pairs in which at least one answer has no value; parts in `alone` lack theirs answer by answer."""
    lacking: set[tuple[str, int]] = set()
    for name, column in table.items():
        if name in alone:
            continue
        for rollout, cell in zip(rollouts, column, strict=True):
            if cell is None:
                lacking.add((name, rollout.group))
    return lacking


def groups_in(rows: Sequence[int], rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    """The rows of each group, in order of appearance."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for row in rows:
        groups[rollouts[row].group].append(row)
    return [tuple(members) for members in groups.values()]


def values_of(cells: Mapping[str, Cell]) -> dict[str, float | None] | None:
    """The values of one answer's parts; None if one of them failed, which drops the answer."""
    values: dict[str, float | None] = {}
    for name, cell in cells.items():
        if isinstance(cell, Failure):
            return None
        values[name] = cell if isinstance(cell, float) else None
    return values


def gated(
    values: dict[str, float | None] | None, gate: str | None
) -> dict[str, float | None] | None:
    """The values; zeros where the gate pays nothing. What is not available stays so."""
    if values is None or gate is None:
        return values
    passed = values[gate]
    if passed is None or passed > 0:
        return values
    return {name: None if value is None else min(value, 0.0) for name, value in values.items()}
