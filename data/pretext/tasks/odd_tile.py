"""Odd tile out: one tile of a picture was mirrored, turned over, recoloured or exchanged. Which one?

The picture is shown in place, cut into a grid whose tiles are separated by grey lines. Reward: 1 for the right number.

Departures and defences: a ring is cut from every tile before the grid is drawn, so the changed tile cannot be found by
broken borders alone; every tile gets its own small colour jitter; a tile that a mirror or a turn hardly changes is not
chosen; which tile is drawn first, uniformly, so every place is equally likely.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mmrl.data.pretext.contract import (
    Array,
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
from mmrl.data.pretext.craft.canvas import grid_canvas
from mmrl.data.pretext.craft.degenerate_checks import (
    cut_tiles,
    difference,
    harmless_history,
    jittered,
    random_crop,
    resize,
    thumbnail,
)
from mmrl.data.pretext.craft.draws import one_of
from mmrl.ground.seeds import Streams

CHANGES = ("foreign", "recolour", "turn", "mirror")
WORDS = {
    "foreign": "comes from another picture",
    "recolour": "has changed colours",
    "turn": "was turned upside down",
    "mirror": "was mirrored left to right",
}
VISIBLE = 8.0
"""Smallest mean change of the chosen tile, in grey levels."""


class OddTileTask(ChoiceTask):
    name = "odd-tile"
    kinds = ("image", "rgbd", "document")
    intended = ("boundary", "histogram")
    knobs: ClassVar = {
        "rows": Knob(3, (2, 2, 3, 3), help="Rows of the grid."),
        "columns": Knob(3, (2, 3, 3, 4), help="Columns of the grid."),
        "change": Knob("any", help="What happened to the odd tile.", allowed=("any", *CHANGES)),
        "told": Knob(True, (True, False), help="Say in the question what happened."),
        "gap": Knob(0.1, help="Mean share of a tile's side cut off at each side."),
        "unit": Knob(28, help="Tile sides are multiples of this."),
        "side": Knob(448, help="Longest side of the picture that is cut, in pixels."),
    }
    wordings = (
        "The picture is cut into {rows} rows and {columns} columns of tiles, counted from 1 in reading order."
        " One tile {what}. Which one?",
        "Tiles are numbered left to right, top to bottom ({rows}×{columns}, starting at 1). Exactly one {what}."
        " Give its number.",
        "In this {rows} by {columns} grid one tile {what}. Counting from 1 in reading order, which tile is it?",
    )
    hint = "the number of the tile"

    def media_count(self, knobs: Knobs) -> int:
        return 2 if knobs["change"] in ("any", "foreign") else 1

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        rows, columns = int(knobs["rows"]), int(knobs["columns"])
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"]))
        gap, unit = float(knobs["gap"]), int(knobs["unit"])
        tiles = cut_tiles(picture, rows, columns, gap, unit, rng.geometry)
        if tiles is None:
            return Reject("too-small")
        chosen = str(knobs["change"])
        change = one_of(CHANGES, rng.selection) if chosen == "any" else chosen
        # The tile is drawn before anybody looks whether the change shows on it: every place stays equally likely.
        odd = int(rng.selection.integers(len(tiles)))
        foreign = media[1].picture() if change == "foreign" else None
        made = _changed(tiles[odd], change, foreign, rng)
        if made is None or difference(thumbnail(made), thumbnail(tiles[odd])) < VISIBLE:
            return Reject("change-not-visible")
        tiles[odd] = made
        canvas, boxes = grid_canvas(jittered(tiles, rng.appearance, own=0.08), columns)
        answer = str(odd + 1)
        return Draft(
            visuals=(Visual(canvas),),
            truth={"answer": answer, "options": [str(i + 1) for i in range(len(tiles))]},
            key=answer,
            fields={
                "rows": rows,
                "columns": columns,
                "what": WORDS[change] if knobs["told"] else "does not belong or was changed",
            },
            evidence=(Evidence(0, (boxes[odd],)),),
            meta={"change": change},
        )

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["rows"]) * int(knobs["columns"])


def _changed(tile: Array, change: str, foreign: Array | None, rng: Streams) -> Array | None:
    height, width = tile.shape[:2]
    if change == "mirror":
        return np.ascontiguousarray(tile[:, ::-1])
    if change == "turn":
        return np.ascontiguousarray(tile[::-1, ::-1])
    if change == "recolour":
        return np.roll(tile, int(rng.appearance.integers(1, 3)), axis=2)
    assert foreign is not None, "a foreign tile needs a second picture"
    # A quarter to half of the other picture: at the scale of the tiles beside it.
    scale = float(rng.geometry.uniform(0.25, 0.5))
    tall, wide = (int(length * scale) for length in foreign.shape[:2])
    if min(tall, wide) < 16:
        return None
    crop = random_crop(foreign, wide, tall, rng.geometry)
    return None if crop is None else resize(crop, width, height)
