"""NP-hard instances as pictures: a map of dots, a drawn graph, a table, a grid of dots, a day plan.

Graphs stand on a circle with jittered radius, redrawn until no edge passes within `CLEAR` pixels of another node and no
two nodes touch, so that every edge can be followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.lettering import font
from mmrl.data.pretext.craft.np_selection import DAY

LARGEST = 16
"""Most nodes of a drawn graph."""
CLEAR = 17.0
"""Pixels between an edge and the centre of any other node."""
NODE = 13
"""Radius of a drawn node."""
INK, LINE = (20, 20, 20), (120, 120, 120)


def drawn_map(points: Sequence[Sequence[int]], rng: np.random.Generator) -> Array:
    """Numbered dots on squared paper; one square is one unit."""
    unit, edge, span = 16, 24, 20
    side = span * unit + 2 * edge
    picture, pen = _sheet(side, side, rng)
    for step in range(span + 1):
        at = edge + step * unit
        pen.line((at, edge, at, side - edge), fill=(222, 222, 222))
        pen.line((edge, at, side - edge, at), fill=(222, 222, 222))
    for number, (x, y) in enumerate(points, 1):
        _node(pen, (edge + unit * x, side - edge - unit * y), str(number), 10)
    return np.asarray(picture)


def drawn_graph(
    count: int, edges: Sequence[Sequence[int]], rng: np.random.Generator
) -> Array | None:
    """Numbered nodes joined by lines; None if no clear drawing was found in 30 tries."""
    side = 340 if count <= 12 else 420
    for _ in range(30):
        places = _ring(count, side, rng)
        if _is_clear(places, edges):
            picture, pen = _sheet(2 * side, 2 * side, rng)
            for a, b in edges:
                ends = [tuple(2 * places[node - 1]) for node in (a, b)]
                pen.line([(float(x), float(y)) for x, y in ends], fill=(70, 70, 70), width=4)
            small = picture.reduce(2)
            pen = ImageDraw.Draw(small)
            for number, (x, y) in enumerate(places, 1):
                _node(pen, (float(x), float(y)), str(number), NODE)
            return np.asarray(small)
    return None


def drawn_rows(
    header: Sequence[str], rows: Sequence[Sequence[str]], foot: str, rng: np.random.Generator
) -> Array:
    """A table with a line of text below it."""
    wide, tall = 78, 26
    width = max(wide * len(header), 10 * len(foot) + 20)
    picture, pen = _sheet(width + 1, tall * (len(rows) + 2) + 8, rng)
    for line, entries in enumerate([header, *rows]):
        y = line * tall
        pen.line((0, y + tall, wide * len(header), y + tall), fill=LINE)
        for place, entry in enumerate(entries):
            size = 13 if line == 0 else 15
            pen.text(
                (wide * (place + 0.5), y + tall / 2),
                entry,
                fill=INK,
                font=font(size),
                anchor="mm",
            )
    pen.text((8, tall * (len(rows) + 1.5) + 4), foot, fill=INK, font=font(16), anchor="lm")
    return np.asarray(picture)


def drawn_subsets(
    elements: int, subsets: Sequence[Sequence[int]], rng: np.random.Generator
) -> Array:
    """A grid: one row per subset, one column per element, a dot where the subset holds the element."""
    unit, left, top = 28, 44, 34
    picture, pen = _sheet(left + unit * elements + 8, top + unit * len(subsets) + 8, rng)
    for element in range(elements):
        x = left + unit * (element + 0.5)
        pen.text((x, top / 2), str(element + 1), fill=INK, font=font(15), anchor="mm")
    for row, subset in enumerate(subsets):
        y = top + unit * (row + 0.5)
        pen.text((left / 2, y), f"S{row + 1}", fill=INK, font=font(15), anchor="mm")
        for element in range(elements):
            x = left + unit * (element + 0.5)
            pen.rectangle(
                (x - unit / 2, y - unit / 2, x + unit / 2, y + unit / 2),
                outline=(205, 205, 205),
            )
            if element + 1 in subset:
                pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(45, 100, 220))
    return np.asarray(picture)


def drawn_cards(numbers: Sequence[int], target: int, rng: np.random.Generator) -> Array:
    """Numbered cards with numbers on them, five in a row, and the target sum."""
    wide, tall = 66, 84
    rows = -(-len(numbers) // 5)
    picture, pen = _sheet(5 * wide + 10, rows * tall + 44, rng)
    for place, number in enumerate(numbers):
        x, y = 5 + place % 5 * wide, place // 5 * tall
        pen.rounded_rectangle(
            (x + 4, y + 22, x + wide - 4, y + tall - 4), 6, fill=(250, 246, 220), outline=LINE
        )
        pen.text(
            (x + wide / 2, y + 11),
            str(place + 1),
            fill=(150, 40, 40),
            font=font(13),
            anchor="mm",
        )
        pen.text(
            (x + wide / 2, y + 22 + (tall - 26) / 2),
            str(number),
            fill=INK,
            font=font(26),
            anchor="mm",
        )
    pen.text((10, rows * tall + 22), f"Target: {target}", fill=INK, font=font(20), anchor="lm")
    return np.asarray(picture)


def drawn_plan(instance: dict[str, Any], rng: np.random.Generator) -> Array:
    """The meetings and rooms as lines of text above bars for the free hours of each person."""
    people, meetings = (
        instance["free"],
        list(zip(instance["durations"], instance["attendees"], strict=True)),
    )
    rooms = ", ".join(f"R{i + 1}: {seats} seats" for i, seats in enumerate(instance["rooms"]))
    lines = [
        f"M{i + 1}: {hours} h, P{' P'.join(map(str, who))}"
        for i, (hours, who) in enumerate(meetings)
    ]
    hour, left, bar = 34, 44, 24
    first, last = DAY
    top = 22 * (len(lines) + 1) + 34
    picture, pen = _sheet(left + hour * (last - first) + 20, top + bar * len(people) + 8, rng)
    for line, text in enumerate([*lines, rooms]):
        pen.text((8, 12 + 22 * line), text, fill=INK, font=font(15), anchor="lm")
    for step in range(last - first + 1):
        x = left + hour * step
        pen.line((x, top, x, top + bar * len(people)), fill=(205, 205, 205))
        pen.text((x, top - 10), str(first + step), fill=INK, font=font(13), anchor="mm")
    for person, spans in enumerate(people):
        y = top + bar * person
        pen.text(
            (left / 2, y + bar / 2), f"P{person + 1}", fill=INK, font=font(14), anchor="mm"
        )
        for start, end in spans:
            box = (
                left + hour * (start - first),
                y + 4,
                left + hour * (end - first),
                y + bar - 4,
            )
            pen.rectangle(box, fill=(120, 190, 130), outline=(40, 110, 60))
    return np.asarray(picture)


def _sheet(
    width: int, height: int, rng: np.random.Generator
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Nearly white paper."""
    shade = tuple(int(v) for v in rng.integers(236, 256, size=3))
    picture = Image.new("RGB", (width, height), shade)
    return picture, ImageDraw.Draw(picture)


