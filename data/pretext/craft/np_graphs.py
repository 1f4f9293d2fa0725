"""Six graph problems of NP-Engine: draw an instance, value an answer, solve it, guess, and bring answers to one form.

Instances: {"points": [[x, y], …]} for tours, {"n": 8, "edges": [[1, 2], …]} otherwise; nodes count from 1. An answer
is a list of nodes, or of colours. `value` is None where the answer is no solution: repeated or unknown nodes, missing
edges, unequal halves, cycles of fewer than three nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft import np_solvers

Instance = dict[str, Any]
Answer = Sequence[int]
SPAN = 20
"""Cities lie on integer points 0 to 20."""


def tour_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """Cities at least 3 apart (2 if there are more than 20), and a tour through them."""
    points: list[tuple[int, int]] = []
    apart = 3 if size <= 20 else 2
    while len(points) < size:
        x, y = (int(v) for v in rng.integers(0, SPAN + 1, size=2))
        if all(np.hypot(x - a, y - b) >= apart for a, b in points):
            points.append((x, y))
    tour = [city + 1 for city in np_solvers.shortest_tour(_distances(points))]
    return {"points": [list(point) for point in points]}, [*tour, tour[0]]


def tour_value(instance: Instance, answer: Answer) -> float | None:
    """Length of a closed tour through all cities, each once."""
    count = len(instance["points"])
    if (
        len(answer) != count + 1
        or answer[0] != answer[-1]
        or sorted(answer[:-1]) != list(range(1, count + 1))
    ):
        return None
    points = instance["points"]
    return sum(math.dist(points[a - 1], points[b - 1]) for a, b in pairwise(answer))


def cycle_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """A planted cycle through all nodes, with further edges at a density of 0.2."""
    ring = [int(node) + 1 for node in rng.permutation(size)]
    edges = {_edge(a, b) for a, b in pairwise([*ring, ring[0]])}
    edges |= _random_edges(range(1, size + 1), 0.2, rng)
    return _graph(size, edges), [*ring, ring[0]]


def cycle_value(instance: Instance, answer: Answer) -> float | None:
    """Number of nodes of a closed cycle without repeats."""
    inner = answer[:-1]
    if len(inner) < 3 or answer[0] != answer[-1] or not _distinct(inner, instance["n"]):
        return None
    edges = _edges(instance)
    return float(len(inner)) if all(_edge(a, b) in edges for a, b in pairwise(answer)) else None


def colour_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """Planted colours (3 up to 9 nodes, else 4); half of the pairs of unequal colour are joined."""
    hidden = np.arange(size) % (3 if size <= 9 else 4)
    rng.shuffle(hidden)
    pairs = [
        (a, b) for a, b in combinations(range(1, size + 1), 2) if hidden[a - 1] != hidden[b - 1]
    ]
    instance = _graph(size, {pair for pair in pairs if rng.random() < 0.5})
    return instance, [colour + 1 for colour in np_solvers.fewest_colours(_neighbours(instance))]


def colour_value(instance: Instance, answer: Answer) -> float | None:
    """Number of colours; no two joined nodes may share one."""
    if len(answer) != instance["n"] or min(answer) < 1:
        return None
    clash = any(answer[a - 1] == answer[b - 1] for a, b in instance["edges"])
    return None if clash else float(len(set(answer)))


def clique_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """A planted clique of about half the root of the size plus two, in a random graph of density 0.4."""
    planted = sorted(
        int(node) + 1 for node in rng.permutation(size)[: max(3, round(size**0.5 / 2) + 2)]
    )
    edges = _random_edges(range(1, size + 1), 0.4, rng) | set(combinations(planted, 2))
    instance = _graph(size, edges)
    return instance, sorted(
        node + 1 for node in np_solvers.largest_clique(_neighbours(instance))
    )


def clique_value(instance: Instance, answer: Answer) -> float | None:
    """Number of nodes that are all joined."""
    if not _distinct(answer, instance["n"]):
        return None
    edges = _edges(instance)
    return (
        float(len(answer))
        if all(_edge(a, b) in edges for a, b in combinations(answer, 2))
        else None
    )


def independent_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """A random graph of density 0.4 without edges inside a planted third of the nodes."""
    planted = {int(node) + 1 for node in rng.permutation(size)[: size // 3 + 1]}
    edges = {
        edge
        for edge in _random_edges(range(1, size + 1), 0.4, rng)
        if not planted.issuperset(edge)
    }
    instance = _graph(size, edges)
    return instance, sorted(
        node + 1 for node in np_solvers.largest_independent_set(_neighbours(instance))
    )


def independent_value(instance: Instance, answer: Answer) -> float | None:
    """Number of nodes of which no two are joined."""
    if not _distinct(answer, instance["n"]):
        return None
    edges = _edges(instance)
    return (
        None
        if any(_edge(a, b) in edges for a, b in combinations(answer, 2))
        else float(len(answer))
    )


def bisection_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """Two dense communities of equal size with few edges between them; connected."""
    count = size + size % 2
    order = [int(node) + 1 for node in rng.permutation(count)]
    halves = order[: count // 2], order[count // 2 :]
    edges = {_edge(a, b) for a, b in pairwise(order)}
    for half in halves:
        edges |= _random_edges(half, 0.5, rng)
    edges |= {_edge(a, b) for a in halves[0] for b in halves[1] if rng.random() < 0.15}
    instance = _graph(count, edges)
    return instance, [node + 1 for node in np_solvers.smallest_bisection(_neighbours(instance))]


def bisection_value(instance: Instance, answer: Answer) -> float | None:
    """Number of edges between the listed half and the rest."""
    if len(answer) != instance["n"] // 2 or not _distinct(answer, instance["n"]):
        return None
    half = set(answer)
    return float(sum((a in half) != (b in half) for a, b in instance["edges"]))


def guess_closed(instance: Instance, rng: np.random.Generator) -> list[int]:
    """All nodes in random order, back to the first."""
    order = [int(node) + 1 for node in rng.permutation(nodes(instance))]
    return [*order, order[0]]


def guess_colours(instance: Instance, rng: np.random.Generator) -> list[int]:
    return [int(colour) for colour in rng.integers(1, 5, size=instance["n"])]


def guess_few(instance: Instance, rng: np.random.Generator) -> list[int]:
    """Two to four nodes."""
    return sorted(
        int(node) + 1 for node in rng.permutation(instance["n"])[: int(rng.integers(2, 5))]
    )


def guess_half(instance: Instance, rng: np.random.Generator) -> list[int]:
    return sorted(
        int(node) + 1 for node in rng.permutation(instance["n"])[: instance["n"] // 2]
    )


def canonical_cycle(instance: Instance, answer: Answer) -> tuple[int, ...]:
    """From the smallest node towards the smaller of its neighbours."""
    inner = list(answer[:-1])
    start = inner.index(min(inner))
    turned = inner[start:] + inner[:start]
    return tuple(turned if turned[1] <= turned[-1] else [turned[0], *turned[:0:-1]])


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


def written_graph(instance: Instance) -> str:
    """The instance as text."""
    if "points" in instance:
        listed = "; ".join(
            f"{i + 1}: ({x}, {y})" for i, (x, y) in enumerate(instance["points"])
        )
        return f"Cities and their coordinates: {listed}."
    listed = ", ".join(f"{a}-{b}" for a, b in instance["edges"])
    return f"The nodes are 1 to {instance['n']}; the edges are {listed}."


def _graph(size: int, edges: set[tuple[int, int]]) -> Instance:
    return {"n": size, "edges": [list(edge) for edge in sorted(edges)]}


def _edge(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)


def _edges(instance: Instance) -> set[tuple[int, int]]:
    return {(a, b) for a, b in instance["edges"]}


def _neighbours(instance: Instance) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(instance["n"])]
    for a, b in instance["edges"]:
        found[a - 1].append(b - 1)
        found[b - 1].append(a - 1)
    return found


def _random_edges(
    among: Sequence[int], density: float, rng: np.random.Generator
) -> set[tuple[int, int]]:
    return {_edge(a, b) for a, b in combinations(among, 2) if rng.random() < density}


def _distinct(answer: Answer, count: int) -> bool:
    """At least one node, all known, none twice."""
    return (
        bool(answer)
        and len(set(answer)) == len(answer)
        and min(answer) >= 1
        and max(answer) <= count
    )


def _distances(points: Sequence[Sequence[int]]) -> Array:
    places = np.asarray(points, dtype=np.float64)
    return np.hypot(*(places[:, None, axis] - places[None, :, axis] for axis in (0, 1)))
