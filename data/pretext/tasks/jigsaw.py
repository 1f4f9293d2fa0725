"""Jigsaw: put the shuffled tiles of one picture back, any grid, with optional holes and turned pieces.

Answer: for each open place in reading order, the shown number of the piece that belongs there; with turned pieces, a
second list follows after a bar: for each open place, how many degrees the piece must be turned clockwise.
Reward (Visual Jigsaw, arXiv 2509.25190): 1 if all is right, else gamma times the share of right places for a valid
permutation, 0 otherwise. PuzzleCraft pays the plain share: gamma = 1.

Departures: (1) a gap is cut from every side of every tile, drawn per tile and side, and every tile gets its own small
change of brightness and colour, because touching borders solve the jigsaw without looking at content (gap 0 and jitter
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
from mmrl.data.pretext.craft.answer_forms import all_or_error, listed, shuffled_order
from mmrl.data.pretext.craft.degenerate_checks import (
    alike,
    cut_tiles,
    harmless_history,
    jittered,
    textureless,
)
from mmrl.data.pretext.craft.draws import repeatedly, some_of
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import is_permutation
from mmrl.ground.seeds import Streams

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

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
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
        # A third may be sky: those pieces are told apart by their neighbours' rest.
        if sum(textureless(tile) for tile in tiles) > count / 3:
            return Reject("textureless")
        if alike(tiles, turns=turned):
            return Reject("exchangeable-tiles")
        if knobs["jitter"]:
            tiles = jittered(tiles, rng.appearance, own=0.1)
        order = shuffled_order(count, rng.selection)
        turns = repeatedly(TURNS, count, rng.selection) if turned else [0] * count
        shown = [_rotated(tiles[piece], turns[piece]) for piece in order]
        open_count = count - int(knobs["given"])
        places = sorted(int(i) for i in rng.selection.permutation(count)[:open_count])
        position = {piece: shown_at for shown_at, piece in enumerate(order, 1)}
        answer = [position[place] for place in places]
        back = [(360 - turns[place]) % 360 for place in places]
        given = {place + 1: position[place] for place in range(count) if place not in places}
        truth = {"answer": answer, "pieces": sorted(answer), "gamma": float(knobs["gamma"])}
        if turned:
            truth["turns"] = back
        return Draft(
            visuals=tuple(Visual(tile, label=f"Piece {j}:") for j, tile in enumerate(shown, 1)),
            truth=truth,
            key=(*answer, *back) if turned else tuple(answer),
            fields=_words(rows, columns, given, turned),
            evidence=tuple(Evidence(j) for j in range(count)),
            meta={"order": order, "turns": turns},
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        count = len(truth["answer"])
        if "turns" not in truth:
            return parsing.integers(body, count)
        pieces, bar, angles = body.partition("|")
        if not bar:
            return ParseError("malformed", body[:40])
        return all_or_error((parsing.integers(pieces, count), parsing.integers(angles, count)))

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        pieces, turns = value if "turns" in truth else (value, ())
        known_turns = all(turn in TURNS for turn in turns)
        if not is_permutation(pieces, answer) or not known_turns:
            return Score(0.0, parts={"valid": 0.0})
        hits = [given == right for given, right in zip(pieces, answer, strict=True)]
        if turns:
            # A place is right only with the right piece set upright.
            upright = zip(turns, truth["turns"], strict=True)
            hits = [hit and a == b for hit, (a, b) in zip(hits, upright, strict=True)]
        share = sum(hits) / len(hits)
        reward = 1.0 if share == 1.0 else float(truth["gamma"]) * share
        parts = {"valid": 1.0, "placed": share}
        return Score(reward, share == 1.0, parts, (*pieces, *turns))

    def format(self, truth: Truth) -> str:
        return _written(truth["answer"], truth.get("turns"))

    def guess(self, truth: Truth, rng: Generator) -> str:
        # Turns first: the order of the draws is part of the format.
        turns = repeatedly(TURNS, len(truth["turns"]), rng) if "turns" in truth else None
        pieces = some_of(truth["pieces"], len(truth["pieces"]), rng)
        return _written(pieces, turns)

    def chance(self, knobs: Knobs) -> float:
        count = _open(knobs)
        orders = factorial(count)
        return 1.0 / (orders * 4**count) if knobs["turned"] else 1.0 / orders

    def chance_reward(self, knobs: Knobs) -> float:
        exact = self.chance(knobs)
        # A random permutation has one piece in its place on average; one in four is also turned right.
        hit = 1.0 / (_open(knobs) * (4 if knobs["turned"] else 1))
        return exact + float(knobs["gamma"]) * (hit - exact)


def _open(knobs: Knobs) -> int:
    return int(knobs["rows"]) * int(knobs["columns"]) - int(knobs["given"])


def _rotated(tile: Array, degrees: int) -> Array:
    """Turned clockwise, pixels only moved."""
    return np.ascontiguousarray(np.rot90(tile, -degrees // 90))


def _written(pieces: Sequence[int], turns: Sequence[int] | None) -> str:
    return listed(pieces) if turns is None else f"{listed(pieces)} | {listed(turns)}"


def _words(rows: int, columns: int, given: dict[int, int], turned: bool) -> dict[str, Any]:
    facts = "; ".join(f"piece {piece} at place {place}" for place, piece in given.items())
    known = f" Already known (places count from 1 in reading order): {facts}."
    may_be_turned = " Each piece may also have been turned by 0, 90, 180 or 270 degrees."
    form = "the piece numbers in that order, separated by commas"
    if turned:
        form += ", then a bar | and for each of these places the clockwise turn in degrees that sets its piece upright"
    return {
        "rows": rows,
        "columns": columns,
        "count": rows * columns,
        "open": "open " if given else "",
        "given": known if given else "",
        "turned": may_be_turned if turned else "",
        "form": form,
    }
