"""Step reorder (MR-RLVR, arXiv 2511.17473): the steps of a worked solution are shuffled. Restore the order.

Answer: the letters of the steps in logical order. Reward: 1 for any order in which every step comes after what it
needs; otherwise gamma (1/2) times the share of ordered pairs that are kept; 0 for anything but a permutation.

Departures (the paper's details are not public): the pairs are those of the transitive closure; no separate pay for the
form; the solutions are drawn calculations with known needs, with one possible order, or two if `pair` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
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
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import lettered, shuffled_order
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.craft.worked_steps import calculation, closure, dependencies
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import is_permutation
from mmrl.ground.seeds import Streams


class StepReorderTask(Task):
    name = "step-reorder"
    kinds = ("none",)
    knobs: ClassVar = {
        "steps": Knob(5, (4, 5, 6, 8), help="Steps of the solution, 4 to 12."),
        "pair": Knob(False, help="Two neighbouring steps may stand in either order."),
        "gamma": Knob(0.5, help="Pay for partly right orders."),
        "show": Knob(
            "text", help="Steps as text or as a picture of a page.", allowed=("text", "picture")
        ),
    }
    wordings = (
        "The steps of a calculation were shuffled.{steps} Put them in an order in which every step uses only what was"
        " introduced before.",
        "Restore a logical order of these steps, so that each letter is introduced before it is used.{steps}",
        "Sort the steps of this worked solution.{steps} A step may only use letters from earlier steps.",
    )
    hint = "the letters of the steps in order, separated by commas"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count = int(knobs["steps"])
        if not 4 <= count <= 12:
            raise ValueError(f"step-reorder.steps is {count}; it must be 4 to 12.")
        steps = calculation(count, rng.selection, pair=bool(knobs["pair"]))
        if steps is None:
            return Reject("values-out-of-range")
        order = shuffled_order(count, rng.geometry)
        labels = lettered(count)
        label_of = dict(zip(order, labels, strict=True))
        answer = [label_of[index] for index in range(count)]
        # The closure, so that a pair counts as kept however many steps lie between its two.
        needs = closure(dependencies([step.text for step in steps]), count)
        lines = [f"{label}. {steps[index].text}" for index, label in label_of.items()]
        drawn = knobs["show"] == "picture"
        return Draft(
            visuals=(Visual(drawn_page(lines, rng.appearance)),) if drawn else (),
            truth={
                "answer": answer,
                "needs": sorted([label_of[a], label_of[b]] for a, b in needs),
                "gamma": float(knobs["gamma"]),
            },
            key=tuple(answer),
            fields={"steps": "" if drawn else "\n" + "\n".join(lines) + "\n"},
            evidence=(Evidence(0),) if drawn else (),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        count = len(truth["answer"])
        text = body.strip()
        # "CABD" without any separator is as clear as "C, A, B, D".
        if len(text) == count and text.isalpha():
            return tuple(text.upper())
        if not any(separator in text for separator in ",;>"):
            text = ",".join(text.split())
        found = parsing.words(text, count)
        if isinstance(found, ParseError):
            return found
        return tuple(entry.rstrip(".").upper() for entry in found)

    def verify(self, value: Any, truth: Truth) -> Score:
        if not is_permutation(value, truth["answer"]):
            return Score(0.0, parts={"valid": 0.0})
        at = {label: place for place, label in enumerate(value)}
        in_order = [at[earlier] < at[later] for earlier, later in truth["needs"]]
        kept = sum(in_order) / len(in_order)
        if kept == 1.0:
            # Any order that keeps all needs is the same solution, so all share the key of the drawn one.
            return Score(1.0, True, {"valid": 1.0, "kept": 1.0}, tuple(truth["answer"]))
        return Score(truth["gamma"] * kept, False, {"valid": 1.0, "kept": kept}, tuple(value))

    def format(self, truth: Truth) -> str:
        return ", ".join(truth["answer"])

    def guess(self, truth: Truth, rng: Generator) -> str:
        labels = sorted(truth["answer"])
        return ", ".join(some_of(labels, len(labels), rng))

    def chance(self, knobs: Knobs) -> float:
        return (2.0 if knobs["pair"] else 1.0) / factorial(int(knobs["steps"]))

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        return exact + float(knobs["gamma"]) * (0.5 - exact)


def drawn_page(lines: Sequence[str], rng: Generator) -> Array:
    """uint8: the lines as black text on nearly white paper."""
    face, gap = font(18), 28
    widest = max(int(face.getlength(line)) for line in lines)
    shade = tuple(int(v) for v in rng.integers(236, 256, size=3))
    picture = Image.new("RGB", (max(24 + widest, 120), gap * len(lines) + 16), shade)
    pen = ImageDraw.Draw(picture)
    for place, line in enumerate(lines):
        middle = 8 + gap * (place + 0.5)
        pen.text((12, middle), line, fill=(20, 20, 20), font=face, anchor="lm")
    return np.asarray(picture)
