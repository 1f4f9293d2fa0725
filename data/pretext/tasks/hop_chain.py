"""Hop chains: a question of several hops, each of which must be looked up in the picture, ending in one number.

HopChain (arXiv 2603.17024) lets models write such questions; here a program is drawn and executed on a scene whose
facts are known (`hop_programs`). A program is kept only if every hop has one clear result, another object at any hop
would change the answer in 60 % of the cases or more, and its answer is the number that was drawn first, so that all
answers are equally likely. Answer: one whole number; reward 1 if equal.

`part` asks for the second half of the chain, or its last link, of the very same program and scene (the paper's
ablation): the object reached so far is named. With `trace` the objects on the way are listed before the number; a
wrong number then earns 0.2 times the share of the chain that is right from its start. "hop-chain-photo" draws the
objects on a photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

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
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import listed
from mmrl.data.pretext.craft.degenerate_checks import harmless_history, random_crop, resize
from mmrl.data.pretext.craft.draws import repeatedly
from mmrl.data.pretext.craft.hop_programs import (
    READS,
    Hop,
    draw_program,
    matters,
    objects_visited,
    phrase,
    run,
)
from mmrl.data.pretext.craft.number_form import NumberTask, whole_number
from mmrl.data.pretext.craft.scene_objects import (
    Thing,
    draw_things,
    drawn_ground,
    shape_colour_pairs,
    spread_out,
)
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams

MATTERS = 0.6
PROGRAMS = 150
"""Programs tried per scene."""
TRACE_PAY = 0.2
HEIGHT, WIDTH = 288, 384


class HopChainTask(NumberTask):
    name = "hop-chain"
    kinds = ("none",)
    knobs: ClassVar = {
        "hops": Knob(
            4, (2, 3, 4, 5, 6), help="Length of the chain, selection and reading included."
        ),
        "arith": Knob(0, (0, 0, 1), help="Hops of the chain that calculate."),
        "objects": Knob(8, (6, 8, 10, 12), help="Objects in the picture."),
        "most": Knob(9, help="Largest answer; the smallest is 1."),
        "part": Knob(
            "full",
            help="How much of the chain is asked.",
            allowed=("full", "second-half", "last-hop"),
        ),
        "trace": Knob(False, help="Ask for the objects on the way too."),
    }
    wordings = (
        "Follow the steps in the picture. {chain} Which number do you get?",
        "Work through this, looking at the picture at every step. {chain} What is the result?",
        "Each step starts where the one before ended. {chain} Give the final number.",
    )
    hint = "{form}"

    def span(self, knobs: Knobs) -> tuple[int, int]:
        return 1, int(knobs["most"])

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        things = _scene(int(knobs["objects"]), rng.geometry)
        if things is None:
            return Reject("no-room")
        # The answer is drawn first and a program is searched that gives it: programs alone would favour small numbers.
        target = int(rng.selection.integers(1, int(knobs["most"]) + 1))
        found = _program(things, knobs, target, rng.selection)
        if found is None:
            return Reject("no-program")
        program, things, results = found
        asked, start = _asked(program, results, things, str(knobs["part"]))
        ground = self.ground(media, rng)
        if ground is None:
            return Reject("too-small")
        visited = objects_visited(program, results)
        truth: dict[str, Any] = {"answer": target, "least": 1, "most": int(knobs["most"])}
        if knobs["trace"]:
            truth["trace"] = [things[index].name for index in visited][start:]
            truth["names"] = [thing.name for thing in things]
            truth["hops"] = len(asked)
        return Draft(
            visuals=(Visual(draw_things(ground, things)),),
            truth=truth,
            key=target,
            fields={
                "chain": " ".join(phrase(hop, rng.wording) for hop in asked),
                "form": _form(bool(knobs["trace"])),
            },
            evidence=(Evidence(0, tuple(things[index].box for index in visited)),),
            meta={
                "program": [list(hop) for hop in program],
                "results": results,
                "part": str(knobs["part"]),
            },
        )

    def ground(self, media: RawMedia, rng: Streams) -> Array | None:
        """What the objects are drawn on."""
        return drawn_ground(HEIGHT, WIDTH, rng.appearance)

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        if "trace" not in truth:
            return whole_number(body)
        entries = parsing.words(body)
        if isinstance(entries, ParseError):
            return entries
        number = whole_number(entries[-1])
        return number if isinstance(number, ParseError) else (entries[:-1], number)

    def verify(self, value: Any, truth: Truth) -> Score:
        if "trace" not in truth:
            return super().verify(value, truth)
        names, number = value
        # A right number is right whatever way was written down.
        if number == truth["answer"]:
            return Score(1.0, True, key=number)
        prefix = 0
        for name, wanted in zip(names, truth["trace"], strict=False):
            if name != wanted:
                break
            prefix += 1
        reward = TRACE_PAY * prefix / truth["hops"]
        return Score(reward, False, {"prefix": float(prefix)}, number)

    def format(self, truth: Truth) -> str:
        return listed([*truth.get("trace", ()), truth["answer"]])

    def guess(self, truth: Truth, rng: Generator) -> str:
        number = super().guess(truth, rng)
        if "trace" not in truth:
            return number
        names = repeatedly(truth["names"], len(truth["trace"]), rng)
        return listed([*names, number])

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        if not knobs["trace"]:
            return exact
        hops, objects = _lengths(knobs)
        # Expected length of the right prefix: the sum over places of the probability that it reaches them.
        reached = [float(int(knobs["objects"])) ** -place for place in range(1, objects + 1)]
        return exact + (1 - exact) * TRACE_PAY * sum(reached) / hops


class PhotoHopChainTask(HopChainTask):
    name = "hop-chain-photo"
    kinds = ("image", "rgbd", "document")
    avoid = ("flat-shapes",)

    def ground(self, media: RawMedia, rng: Streams) -> Array | None:
        picture = harmless_history(media[0].picture(), rng, 2 * WIDTH)
        height, width = picture.shape[:2]
        scale = min(height / HEIGHT, width / WIDTH)
        # Enlarged more than three times, the photograph would be a blur.
        if scale <= 0.3:
            return None
        crop = random_crop(picture, int(scale * WIDTH), int(scale * HEIGHT), rng.geometry)
        return None if crop is None else resize(crop, WIDTH, HEIGHT)


def _scene(count: int, rng: Generator) -> list[Thing] | None:
    """Objects whose largest and smallest one are clear, with digits from 1 to their number (at most 9)."""
    base = 1.15 * HEIGHT / (count + 3) ** 0.5 / 2
    sizes = base * rng.uniform(0.8, 1.0, size=count)
    sizes[0], sizes[1] = 1.5 * base, 0.55 * base
    # Shuffled, since places are given in this order and later objects find less room.
    sizes = sizes[rng.permutation(count)]
    places = spread_out(sizes.tolist(), HEIGHT, WIDTH, rng)
    if places is None:
        return None
    digits = rng.integers(1, min(9, count) + 1, size=count)
    things = []
    pairs = shape_colour_pairs(count, rng)
    for pair, place, size, digit in zip(pairs, places, sizes, digits, strict=True):
        things.append(Thing(*pair, *place, float(size), int(digit)))
    return things


def _program(
    things: list[Thing], knobs: Knobs, target: int, rng: Generator
) -> tuple[list[Hop], list[Thing], list[int]] | None:
    """A program with this answer, all of whose hops are clear and matter, its scene and the results of its hops."""
    hops, arith = int(knobs["hops"]), int(knobs["arith"])
    if hops - 2 - arith < 0:
        raise ValueError(
            f"hop-chain: {hops} hops cannot hold {arith} calculations; use hops ≥ arith + 2."
        )
    for _ in range(PROGRAMS):
        program = draw_program(hops, arith, rng)
        found = _with_answer(program, things, target)
        if found is not None and matters(program, found[1], found[0], MATTERS):
            return program, *found
    return None


def _with_answer(
    program: list[Hop], things: list[Thing], target: int
) -> tuple[list[Thing], list[int]] | None:
    """The scene, with another digit on the object that is read last if that helps, such that the program gives the
    target; None if a hop is not clear or an object is visited twice."""
    results = run(program, things)
    if results is None or _repeats(program, results):
        return None
    if results[-1] == target:
        return things, results
    place = next(i for i, hop in enumerate(program) if hop[0] in READS)
    # Only the digit can be changed without moving anything; a count cannot.
    if program[place][0] != "digit":
        return None
    read_last = results[place - 1]
    for digit in range(1, 10):
        changed = list(things)
        changed[read_last] = replace(things[read_last], digit=digit)
        again = run(program, changed)
        if again is None or again[-1] != target:
            continue
        # An "index" hop on the way may have read the same digit and now lead elsewhere.
        if again[:place] == results[:place]:
            return changed, again
    return None


def _repeats(program: list[Hop], results: list[int]) -> bool:
    visited = objects_visited(program, results)
    return len(set(visited)) < len(visited)


def _asked(
    program: list[Hop], results: list[int], things: Sequence[Thing], part: str
) -> tuple[list[Hop], int]:
    """The hops that are asked, and how many objects of the full chain come before them."""
    last = len(objects_visited(program, results)) - 1
    start = {"full": 0, "second-half": (last + 1) // 2, "last-hop": last}[part]
    if start == 0:
        return program, 0
    return [("object", things[results[start]].name), *program[start + 1 :]], start


def _lengths(knobs: Knobs) -> tuple[int, int]:
    """Asked hops, and how many of them lead to objects."""
    hops = int(knobs["hops"])
    objects = hops - 1 - int(knobs["arith"])
    starts = {"full": 0, "second-half": objects // 2, "last-hop": objects - 1}
    start = starts[str(knobs["part"])]
    return hops - start, objects - start


def _form(trace: bool) -> str:
    number = "one whole number"
    if not trace:
        return number
    return f"the objects on the way (colour and shape), then {number}, separated by commas"
