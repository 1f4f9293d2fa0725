"""NP-Engine's ten official validators (OliverLeeXZ/NP-Engine, NP_tasks/*/validation.py): (invalid, value).

They read what follows the last "Answer:" (clique: the first, so a second one makes the rest unreadable). An invalid
answer carries the task's penalty: −1 where more is better, the sum of all weights (TSP, bisection), |V| + 1 (colouring)
or |S| + 1 (set cover) where less is better.

Clique and bisection want a list literal and nothing else: arrows, other brackets, bare numbers or a sentence behind it
are invalid. A bisection is two disjoint lists that hold every node, of equal size, or one apart if the number of nodes
is odd; a node repeated within one list is counted once. A clique refuses repeated entries, and reads numbers in quotes.
An independent set must stand on the line of its "Answer:".

Holes kept on purpose: repeated entries count in independent set, subset sum, meetings and set cover; `[1, "1"]` is a
clique of two; a "cycle" of one vertex, in the graph or not, or one edge back and forth is valid; an empty schedule is
valid with value 0. Each expects its own encoding of the instance (adjacency as a mapping to lists, or to weights) and
may raise on the other; clique reads both.

Departures: a list literal is read with `ast.literal_eval` where the original evaluates it as code; lists within lists,
on which clique and bisection raise TypeError, are invalid.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

Instance = Mapping[str, Any]
Verdict = tuple[bool, float]

_BRACKETS = re.compile(r"[{\[\(]([^)}\]]*)[}\])]")
SMALLER_IS_BETTER = frozenset({"TSP", "GCP_D", "minimum_cut", "set_cover"})
FROM_THE_FIRST = frozenset({"maximum_clique_problem"})
"""What follows the first "Answer:" is their answer; the others take the last."""
ON_ONE_LINE = frozenset({"maximum_set"})
"""Their answer ends with the line on which "Answer:" stands."""


def np_engine(task: str, instance: Instance, answer: str) -> Verdict:
    """(invalid, value) of an answer to one of `VALIDATORS`."""
    if task not in VALIDATORS:
        raise ValueError(f"NP-Engine has no task {task!r}; it has {sorted(VALIDATORS)}.")
    if "Answer:" not in answer:
        return VALIDATORS[task](instance, None)
    said = answer.split("Answer:", 1 if task in FROM_THE_FIRST else -1)[-1]
    if task in ON_ONE_LINE:
        said = said.split("\n")[0]
    return VALIDATORS[task](instance, said.strip())


def quality_ratio(task: str, reference: float, verdict: Verdict) -> float:
    """The evaluation ratio: reference/value where less is better, else value/reference; 0 if invalid. May exceed 1."""
    invalid, value = verdict
    if invalid:
        return 0.0
    above, below = (reference, value) if task in SMALLER_IS_BETTER else (value, reference)
    return above / below if below else (1.0 if above == below else float("inf"))


def _tsp(graph: Instance, body: str | None) -> Verdict:
    names = list(graph)
    penalty = (
        sum(graph[u].get(v, 0) for i, u in enumerate(names) for v in names[i + 1 :]) or 1e9
    )
    tour = _integers(_one_list(body))
    if not tour or tour[0] != tour[-1] or sorted(tour[:-1]) != list(range(len(graph))):
        return True, penalty
    legs = [graph.get(str(a), {}).get(str(b)) for a, b in pairwise(tour)]
    return (True, penalty) if None in legs else (False, sum(legs))


def _colouring(graph: Instance, body: str | None) -> Verdict:
    penalty = len(graph) + 1
    colours = _integers(_one_list(body))
    if colours is None or len(colours) != len(graph) or not colours or min(colours) <= 0:
        return True, penalty
    clash = any(
        colours[int(node)] == colours[int(other)] for node in graph for other in graph[node]
    )
    return (True, penalty) if clash else (False, len(set(colours)))


def _longest_cycle(graph: Instance, body: str | None) -> Verdict:
    path = _integers(_one_list(body))
    if not path or path[0] != path[-1] or len(set(path[:-1])) != len(path[:-1]):
        return True, -1
    for node, following in pairwise(path):
        # Asked of the row itself: where it is keyed by strings, no integer is in it.
        if str(node) not in graph or following not in graph[str(node)]:
            return True, -1
    return False, len(path)


def _knapsack(instance: Instance, body: str | None) -> Verdict:
    items = {str(name): item for name, item in instance["items"].items()}
    chosen = _integers(_one_list(body), skip_blank=True)
    if (
        not chosen
        or len(set(chosen)) != len(chosen)
        or any(str(item) not in items for item in chosen)
    ):
        return True, -1
    weights, values = (
        [int(items[str(item)][key]) for item in chosen] for key in ("weight", "value")
    )
    if min(weights + values) < 0 or sum(weights) > int(instance["capacity"]):
        return True, -1
    return False, sum(values)


def _clique(graph: Instance, body: str | None) -> Verdict:
    written = _literal(body) if body is not None else None
    if not written or not _all_hashable(written) or len(set(written)) != len(written):
        return True, -1
    nodes = [_as_integer(entry) for entry in written]
    joined = _undirected(graph)
    if any(node is None or node not in joined for node in nodes):
        return True, -1
    together = set(nodes)
    complete = all(together - {node} <= joined[node] for node in together if node is not None)
    return (False, len(nodes)) if complete else (True, -1)


def _independent_set(graph: Instance, body: str | None) -> Verdict:
    if body is None:
        return True, -1
    if body.startswith("[") and body.endswith("]"):
        nodes = _literal(body)
    else:
        nodes = _integers(re.sub(r"[\[\]]", "", body))
    if nodes is None or any(str(node) not in graph for node in nodes):
        return True, -1
    if any(str(b) in graph[str(a)] for i, a in enumerate(nodes) for b in nodes[i + 1 :]):
        return True, -1
    # The reference looks for a larger set, which reads the weights' mapping and raises AttributeError on plain lists.
    for node in nodes:
        graph[str(node)].keys()
    return False, len(nodes)


def _meetings(instance: Instance, body: str | None) -> Verdict:
    schedule = _triples(body)
    if schedule is None:
        return True, -1
    meetings, rooms, free = (
        instance["meetings"],
        instance["rooms"],
        instance["attendee_availability"],
    )
    busy: dict[int, list[tuple[int, int]]] = {}
    for meeting, room, start in schedule:
        if str(room) not in rooms or str(meeting) not in meetings:
            return True, -1
        end = start + meetings[str(meeting)]["duration"]
        if any(start < other_end and end > other for other, other_end in busy.get(room, [])):
            return True, -1
        busy.setdefault(room, []).append((start, end))
    seated = 0
    for meeting, room, start in schedule:
        attendees, end = (
            meetings[str(meeting)]["attendees"],
            start + meetings[str(meeting)]["duration"],
        )
        present = all(
            any(a <= start and end <= b for a, b in free.get(str(who), ())) for who in attendees
        )
        if len(attendees) > rooms[str(room)] or not present:
            return True, -1
        seated += len(attendees)
    return False, seated


def _bisection(graph: Instance, body: str | None) -> Verdict:
    weights = [
        weight
        for node in graph
        for other, weight in graph[node].items()
        if int(node) < int(other)
    ]
    penalty = sum(weights) or 1e9
    parts = _literal(body) if body is not None else None
    if parts is None or len(parts) != 2 or not all(isinstance(part, list) for part in parts):
        return True, penalty
    if not _all_hashable(parts[0] + parts[1]):
        return True, penalty
    first, second = set(parts[0]), set(parts[1])
    nodes = {int(node) for node in graph}
    if first & second or first | second != nodes:
        return True, penalty
    if abs(len(first) - len(second)) > len(nodes) % 2:
        return True, penalty
    # 1.0 equals the node 1, but no row is called "1.0".
    if any(str(node) not in graph for node in first if second):
        return True, penalty
    return False, sum(graph[str(a)].get(str(b), 0) for a in first for b in second)


def _set_cover(instance: Instance, body: str | None) -> Verdict:
    universe, subsets = set(instance["U"]), instance["S"]
    penalty = len(subsets) + 1
    if body == "Impossible":
        possible = set().union(*subsets.values()) == universe
        return (True, penalty) if possible else (False, 0)
    text = body[1:-1] if body and body.startswith("[") and body.endswith("]") else body
    chosen = [] if text is not None and not text.strip() else _integers(text)
    if chosen is None or any(str(name) not in subsets for name in chosen):
        return True, penalty
    covered = set().union(*(subsets[str(name)] for name in chosen))
    return (False, len(chosen)) if covered == universe else (True, penalty)


def _subset_sum(instance: Instance, body: str | None) -> Verdict:
    numbers = instance["numbers"]
    text = re.sub(r"['\"]", "", body) if body is not None else ""
    match = _BRACKETS.search(text)
    chosen = _integers(match[1] if match else text, skip_blank=True)
    if not chosen or any(str(index) not in numbers for index in chosen):
        return True, -1
    total = sum(numbers[str(index)] for index in chosen)
    return (False, len(chosen)) if total == instance["target"] else (True, -1)


VALIDATORS: dict[str, Callable[[Instance, str | None], Verdict]] = {
    "TSP": _tsp,
    "GCP_D": _colouring,
    "hamiltonian_cycle": _longest_cycle,
    "knapsack": _knapsack,
    "maximum_clique_problem": _clique,
    "maximum_set": _independent_set,
    "meeting_schedule": _meetings,
    "minimum_cut": _bisection,
    "set_cover": _set_cover,
    "subset_sum": _subset_sum,
}


def _one_list(body: str | None) -> str | None:
    """The inside of square brackets around everything, or arrows as commas, or of the first brackets, or the text."""
    if body is None:
        return None
    if body.startswith("[") and body.endswith("]"):
        return body[1:-1]
    if "->" in body:
        return body.replace("->", ",")
    text = re.sub(r"['\"]", "", body)
    match = _BRACKETS.search(text)
    return match[1] if match else text


def _integers(text: str | None, skip_blank: bool = False) -> list[int] | None:
    """Comma-separated integers, or None."""
    if text is None:
        return None
    try:
        return [int(token) for token in text.split(",") if token.strip() or not skip_blank]
    except ValueError:
        return None


def _literal(text: str) -> list[Any] | None:
    """A list written as in Python, without its elements being looked at, or None."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list) else None