def _node(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, radius: int) -> None:
    x, y = at
    pen.ellipse(
        (x - radius, y - radius, x + radius, y + radius),
        fill=(255, 255, 255),
        outline=INK,
        width=2,
    )
    pen.text((x, y), text, fill=INK, font=font(int(1.25 * radius)), anchor="mm")


def _ring(count: int, side: int, rng: np.random.Generator) -> Array:
    """float64 [count, 2]: places on a circle with jittered radius."""
    turn = 2 * np.pi * (rng.permutation(count) / count + rng.random())
    radius = (side / 2 - NODE - 6) * rng.uniform(0.93, 1.0, size=count)
    return side / 2 + np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)


def _is_clear(places: Array, edges: Sequence[Sequence[int]]) -> bool:
    """Does every edge keep its distance from all other nodes?"""
    if not edges:
        return True
    ends = np.asarray(edges) - 1
    start, way = places[ends[:, 0]], places[ends[:, 1]] - places[ends[:, 0]]
    offset = places[None, :, :] - start[:, None, :]
    share = np.clip((offset * way[:, None]).sum(-1) / (way**2).sum(-1)[:, None], 0, 1)
    away = np.linalg.norm(offset - share[..., None] * way[:, None], axis=-1)
    away[np.arange(len(ends))[:, None], ends] = np.inf
    return float(away.min()) >= CLEAR
