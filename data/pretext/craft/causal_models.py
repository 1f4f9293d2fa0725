"""Random causal models of binary variables, and exact answers to three kinds of questions about them.

A variable is 1 if its own uniform noise lies below a number that its parents choose: p(x = 1 | parents) is its
conditional table, and what it would have been in another world shares the noise. Questions:

    association      p(x | z = c)                             what is seen
    intervention     p(x | do(z = c))                         edges into z are cut, z is set
    counterfactual   p(x had z been c | z = 1 - c, w = d)     both worlds share all noise (twin network)

Answers come from variable elimination: one factor per variable, summed out one after the other. A world is a variable's
value, or in the twin network the pair (fact, counterfact), whose joint table has the noise integrated out: both are 1
below the smaller of the two numbers, one of them between the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.random import Generator

Level = Literal["association", "intervention", "counterfactual"]
LEVELS: tuple[Level, ...] = ("association", "intervention", "counterfactual")
Assignment = Mapping[int, int]
"""Variable -> its value."""


@dataclass(frozen=True)
class Model:
    """Variables 0 to n - 1, numbered so that parents come first."""

    parents: tuple[tuple[int, ...], ...]
    tables: tuple[tuple[float, ...], ...]
    """p(x = 1 | parents), one number per assignment of the parents, which count up as binary digits do."""

    def __len__(self) -> int:
        return len(self.parents)

    def rate(self, variable: int, values: Sequence[int]) -> float:
        """p(variable = 1 | its parents have these values, in their order)."""
        place = int("".join(map(str, values)) or "0", 2)
        return self.tables[variable][place]

    def ancestors(self, variables: Sequence[int]) -> set[int]:
        """These, and all that lead to them."""
        found, waiting = set[int](), list(variables)
        while waiting:
            here = waiting.pop()
            if here not in found:
                found.add(here)
                waiting += self.parents[here]
        return found

    def cut(self, done: Assignment) -> Model:
        """After surgery: what is set has no parents, and one value."""
        parents = tuple(() if v in done else p for v, p in enumerate(self.parents))
        tables = tuple((float(done[v]),) if v in done else t for v, t in enumerate(self.tables))
        return Model(parents, tables)


@dataclass(frozen=True)
class Query:
    """p(asked | seen, do(done)); with `counter`, of the world in which that was done instead."""

    asked: int
    seen: Assignment
    done: Assignment
    level: Level


def draw_model(count: int, most_parents: int, rng: Generator) -> Model:
    """A random acyclic model; every variable but the first has at least one parent."""
    parents: list[tuple[int, ...]] = []
    tables: list[tuple[float, ...]] = []
    for variable in range(count):
        most = min(most_parents, variable)
        degree = int(rng.integers(1, most + 1)) if most else 0
        chosen = rng.permutation(variable)[:degree]
        parents.append(tuple(sorted(int(parent) for parent in chosen)))
        # Two decimals, as they are written; away from 0 and 1, so that nothing seen is impossible.
        numbers = rng.integers(5, 96, size=2**degree) / 100
        tables.append(tuple(float(number) for number in numbers))
    return Model(tuple(parents), tuple(tables))


def draw_query(model: Model, level: Level, rng: Generator) -> Query:
    """A question of this level about different variables of a model of at least three."""
    asked, cause, witness = (int(v) for v in rng.permutation(len(model))[:3])
    value, seen = int(rng.integers(2)), int(rng.integers(2))
    if level == "association":
        return Query(asked, {cause: value}, {}, level)
    if level == "intervention":
        return Query(asked, {}, {cause: value}, level)
    return Query(asked, {cause: 1 - value, witness: seen}, {cause: value}, level)


def answer(model: Model, query: Query) -> float | None:
    """p(asked = 1 | …), exactly; None if what is seen cannot be."""
    if query.level == "counterfactual":
        return _twin_answer(model, query)
    world = model.cut(query.done)
    relevant = world.ancestors([query.asked, *query.seen])
    factors = [_factor(world, variable) for variable in sorted(relevant)]
    seen = {variable: {value} for variable, value in query.seen.items()}
    return _share(factors, relevant, query.asked, seen, one={1})


def relevant_count(model: Model, query: Query) -> int:
    """Ancestors of what is asked and seen, after surgery: what an exact answer must look at. A difficulty."""
    world = model.cut(query.done)
    if query.level != "counterfactual":
        return len(world.ancestors([query.asked, *query.seen]))
    # What is asked lives in the cut world, what is seen in the real one.
    return len(world.ancestors([query.asked]) | model.ancestors([*query.seen]))


Factor = tuple[tuple[int, ...], np.ndarray]
"""Variables, and a table with an axis for each."""


def _factor(model: Model, variable: int) -> Factor:
    """p(variable | parents) over (parents…, variable)."""
    parents = model.parents[variable]
    table = np.zeros((2,) * (len(parents) + 1))
    for values in product((0, 1), repeat=len(parents)):
        rate = model.rate(variable, values)
        table[values] = (1.0 - rate, rate)
    return (*parents, variable), table


def _twin_answer(model: Model, query: Query) -> float | None:
    """Both worlds at once: the state of a variable is 2 · fact + counterfact."""
    relevant = sorted(model.ancestors([query.asked, *query.seen]))
    factors = [_twin_factor(model, query.done, variable) for variable in relevant]
    seen = {v: {2 * value, 2 * value + 1} for v, value in query.seen.items()}
    return _share(factors, set(relevant), query.asked, seen, one={1, 3})


def _twin_factor(model: Model, done: Assignment, variable: int) -> Factor:
    """p(fact, counterfact | those of the parents) of a variable; what is set has its value in the other world."""
    parents = model.parents[variable]
    table = np.zeros((4,) * (len(parents) + 1))
    for states in product(range(4), repeat=len(parents)):
        fact = model.rate(variable, [state // 2 for state in states])
        if variable in done:
            table[(*states, done[variable])] = 1.0 - fact
            table[(*states, 2 + done[variable])] = fact
            continue
        other = model.rate(variable, [state % 2 for state in states])
        both = min(fact, other)
        table[states] = (1.0 - max(fact, other), other - both, fact - both, both)
    return (*parents, variable), table


def _share(
    factors: Sequence[Factor],
    variables: set[int],
    asked: int,
    seen: Mapping[int, set[int]],
    one: set[int],
) -> float | None:
    """Weight of the states `one` of the asked variable, among those that agree with what is seen."""
    left = [_restricted(factor, seen) for factor in factors]
    for variable in sorted(variables - {asked}):
        touched = [factor for factor in left if variable in factor[0]]
        left = [factor for factor in left if variable not in factor[0]]
        left.append(_summed(_product(touched), variable))
    names, table = _product(left)
    assert names == (asked,), f"left over: {names}"
    whole = float(table.sum())
    return float(sum(table[state] for state in one)) / whole if whole > 0 else None


def _restricted(factor: Factor, seen: Mapping[int, set[int]]) -> Factor:
    """With 0 where a variable is not in one of its possible states."""
    names, table = factor
    table = table.copy()
    for axis, name in enumerate(names):
        if name in seen:
            others = [s for s in range(table.shape[axis]) if s not in seen[name]]
            table[(slice(None),) * axis + (others,)] = 0.0
    return names, table


def _product(factors: Sequence[Factor]) -> Factor:
    names = tuple(sorted({name for factor in factors for name in factor[0]}))
    terms: list[object] = []
    for own, table in factors:
        terms += [table, [names.index(name) for name in own]]
    return names, np.einsum(*terms, list(range(len(names))))  # type: ignore[call-overload]


def _summed(factor: Factor, variable: int) -> Factor:
    names, table = factor
    axis = names.index(variable)
    return names[:axis] + names[axis + 1 :], table.sum(axis)
