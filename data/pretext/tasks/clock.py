"""Reading a clock with hands.

Answer: hours and minutes, h:mm. Reward: 1 if right; otherwise `gamma` times (1 − angle apart/half a turn)⁴ of the time
on the dial of twelve hours. Dials differ in colour, size, hands, marks and numerals, and may be turned a little.
"""

from __future__ import annotations

import re
from functools import lru_cache
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
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import angle_circular, sharpen
from mmrl.ground.seeds import Streams

DIAL = 720
"""Minutes on the dial."""
POWER = 4.0
STYLES = ("arabic", "roman", "none")
ROMAN = ("XII", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI")
_TIME = re.compile(r"(\d{1,2}) ?[:.h] ?(\d{2})")


class ClockTask(Task):
    name = "clock"
    kinds = ("none",)
    knobs: ClassVar = {
        "step": Knob(
            5, (30, 15, 5, 1), help="Minutes between possible times.", allowed=(30, 15, 5, 1)
        ),
        "numerals": Knob(
            "arabic",
            ("arabic", "arabic", "any"),
            help="Marks of the hours.",
            allowed=(*STYLES, "any"),
        ),
        "tilt": Knob(0, (0, 0, 10), help="Largest turn of the whole clock in degrees."),
        "gamma": Knob(0.2, help="Pay for a time near by."),
        "side": Knob(224, help="Side of the picture in pixels."),
    }
    wordings = (
        "What time does the clock show?",
        "Read the clock.",
        "Which time do the hands of this clock point to?",
    )
    hint = "hours (1 to 12) and minutes, written h:mm"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        step = int(knobs["step"])
        minutes = int(rng.selection.integers(DIAL // step)) * step
        tilt = float(rng.appearance.uniform(-1, 1)) * int(knobs["tilt"])
        style = str(knobs["numerals"])
        if style == "any":
            style = STYLES[int(rng.appearance.integers(3))]
        picture = _draw(minutes, style, tilt, int(knobs["side"]), rng.appearance)
        truth = {"answer": minutes, "step": step, "gamma": float(knobs["gamma"])}
        return Draft((Visual(picture),), truth, minutes, evidence=(Evidence(0),))

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        match = _TIME.fullmatch(body)
        if match is None:
            return ParseError("malformed", body[:40])
        hours, minutes = int(match[1]), int(match[2])
        if hours > 23 or minutes > 59:
            return ParseError("range", body[:40])
        # 15:20 is 3:20 on a dial.
        return (60 * hours + minutes) % DIAL

    def verify(self, value: Any, truth: Truth) -> Score:
        if value == truth["answer"]:
            return Score(1.0, True, key=value)
        # To the fourth power: an hour off still earns half of `gamma`, a swap of the hands mostly nothing.
        near = sharpen(angle_circular(value, truth["answer"], DIAL), POWER)
        return Score(truth["gamma"] * near, False, {"near": near}, value)

    def format(self, truth: Truth) -> str:
        hours, minutes = divmod(truth["answer"], 60)
        # Hour 0 of the dial is written 12.
        return f"{hours or 12}:{minutes:02d}"

    def guess(self, truth: Truth, rng: Generator) -> str:
        step = truth["step"]
        return self.format({"answer": int(rng.integers(DIAL // step)) * step})

    def chance(self, knobs: Knobs) -> float:
        return int(knobs["step"]) / DIAL

    def chance_reward(self, knobs: Knobs) -> float:
        return self.chance(knobs) + float(knobs["gamma"]) * _mean_near(int(knobs["step"]))


@lru_cache(maxsize=8)
def _mean_near(step: int) -> float:
    """Mean partial pay of a uniform guess, the right one paid 0."""
    apart = np.arange(step, DIAL, step)
    shorter_way = np.minimum(apart, DIAL - apart)
    pay = (1 - shorter_way / (DIAL / 2)) ** POWER
    return float(pay.sum() / (DIAL // step))


def _draw(minutes: int, style: str, tilt: float, side: int, rng: Generator) -> Array:
    """uint8 [side, side, 3]: drawn at twice the size."""
    edge, dark = 2 * side, bool(rng.random() < 0.3)
    back = _colour(90, rng)
    face = _colour(10 if dark else 185, rng)
    ink = (240, 240, 240) if dark else (15, 15, 15)
    picture = Image.new("RGB", (edge, edge), back)
    pen = ImageDraw.Draw(picture)
    radius = float(rng.uniform(0.38, 0.47)) * edge
    centre = edge / 2 + float(rng.uniform(-0.02, 0.02)) * edge
    pen.ellipse(_disc(centre, radius), face, ink, width=edge // 60)

    def at(turn: float, share: float) -> tuple[float, float]:
        # Clockwise from the top, hence sine for x and the minus before the cosine.
        angle = 2 * np.pi * turn + np.deg2rad(tilt)
        x = centre + share * radius * float(np.sin(angle))
        return x, centre - share * radius * float(np.cos(angle))

    for mark in range(60):
        long = mark % 5 == 0
        inner = at(mark / 60, 0.88 if long else 0.93)
        pen.line([inner, at(mark / 60, 0.97)], ink, edge // (80 if long else 160))
    for hour in range(12) if style != "none" else ():
        text = ROMAN[hour] if style == "roman" else str(hour or 12)
        size = edge // (20 if style == "roman" else 15)
        pen.text(at(hour / 12, 0.75), text, ink, font(size), anchor="mm")
    accent: tuple[int, ...] = ink
    if rng.random() < 0.3:
        accent = tuple(int(v) for v in rng.integers(0, 256, size=3))
    # Coloured hands only where they can be seen on the face.
    far = abs(sum(accent) - sum(face)) > 240
    hands = accent if far else ink
    # The hour hand moves on with the minutes.
    for turn, share, width in (
        (minutes / DIAL, 0.5, edge // 34),
        (minutes % 60 / 60, 0.84, edge // 56),
    ):
        pen.line([at(turn, -0.1), at(turn, share)], hands, width)
    pen.ellipse(_disc(centre, edge // 50), ink)
    return np.asarray(picture.reduce(2))


def _disc(centre: float, radius: float) -> tuple[float, float, float, float]:
    low, high = centre - radius, centre + radius
    return low, low, high, high


def _colour(least: int, rng: Generator) -> tuple[int, ...]:
    return tuple(int(v) for v in rng.integers(least, least + 70, size=3))
