"""Hop chains as programs: grammar, executor, phrases. HopChain (arXiv 2603.17024) made procedural.

A program is a list of hops [name, argument]. The first selects an object, links lead from object to object, a reading
turns the object into a number, arithmetic hops change the number by something that must be looked up again:

    select  ["largest", ""], ["smallest", ""], ["edge", "left"], ["object", "red star"]
    link    ["nearest", "left"], ["same", "colour"], ["same", "shape"], ["index", "left"]
    read    ["digit", ""], ["count same", "colour"], ["count same", "shape"], ["count side", "left"]
    arith   ["plus", "red"], ["minus", "red"], ["times", "red"], ["max", "red"] (with the number of red objects)

`index` reads the digit on the object and takes the object at that place counted from the left (or the top): a change of
level inside the chain. Every hop must have one clear result (`NEAR`, `BIGGER`, `APART`); otherwise `run` gives None.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.craft.draws import one_of
from mmrl.data.pretext.craft.scene_objects import HUES, Thing

Hop = tuple[str, str]
Result = int
"""Index of an object, or a number after the reading hop."""
Things = Sequence[Thing]
Step = Callable[[str, Result, Things], Result | None]
"""A hop as a function of its argument, of the result before it and of the scene."""

NEAR = 1.15
"""The second-nearest object must be this many times as far away."""
BIGGER = 1.2
"""The largest object must be this many times as large as any other, by diameter and by the root of the area."""
APART = 8.0
"""Pixels by which places must differ where their order matters."""

SIDES = {
    "left": (0, -1),
    "right": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
"""Axis (x or y) and sign."""
SELECTS = ("largest", "smallest", "edge")
# Listed twice where a kind is drawn twice as often.
LINKS = ("nearest", "nearest", "same", "index")
READS = ("digit", "digit", "count same", "count side")
ARITHS = ("plus", "minus", "times", "max")


def draw_program(hops: int, arith: int, rng: Generator) -> list[Hop]:
    """A random program: one selection, hops − 2 − arith links, one reading, `arith` arithmetic hops."""
    # Drawn in this order, not in that of the program: the order of the draws is part of the format.
    links = [_argued(one_of(LINKS, rng), rng) for _ in range(hops - 2 - arith)]
    ariths = [_argued(one_of(ARITHS, rng), rng) for _ in range(arith)]
    start = _argued(one_of(SELECTS, rng), rng)
    reading = _argued(one_of(READS, rng), rng)
    return [start, *links, reading, *ariths]


def run(program: Sequence[Hop], things: Things) -> list[Result] | None:
    """The result of every hop; None if one of them is not clear."""
    results: list[Result] = []
    for hop in program:
        result = step(hop, results[-1] if results else -1, things)
        if result is None:
            return None
        results.append(result)
    return results


def step(hop: Hop, now: Result, things: Things) -> Result | None:
    """One hop from the result before it."""
    name, argument = hop
    return _STEPS[name](argument, now, things)


def matters(
    program: Sequence[Hop], results: Sequence[Result], things: Things, share: float
) -> bool:
    """Would another object at any hop change the final number in at least this share of the cases?"""
    for place, hop in enumerate(program):
        # From the reading hop on the results are numbers: there is no other object to take.
        if hop[0] in READS or hop[0] in ARITHS:
            break
        others = [index for index in range(len(things)) if index != results[place]]
        rest = program[place + 1 :]
        changed = [_final(rest, index, things) != results[-1] for index in others]
        if sum(changed) < share * len(others):
            return False
    return True


def objects_visited(program: Sequence[Hop], results: Sequence[Result]) -> list[Result]:
    """The results that are objects."""
    return [
        result
        for hop, result in zip(program, results, strict=True)
        if hop[0] not in READS + ARITHS
    ]


def phrase(hop: Hop, rng: Generator) -> str:
    """The hop in words, in one of several ways."""
    name, argument = hop
    options = PHRASES[name]
    word = _WORDS.get((name, argument), argument)
    return one_of(options, rng).format(word)


def _argued(name: str, rng: Generator) -> Hop:
    arguments = _ARGUMENTS[name]
    return name, one_of(arguments, rng)


def _final(program: Sequence[Hop], now: Result, things: Things) -> Result | None:
    for hop in program:
        found = step(hop, now, things)
        if found is None:
            return None
        now = found
    return now


def _extreme(sign: int) -> Step:
    """The largest object (sign 1) or the smallest one (−1), if it is that by diameter and by area."""

    def select(argument: str, now: Result, things: Things) -> Result | None:
        by_size = sorted(range(len(things)), key=lambda index: -sign * things[index].size)
        first, *others = by_size
        for index in others:
            diameters = things[first].size / things[index].size
            areas = things[first].area / things[index].area
            if diameters**sign < BIGGER or areas ** (sign / 2) < BIGGER:
                return None
        return first

    return select


def _edge(side: str, now: Result, things: Things) -> Result | None:
    axis, sign = SIDES[side]
    order = _ordered(things, axis, sign)
    outermost, next_one = order[:2]
    return outermost if _clear(things[outermost], things[next_one], axis) else None


def _named(name: str, now: Result, things: Things) -> Result | None:
    return _only([index for index, thing in enumerate(things) if thing.name == name])


def _nearest(side: str, now: Result, things: Things) -> Result | None:
    axis, sign = SIDES[side]
    here = things[now]
    found: list[tuple[float, int]] = []
    for index, thing in enumerate(things):
        if index == now:
            continue
        # Also refused if the unclear one is far off: whether it lies on this side must be certain.
        if not _clear(here, thing, axis):
            return None
        if sign * (_at(thing, axis) - _at(here, axis)) > 0:
            distance = float(np.hypot(thing.x - here.x, thing.y - here.y))
            found.append((distance, index))
    found.sort()
    if not found:
        return None
    nearest, index = found[0]
    if len(found) > 1 and found[1][0] < NEAR * nearest:
        return None
    return index


def _same(attribute: str, now: Result, things: Things) -> Result | None:
    wanted = getattr(things[now], attribute)
    others = [index for index in range(len(things)) if index != now]
    return _only([index for index in others if getattr(things[index], attribute) == wanted])


def _index(side: str, now: Result, things: Things) -> Result | None:
    axis, sign = SIDES[side]
    # Counted from the named side on: from the left, say, the leftmost object is the first.
    order = _ordered(things, axis, sign)
    place = things[now].digit - 1
    if not 0 <= place < len(order) or order[place] == now:
        return None
    target = things[order[place]]
    # Only the neighbours in the order could be miscounted.
    beside = [order[other] for other in (place - 1, place + 1) if 0 <= other < len(order)]
    clear = all(_clear(target, things[index], axis) for index in beside)
    return order[place] if clear else None


def _digit(argument: str, now: Result, things: Things) -> Result | None:
    return things[now].digit


def _count_same(attribute: str, now: Result, things: Things) -> Result | None:
    wanted = getattr(things[now], attribute)
    return sum(getattr(thing, attribute) == wanted for thing in things)


def _count_side(side: str, now: Result, things: Things) -> Result | None:
    axis, sign = SIDES[side]
    here = things[now]
    others = [thing for index, thing in enumerate(things) if index != now]
    if not all(_clear(here, thing, axis) for thing in others):
        return None
    return sum(sign * (_at(thing, axis) - _at(here, axis)) > 0 for thing in others)


def _only(found: Sequence[int]) -> Result | None:
    """The one that was found; None if it is none or several."""
    return found[0] if len(found) == 1 else None


def _arith(
    combine: Callable[[int, int], int],
) -> Step:
    def apply(colour: str, now: Result, things: Things) -> Result | None:
        count = sum(thing.colour == colour for thing in things)
        # Nothing of this colour would make the hop empty, and give its result away.
        return combine(now, count) if count else None

    return apply


def _at(thing: Thing, axis: int) -> float:
    return thing.y if axis else thing.x


def _ordered(things: Things, axis: int, sign: int) -> list[int]:
    """Indices of the objects, from the outermost one on this side inwards."""
    places = [-sign * _at(thing, axis) for thing in things]
    return sorted(range(len(things)), key=places.__getitem__)


def _clear(first: Thing, second: Thing, axis: int) -> bool:
    return abs(_at(first, axis) - _at(second, axis)) >= APART


def _apart(first: int, second: int) -> int:
    return abs(first - second)


_STEPS: dict[str, Step] = {
    "largest": _extreme(1),
    "smallest": _extreme(-1),
    "edge": _edge,
    "object": _named,
    "nearest": _nearest,
    "same": _same,
    "index": _index,
    "digit": _digit,
    "count same": _count_same,
    "count side": _count_side,
    "plus": _arith(operator.add),
    "minus": _arith(_apart),
    "times": _arith(operator.mul),
    "max": _arith(max),
}
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "largest": ("",),
    "smallest": ("",),
    "edge": tuple(SIDES),
    "nearest": tuple(SIDES),
    "same": ("colour", "shape"),
    "index": ("left", "above"),
    "digit": ("",),
    "count same": ("colour", "shape"),
    "count side": tuple(SIDES),
    **dict.fromkeys(ARITHS, HUES),
}
_WORDS: dict[tuple[str, str], str] = {
    ("edge", "left"): "leftmost",
    ("edge", "right"): "rightmost",
    ("edge", "above"): "topmost",
    ("edge", "below"): "lowest",
    ("nearest", "left"): "to the left of it",
    ("nearest", "right"): "to the right of it",
    ("nearest", "above"): "above it",
    ("nearest", "below"): "below it",
    ("count side", "left"): "to the left of it",
    ("count side", "right"): "to the right of it",
    ("count side", "above"): "above it",
    ("count side", "below"): "below it",
    ("index", "left"): "from the left",
    ("index", "above"): "from the top",
}
PHRASES: dict[str, tuple[str, ...]] = {
    "largest": ("Start at the largest object.", "Begin with the biggest object."),
    "smallest": ("Start at the smallest object.", "Begin with the object of the least size."),
    "edge": ("Start at the {} object.", "Begin with the {} object."),
    "object": ("Start at the {}.", "Begin with the {}."),
    "nearest": (
        "Go to the nearest object {}.",
        "Move to the closest object whose centre lies {}.",
    ),
    "same": (
        "Go to the other object of the same {}.",
        "Move to the only other object with its {}.",
    ),
    "index": (
        "Read its number n and go to the n-th object {}.",
        "The number on it is a place: go to the object at that place counted {}.",
    ),
    "digit": ("Take the number written on it.", "Read its number."),
    "count same": (
        "Count the objects of its {}, itself included.",
        "Count how many objects have its {}, with itself.",
    ),
    "count side": (
        "Count the objects whose centre lies {}.",
        "Count how many objects have their centre {}.",
    ),
    "plus": (
        "Add the number of {} objects.",
        "Increase this by how many {} objects there are.",
    ),
    "minus": (
        "Take the difference to the number of {} objects, without sign.",
        "Compare with the number of {} objects: how far apart are the two numbers?",
    ),
    "times": (
        "Multiply by the number of {} objects.",
        "Multiply this by how many {} objects there are.",
    ),
    "max": (
        "Take the larger of this and the number of {} objects.",
        "If there are more {} objects than this number, take their number instead.",
    ),
}
