"""Mosaic retrieval: which of n pictures holds this crop?

Reward: 1 for the right letter. Defences: all pictures are squares of one size; the pictures and the crop, each on its
own, get a flat histogram in every colour plane (`equalised`, knob `flatten`), so colour statistics tell nothing;
pictures that look alike are refused.
"""

from __future__ import annotations

from typing import ClassVar

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
    equalised,
    harmless_history,
    jittered,
    random_crop,
    resize,
    textureless,
)
from mmrl.ground.seeds import Streams


class MosaicTask(ChoiceTask):
    name = "mosaic"
    kinds = ("image", "rgbd", "document")
    knobs: ClassVar = {
        "pictures": Knob(4, (2, 4, 6, 8), help="Number of pictures."),
        "share": Knob(
            0.35, (0.5, 0.2), smooth=True, help="Side of the crop as a share of the picture."
        ),
        "flatten": Knob(True, help="Give every picture and the crop flat colour histograms."),
        "side": Knob(224, help="Side of each shown picture and of the crop, in pixels."),
    }
    wordings = (
        "The first image is an enlarged part of one of the pictures {letters}. Which one?",
        "Find the picture ({letters}) that contains the crop shown first.",
        "A detail was cut out of one of the images {letters} and enlarged (first image). Where does it come from?",
    )
    hint = "one letter"

    def media_count(self, knobs: Knobs) -> int:
        return int(knobs["pictures"])

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        side, flatten = int(knobs["side"]), bool(knobs["flatten"])
        squares = []
        for place, medium in enumerate(media):
            # A child per picture: one more picture changes nothing about the others.
            history = rng.child("picture", place)
            picture = harmless_history(medium.picture(), history, round(1.4 * side))
            edge = min(picture.shape[:2])
            square = random_crop(picture, edge, edge, rng.geometry)
            if square is None or edge < side / 2:
                return Reject("too-small")
            squares.append(square)
        small = [_shown(square, side, flatten, rng) for square in squares]
        if alike(small):
            return Reject("pictures-alike")
        chosen = int(rng.selection.integers(len(squares)))
        edge = squares[chosen].shape[0]
        reach = max(8, round(float(knobs["share"]) * edge))
        left, top = (int(rng.geometry.integers(edge - reach + 1)) for _ in range(2))
        crop = squares[chosen][top : top + reach, left : left + reach]
        if textureless(crop):
            return Reject("textureless")
        letters = lettered(len(squares))
        scale = side / edge
        right, bottom = round((left + reach) * scale), round((top + reach) * scale)
        box = (int(left * scale), int(top * scale), right, bottom)
        # Flattened on its own: with the histogram of its picture it would be found by colours alone.
        detail = jittered([_shown(crop, side, flatten, rng)], rng.appearance)[0]
        named = zip(letters, small, strict=True)
        options = [Visual(picture, label=f"{letter}:") for letter, picture in named]
        return Draft(
            visuals=(Visual(detail, label="Crop:"), *options),
            truth={"answer": letters[chosen], "options": letters},
            key=letters[chosen],
            fields={"letters": listed(letters)},
            evidence=(Evidence(0), Evidence(1 + chosen, (box,))),
        )

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["pictures"])


def _shown(picture: Array, side: int, flatten: bool, rng: Streams) -> Array:
    small = resize(picture, side, side)
    return equalised(small, rng.appearance) if flatten else small
