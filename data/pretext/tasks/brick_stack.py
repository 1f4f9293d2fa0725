"""Brick stacks: which bricks come off, in which order, until one can be taken?

After Chain-of-Symbol's Brick World (arXiv 2305.10276): sentences "A is on top of B" in random order, with `others`
bricks in a second stack that do not matter, as words, as a picture, or both. Answer: the bricks from the top down to
the one that is asked for. Reward 1 if exact, else `gamma` times the length of its longest right beginning over that of
the answer.

With `symbols` the question asks for the symbols of the paper first: "A on top of B" is B//A, a stack is written as one
chain from the bottom up, and the plan is read off it from its end.

What is the paper's: sentences, symbols, the task. Ours: the picture, the second stack as distractor, pay for a right
beginning, and that the depth of the brick is drawn uniformly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import LETTERS, listed
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams

MOST = len(LETTERS)
WIDE, TALL, EDGE = 64, 30, 14
"""A brick, and the border, in pixels."""
SYMBOLS = (
    " First write each stack as a chain of symbols from its bottom to its top, where B//A says that A is on top of B; "
    "then read the bricks off from the end."
)


class BrickStackTask(Task):
    name = "brick-stack"
    kinds = ("none",)
    knobs: ClassVar = {
        "bricks": Knob(5, (3, 4, 5, 6, 8), help="Bricks in the stack; at least 2."),
        "others": Knob(2, (0, 2, 3, 4), help="Bricks in a second stack."),
        "show": Knob(
            "both", help="How the stacks are given.", allowed=("text", "picture", "both")
        ),
        "symbols": Knob(False, help="Ask for the chain of symbols before the answer."),
        "gamma": Knob(0.2, help="Pay for a right beginning."),
    }
    wordings = (
        "{given}You want brick {wanted}. Only the topmost brick of a stack can be taken. Which bricks do you take, in "
        "order, {wanted} included?{symbols}",
        "{given}List the bricks that must be taken one after the other, always from the top, to get brick {wanted}; "
        "end with {wanted}.{symbols}",
        "{given}Bricks come off from the top only. In which order are they taken until you hold {wanted}?{symbols}",
    )
    hint = "the letters of the bricks in order, separated by commas"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, others = _sizes(self.name, knobs)
        names = some_of(LETTERS, count + others, rng.selection)
        stack, beside = names[:count], names[count:]  # both from the bottom up
        depth = int(rng.geometry.integers(count)) + 1
        answer = stack[::-1][:depth]
        shown = knobs["show"]
        sentences = [
            f"{top} is on top of {below}."
            for s in (stack, beside)
            for below, top in pairwise(s)
        ]
        # A second stack of one brick lies on nothing, and is named all the same.
        if len(beside) == 1:
            sentences.append(f"{beside[0]} lies alone.")
        order = some_of(sentences, len(sentences), rng["sentences"])
        left = bool(rng.geometry.integers(2))
        visuals: tuple[Visual, ...] = ()
        evidence: tuple[Evidence, ...] = ()
        if shown != "text":
            stacks = [stack, beside] if left else [beside, stack]
            picture, boxes = drawn_stacks([s for s in stacks if s], rng.appearance)
            visuals = (Visual(picture),)
            evidence = (Evidence(0, tuple(boxes[name] for name in answer)),)
        return Draft(
            visuals,
            {"answer": answer, "bricks": sorted(names), "gamma": float(knobs["gamma"])},
            tuple(answer),
            fields={
                "given": "" if shown == "picture" else f"{' '.join(order)} ",
                "wanted": answer[-1],
                "symbols": SYMBOLS if knobs["symbols"] else "",
            },
            evidence=evidence,
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        return parsing.words(body.replace(" ", ",") if "," not in body else body)

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = [name.lower() for name in truth["answer"]]
        known = {name.lower() for name in truth["bricks"]}
        if not set(value) <= known or len(set(value)) < len(value):
            return Score(0.0, parts={"valid": 0.0})
        if list(value) == answer:
            return Score(1.0, True, {"valid": 1.0, "prefix": 1.0}, _key(value))
        right = _common(value, answer)
        # A right answer with more behind it is not right: its last brick is not paid.
        share = min(right, len(answer) - 1) / len(answer)
        return Score(
            truth["gamma"] * share, False, {"valid": 1.0, "prefix": share}, _key(value)
        )

    def format(self, truth: Truth) -> str:
        return listed(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        # The brick that is wanted and all names are in the question; how deep it lies is not.
        wanted = truth["answer"][-1]
        rest = [name for name in truth["bricks"] if name != wanted]
        depth = int(rng.integers(len(rest) + 1))
        return listed([*some_of(rest, depth, rng), wanted])

    def chance(self, knobs: Knobs) -> float:
        return self._expected(knobs)[0]

    def chance_reward(self, knobs: Knobs) -> float:
        exact, prefix = self._expected(knobs)
        return exact + float(knobs["gamma"]) * prefix

    def _expected(self, knobs: Knobs) -> tuple[float, float]:
        """Share of right guesses, and the mean share of a right beginning among the others."""
        count, others = _sizes(self.name, knobs)
        rest = count + others - 1

        def begins(length: int) -> float:
            """Probability that the first `length` guessed bricks, none of them the wanted one, are right."""
            return prod(1.0 / (rest - place) for place in range(length))

        exact = prefix = 0.0
        for depth in range(1, count + 1):
            weight = 1.0 / count / (rest + 1)
            exact += weight * begins(depth - 1)
            for guessed in range(1, rest + 2):
                most = min(depth, guessed) - 1
                reached = sum(begins(length) for length in range(1, most + 1))
                # All that lies on top is right and the lengths agree: that is the right answer, which is paid 1.
                whole = begins(depth - 1) * (depth - 1) if guessed == depth else 0.0
                prefix += weight * (reached - whole) / depth
        return exact, prefix


def drawn_stacks(
    stacks: Sequence[Sequence[str]], rng: Generator
) -> tuple[Array, dict[str, tuple[int, int, int, int]]]:
    """Stacks from the bottom up, side by side on a floor: uint8 [H, W, 3], and the box of each brick."""
    tallest = max(map(len, stacks))
    width = 2 * EDGE + len(stacks) * WIDE + (len(stacks) - 1) * WIDE // 2
    height = 2 * EDGE + tallest * TALL
    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    floor = height - EDGE
    pen.line((0, floor, width, floor), fill=(90, 90, 90), width=2)
    boxes: dict[str, tuple[int, int, int, int]] = {}
    for place, stack in enumerate(stacks):
        x = EDGE + place * (WIDE + WIDE // 2)
        for level, name in enumerate(stack):
            y = floor - (level + 1) * TALL
            # Light enough for a black letter on any of them.
            colour = tuple(int(tone) for tone in rng.integers(150, 256, size=3))
            pen.rectangle((x, y, x + WIDE - 2, y + TALL - 2), fill=colour, outline="black")
            middle = (x + WIDE / 2 - 1, y + TALL / 2 - 1)
            pen.text(middle, name, fill="black", font=font(18), anchor="mm")
            boxes[name] = (x, y, x + WIDE - 1, y + TALL - 1)
    return np.asarray(picture), boxes


def _sizes(task: str, knobs: Knobs) -> tuple[int, int]:
    count, others = int(knobs["bricks"]), int(knobs["others"])
    if not 2 <= count <= MOST or not 0 <= others <= MOST - count:
        raise ValueError(
            f"{task}: bricks {count} and others {others} must be at least 2 and 0, and together at most {MOST}."
        )
    return count, others


def _common(value: Sequence[str], answer: Sequence[str]) -> int:
    """Length of the longest common beginning."""
    right = 0
    while right < min(len(value), len(answer)) and value[right] == answer[right]:
        right += 1
    return right


def _key(value: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.upper() for name in value)
