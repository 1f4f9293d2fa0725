"""Reference solutions of the ten NP-hard problems: exact where the instance is small, good heuristics above.

Exact at any size: subset sum and knapsack (dynamic programs). Exact up to the stated size: tours of 9 cities,
bisections of 12 nodes, covers from 12 subsets; clique, colouring and meetings by branch and bound within `BUDGET`
steps, which suffices far beyond the default sizes. Above: nearest neighbour with 2-opt, pair exchange, greedy cover,
DSatur. All are deterministic. Nodes, items and subsets count from 0 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, permutations

import numpy as np

from mmrl.data.pretext.contract import Array

BUDGET = 20_000
"""Steps of a branch and bound before the best solution so far is taken."""

Graph = Sequence[Sequence[int]]
"""Neighbours of every node."""
Slot = tuple[int, int, int]
"""Meeting, room, start."""


def shortest_tour(distances: Array) -> list[int]:
    """All cities once, from city 0."""
    count = len(distances)
    if count <= 9:
        orders = _orders(count)
        legs = distances[orders, np.roll(orders, -1, axis=1)].sum(axis=1)
        return [int(city) for city in orders[int(legs.argmin())]]
    tours = []
    for start in range(count):
        tours.append(_two_opt(_nearest_neighbour(distances, start), distances))
    return min(tours, key=lambda tour: _tour_length(tour, distances))


def fewest_colours(graph: Graph) -> list[int]:
    """Colours from 0. DSatur, then fewer and fewer colours by backtracking."""
    best = _dsatur(graph)
    steps = [BUDGET]  # in a list, as all rounds draw on one budget
    while max(best) > 0:
        better = _coloured(graph, max(best), steps)
        if better is None:
            return best
        best = better
    return best


def largest_clique(graph: Graph) -> list[int]:
    """Nodes that are all joined to one another."""
    # Sets of nodes as bit masks: an intersection is one machine operation for up to 64 nodes.
    joined = [sum(1 << other for other in neighbours) for neighbours in graph]
    best: list[int] = []
    steps = BUDGET

    def extend(chosen: list[int], left: int) -> None:
        nonlocal best, steps
        steps -= 1
        if len(chosen) > len(best):
            best = list(chosen)
        # Go on only while all candidates together could still beat the best.
        while left and len(chosen) + left.bit_count() > len(best) and steps > 0:
            node = left.bit_length() - 1
            left &= ~(1 << node)
            extend([*chosen, node], left & joined[node])

    extend([], (1 << len(graph)) - 1)
    return best


def largest_independent_set(graph: Graph) -> list[int]:
    """Nodes of which no two are joined: a clique of the complement."""
    nodes = set(range(len(graph)))
    complement = []
    for node, neighbours in enumerate(graph):
        complement.append(sorted(nodes - set(neighbours) - {node}))
    return largest_clique(complement)


def smallest_bisection(graph: Graph) -> list[int]:
    """The half with node 0 of an even split that cuts the fewest edges."""
    count = len(graph)
    matrix = np.zeros((count, count), dtype=np.int64)
    for node, neighbours in enumerate(graph):
        matrix[node, list(neighbours)] = 1
    if count <= 12:
        halves = _halves(count)
        # Edges from the nodes of a half to those that are not in it.
        cuts = ((halves @ matrix) * (1 - halves)).sum(axis=1)
        best = halves[int(cuts.argmin())]
        return [int(node) for node in np.flatnonzero(best)]
    return _exchanged(np.arange(count) < count // 2, matrix)


def fewest_subsets(universe: int, subsets: Sequence[int]) -> list[int]:
    """Indices of bit masks that cover `universe`."""
    if len(subsets) <= 12:
        exact = _exact_cover(universe, subsets)
        if exact is not None:
            return exact
    chosen, covered = [], 0
    while covered != universe:
        gains = [(subset & ~covered).bit_count() for subset in subsets]
        index = gains.index(max(gains))
        chosen.append(index)
        covered |= subsets[index]
    return chosen


def _exact_cover(universe: int, subsets: Sequence[int]) -> list[int] | None:
    """The first smallest cover in lexicographic order; None if the subsets leave something out."""
    for size in range(1, len(subsets) + 1):
        for chosen in combinations(range(len(subsets)), size):
            covered = 0
            for index in chosen:
                covered |= subsets[index]
            if covered == universe:
                return list(chosen)
    return None


def most_numbers(numbers: Sequence[int], target: int) -> list[int] | None:
    """Indices of as many numbers as possible with this sum."""
    best: dict[int, tuple[int, ...]] = {0: ()}
    for index, number in enumerate(numbers):
        # Over a copy: the number must not be added to sums that it made itself.
        for total, chosen in list(best.items()):
            reached = total + number
            if reached <= target and len(chosen) + 1 > len(best.get(reached, ())):
                best[reached] = (*chosen, index)
    return list(best[target]) if target in best else None


def best_load(weights: Sequence[int], values: Sequence[int], capacity: int) -> list[int]:
    """Indices of the most valuable items within the capacity."""
    best: list[tuple[int, tuple[int, ...]]] = [(0, ())] * (capacity + 1)
    for index, (weight, value) in enumerate(zip(weights, values, strict=True)):
        # Downwards, so that an item is not put on a load that already holds it.
        for room in range(capacity, weight - 1, -1):
            before, chosen = best[room - weight]
            if before + value > best[room][0]:
                best[room] = (before + value, (*chosen, index))
    return list(best[capacity][1])


def fullest_schedule(
    attendees: Sequence[int], options: Sequence[Sequence[Slot]], clash: Array
) -> list[Slot]:
    """Slots (meeting, room, start), at most one per meeting, that seat the most people. `clash[a, b]` says whether two
    slots, numbered through `options` in order, exclude each other."""
    # Large meetings first: a good schedule is found early and cuts off more of the search.
    order = sorted(range(len(attendees)), key=lambda meeting: -attendees[meeting])
    offsets = np.cumsum([0, *(len(slots) for slots in options)])
    best: tuple[int, list[int]] = (0, [])
    steps = BUDGET

    def place(depth: int, seated: int, chosen: list[int]) -> None:
        nonlocal best, steps
        steps -= 1
        if seated > best[0]:
            best = (seated, list(chosen))
        rest = sum(attendees[meeting] for meeting in order[depth:])
        if depth == len(order) or seated + rest <= best[0] or steps < 0:
            return
        meeting = order[depth]
        for slot in range(offsets[meeting], offsets[meeting + 1]):
            if not any(clash[slot, other] for other in chosen):
                place(depth + 1, seated + attendees[meeting], [*chosen, slot])
        place(depth + 1, seated, chosen)

    place(0, 0, [])
    flat = [slot for slots in options for slot in slots]
    return [flat[slot] for slot in best[1]]


@lru_cache(maxsize=8)
def _orders(count: int) -> Array:
    """Every order of the cities that starts at 0."""
    rest = np.array(list(permutations(range(1, count))), dtype=np.int64)
    rest = rest.reshape(-1, count - 1)
    first = np.zeros((len(rest), 1), dtype=np.int64)
    return np.concatenate([first, rest], axis=1)


@lru_cache(maxsize=8)
def _halves(count: int) -> Array:
    """int64 [C, count]: every half that contains node 0."""
    chosen = list(combinations(range(1, count), count // 2 - 1))
    halves = np.zeros((len(chosen), count), dtype=np.int64)
    halves[:, 0] = 1
    for row, nodes in enumerate(chosen):
        halves[row, list(nodes)] = 1
    return halves


def _nearest_neighbour(distances: Array, start: int) -> list[int]:
    tour, left = [start], set(range(len(distances))) - {start}
    while left:
        here = tour[-1]
        # The number decides between cities at one distance: sets have no order to rely on.
        tour.append(min(left, key=lambda city: (distances[here, city], city)))
        left.remove(tour[-1])
    return tour


def _tour_length(tour: list[int], distances: Array) -> float:
    following = tour[1:] + tour[:1]
    return sum(distances[a, b] for a, b in zip(tour, following, strict=True))


def _two_opt(tour: list[int], distances: Array) -> list[int]:
    """Reverse stretches while that shortens the tour."""
    count, improved = len(tour), True
    while improved:
        improved = False
        for i, j in combinations(range(count), 2):
            a, b = tour[i], tour[i + 1]
            c, d = tour[j], tour[(j + 1) % count]
            if len({a, b, c, d}) < 4:
                continue
            before = distances[a, b] + distances[c, d]
            after = distances[a, c] + distances[b, d]
            # A gain of rounding errors alone would go on for ever.
            if after < before - 1e-9:
                tour[i + 1 : j + 1] = tour[i + 1 : j + 1][::-1]
                improved = True
    return tour


def _dsatur(graph: Graph) -> list[int]:
    """Colour next the node whose neighbours have the most colours."""
    colours = [-1] * len(graph)

    def urgency(node: int) -> tuple[int, int]:
        seen = {colours[other] for other in graph[node]} - {-1}
        return len(seen), len(graph[node])

    for _ in graph:
        uncoloured = [node for node, colour in enumerate(colours) if colour < 0]
        node = max(uncoloured, key=urgency)
        used = {colours[other] for other in graph[node]}
        colours[node] = next(colour for colour in range(len(graph)) if colour not in used)
    return colours


def _coloured(graph: Graph, limit: int, steps: list[int]) -> list[int] | None:
    """A colouring with colours below `limit`, or None (also when the steps are used up)."""
    order = sorted(range(len(graph)), key=lambda node: -len(graph[node]))
    colours = [-1] * len(graph)

    def paint(depth: int, used: int) -> bool:
        steps[0] -= 1
        if depth == len(order):
            return True
        node = order[depth]
        taken = {colours[other] for other in graph[node]}
        if steps[0] <= 0:
            return False
        # Of the colours that nobody wears yet only the first: the others differ in name only.
        for colour in range(min(used + 1, limit)):
            if colour not in taken:
                colours[node] = colour
                if paint(depth + 1, max(used, colour + 1)):
                    return True
        colours[node] = -1
        return False

    return colours if paint(0, 0) else None


def _exchanged(half: Array, matrix: Array) -> list[int]:
    """Exchange pairs of nodes while that cuts fewer edges (Kernighan and Lin 1970, one pair at a time)."""
    side = half.astype(np.int64)
    while True:
        other = 1 - side
        to_side, to_other = matrix @ side, matrix @ other
        # Per node: edges into the half where it is not, less those into its own.
        gain = to_other * side + to_side * other
        gain -= to_side * side + to_other * other
        first, second = np.flatnonzero(side), np.flatnonzero(other)
        # An edge between the two stays cut after the exchange, and was counted as a gain by both.
        between = matrix[np.ix_(first, second)]
        total = gain[first][:, None] + gain[second][None, :] - 2 * between
        i, j = np.unravel_index(int(total.argmax()), total.shape)
        if total[i, j] <= 0:
            break
        side[first[i]], side[second[j]] = 0, 1
    with_zero = side if side[0] else 1 - side
    return [int(node) for node in np.flatnonzero(with_zero)]
