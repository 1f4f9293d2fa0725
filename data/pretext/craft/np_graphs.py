"""Six graph problems of NP-Engine: draw an instance, value an answer, solve it, guess, and bring answers to one form.

Instances: {"points": [[x, y], …]} for tours, {"n": 8, "edges": [[1, 2], …]} otherwise; nodes count from 1. An answer
is a list of nodes, or of colours. `value` is None where the answer is no solution: repeated or unknown nodes, missing
edges, unequal halves, cycles of fewer than three nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft import np_solvers
from mmrl.data.pretext.craft.draws import shuffled_numbers

Instance = dict[str, Any]
Answer = Sequence[int]
Edge = tuple[int, int]
Solved = tuple[Instance, list[int]]
"""An instance and its reference solution."""
SPAN = 20
"""Cities lie on integer points 0 to 20."""


def tour_instance(size: int, rng: Generator) -> Solved:
    """Cities at least 3 apart (2 if there are more than 20), and a tour through them."""
    points: list[tuple[int, int]] = []
    apart = 3 if size <= 20 else 2
    while len(points) < size:
        x, y = (int(v) for v in rng.integers(0, SPAN + 1, size=2))
        if all(np.hypot(x - a, y - b) >= apart for a, b in points):
            points.append((x, y))
    tour = _from_one(np_solvers.shortest_tour(_distances(points)))
    return {"points": [list(point) for point in points]}, [*tour, tour[0]]


def tour_value(instance: Instance, answer: Answer) -> float | None:
    """Length of a closed tour through all cities, each once."""
    points = instance["points"]
    every_city = list(range(1, len(points) + 1))
    # The length first: the first entry of an empty answer cannot be looked at.
    if len(answer) != len(points) + 1 or answer[0] != answer[-1]:
        return None
    if sorted(answer[:-1]) != every_city:
        return None
    return sum(math.dist(points[a - 1], points[b - 1]) for a, b in pairwise(answer))


def cycle_instance(size: int, rng: Generator) -> Solved:
    """A planted cycle through all nodes, with further edges at a density of 0.2."""
    ring = shuffled_numbers(size, rng)
    cycle = [*ring, ring[0]]
    edges = {_edge(a, b) for a, b in pairwise(cycle)}
    edges |= _random_edges(range(1, size + 1), 0.2, rng)
    return _graph(size, edges), cycle


def cycle_value(instance: Instance, answer: Answer) -> float | None:
    """Number of nodes of a closed cycle without repeats."""
    inner = answer[:-1]
    if len(inner) < 3 or answer[0] != answer[-1] or not distinct_numbers(inner, instance["n"]):
        return None
    edges = _edges(instance)
    joined = all(_edge(a, b) in edges for a, b in pairwise(answer))
    return float(len(inner)) if joined else None


def colour_instance(size: int, rng: Generator) -> Solved:
    """Planted colours (3 up to 9 nodes, else 4); half of the pairs of unequal colour are joined."""
    hidden = np.arange(size) % (3 if size <= 9 else 4)
    rng.shuffle(hidden)
    edges = set()
    for a, b in combinations(range(1, size + 1), 2):
        # The draw comes last: pairs of one colour take none.
        if hidden[a - 1] != hidden[b - 1] and rng.random() < 0.5:
            edges.add((a, b))
    instance = _graph(size, edges)
    return instance, _from_one(np_solvers.fewest_colours(_neighbours(instance)))


def colour_value(instance: Instance, answer: Answer) -> float | None:
    """Number of colours; no two joined nodes may share one."""
    if len(answer) != instance["n"] or min(answer) < 1:
        return None
    clash = any(answer[a - 1] == answer[b - 1] for a, b in instance["edges"])
    return None if clash else float(len(set(answer)))


def clique_instance(size: int, rng: Generator) -> Solved:
    """A planted clique of about half the root of the size plus two, in a random graph of density 0.4."""
    members = max(3, round(size**0.5 / 2) + 2)
    planted = sorted(shuffled_numbers(size, rng)[:members])
    edges = _random_edges(range(1, size + 1), 0.4, rng)
    edges |= set(combinations(planted, 2))
    instance = _graph(size, edges)
    # Chance may have made a larger clique than the planted one, so the reference is searched for.
    return instance, sorted(_from_one(np_solvers.largest_clique(_neighbours(instance))))


def clique_value(instance: Instance, answer: Answer) -> float | None:
    """Number of nodes that are all joined."""
    if not distinct_numbers(answer, instance["n"]):
        return None
    edges = _edges(instance)
    joined = all(_edge(a, b) in edges for a, b in combinations(answer, 2))
    return float(len(answer)) if joined else None


def independent_instance(size: int, rng: Generator) -> Solved:
    """A random graph of density 0.4 without edges inside a planted third of the nodes."""
    planted = set(shuffled_numbers(size, rng)[: size // 3 + 1])
    drawn = _random_edges(range(1, size + 1), 0.4, rng)
    instance = _graph(size, {edge for edge in drawn if not planted.issuperset(edge)})
    largest = np_solvers.largest_independent_set(_neighbours(instance))
    return instance, sorted(_from_one(largest))


def independent_value(instance: Instance, answer: Answer) -> float | None:
    """Number of nodes of which no two are joined."""
    if not distinct_numbers(answer, instance["n"]):
        return None
    edges = _edges(instance)
    joined = any(_edge(a, b) in edges for a, b in combinations(answer, 2))
    return None if joined else float(len(answer))


def bisection_instance(size: int, rng: Generator) -> Solved:
    """Two dense communities of equal size with few edges between them; connected."""
    count = size + size % 2  # an odd number of nodes has no halves
    order = shuffled_numbers(count, rng)
    first, second = order[: count // 2], order[count // 2 :]
    # A path through all nodes keeps the graph in one piece.
    edges = {_edge(a, b) for a, b in pairwise(order)}
    for half in (first, second):
        edges |= _random_edges(half, 0.5, rng)
    for a, b in product(first, second):
        if rng.random() < 0.15:
            edges.add(_edge(a, b))
    instance = _graph(count, edges)
    return instance, _from_one(np_solvers.smallest_bisection(_neighbours(instance)))


def bisection_value(instance: Instance, answer: Answer) -> float | None:
    """Number of edges between the listed half and the rest."""
    size = instance["n"]
    if len(answer) != size // 2 or not distinct_numbers(answer, size):
        return None
    half = set(answer)
    return float(sum((a in half) != (b in half) for a, b in instance["edges"]))


def guess_closed(instance: Instance, rng: Generator) -> list[int]:
    """All nodes in random order, back to the first."""
    order = shuffled_numbers(nodes(instance), rng)
    return [*order, order[0]]


def guess_colours(instance: Instance, rng: Generator) -> list[int]:
    return [int(colour) for colour in rng.integers(1, 5, size=instance["n"])]


def guess_few(instance: Instance, rng: Generator) -> list[int]:
    """Two to four nodes."""
    order = shuffled_numbers(instance["n"], rng)
    return sorted(order[: int(rng.integers(2, 5))])


def guess_half(instance: Instance, rng: Generator) -> list[int]:
    size = instance["n"]
    return sorted(shuffled_numbers(size, rng)[: size // 2])


def canonical_cycle(instance: Instance, answer: Answer) -> tuple[int, ...]:
    """From the smallest node towards the smaller of its neighbours."""
    inner = list(answer[:-1])
    start = inner.index(min(inner))
    turned = inner[start:] + inner[:start]
    if turned[1] <= turned[-1]:
        return tuple(turned)
    backwards = turned[:0:-1]
    return (turned[0], *backwards)


def canonical_colours(instance: Instance, answer: Answer) -> tuple[int, ...]:
    """Colours renamed in the order of their first use."""
    names: dict[int, int] = {}
    return tuple(names.setdefault(colour, len(names) + 1) for colour in answer)


def canonical_set(instance: Instance, answer: Answer) -> tuple[int, ...]:
    return tuple(sorted(answer))


def canonical_half(instance: Instance, answer: Answer) -> tuple[int, ...]:
    """The half that contains node 1."""
    rest = set(range(1, instance["n"] + 1)) - set(answer)
    return tuple(sorted(answer if 1 in answer else rest))


def nodes(instance: Instance) -> int:
    """Number of nodes or cities."""
    return len(instance["points"]) if "points" in instance else instance["n"]


def distinct_numbers(answer: Answer, count: int) -> bool:
    """At least one entry, all from 1 to `count`, none twice."""
    if not answer or len(set(answer)) < len(answer):
        return False
    return min(answer) >= 1 and max(answer) <= count


def written_graph(instance: Instance) -> str:
    """The instance as text."""
    if "points" in instance:
        cities = [f"{city}: ({x}, {y})" for city, (x, y) in enumerate(instance["points"], 1)]
        return f"Cities and their coordinates: {'; '.join(cities)}."
    edges = ", ".join(f"{a}-{b}" for a, b in instance["edges"])
    return f"The nodes are 1 to {instance['n']}; the edges are {edges}."


def _graph(size: int, edges: set[Edge]) -> Instance:
    return {"n": size, "edges": [list(edge) for edge in sorted(edges)]}


def _edge(a: int, b: int) -> Edge:
    return (a, b) if a < b else (b, a)


def _edges(instance: Instance) -> set[Edge]:
    return {(a, b) for a, b in instance["edges"]}


def _neighbours(instance: Instance) -> list[list[int]]:
    """Per node, the nodes that it is joined to; both count from 0, as the solvers do."""
    found: list[list[int]] = [[] for _ in range(instance["n"])]
    for a, b in instance["edges"]:
        found[a - 1].append(b - 1)
        found[b - 1].append(a - 1)
    return found


def _random_edges(among: Sequence[int], density: float, rng: Generator) -> set[Edge]:
    edges = set()
    for a, b in combinations(among, 2):
        if rng.random() < density:
            edges.add(_edge(a, b))
    return edges


def _distances(points: Sequence[Sequence[int]]) -> Array:
    """float64 [N, N]."""
    places = np.asarray(points, dtype=np.float64)
    across, down = (places[:, None, axis] - places[None, :, axis] for axis in (0, 1))
    return np.hypot(across, down)


def _from_one(solution: Sequence[int]) -> list[int]:
    """What a solver says, which counts from 0, as the answers count."""
    return [entry + 1 for entry in solution]