def _all_hashable(entries: list[Any]) -> bool:
    """Whether the entries fit into a set: none is a list, mapping or set, or holds one."""
    try:
        set(entries)
    except TypeError:
        return False
    return True


def _as_integer(entry: Any) -> int | None:
    """The entry as `int` reads it ("3" is 3, 2.7 is 2), or None."""
    try:
        return int(entry)
    except (TypeError, ValueError, OverflowError):
        return None


def _undirected(graph: Instance) -> dict[int, set[int]]:
    """Neighbours of every node that is a key or a neighbour, both ways; weights of 0 are no edges."""
    joined: dict[int, set[int]] = {}
    for name, row in graph.items():
        node = _as_integer(name)
        if node is None:
            continue
        joined.setdefault(node, set())
        for other_name in row if isinstance(row, (Mapping, list, set, tuple)) else ():
            other = _as_integer(other_name)
            if other is None:
                continue
            joined.setdefault(other, set())
            weight = row[other_name] if isinstance(row, Mapping) else 1
            if weight != 0 or not isinstance(weight, (int, float)):
                joined[node].add(other)
                joined[other].add(node)
    return joined


def _triples(body: str | None) -> list[tuple[int, int, int]] | None:
    """[(meeting, room, start), …]; an empty list for "[]"."""
    if body is None or body == "[]":
        return None if body is None else []
    text = (body[1:-1] if body.startswith("[") and body.endswith("]") else body).replace(
        "'", ""
    )
    entries = [
        _integers(",".join(re.sub(r"[()]", "", part).split(",")[:3]))
        for part in text.split("), (")
    ]
    if any(entry is None or len(entry) != 3 for entry in entries):
        return None
    return [(entry[0], entry[1], entry[2]) for entry in entries if entry is not None]
