"""Jigsaw: put the shuffled tiles of one picture back, any grid, with optional holes and turned pieces.

Answer: for each open place in reading order, the shown number of the piece that belongs there; with turned pieces, a
second list follows after a bar: for each open place, how many degrees the piece must be turned clockwise.
Reward (Visual Jigsaw, arXiv 2509.25190): 1 if all is right, else gamma times the share of right places for a valid
permutation, 0 otherwise. PuzzleCraft pays the plain share: gamma = 1.

Departures: (1) a gap is cut from every side of every tile, drawn per tile and side, and every tile gets its own small
change of brightness and colour, because touching borders solve the puzzle without looking at content (gap 0 and jitter
off restore the papers' tiles); (2) all tiles have one size, a multiple of `unit`, after an off-centre crop; official
code gives the first row and column one pixel more, which tells the place; (3) from four pieces on the permutation is
never the identity; (4) entries must be a true permutation of 1..K, official code asks for distinct values only;
(5) pictures with exchangeable or textureless tiles are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import Any, ClassVar

import numpy as np

from mmrl.data.pretext.contract import (
    Array,
    Draft,
    Evidence,
    Knob,
    Knobs,
    Medium,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.degenerate_checks import (
    alike,
    cut_tiles,
    harmless_history,
    jittered,
    textureless,
)
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.craft.rng import Streams
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import is_permutation

TURNS = (0, 90, 180, 270)


class JigsawTask(Task):
    name = "jigsaw"
    kinds = ("image", "rgbd", "document")
    knobs: ClassVar = {
        "rows": Knob(3, (1, 2, 2, 3, 3), help="Rows of the grid."),
        "columns": Knob(3, (2, 2, 3, 3, 4), help="Columns of the grid."),
        "gap": Knob(
            0.15,
            (0.12, 0.18),
            smooth=True,
            help="Mean share of a tile's side cut off at each side.",
        ),
        "jitter": Knob(
            True, help="Give every piece its own small change of brightness and colour."
        ),
        "given": Knob(0, help="Pieces whose place is already told (partial fill)."),
        "turned": Knob(False, help="Turn each piece by a multiple of 90 degrees."),
        "gamma": Knob(0.2, help="Pay for partly right answers."),
        "unit": Knob(28, help="Tile sides are multiples of this (the model's patch unit)."),
        "side": Knob(672, help="Longest side of the picture that is cut, in pixels."),
    }
    wordings = (
        "One picture was cut into a grid of {rows} rows and {columns} columns; its {count} pieces are shown in random"
        " order, numbered from 1.{given}{turned} Which piece belongs to each {open}place, in reading order?",
        "The {count} numbered images above are the shuffled tiles of a {rows}×{columns} picture (rows × columns)."
        "{given}{turned} Restore it: list the number of the tile for every {open}place, left to right, top to bottom.",
        "Imagine reassembling the {count} tiles into a picture with {rows} rows and {columns} columns.{given}{turned}"
        " Name the tile at each {open}place, row by row.",
    )
    hint = "{form}"

    def propose(self, media: Sequence[Medium], knobs: Knobs, rng: Streams) -> Draft | Reject:
        rows, columns = int(knobs["rows"]), int(knobs["columns"])
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"]))
        turned = bool(knobs["turned"])
        tiles = cut_tiles(
            picture,
            rows,
            columns,
            float(knobs["gap"]),
            int(knobs["unit"]),
            rng.geometry,
            square=turned,
        )
        if tiles is None:
            return Reject("too-small")
        count = rows * columns
        if sum(textureless(tile) for tile in tiles) > count / 3:
            return Reject("textureless")
        if alike(tiles, turns=turned):
            return Reject("exchangeable-tiles")
        if knobs["jitter"]:
            tiles = jittered(tiles, rng.appearance, own=0.1)
        order = _shuffled(rng.selection, count)
        turns = (
            [TURNS[int(i)] for i in rng.selection.integers(4, size=count)]
            if turned
            else [0] * count
        )
        shown = [_rotated(tiles[i], turns[i]) for i in order]
        places = sorted(
            int(i) for i in rng.selection.permutation(count)[: count - int(knobs["given"])]
        )
        position = {int(piece): j + 1 for j, piece in enumerate(order)}
        answer = [position[i] for i in places]
        back = [(360 - turns[i]) % 360 for i in places]
        told = {i + 1: position[i] for i in range(count) if i not in places}
        truth = {"answer": answer, "pieces": sorted(answer), "gamma": float(knobs["gamma"])}
        truth |= {"turns": back} if turned else {}
        return Draft(
            visuals=tuple(
                Visual(tile, label=f"Piece {j + 1}:") for j, tile in enumerate(shown)
            ),
            truth=truth,
            key=(*answer, *(back if turned else ())),
            fields=_words(rows, columns, told, turned, len(places)),
            evidence=tuple(Evidence(j) for j in range(count)),
            meta={"order": [int(i) for i in order], "turns": turns},
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        count = len(truth["answer"])
        if "turns" not in truth:
            return parsing.integers(body, count)
        pieces, bar, angles = body.partition("|")
        if not bar:
            return ParseError("malformed", body[:40])
        first, second = parsing.integers(pieces, count), parsing.integers(angles, count)
        return next(
            (part for part in (first, second) if isinstance(part, ParseError)), (first, second)
        )

    def verify(self, value: Any, truth: Truth) -> Score:
        pieces, turns = value if "turns" in truth else (value, None)
        if not is_permutation(pieces, truth["answer"]) or any(
            turn not in TURNS for turn in turns or ()
        ):
            return Score(0.0, parts={"valid": 0.0})
        hits = [a == b for a, b in zip(pieces, truth["answer"], strict=True)]
        if turns is not None:
            hits = [
                hit and a == b for hit, a, b in zip(hits, turns, truth["turns"], strict=True)
            ]
        share = sum(hits) / len(hits)
        reward = 1.0 if share == 1.0 else float(truth["gamma"]) * share
        return Score(
            reward, share == 1.0, {"valid": 1.0, "placed": share}, (*pieces, *(turns or ()))
        )

    def format(self, truth: Truth) -> str:
        return _written(truth["answer"], truth.get("turns"))

    def guess(self, truth: Truth, rng: np.random.Generator) -> str:
        turns = (
            [TURNS[int(i)] for i in rng.integers(4, size=len(truth["turns"]))]
            if "turns" in truth
            else None
        )
        return _written(some_of(truth["pieces"], len(truth["pieces"]), rng), turns)

    def chance(self, knobs: Knobs) -> float:
        count = _open(knobs)
        return 1.0 / (factorial(count) * (4**count if knobs["turned"] else 1))

    def chance_reward(self, knobs: Knobs) -> float:
        exact, hit = self.chance(knobs), 1.0 / (_open(knobs) * (4 if knobs["turned"] else 1))
        return exact + float(knobs["gamma"]) * (hit - exact)


def _open(knobs: Knobs) -> int:
    return int(knobs["rows"]) * int(knobs["columns"]) - int(knobs["given"])


def _shuffled(rng: np.random.Generator, count: int) -> Array:
    """A uniform permutation; from four pieces on never the identity (below, that would give the answer away)."""
    while True:
        order = rng.permutation(count)
        if count < 4 or np.any(order != np.arange(count)):
            return order


def _rotated(tile: Array, degrees: int) -> Array:
    """Turned clockwise, pixels only moved."""
    return np.ascontiguousarray(np.rot90(tile, -degrees // 90))


def _written(pieces: Sequence[int], turns: Sequence[int] | None) -> str:
    text = ", ".join(map(str, pieces))
    return text if turns is None else f"{text} | {', '.join(map(str, turns))}"


def _words(
    rows: int, columns: int, told: dict[int, int], turned: bool, count: int
) -> dict[str, Any]:
    facts = "; ".join(f"piece {piece} at place {place}" for place, piece in told.items())
    form = "the piece numbers in that order, separated by commas"
    if turned:
        form += ", then a bar | and for each of these places the clockwise turn in degrees that sets its piece upright"
    return {
        "rows": rows,
        "columns": columns,
        "count": rows * columns,
        "open": "open " if told else "",
        "given": f" Already known (places count from 1 in reading order): {facts}."
        if told
        else "",
        "turned": " Each piece may also have been turned by 0, 90, 180 or 270 degrees."
        if turned
        else "",
        "form": form,
    }
