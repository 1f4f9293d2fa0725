"""NP-hard instances as pictures: a map of dots, a drawn graph, a table, a grid of dots, a day plan.

Graphs stand on a circle with jittered radius, redrawn until no edge passes within `CLEAR` pixels of another node and no
two nodes touch, so that every edge can be followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.craft.np_selection import DAY

Edges = Sequence[Sequence[int]]
Pen = ImageDraw.ImageDraw
Point = tuple[float, float]

LARGEST = 16
"""Most nodes of a drawn graph."""
CLEAR = 17.0
"""Pixels between an edge and the centre of any other node."""
NODE = 13
"""Radius of a drawn node."""
INK, LINE = (20, 20, 20), (120, 120, 120)
FAINT, SQUARES = (205, 205, 205), (222, 222, 222)


def drawn_map(points: Sequence[Sequence[int]], rng: Generator) -> Array:
    """Numbered dots on squared paper; one square is one unit."""
    unit, edge, span = 16, 24, 20
    side = span * unit + 2 * edge
    picture, pen = _sheet(side, side, rng)
    for step in range(span + 1):
        at = edge + step * unit
        pen.line((at, edge, at, side - edge), fill=SQUARES)
        pen.line((edge, at, side - edge, at), fill=SQUARES)
    for number, (x, y) in enumerate(points, 1):
        # y points up, as on paper.
        place = (edge + unit * x, side - edge - unit * y)
        _node(pen, place, str(number), 10)
    return np.asarray(picture)


def drawn_graph(count: int, edges: Edges, rng: Generator) -> Array | None:
    """Numbered nodes joined by lines; None if no clear drawing was found in 30 tries."""
    side = 340 if count <= 12 else 420
    for _ in range(30):
        places = _ring(count, side, rng)
        if _is_clear(places, edges):
            return _joined(places, edges, side, rng)
    return None


def _joined(places: Array, edges: Edges, side: int, rng: Generator) -> Array:
    # Lines are drawn at twice the size and reduced, which smooths them; numbers would lose by it and come after.
    picture, pen = _sheet(2 * side, 2 * side, rng)
    for a, b in edges:
        start, end = 2 * places[a - 1], 2 * places[b - 1]
        pen.line([*start.tolist(), *end.tolist()], fill=(70, 70, 70), width=4)
    small = picture.reduce(2)
    pen = ImageDraw.Draw(small)
    for number, (x, y) in enumerate(places.tolist(), 1):
        _node(pen, (x, y), str(number), NODE)
    return np.asarray(small)


def drawn_rows(
    header: Sequence[str], rows: Sequence[Sequence[str]], foot: str, rng: Generator
) -> Array:
    """A table with a line of text below it."""
    wide, tall = 78, 26
    across = wide * len(header)
    width = max(across, 10 * len(foot) + 20)
    picture, pen = _sheet(width + 1, tall * (len(rows) + 2) + 8, rng)
    for line, entries in enumerate([header, *rows]):
        y = line * tall
        size = 13 if line == 0 else 15
        pen.line((0, y + tall, across, y + tall), fill=LINE)
        for place, entry in enumerate(entries):
            _centred(pen, (wide * (place + 0.5), y + tall / 2), entry, size)
    below = tall * (len(rows) + 1.5) + 4
    pen.text((8, below), foot, fill=INK, font=font(16), anchor="lm")
    return np.asarray(picture)


def drawn_subsets(elements: int, subsets: Sequence[Sequence[int]], rng: Generator) -> Array:
    """A grid: one row per subset, one column per element, a dot where the subset holds the element."""
    unit, left, top = 28, 44, 34
    width = left + unit * elements + 8
    height = top + unit * len(subsets) + 8
    picture, pen = _sheet(width, height, rng)
    columns = [left + unit * (element + 0.5) for element in range(elements)]
    for element, x in enumerate(columns, 1):
        _centred(pen, (x, top / 2), str(element), 15)
    for row, subset in enumerate(subsets):
        y = top + unit * (row + 0.5)
        _centred(pen, (left / 2, y), f"S{row + 1}", 15)
        for element, x in enumerate(columns, 1):
            pen.rectangle(_around(x, y, unit / 2), outline=FAINT)
            if element in subset:
                pen.ellipse(_around(x, y, 8), fill=(45, 100, 220))
    return np.asarray(picture)


def drawn_cards(numbers: Sequence[int], target: int, rng: Generator) -> Array:
    """Numbered cards with numbers on them, five in a row, and the target sum."""
    wide, tall = 66, 84
    rows = -(-len(numbers) // 5)  # rounded up
    picture, pen = _sheet(5 * wide + 10, rows * tall + 44, rng)
    for place, number in enumerate(numbers):
        row, column = divmod(place, 5)
        x, y = 5 + column * wide, row * tall
        card = (x + 4, y + 22, x + wide - 4, y + tall - 4)
        middle = x + wide / 2
        pen.rounded_rectangle(card, 6, fill=(250, 246, 220), outline=LINE)
        # The place stands above the card in red, so that it is not read as its number.
        _centred(pen, (middle, y + 11), str(place + 1), 13, (150, 40, 40))
        _centred(pen, (middle, y + 22 + (tall - 26) / 2), str(number), 26)
    below = rows * tall + 22
    pen.text((10, below), f"Target: {target}", fill=INK, font=font(20), anchor="lm")
    return np.asarray(picture)


def drawn_plan(instance: dict[str, Any], rng: Generator) -> Array:
    """The meetings and rooms as lines of text above bars for the free hours of each person."""
    people = instance["free"]
    lines = _plan_lines(instance)
    hour, left, bar = 34, 44, 24
    first, last = DAY
    top = 22 * len(lines) + 34
    width = left + hour * (last - first) + 20
    bottom = top + bar * len(people)
    picture, pen = _sheet(width, bottom + 8, rng)
    for line, text in enumerate(lines):
        pen.text((8, 12 + 22 * line), text, fill=INK, font=font(15), anchor="lm")
    for step in range(last - first + 1):
        x = left + hour * step
        pen.line((x, top, x, bottom), fill=FAINT)
        _centred(pen, (x, top - 10), str(first + step), 13)
    for person, spans in enumerate(people):
        y = top + bar * person
        _centred(pen, (left / 2, y + bar / 2), f"P{person + 1}", 14)
        for start, end in spans:
            x0, x1 = left + hour * (start - first), left + hour * (end - first)
            box = (x0, y + 4, x1, y + bar - 4)
            pen.rectangle(box, fill=(120, 190, 130), outline=(40, 110, 60))
    return np.asarray(picture)


def _plan_lines(instance: dict[str, Any]) -> list[str]:
    """One line per meeting, and one for all rooms."""
    lines = []
    meetings = zip(instance["durations"], instance["attendees"], strict=True)
    for number, (hours, who) in enumerate(meetings, 1):
        people = " ".join(f"P{person}" for person in who)
        lines.append(f"M{number}: {hours} h, {people}")
    rooms = [f"R{number}: {seats} seats" for number, seats in enumerate(instance["rooms"], 1)]
    return [*lines, ", ".join(rooms)]


def _sheet(width: int, height: int, rng: Generator) -> tuple[Image.Image, Pen]:
    """Nearly white paper."""
    shade = tuple(int(v) for v in rng.integers(236, 256, size=3))
    picture = Image.new("RGB", (width, height), shade)
    return picture, ImageDraw.Draw(picture)


def _node(pen: Pen, at: Point, text: str, radius: int) -> None:
    pen.ellipse(_around(*at, radius), fill=(255, 255, 255), outline=INK, width=2)
    _centred(pen, at, text, int(1.25 * radius))


def _around(x: float, y: float, reach: float) -> tuple[float, float, float, float]:
    """The box of a disc or a square with this centre."""
    return x - reach, y - reach, x + reach, y + reach


def _centred(
    pen: Pen,
    at: Point,
    text: str,
    size: int,
    colour: tuple[int, int, int] = INK,
) -> None:
    pen.text(at, text, fill=colour, font=font(size), anchor="mm")


def _ring(count: int, side: int, rng: Generator) -> Array:
    """float64 [count, 2]: places on a circle with jittered radius."""
    # Shuffled round the circle: neighbours in number are no neighbours in the picture.
    turn = 2 * np.pi * (rng.permutation(count) / count + rng.random())
    radius = (side / 2 - NODE - 6) * rng.uniform(0.93, 1.0, size=count)
    offsets = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    return side / 2 + offsets


def _is_clear(places: Array, edges: Edges) -> bool:
    """Does every edge keep its distance from all other nodes?"""
    if not edges:
        return True
    ends = np.asarray(edges) - 1
    start = places[ends[:, 0]]  # [E, 2]
    way = places[ends[:, 1]] - start
    offset = places[None, :, :] - start[:, None, :]  # [E, N, 2]
    # How far along the edge, from 0 to 1, its point nearest to the node lies.
    along = (offset * way[:, None]).sum(-1)
    share = np.clip(along / (way**2).sum(-1)[:, None], 0, 1)
    away = np.linalg.norm(offset - share[..., None] * way[:, None], axis=-1)  # [E, N]
    # The two nodes at its own ends are not in the way.
    away[np.arange(len(ends))[:, None], ends] = np.inf
    return float(away.min()) >= CLEAR
