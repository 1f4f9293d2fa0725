"""Relative position: where in the picture does crop B lie, seen from crop A? (context prediction, Doersch 2015)

Four or eight directions; reward 1 for the right one. Defences: a gap of at least 20 % of the crop's side between the
crops; the channel shift and radial gain of `harmless_history` against lens cues; a square region is used and the second
place is constructed rather than searched, so every direction is equally likely whatever the picture; both crops get
their own small colour jitter.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from mmrl.data.pretext.contract import (
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.answer_forms import ChoiceTask, listed
from mmrl.data.pretext.craft.degenerate_checks import (
    alike,
    harmless_history,
    jittered,
    random_crop,
    textureless,
)
from mmrl.data.pretext.marking import parsing
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.ground.seeds import Streams

DIRECTIONS = {
    4: ("right", "below", "left", "above"),
    8: (
        *("right", "below right", "below", "below left"),
        *("left", "above left", "above", "above right"),
    ),
}
"""Clockwise from the right, as angles grow where y points down."""
SPREAD = {4: 25.0, 8: 9.0}
"""Largest angle between the drawn and the named direction, in degrees."""


class RelativePositionTask(ChoiceTask):
    name = "relative-position"
    kinds = ("image", "rgbd", "document")
    knobs: ClassVar = {
        "directions": Knob(8, (4, 4, 8, 8), help="How many directions.", allowed=(4, 8)),
        "size": Knob(
            0.28,
            (0.3, 0.22),
            smooth=True,
            help="Side of a crop as a share of the square region.",
        ),
        "unit": Knob(28, help="Crop sides are multiples of this."),
        "side": Knob(448, help="Longest side of the picture in pixels."),
    }
    wordings = (
        "Two crops of one picture are shown. Where was crop B, seen from crop A? Choose from: {names}.",
        "Crops A and B were cut from the same image at the same scale. In which direction from A lies B ({names})?",
        "Imagine the picture both crops come from. Seen from crop A, where is crop B? Options: {names}.",
    )
    hint = "one of the named directions"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        names, unit = DIRECTIONS[int(knobs["directions"])], int(knobs["unit"])
        picture = harmless_history(media[0].picture(), rng, int(knobs["side"]))
        edge = min(picture.shape[:2])
        # A square: in a wide picture crops beside each other would be more frequent than crops above each other.
        square = random_crop(picture, edge, edge, rng.geometry)
        side = int(edge * float(knobs["size"])) // unit * unit
        if square is None or side < unit or 2.2 * side > edge:
            return Reject("too-small")
        choice = int(rng.selection.integers(len(names)))
        spread = float(rng.geometry.uniform(-1, 1)) * SPREAD[len(names)]
        angle = np.deg2rad(choice * 360 / len(names) + spread)
        ahead = np.array([np.cos(angle), np.sin(angle)])
        # The longer component decides both: when the crops keep their gap, and when the second leaves the square.
        reach = np.abs(ahead).max()
        step = ahead * float(rng.geometry.uniform(1.2 * side / reach, (edge - side) / reach))
        low = np.maximum(0.0, -step)
        start = low + rng.geometry.uniform(size=2) * (edge - side - np.abs(step))
        boxes = []
        for corner in (start, start + step):
            x, y = (int(v) for v in corner)
            boxes.append((x, y, x + side, y + side))
        crops = [square[y0:y1, x0:x1] for x0, y0, x1, y1 in boxes]
        if any(textureless(crop) for crop in crops) or alike(crops):
            return Reject("textureless")
        shown = jittered(crops, rng.appearance)
        return Draft(
            visuals=(Visual(shown[0], label="Crop A:"), Visual(shown[1], label="Crop B:")),
            truth={"answer": names[choice], "options": list(names)},
            key=names[choice],
            fields={"names": listed(names)},
            evidence=(Evidence(0), Evidence(1)),
            meta={"boxes": [list(box) for box in boxes], "edge": edge},
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        # "below-left" is as good as "below left".
        words = body.replace("-", " ").split()
        return parsing.choice(" ".join(words), truth["options"])

    def option_count(self, knobs: Knobs) -> int:
        return int(knobs["directions"])
