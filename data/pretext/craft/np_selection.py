"""Four selection problems of NP-Engine: set cover, subset sum with most elements, 0/1 knapsack, meeting schedule.

Instances (everything counts from 1): cover     {"elements": 8, "subsets": [[1, 4], …]} sum       {"numbers": [3, 1,
…], "target": 9} knapsack  {"weights": […], "values": […], "capacity": 14} meetings  {"durations": […], "attendees":
[[1, 2], …], "free": [[[9, 12], …], …] per person, "rooms": [capacity, …]} An answer is a list of numbers, for
meetings one (meeting, room, start) per meeting that takes place. `value` is None where the answer is no solution,
repeats anything or is empty. A schedule is valid if rooms are large enough and used by one meeting at a time, and all
attendees are free throughout and in one meeting at a time (NP-Engine does not ask the last).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft import np_solvers
from mmrl.data.pretext.craft.draws import one_of, some_of
from mmrl.data.pretext.craft.np_solvers import Slot

Instance = dict[str, Any]
DAY = (9, 17)
"""First and last hour of the meeting day."""


def cover_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """`size` elements; as many subsets, among them a planted partition into about size / 3 parts."""
    parts = max(2, size // 3)
    owners = _owners(size, parts, rng)
    subsets = [
        [int(element) + 1 for element in np.flatnonzero(owners == part)]
        for part in range(parts)
    ]
    while len(subsets) < size:
        subsets.append(
            sorted(
                int(element) + 1 for element in rng.permutation(size)[: int(rng.integers(2, 5))]
            )
        )
    shown = some_of(subsets, len(subsets), rng)
    masks = [sum(1 << (element - 1) for element in subset) for subset in shown]
    chosen = np_solvers.fewest_subsets((1 << size) - 1, masks)
    return {"elements": size, "subsets": shown}, [index + 1 for index in chosen]


def cover_value(instance: Instance, answer: Sequence[int]) -> float | None:
    """Number of subsets that together hold every element."""
    if not _distinct(answer, len(instance["subsets"])):
        return None
    covered = set().union(*(instance["subsets"][index - 1] for index in answer))
    return float(len(answer)) if len(covered) == instance["elements"] else None


def sum_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """Numbers from 1 to 9 and the sum of half of them."""
    numbers = [int(v) for v in rng.integers(1, 10, size=size)]
    target = sum(numbers[int(i)] for i in rng.permutation(size)[: max(2, size // 2)])
    chosen = np_solvers.most_numbers(numbers, target)
    assert chosen is not None, f"{numbers} hold a planted subset with sum {target}"
    return {"numbers": numbers, "target": target}, [index + 1 for index in chosen]


def sum_value(instance: Instance, answer: Sequence[int]) -> float | None:
    """Number of chosen places whose numbers add up to the target."""
    if not _distinct(answer, len(instance["numbers"])):
        return None
    return (
        float(len(answer))
        if sum(instance["numbers"][i - 1] for i in answer) == instance["target"]
        else None
    )


def knapsack_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[int]]:
    """Weights from 2 to 9, values about as large as the weights, capacity near half of the total weight."""
    weights = [int(v) for v in rng.integers(2, 10, size=size)]
    values = [max(1, weight + int(rng.integers(-2, 7))) for weight in weights]
    capacity = max(max(weights), int(sum(weights) * float(rng.uniform(0.4, 0.55))))
    chosen = np_solvers.best_load(weights, values, capacity)
    return {"weights": weights, "values": values, "capacity": capacity}, [
        index + 1 for index in chosen
    ]


def knapsack_value(instance: Instance, answer: Sequence[int]) -> float | None:
    """Value of distinct items within the capacity."""
    if not _distinct(answer, len(instance["weights"])):
        return None
    weight, value = (sum(instance[key][i - 1] for i in answer) for key in ("weights", "values"))
    return float(value) if weight <= instance["capacity"] else None


def meeting_instance(size: int, rng: np.random.Generator) -> tuple[Instance, list[Slot]]:
    """`size` meetings of one to three hours for two or three of size + 1 people, who are free for parts of the day."""
    people, first, last = size + 1, *DAY
    attendees = [
        sorted(int(p) + 1 for p in rng.permutation(people)[: int(rng.integers(2, 4))])
        for _ in range(size)
    ]
    durations = [int(v) for v in rng.integers(1, 4, size=size)]
    free = []
    for _ in range(people):
        start, gap = int(rng.integers(first, first + 3)), int(rng.integers(first + 3, last - 2))
        free.append([[start, gap], [gap + int(rng.integers(1, 3)), last]])
    rooms = [3, 2][: 1 + (size > 2)]
    instance = {"durations": durations, "attendees": attendees, "free": free, "rooms": rooms}
    options = _options(instance)
    best = np_solvers.fullest_schedule(
        [len(who) for who in attendees], options, _clashes(instance, options)
    )
    return instance, sorted((meeting + 1, room + 1, start) for meeting, room, start in best)


def meeting_value(instance: Instance, answer: Sequence[Slot]) -> float | None:
    """Number of seats taken, over all meetings that take place."""
    if not answer or not _distinct([slot[0] for slot in answer], len(instance["durations"])):
        return None
    slots = [(meeting - 1, room - 1, start) for meeting, room, start in answer]
    if any(not 0 <= room < len(instance["rooms"]) for _, room, _ in slots):
        return None
    if not all(_fits(instance, slot) for slot in slots):
        return None
    if any(_clash(instance, a, b) for i, a in enumerate(slots) for b in slots[i + 1 :]):
        return None
    return float(sum(len(instance["attendees"][meeting]) for meeting, _, _ in slots))


def guess_subsets(instance: Instance, rng: np.random.Generator) -> list[int]:
    return _some(len(instance["subsets"]), rng)


def guess_numbers(instance: Instance, rng: np.random.Generator) -> list[int]:
    return _some(len(instance["numbers"]), rng)


def guess_items(instance: Instance, rng: np.random.Generator) -> list[int]:
    return _some(len(instance["weights"]), rng)


def guess_schedule(instance: Instance, rng: np.random.Generator) -> list[Slot]:
    """One or two meetings in any room at any hour."""
    chosen = rng.permutation(len(instance["durations"]))[: int(rng.integers(1, 3))]
    rooms, hours = len(instance["rooms"]), range(*DAY)
    return sorted(
        (int(m) + 1, int(rng.integers(rooms)) + 1, one_of(hours, rng)) for m in chosen
    )


def written_selection(instance: Instance) -> str:
    """The instance as text."""
    if "subsets" in instance:
        listed = "; ".join(
            f"{i + 1}: {{{', '.join(map(str, s))}}}" for i, s in enumerate(instance["subsets"])
        )
        return f"The elements are 1 to {instance['elements']}. Subsets: {listed}."
    if "numbers" in instance:
        listed = ", ".join(map(str, instance["numbers"]))
        return f"Numbers at places 1, 2, …: {listed}. Target sum: {instance['target']}."
    if "weights" in instance:
        pairs = zip(instance["weights"], instance["values"], strict=True)
        listed = "; ".join(f"{i + 1}: weight {w}, value {v}" for i, (w, v) in enumerate(pairs))
        return f"Items: {listed}. Capacity: {instance['capacity']}."
    pairs = zip(instance["durations"], instance["attendees"], strict=True)
    meetings = "; ".join(
        f"{i + 1}: {h} h, people {', '.join(map(str, who))}" for i, (h, who) in enumerate(pairs)
    )
    free = "; ".join(
        f"{i + 1}: {', '.join(f'{a}-{b}' for a, b in spans)}"
        for i, spans in enumerate(instance["free"])
    )
    rooms = "; ".join(f"{i + 1}: {seats} seats" for i, seats in enumerate(instance["rooms"]))
    return f"Meetings: {meetings}. Free hours of each person: {free}. Rooms: {rooms}."


def _options(instance: Instance) -> list[list[Slot]]:
    """Every slot of every meeting that its room and its people allow."""
    rooms, hours = range(len(instance["rooms"])), range(*DAY)
    slots = [
        [(m, room, hour) for hour in hours for room in rooms]
        for m in range(len(instance["durations"]))
    ]
    return [[slot for slot in some if _fits(instance, slot)] for some in slots]


def _clashes(instance: Instance, options: Sequence[Sequence[Slot]]) -> Array:
    flat = [slot for slots in options for slot in slots]
    return np.array([[_clash(instance, a, b) for b in flat] for a in flat], dtype=bool).reshape(
        len(flat), len(flat)
    )


def _fits(instance: Instance, slot: Slot) -> bool:
    meeting, room, start = slot
    end, who = start + instance["durations"][meeting], instance["attendees"][meeting]
    free = all(
        any(a <= start and end <= b for a, b in instance["free"][person - 1]) for person in who
    )
    return free and len(who) <= instance["rooms"][room]


def _clash(instance: Instance, first: Slot, second: Slot) -> bool:
    ends = [slot[2] + instance["durations"][slot[0]] for slot in (first, second)]
    if first[2] >= ends[1] or second[2] >= ends[0]:
        return False
    people = set(instance["attendees"][first[0]]) & set(instance["attendees"][second[0]])
    return first[1] == second[1] or bool(people)


def _owners(size: int, parts: int, rng: np.random.Generator) -> Array:
    """The part of every element; no part is empty."""
    owners = np.concatenate([np.arange(parts), rng.integers(0, parts, size=size - parts)])
    rng.shuffle(owners)
    return owners


def _some(count: int, rng: np.random.Generator) -> list[int]:
    """About half of 1..count, at least one."""
    return sorted(int(i) + 1 for i in rng.permutation(count)[: int(rng.integers(1, count))])


def _distinct(answer: Sequence[int], count: int) -> bool:
    return (
        bool(answer)
        and len(set(answer)) == len(answer)
        and min(answer) >= 1
        and max(answer) <= count
    )
