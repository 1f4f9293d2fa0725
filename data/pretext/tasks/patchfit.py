"""PatchFit: which of the shown pieces fills the hole in the picture? (PuzzleCraft, arXiv 2512.14944)

Options are the true piece, a piece from elsewhere, and mirrored, turned and recoloured versions of both.
Reward: 1 for the right letter.

Departures: (1) a ring of 10 to 20 % of the piece's side is lost around it, and every option has its own small change
of brightness and colour, so its border does not continue the hole's; (2) the options form two families of equal size,
one around the true piece and one around the other piece, changed by the same transformations, and the untransformed
member stands at a random place of its family: among the options alone the true piece is neither the centre nor the only
original; (3) transformations are quarter turns and mirrors (pixels only move) and cyclic exchanges of the colour
planes, so resampling and file history are equal; at least half of the options keep the original colours; (4) options
closer than 6 grey levels to each other are refused.
"""

from __future__ import annotations

from typing import ClassVar

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
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, lettered, listed
from mmrl.data.pretext.craft.degenerate_checks import (
    alike,
    difference,
    harmless_history,
    jittered,
    textureless,
    thumbnail,
)
from mmrl.ground.seeds import Streams

APART = 6.0
"""Smallest mean absolute difference between two options, in grey levels."""
Change = tuple[int, bool, int]
"""Quarter turns, mirrored, steps on the colour circle (0 to 2)."""


class PatchFitTask(ChoiceTask):
    name = "patchfit"
    kinds = ("image", "rgbd", "document")
    intended = ("boundary", "histogram")
    knobs: ClassVar = {
        "decoys": Knob(3, (3, 3, 5, 7), help="Wrong options.", allowed=(3, 5, 7)),
        "similar": Knob(
            False,
            (False, True),
            help="Take the other piece from where the picture looks most alike.",
        ),
        "size": Knob(
            0.3,
            (0.36, 0.3, 0.22),
            smooth=True,
            help="Side of the piece as a share of the short side.",
        ),
        "unit": Knob(28, help="The side of the piece is a multiple of this."),
        "side": Knob(448, help="Longest side of the picture in pixels."),
    }
    wordings = (
        "A square was cut out of the first picture and painted grey. Which of the pieces {letters} fills the hole?",
        "The first image has a grey hole; the images {letters} are candidates for the missing part. Exactly one fits,"
        " unchanged and upright. Which one?",
        "Choose the piece ({letters}) that belongs in the grey square of the first picture.",
    )
    hint = "one letter"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"]))
        height, width = picture.shape[:2]
        unit = int(knobs["unit"])
        piece = int(min(height, width) * float(knobs["size"])) // unit * unit
        ring = max(2, round(float(rng.geometry.uniform(0.1, 0.2)) * piece))
        hole = piece + 2 * ring
        if piece < unit or hole > min(height, width) // 2:
            return Reject("too-small")
        top = int(rng.geometry.integers(height - hole + 1))
        left = int(rng.geometry.integers(width - hole + 1))
        # The ring around the piece is lost: its border does not continue that of the hole.
        true = picture[top + ring : top + ring + piece, left + ring : left + ring + piece]
        if textureless(true):
            return Reject("textureless")
        other = _elsewhere(picture, true, (top, left, hole), bool(knobs["similar"]), rng)
        if other is None:
            return Reject("no-other-piece")
        count = int(knobs["decoys"]) + 1
        # Both families are changed alike, so that among the options alone neither is the original one.
        changes = _family(count // 2, rng.selection)
        pieces = [changed(base, change) for base in (true, other) for change in changes]
        origin = changes.index((0, False, 0))
        if alike(pieces, threshold=APART):
            return Reject("options-alike")
        order = [int(i) for i in rng.selection.permutation(count)]
        holed = picture.copy()
        holed[top : top + hole, left : left + hole] = 128
        pieces, letters = jittered(pieces, rng.appearance, own=0.08), lettered(count)
        right = order.index(origin)
        named = zip(letters, order, strict=True)
        options = [Visual(pieces[option], label=f"{letter}:") for letter, option in named]
        hole_box = (left, top, left + hole, top + hole)
        return Draft(
            visuals=(Visual(holed, label="Picture:"), *options),
            truth={"answer": letters[right], "options": letters},
            key=letters[right],
            fields={"letters": listed(letters)},
            evidence=(Evidence(0, (hole_box,)), Evidence(1 + right)),
            meta={
                "changes": [list(change) for change in changes],
                "order": order,
                "hole": [left, top, hole, ring],
            },
        )

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["decoys"]) + 1


def changed(piece: Array, change: Change) -> Array:
    """A piece turned, mirrored and with its colour planes cycled; pixels only move between places and planes."""
    turns, mirrored, hue = change
    out = np.rot90(piece, turns)
    out = out[:, ::-1] if mirrored else out
    return np.ascontiguousarray(np.roll(out, hue, axis=2))


def _family(size: int, rng: Generator) -> list[Change]:
    """`size` changes with the identity at a random place among them: a random set of group elements relative to one of
    its members. At most one colour change, so at least half of the options keep their colours."""
    while True:
        turns = [int(element) for element in rng.permutation(8)[:size]]
        colours = [0] * size
        if rng.random() < 0.5:
            # The colour is drawn before its place.
            colour = int(rng.integers(1, 3))
            colours[int(rng.integers(size))] = colour
        member = int(rng.integers(size))
        # A recoloured member cannot be the identity; everything is drawn again.
        if colours[member] == 0:
            origin = turns[member]
            pairs = zip(turns, colours, strict=True)
            return [_relative(element, origin, colour) for element, colour in pairs]


def _relative(element: int, origin: int, colour: int) -> Change:
    """element ∘ origin⁻¹ in the group of the square, elements numbered mirrored·4 + quarter turns (turned first)."""
    mirror_a, turn_a = divmod(element, 4)
    mirror_b, turn_b = divmod(origin, 4)
    # A mirror reverses the turns that come before it: their difference changes its sign.
    if mirror_b:
        return ((turn_b - turn_a) % 4, not mirror_a, colour)
    return ((turn_a - turn_b) % 4, bool(mirror_a), colour)


def _elsewhere(
    picture: Array, true: Array, hole: tuple[int, int, int], similar: bool, rng: Streams
) -> Array | None:
    """A textured piece of the same size that does not touch the hole: the most alike of 12 places, or any."""
    (top, left, reach), side = hole, true.shape[0]
    height, width = picture.shape[:2]
    mean = true.mean(axis=(0, 1))
    found: list[tuple[float, Array]] = []
    for _ in range(48 if similar else 24):
        y = int(rng.selection.integers(height - side + 1))
        x = int(rng.selection.integers(width - side + 1))
        if top - side < y < top + reach and left - side < x < left + reach:
            continue
        piece = picture[y : y + side, x : x + side]
        if not textureless(piece) and difference(thumbnail(piece), thumbnail(true)) >= APART:
            # Alike in colour, though not in content: colour alone must not rule the piece out.
            away = np.abs(piece.mean(axis=(0, 1)) - mean).mean()
            found.append((float(away), piece))
        if found and (not similar or len(found) == 12):
            break
    return min(found, key=lambda entry: entry[0])[1] if found else None
