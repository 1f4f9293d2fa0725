"""Edit program: which operations, in which order, turned the first picture into the second?

Operations: quarter turns, half turn, mirror, flip, exchange of the halves, inversion, and two permutations of the
colour planes. All only move pixels or planes (invert: 255 − v), so every program is exactly reversible. The answer is a
list of operations, checked by replaying it: any program with the same effect is right. Reward: 1 for the right effect,
else gamma/2 for each of the right geometry and the right colours.

A drawn program is never reducible: no shorter list has its effect. Replay runs on a small probe picture whose values
are all different; two programs agree on it exactly if they agree on every picture of even square size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.degenerate_checks import (
    difference,
    harmless_history,
    random_crop,
    resize,
    thumbnail,
)
from mmrl.data.pretext.craft.draws import repeatedly
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams

OPERATIONS: dict[str, Callable[[Array], Array]] = {
    "turn right": partial(np.rot90, k=-1),
    "turn left": partial(np.rot90, k=1),
    "half turn": partial(np.rot90, k=2),
    "mirror": np.fliplr,
    "flip": np.flipud,
    "swap halves": lambda picture: np.roll(picture, picture.shape[1] // 2, axis=1),
    "invert": lambda picture: 255 - picture,
    "swap red and blue": lambda picture: picture[..., ::-1],
    "cycle colours": lambda picture: np.roll(picture, 1, axis=-1),
}
GEOMETRY = 6
"""The first six operations move places, the others change colours."""
NAMES = tuple(OPERATIONS)
LONGEST = 8
"""Longest program that is replayed."""
MEANING = (
    "turn right and turn left (by 90 degrees), half turn, mirror (left and right change sides), flip (top and bottom"
    " change sides), swap halves (left and right half change places), invert (negative), swap red and blue,"
    " cycle colours (red becomes green, green becomes blue, blue becomes red)"
)
# 48 different values: no operation can leave the picture as it is unless it does so everywhere.
_PROBE = (np.arange(48) * 5).astype(np.uint8).reshape(4, 4, 3)


class EditProgramTask(Task):
    name = "edit-program"
    kinds = ("image", "rgbd")
    knobs: ClassVar = {
        "steps": Knob(2, (1, 2, 3, 4), help="Operations applied.", allowed=(1, 2, 3, 4)),
        "gamma": Knob(0.2, help="Pay for right geometry or right colours alone."),
        "side": Knob(280, help="Side of the square pictures in pixels (even)."),
    }
    wordings = (
        "The second picture was made from the first by {steps} operation(s) in order, chosen from: {meaning}."
        " Which ones, in which order?",
        "Available operations: {meaning}. Find a list of {steps} operation(s) that turns the first image into the"
        " second.",
        "Image A was edited {steps} time(s) to give image B. Operations: {meaning}. Name them in the order of use.",
    )
    hint = "the names of the operations in order, separated by commas"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        side = int(knobs["side"]) // 2 * 2
        picture = harmless_history(media[0].picture(), rng, 2 * side)
        edge = min(picture.shape[:2])
        square = random_crop(picture, edge, edge, rng.geometry)
        if square is None or edge < side // 2:
            return Reject("too-small")
        first = resize(square, side, side)
        small = thumbnail(first, 32).astype(np.uint8)
        if any(difference(small, operation(small)) < 8.0 for operation in OPERATIONS.values()):
            return Reject("an-operation-is-invisible")
        program = _irreducible(int(knobs["steps"]), rng.selection)
        second = np.ascontiguousarray(replayed(first, program))
        return Draft(
            visuals=(
                Visual(first, label="First picture:"),
                Visual(second, label="Second picture:"),
            ),
            truth={"answer": program, "gamma": float(knobs["gamma"])},
            key=effect(program),
            fields={"steps": len(program), "meaning": MEANING},
            evidence=(Evidence(0), Evidence(1)),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.words(body)

    def verify(self, value: Any, truth: Truth) -> Score:
        if len(value) > LONGEST or not set(value) <= OPERATIONS.keys():
            return Score(0.0, parts={"valid": 0.0})
        # By effect: another program that gives the same picture is as right as the drawn one.
        (places, colours), found = effect(truth["answer"]), effect(value)
        hits = (found[0] == places) + (found[1] == colours)
        reward = 1.0 if hits == 2 else truth["gamma"] * hits / 2
        parts = {"valid": 1.0, "geometry": float(found[0] == places)}
        return Score(reward, hits == 2, parts, found)

    def format(self, truth: Truth) -> str:
        return ", ".join(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        return ", ".join(repeatedly(NAMES, len(truth["answer"]), rng))

    def chance(self, knobs: Knobs) -> float:
        return _levels(int(knobs["steps"]))[0]

    def chance_reward(self, knobs: Knobs) -> float:
        both, places, colours = _levels(int(knobs["steps"]))
        only_one = places + colours - 2 * both
        return both + float(knobs["gamma"]) / 2 * only_one


def replayed(picture: Array, program: Sequence[str]) -> Array:
    """The picture after all operations in order."""
    for name in program:
        picture = OPERATIONS[name](picture)
    return picture


def effect(program: Sequence[str]) -> tuple[str, str]:
    """What a program does to places and to colours, each as a short code. Equal codes: equal results everywhere."""
    return _effect(tuple(program))


@lru_cache(maxsize=65536)
def _effect(program: tuple[str, ...]) -> tuple[str, str]:
    # The two kinds commute: moving pixels and changing planes can be replayed apart, on a smaller probe each.
    moving = [name for name in program if name in NAMES[:GEOMETRY]]
    colouring = [name for name in program if name in NAMES[GEOMETRY:]]
    places = replayed(_PROBE[..., 0], moving)
    colours = replayed(_PROBE[0, 0][None, None], colouring)
    return _code(places), _code(colours)


def _code(probe: Array) -> str:
    return np.ascontiguousarray(probe).tobytes().hex()


@lru_cache(maxsize=1)
def _shortest() -> dict[tuple[str, str], int]:
    """Fewest operations per reachable effect, by breadth-first search."""
    lengths: dict[tuple[str, str], int] = {effect(()): 0}
    front: list[tuple[str, ...]] = [()]
    while front:
        following = []
        for program in front:
            for name in NAMES:
                longer = (*program, name)
                if effect(longer) not in lengths:
                    lengths[effect(longer)] = len(longer)
                    following.append(longer)
        front = following
    return lengths


def _irreducible(steps: int, rng: Generator) -> list[str]:
    while True:
        program = repeatedly(NAMES, steps, rng)
        if _shortest()[effect(program)] == steps:
            return program


@lru_cache(maxsize=8)
def _levels(steps: int) -> tuple[float, float, float]:
    """Probability that a random program of this length has the effect, the geometry, the colours of a drawn one."""
    counts = _effect_shares(steps)
    # Drawn programs are the irreducible ones; a guess may be any.
    drawn = {code: weight for code, weight in counts.items() if _shortest()[code] == steps}
    total = sum(drawn.values())
    place: dict[str, float] = {}
    colour: dict[str, float] = {}
    for (a, b), weight in counts.items():
        place[a] = place.get(a, 0.0) + weight
        colour[b] = colour.get(b, 0.0) + weight
    both = sum(weight * counts[code] for code, weight in drawn.items()) / total
    places = sum(weight * place[code[0]] for code, weight in drawn.items()) / total
    colours = sum(weight * colour[code[1]] for code, weight in drawn.items()) / total
    return both, places, colours


def _effect_shares(steps: int) -> dict[tuple[str, str], float]:
    """Share of each effect among all programs of this length."""
    counts: dict[tuple[str, str], float] = {effect(()): 1.0}
    # One program per effect stands for all: what follows depends on the effect alone.
    representative: dict[tuple[str, str], tuple[str, ...]] = {effect(()): ()}
    for _ in range(steps):
        following: dict[tuple[str, str], float] = {}
        for code, weight in counts.items():
            for name in NAMES:
                longer = (*representative[code], name)
                reached = effect(longer)
                representative.setdefault(reached, longer)
                following[reached] = following.get(reached, 0.0) + weight / len(NAMES)
        counts = following
    return counts
