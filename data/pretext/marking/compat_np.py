"""NP-Engine's ten official validators (OliverLeeXZ/NP-Engine, NP_tasks/*/validation.py): (invalid, value).

They read what follows the last "Answer:". An invalid answer carries the task's penalty: −1 where more is better, the
sum of all weights (TSP, bisection), |V| + 1 (colouring) or |S| + 1 (set cover) where less is better.

Holes kept on purpose: repeated entries count in independent set, subset sum, meetings and set cover; a "cycle" of one
vertex or one edge back and forth is valid; an empty schedule is valid with value 0. Each expects its own encoding of
the instance (adjacency as a mapping to lists, or to weights) and may raise on the other.

Departures: a list literal is read with `ast.literal_eval` where the original evaluates it as code. The validators of
longest cycle, clique and bisection were not readable to us; they follow their description and reference values, with
balance meaning that the parts differ by at most one node.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from itertools import combinations, pairwise, product
from typing import Any

Instance = Mapping[str, Any]
Verdict = tuple[bool, float]

_BRACKETS = re.compile(r"[{\[\(]([^)}\]]*)[}\])]")
_LISTS = re.compile(r"\[([^\[\]]*)\]")
SMALLER_IS_BETTER = frozenset({"TSP", "GCP_D", "minimum_cut", "set_cover"})


def np_engine(task: str, instance: Instance, answer: str) -> Verdict:
    """(invalid, value) of an answer to one of `VALIDATORS`."""
    if task not in VALIDATORS:
        raise ValueError(f"NP-Engine has no task {task!r}; it has {sorted(VALIDATORS)}.")
    body = answer.split("Answer:")[-1].strip() if "Answer:" in answer else None
    return VALIDATORS[task](instance, body)


def quality_ratio(task: str, reference: float, verdict: Verdict) -> float:
    """The evaluation ratio: reference/value where less is better, else value/reference; 0 if invalid. May exceed 1."""
    invalid, value = verdict
    if invalid:
        return 0.0
    above, below = (reference, value) if task in SMALLER_IS_BETTER else (value, reference)
    if below:
        return above / below
    return 1.0 if above == below else float("inf")


def _tsp(graph: Instance, body: str | None) -> Verdict:
    penalty = sum(graph[one].get(other, 0) for one, other in combinations(graph, 2)) or 1e9
    tour = _integers(_one_list(body))
    cities = list(range(len(graph)))
    if not tour or tour[0] != tour[-1] or sorted(tour[:-1]) != cities:
        return True, penalty
    legs = [graph[str(a)].get(str(b)) for a, b in pairwise(tour)]
    return (True, penalty) if None in legs else (False, sum(legs))


def _colouring(graph: Instance, body: str | None) -> Verdict:
    penalty = len(graph) + 1
    colours = _integers(_one_list(body))
    if not colours or len(colours) != len(graph) or min(colours) <= 0:
        return True, penalty
    edges = [(int(node), int(other)) for node in graph for other in graph[node]]
    clash = any(colours[node] == colours[other] for node, other in edges)
    return (True, penalty) if clash else (False, len(set(colours)))


def _longest_cycle(graph: Instance, body: str | None) -> Verdict:
    path = _integers(_one_list(body))
    if not path or path[0] != path[-1] or len(set(path[:-1])) != len(path[:-1]):
        return True, -1
    if any(str(node) not in graph for node in path):
        return True, -1
    joined = all(b in _neighbours(graph, a) for a, b in pairwise(path))
    return (False, len(path)) if joined else (True, -1)


def _knapsack(instance: Instance, body: str | None) -> Verdict:
    items = {str(name): item for name, item in instance["items"].items()}
    chosen = _integers(_one_list(body), skip_blank=True)
    if not chosen or len(set(chosen)) != len(chosen):
        return True, -1
    if any(str(item) not in items for item in chosen):
        return True, -1
    weight = sum(int(items[str(item)]["weight"]) for item in chosen)
    value = sum(int(items[str(item)]["value"]) for item in chosen)
    return (True, -1) if weight > int(instance["capacity"]) else (False, value)


def _clique(graph: Instance, body: str | None) -> Verdict:
    nodes = _integers(_one_list(body))
    if not nodes or any(str(node) not in graph for node in nodes):
        return True, -1
    joined = all(b in _neighbours(graph, a) for a, b in combinations(nodes, 2))
    return (False, len(nodes)) if joined else (True, -1)


def _independent_set(graph: Instance, body: str | None) -> Verdict:
    if body is None:
        return True, -1
    line = body.split("\n")[0].strip()
    # The reference evaluates a list; anything else it splits at commas, brackets left out.
    if line.startswith("[") and line.endswith("]"):
        nodes = _literal(line)
    else:
        nodes = _integers(re.sub(r"[\[\]]", "", line))
    if nodes is None or any(str(node) not in graph for node in nodes):
        return True, -1
    if any(str(b) in graph[str(a)] for a, b in combinations(nodes, 2)):
        return True, -1
    # The reference looks for a larger set, which reads the weights' mapping and raises AttributeError on plain lists.
    for node in nodes:
        graph[str(node)].keys()
    return False, len(nodes)


def _meetings(instance: Instance, body: str | None) -> Verdict:
    schedule = _triples(body)
    if schedule is None:
        return True, -1
    meetings, rooms = instance["meetings"], instance["rooms"]
    free = instance["attendee_availability"]
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
        attendees = meetings[str(meeting)]["attendees"]
        end = start + meetings[str(meeting)]["duration"]
        # Nobody asks whether a person sits in two meetings at once: one of the holes.
        spans = [free.get(str(who), ()) for who in attendees]
        present = all(any(a <= start and end <= b for a, b in span) for span in spans)
        if len(attendees) > rooms[str(room)] or not present:
            return True, -1
        seated += len(attendees)
    return False, seated


def _bisection(graph: Instance, body: str | None) -> Verdict:
    penalty = 0
    for node, neighbours in graph.items():
        # Each edge stands with both its nodes and is counted once.
        penalty += sum(weight for other, weight in neighbours.items() if node < other)
    lists = [_integers(text) for text in _LISTS.findall(body or "")]
    parts = [part for part in lists if part is not None]
    if len(parts) != 2:
        return True, penalty
    first, second = parts
    if sorted(map(str, first + second)) != sorted(graph) or abs(len(first) - len(second)) > 1:
        return True, penalty
    return False, sum(graph[str(a)].get(str(b), 0) for a, b in product(first, second))


def _set_cover(instance: Instance, body: str | None) -> Verdict:
    universe, subsets = set(instance["U"]), instance["S"]
    penalty = len(subsets) + 1
    if body == "Impossible":
        possible = set().union(*subsets.values()) == universe
        return (True, penalty) if possible else (False, 0)
    text = _unbracketed(body)
    # An empty list is an answer, which covers nothing; no answer at all is None.
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


def _unbracketed(body: str | None) -> str | None:
    if body and body.startswith("[") and body.endswith("]"):
        return body[1:-1]
    return body


def _integers(text: str | None, skip_blank: bool = False) -> list[int] | None:
    """Comma-separated integers, or None."""
    if text is None:
        return None
    try:
        return [int(token) for token in text.split(",") if token.strip() or not skip_blank]
    except ValueError:
        return None


def _literal(text: str) -> list[Any] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, list) else None


def _triples(body: str | None) -> list[tuple[int, int, int]] | None:
    """[(meeting, room, start), …]; an empty list for "[]"."""
    if body is None:
        return None
    if body == "[]":
        return []
    text = (_unbracketed(body) or "").replace("'", "")
    triples = []
    for part in text.split("), ("):
        # Only the first three numbers are read, as in the reference.
        numbers = re.sub(r"[()]", "", part).split(",")[:3]
        entry = _integers(",".join(numbers))
        if entry is None or len(entry) != 3:
            return None
        triples.append((entry[0], entry[1], entry[2]))
    return triples


def _neighbours(graph: Instance, node: int) -> set[int]:
    return {int(other) for other in graph[str(node)]}
