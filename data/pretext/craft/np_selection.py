"""Four selection problems of NP-Engine: set cover, subset sum with most elements, 0/1 knapsack, meeting schedule.

Instances (everything counts from 1): cover     {"elements": 8, "subsets": [[1, 4], …]} sum       {"numbers": [3, 1,
…], "target": 9} knapsack  {"weights": […], "values": […], "capacity": 14} meetings  {"durations": […], "attendees":
[[1, 2], …], "free": [[[9, 12], …], …] per person, "rooms": [capacity, …]} An answer is a list of numbers, for
meetings one (meeting, room, start) per meeting that takes place. `value` is None where the answer is no solution,
repeats anything or is empty. A schedule is valid if rooms are large enough and used by one meeting at a time, and all
attendees are free throughout and in one meeting at a time (NP-Engine does not ask the last).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft import np_solvers
from mmrl.data.pretext.craft.answer_forms import listed
from mmrl.data.pretext.craft.draws import one_of, shuffled_numbers, some_of
from mmrl.data.pretext.craft.np_graphs import Instance, Solved, distinct_numbers
from mmrl.data.pretext.craft.np_solvers import Slot

DAY = (9, 17)
"""First and last hour of the meeting day."""


def cover_instance(size: int, rng: Generator) -> Solved:
    """`size` elements; as many subsets, among them a planted partition into about size / 3 parts."""
    parts = max(2, size // 3)
    owners = _owners(size, parts, rng)
    subsets = []
    for part in range(parts):
        subsets.append([int(element) + 1 for element in np.flatnonzero(owners == part)])
    while len(subsets) < size:
        # The order is drawn before its length: another sequence of draws would be another instance.
        order = shuffled_numbers(size, rng)
        subsets.append(sorted(order[: int(rng.integers(2, 5))]))
    shown = some_of(subsets, len(subsets), rng)
    masks = [sum(1 << (element - 1) for element in subset) for subset in shown]
    chosen = np_solvers.fewest_subsets((1 << size) - 1, masks)
    return {"elements": size, "subsets": shown}, [index + 1 for index in chosen]


def cover_value(instance: Instance, answer: Sequence[int]) -> float | None:
    """Number of subsets that together hold every element."""
    subsets = instance["subsets"]
    if not distinct_numbers(answer, len(subsets)):
        return None
    covered = set().union(*(subsets[index - 1] for index in answer))
    return float(len(answer)) if len(covered) == instance["elements"] else None


def sum_instance(size: int, rng: Generator) -> Solved:
    """Numbers from 1 to 9 and the sum of half of them."""
    numbers = [int(v) for v in rng.integers(1, 10, size=size)]
    target = sum(some_of(numbers, max(2, size // 2), rng))
    chosen = np_solvers.most_numbers(numbers, target)
    assert chosen is not None, f"{numbers} hold a planted subset with sum {target}"
    return {"numbers": numbers, "target": target}, [index + 1 for index in chosen]


def sum_value(instance: Instance, answer: Sequence[int]) -> float | None:
    """Number of chosen places whose numbers add up to the target."""
    numbers = instance["numbers"]
    if not distinct_numbers(answer, len(numbers)):
        return None
    total = sum(numbers[place - 1] for place in answer)
    return float(len(answer)) if total == instance["target"] else None


def knapsack_instance(size: int, rng: Generator) -> Solved:
    """Weights from 2 to 9, values about as large as the weights, capacity near half of the total weight."""
    weights = [int(v) for v in rng.integers(2, 10, size=size)]
    # Values follow the weights: with free values the best ratio alone would tell what to take.
    values = [max(1, weight + int(rng.integers(-2, 7))) for weight in weights]
    share = float(rng.uniform(0.4, 0.55))
    capacity = max(max(weights), int(sum(weights) * share))
    chosen = np_solvers.best_load(weights, values, capacity)
    instance = {"weights": weights, "values": values, "capacity": capacity}
    return instance, [index + 1 for index in chosen]


def knapsack_value(instance: Instance, answer: Sequence[int]) -> float | None:
    """Value of distinct items within the capacity."""
    weights, values = instance["weights"], instance["values"]
    if not distinct_numbers(answer, len(weights)):
        return None
    if sum(weights[item - 1] for item in answer) > instance["capacity"]:
        return None
    return float(sum(values[item - 1] for item in answer))


def meeting_instance(size: int, rng: Generator) -> tuple[Instance, list[Slot]]:
    """`size` meetings of one to three hours for two or three of size + 1 people, who are free for parts of the day."""
    people = size + 1
    attendees = []
    for _ in range(size):
        order = shuffled_numbers(people, rng)
        attendees.append(sorted(order[: int(rng.integers(2, 4))]))
    durations = [int(v) for v in rng.integers(1, 4, size=size)]
    free = [_free_hours(rng) for _ in range(people)]
    rooms = [3, 2] if size > 2 else [3]
    instance = {"durations": durations, "attendees": attendees, "free": free, "rooms": rooms}
    options = _options(instance)
    seats = [len(who) for who in attendees]
    best = np_solvers.fullest_schedule(seats, options, _clashes(instance, options))
    return instance, sorted((meeting + 1, room + 1, start) for meeting, room, start in best)


def _free_hours(rng: Generator) -> list[list[int]]:
    """The hours of one person: all day from some morning hour on, but for a break of one or two hours."""
    first, last = DAY
    start = int(rng.integers(first, first + 3))
    gap = int(rng.integers(first + 3, last - 2))
    again = gap + int(rng.integers(1, 3))
    return [[start, gap], [again, last]]


def meeting_value(instance: Instance, answer: Sequence[Slot]) -> float | None:
    """Number of seats taken, over all meetings that take place."""
    meetings = [slot[0] for slot in answer]
    if not distinct_numbers(meetings, len(instance["durations"])):
        return None
    slots = [(meeting - 1, room - 1, start) for meeting, room, start in answer]
    if any(not 0 <= room < len(instance["rooms"]) for _, room, _ in slots):
        return None
    if not all(_fits(instance, slot) for slot in slots):
        return None
    if any(_clash(instance, one, other) for one, other in combinations(slots, 2)):
        return None
    return float(sum(len(instance["attendees"][meeting]) for meeting, _, _ in slots))


def guess_subsets(instance: Instance, rng: Generator) -> list[int]:
    return _some(len(instance["subsets"]), rng)


def guess_numbers(instance: Instance, rng: Generator) -> list[int]:
    return _some(len(instance["numbers"]), rng)


def guess_items(instance: Instance, rng: Generator) -> list[int]:
    return _some(len(instance["weights"]), rng)


def guess_schedule(instance: Instance, rng: Generator) -> list[Slot]:
    """One or two meetings in any room at any hour."""
    order = shuffled_numbers(len(instance["durations"]), rng)
    chosen = order[: int(rng.integers(1, 3))]
    rooms, hours = len(instance["rooms"]), range(*DAY)
    slots = []
    for meeting in chosen:
        room = int(rng.integers(rooms)) + 1
        slots.append((meeting, room, one_of(hours, rng)))
    return sorted(slots)


def written_selection(instance: Instance) -> str:
    """The instance as text."""
    if "subsets" in instance:
        sets = [f"{{{listed(subset)}}}" for subset in instance["subsets"]]
        return f"The elements are 1 to {instance['elements']}. Subsets: {_numbered(sets)}."
    if "numbers" in instance:
        numbers = listed(instance["numbers"])
        return f"Numbers at places 1, 2, …: {numbers}. Target sum: {instance['target']}."
    if "weights" in instance:
        pairs = zip(instance["weights"], instance["values"], strict=True)
        items = [f"weight {weight}, value {value}" for weight, value in pairs]
        return f"Items: {_numbered(items)}. Capacity: {instance['capacity']}."
    pairs = zip(instance["durations"], instance["attendees"], strict=True)
    meetings = [f"{hours} h, people {listed(who)}" for hours, who in pairs]
    free = [listed(f"{start}-{end}" for start, end in spans) for spans in instance["free"]]
    rooms = [f"{seats} seats" for seats in instance["rooms"]]
    return (
        f"Meetings: {_numbered(meetings)}. Free hours of each person: {_numbered(free)}."
        f" Rooms: {_numbered(rooms)}."
    )


def _numbered(texts: Iterable[str]) -> str:
    """ "1: …; 2: …"."""
    return "; ".join(f"{number}: {text}" for number, text in enumerate(texts, 1))


def _options(instance: Instance) -> list[list[Slot]]:
    """Every slot of every meeting that its room and its people allow."""
    rooms, hours = range(len(instance["rooms"])), range(*DAY)
    options = []
    for meeting in range(len(instance["durations"])):
        slots = [(meeting, room, hour) for hour in hours for room in rooms]
        options.append([slot for slot in slots if _fits(instance, slot)])
    return options


def _clashes(instance: Instance, options: Sequence[Sequence[Slot]]) -> Array:
    """bool [S, S] over all slots in order."""
    flat = [slot for slots in options for slot in slots]
    table = [[_clash(instance, one, other) for other in flat] for one in flat]
    # Reshaped for the case of no slot at all, whose table has no second axis.
    return np.array(table, dtype=bool).reshape(len(flat), len(flat))


def _fits(instance: Instance, slot: Slot) -> bool:
    """Is the room large enough, and is everybody free throughout?"""
    meeting, room, start = slot
    end = start + instance["durations"][meeting]
    attendees = instance["attendees"][meeting]
    if len(attendees) > instance["rooms"][room]:
        return False
    for person in attendees:
        spans = instance["free"][person - 1]
        if not any(first <= start and end <= last for first, last in spans):
            return False
    return True


def _clash(instance: Instance, first: Slot, second: Slot) -> bool:
    """Do two slots overlap in time and share a room or a person?"""
    (one, room, start), (other, other_room, other_start) = first, second
    end = start + instance["durations"][one]
    other_end = other_start + instance["durations"][other]
    if start >= other_end or other_start >= end:
        return False
    shared = set(instance["attendees"][one]) & set(instance["attendees"][other])
    return room == other_room or bool(shared)


def _owners(size: int, parts: int, rng: Generator) -> Array:
    """The part of every element; no part is empty."""
    owners = np.concatenate([np.arange(parts), rng.integers(0, parts, size=size - parts)])
    rng.shuffle(owners)
    return owners


def _some(count: int, rng: Generator) -> list[int]:
    """About half of 1..count, at least one."""
    order = shuffled_numbers(count, rng)
    return sorted(order[: int(rng.integers(1, count))])
