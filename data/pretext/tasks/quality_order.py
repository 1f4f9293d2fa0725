"""Quality order: arrange copies of one picture by blur, noise or brightness.

Answer: the shown numbers from least to most. Reward: 1, else gamma times the share of right places. Neighbouring levels
differ by the factor `ratio`. Every copy is its own crop, a few pixels apart, so that no two copies can be subtracted.
Measuring sharpness is what the task asks for: the sharpness auditor is intended.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

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
from mmrl.data.pretext.craft.answer_forms import OrderTask
from mmrl.data.pretext.craft.degenerate_checks import (
    harmless_history,
    random_crop,
    resize,
    textureless,
)
from mmrl.data.pretext.craft.draws import one_of
from mmrl.ground.seeds import Streams

KINDS = ("blur", "noise", "brightness")
WORDS = {
    "blur": "from the sharpest to the most blurred",
    "noise": "from the cleanest to the noisiest",
    "brightness": "from the darkest to the brightest",
}


class QualityOrderTask(OrderTask):
    name = "quality-order"
    kinds = ("image", "rgbd", "document")
    intended = ("sharpness", "histogram")
    knobs: ClassVar = {
        "copies": Knob(4, (3, 3, 4, 5), help="Number of copies."),
        "kind": Knob("any", help="What differs.", allowed=("any", *KINDS)),
        "ratio": Knob(
            1.7, (2.2, 1.35), smooth=True, help="Factor between neighbouring levels."
        ),
        "gamma": Knob(0.2, help="Pay for partly right orders."),
        "side": Knob(224, help="Side of each shown copy in pixels."),
    }
    wordings = (
        "The {count} numbered images are copies of one picture. Arrange them {what}.",
        "Sort the copies 1 to {count} {what}.",
        "The same image is shown {count} times with different quality. Order the numbers {what}.",
    )
    hint = "all the numbers in that order, separated by commas"

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        side, count = int(knobs["side"]), int(knobs["copies"])
        picture = harmless_history(media[0].picture(), rng, 2 * side)
        edge = min(picture.shape[:2])
        if edge < side // 2:
            return Reject("too-small")
        square = random_crop(picture, edge, edge, rng.geometry)
        assert square is not None
        if textureless(square):
            return Reject("textureless")
        # Eight pixels more than are shown: every copy is another crop of it, so that copies cannot be subtracted.
        base = resize(square, side + 8, side + 8)
        kind = str(knobs["kind"])
        kind = one_of(KINDS, rng.selection) if kind == "any" else kind
        levels = rng.selection.permutation(count)
        visuals = []
        for number, level in enumerate(levels, 1):
            top, left = (int(v) for v in rng.geometry.integers(0, 9, size=2))
            strength = float(knobs["ratio"]) ** int(level)
            crop = base[top : top + side, left : left + side]
            copy = degraded(crop, kind, strength, rng.appearance)
            visuals.append(Visual(copy, label=f"Image {number}:"))
        answer = [int(i) + 1 for i in np.argsort(levels)]
        return Draft(
            visuals=tuple(visuals),
            truth={"answer": answer, "gamma": float(knobs["gamma"])},
            key=tuple(answer),
            fields={"count": count, "what": WORDS[kind]},
            evidence=tuple(Evidence(i) for i in range(count)),
            meta={"kind": kind},
        )

    def length(self, knobs: Knobs) -> int:
        return int(knobs["copies"])


def degraded(picture: Array, kind: str, strength: float, rng: Generator) -> Array:
    """uint8, same shape. `strength` 1 is the least: blur radius 0.4 % of the side, noise of 6 grey levels, gain 0.4."""
    if kind == "blur":
        soft = ImageFilter.GaussianBlur(0.004 * picture.shape[0] * strength)
        image = Image.fromarray(np.ascontiguousarray(picture))
        return np.asarray(image.filter(soft))
    if kind == "noise":
        deviation = np.float32(min(6.0 * strength, 90.0))
        grain = rng.standard_normal(picture.shape, dtype=np.float32) * deviation
        return np.clip(picture + grain, 0, 255).astype(np.uint8)
    # A weaker power than the ratio: gains grow so quickly that the brightest copies would be white.
    table = np.clip(np.arange(256) * 0.4 * strength**0.6, 0, 255).astype(np.uint8)
    return table[picture]
