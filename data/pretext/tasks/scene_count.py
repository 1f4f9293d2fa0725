"""Counting and comparing in drawn scenes, after CLEVR: how many objects have these properties? More of these or those?

"scene-count": the objects of a colour, shape or size (up to three properties), optionally only on one side of a named
object. "scene-compare": are there more, fewer or equally many of one kind than of another? Rewards: 1 or 0.

The answer is drawn first, uniformly; then objects are made to fit. Most other objects miss exactly one property; on the
wrong side of the named object there are matching ones too. Objects never touch; sides are clear by 10 pixels or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import ChoiceTask
from mmrl.data.pretext.craft.draws import one_of, repeatedly, some_of
from mmrl.data.pretext.craft.number_form import NumberTask
from mmrl.data.pretext.craft.procedural import SHAPES
from mmrl.data.pretext.craft.scene_objects import (
    HUES,
    Place,
    Thing,
    draw_things,
    drawn_ground,
    spread_out,
)
from mmrl.ground.seeds import Streams

HEIGHT, WIDTH = 288, 384
DIAMETERS = {"small": 22.0, "large": 40.0}
SIDES = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
"""Axis (x or y) and sign."""
CLEAR = 10.0
WORDS = ("more", "fewer", "equal")

ThingKind = Mapping[str, str]
"""Colour, shape and size of an object, or the properties that are asked for."""
CHOICES: Mapping[str, Sequence[str]] = {
    "colour": HUES,
    "shape": SHAPES,
    "size": tuple(DIAMETERS),
}


class SceneCountTask(NumberTask):
    name = "scene-count"
    kinds = ("none",)
    knobs: ClassVar = {
        "most": Knob(6, (3, 5, 7, 9), help="Largest answer; the smallest is 0."),
        "others": Knob(8, (3, 6, 9, 11), help="Largest number of other objects."),
        "properties": Knob(
            2, (1, 1, 2, 3), help="Properties that are asked for.", allowed=(1, 2, 3)
        ),
        "side": Knob(
            False, (False, False, True), help="Count on one side of a named object only."
        ),
    }
    wordings = (
        "How many {kind} are there{where}?",
        "Count the {kind}{where}.",
        "Give the number of {kind} in the picture{where}.",
    )

    def span(self, knobs: Knobs) -> tuple[int, int]:
        return 0, int(knobs["most"])

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        most, sided = int(knobs["most"]), bool(knobs["side"])
        target = int(rng.selection.integers(most + 1))
        asked = _asked(int(knobs["properties"]), rng.selection)
        others = int(rng.selection.integers(1, int(knobs["others"]) + 1))
        count = target + others + sided
        # Places for large objects, whatever is put there: sizes must not depend on the room that was left.
        places = spread_out([DIAMETERS["large"]] * count, HEIGHT, WIDTH, rng.geometry)
        if places is None:
            return Reject("no-room")
        inside, side, named = list(range(count)), "", None
        if sided:
            found = _side(places, target, rng.selection)
            if found is None:
                return Reject("no-clear-side")
            named, inside, side = found
        chosen = set(some_of(inside, target, rng.selection))
        things = _objects(places, asked, chosen, set(inside), named, rng.selection)
        picture = draw_things(drawn_ground(HEIGHT, WIDTH, rng.appearance), things)
        return Draft(
            visuals=(Visual(picture),),
            truth={"answer": target, "least": 0, "most": most},
            key=target,
            fields={
                "kind": kind_name(asked, plural=True),
                "where": "" if named is None else f" {side} the {things[named].name}",
            },
            evidence=(Evidence(0, tuple(things[i].box for i in sorted(chosen))),),
        )


class SceneCompareTask(ChoiceTask):
    name = "scene-compare"
    kinds = ("none",)
    knobs: ClassVar = {
        "most": Knob(6, (3, 5, 7), help="Largest count of either kind; at least 2."),
        "apart": Knob(2, (3, 2, 1), help="Largest difference of unequal counts."),
        "others": Knob(4, (0, 3, 6), help="Largest number of objects of neither kind."),
    }
    wordings = (
        "Are there more, fewer or equally many {first} compared with {second}?",
        "Compare the number of {first} with the number of {second}: more, fewer or equal?",
        "Count {first} and {second}. Are the {first} more, fewer, or equal in number?",
    )
    hint = 'one word: "more", "fewer" or "equal"'

    def option_count(self, knobs: Knobs) -> int:
        return len(WORDS)

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        draw, most = rng.selection, int(knobs["most"])
        answer = one_of(WORDS, draw)
        apart = 0
        if answer != "equal":
            apart = int(draw.integers(1, min(int(knobs["apart"]), most - 1) + 1))
        fewer = int(draw.integers(1, most - apart + 1))
        counts = (fewer + apart, fewer) if answer == "more" else (fewer, fewer + apart)
        attribute = ("colour", "shape")[int(draw.integers(2))]
        choices = CHOICES[attribute]
        # The first two values are compared; the others take what is left.
        values = some_of(choices, len(choices), draw)
        others = int(draw.integers(int(knobs["others"]) + 1))
        wanted = [values[0]] * counts[0] + [values[1]] * counts[1]
        wanted += repeatedly(values[2:], others, draw)
        places = spread_out([DIAMETERS["large"]] * len(wanted), HEIGHT, WIDTH, rng.geometry)
        if places is None:
            return Reject("no-room")
        things = []
        for value, at in zip(wanted, places, strict=True):
            things.append(_thing(_random_kind(draw) | {attribute: value}, at))
        picture = draw_things(drawn_ground(HEIGHT, WIDTH, rng.appearance), things)
        compared = things[: sum(counts)]
        return Draft(
            visuals=(Visual(picture),),
            truth={"answer": answer, "options": list(WORDS)},
            key=answer,
            fields={
                "first": kind_name({attribute: values[0]}, plural=True),
                "second": kind_name({attribute: values[1]}, plural=True),
            },
            evidence=(Evidence(0, tuple(thing.box for thing in compared)),),
            meta={"counts": list(counts)},
        )


def kind_name(asked: ThingKind, plural: bool = False) -> str:
    """ "small red circles", "large objects", …"""
    noun = asked.get("shape", "object")
    if plural:
        noun += "es" if noun.endswith("s") else "s"
    words = (asked.get("size", ""), asked.get("colour", ""), noun)
    return " ".join(word for word in words if word)


def _asked(count: int, rng: Generator) -> dict[str, str]:
    names = some_of(tuple(CHOICES), count, rng)
    return {name: one_of(CHOICES[name], rng) for name in names}


def _random_kind(rng: Generator) -> dict[str, str]:
    return {name: one_of(values, rng) for name, values in CHOICES.items()}


def _missing(asked: ThingKind, rng: Generator) -> dict[str, str]:
    """A kind that misses one of the asked properties, seldom more."""
    kind = _random_kind(rng) | dict(asked)
    # Near misses: an object that shares nothing with the asked ones would be passed over at a glance.
    names = rng.permutation(list(asked))
    missed = 1 + int(rng.random() < 0.25)
    for name in map(str, names[:missed]):
        others = [value for value in CHOICES[name] if value != asked[name]]
        kind[name] = one_of(others, rng)
    return kind


def _side(
    places: Sequence[Place], target: int, rng: Generator
) -> tuple[int, list[int], str] | None:
    """A place, the places on one side of it (at least `target`, all clear) and the name of the side."""
    for name in some_of(tuple(SIDES), len(SIDES), rng):
        axis, sign = SIDES[name]
        for place in map(int, rng.permutation(len(places))):
            offsets = [sign * (at[axis] - places[place][axis]) for at in places]
            inside = [i for i, offset in enumerate(offsets) if offset > 0]
            clear = all(abs(offset) >= CLEAR for i, offset in enumerate(offsets) if i != place)
            # Somebody must be on the other side, or the side would not matter.
            if clear and target <= len(inside) < len(places) - 1:
                return place, inside, name
    return None


def _objects(
    places: Sequence[Place],
    asked: ThingKind,
    chosen: set[int],
    inside: set[int],
    named: int | None,
    rng: Generator,
) -> list[Thing]:
    """Matching objects at the chosen places, others inside; outside either. The named one is of a kind of its own."""
    kinds: list[dict[str, str]] = []
    for i in range(len(places)):
        match = i in chosen or (i not in inside and rng.random() < 0.5)
        kinds.append(_random_kind(rng) | dict(asked) if match else _missing(asked, rng))
    if named is not None:
        others = [kind for i, kind in enumerate(kinds) if i != named]
        taken = {(kind["colour"], kind["shape"]) for kind in others}
        free = [pair for pair in product(HUES, SHAPES) if pair not in taken]
        colour, shape = one_of(free, rng)
        kinds[named] = {"colour": colour, "shape": shape, "size": "large"}
    return [_thing(kind, at) for kind, at in zip(kinds, places, strict=True)]


def _thing(kind: ThingKind, at: Place) -> Thing:
    shape: Any = kind["shape"]
    return Thing(shape, kind["colour"], at[0], at[1], DIAMETERS[kind["size"]])
