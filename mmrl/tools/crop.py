"""Tools that look closer: a part of a picture, cut from its pixels as they were before it was shown smaller.

`Crop` takes a box, `PointCrop` a point. A crop is a picture of the answer like all others, so it can be cropped again.

Sources: names, 1-based numbers and padding of VerlTool (arXiv 2509.01055; github.com/TIGER-AI-Lab/verl-tool, commit
980962b4); DeepEyes (arXiv 2505.14362) for the smallest side and area; ViGoRL (arXiv 2505.23678) for the point; VRAG-RL
(arXiv 2505.22019) for the box in a tag, on the most recent picture.
Departures
1. Words are ours.
2. A box that is empty, negative or of no pixel is refused with the reason, and so is one of a clip.
3. VRAG-RL cuts a crop of a crop from the page, by the page's scale; here it is cut from the crop that was shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmrl.ground.calls import Action
from mmrl.ground.require import require
from mmrl.tools.as_shown import Plans, shown_size
from mmrl.tools.boxes import Box, Coordinates, Size, cut_box, window
from mmrl.tools.called import FormTool
from mmrl.tools.reading import Form, numbers, whole_number
from mmrl.tools.tool import IMAGE, BadAction, Observation, Trajectory
from mmrl.types import Media

TARGET = "target_image"
"""Argument that says which picture, counted from 1."""
BY_BOX, BY_POINT = Form("bbox_2d"), Form("point_2d")
SAID = f"Picture {{new}}, a part of picture {{old}}:\n{IMAGE}"
UNITS: dict[Coordinates, str] = {
    "shown": "pixels of the picture as you see it",
    "normalised": "shares of its width and height, from 0 to 1",
    "thousandths": "thousandths of its width and height, from 0 to 1000",
    "either": "pixels of the picture as you see it, or shares of its sides from 0 to 1",
}
EXAMPLES: dict[Coordinates, tuple[str, str]] = {
    "shown": ("[20, 40, 180, 160]", "[100, 100]"),
    "normalised": ("[0.1, 0.2, 0.9, 0.8]", "[0.5, 0.5]"),
    "thousandths": ("[100, 200, 900, 800]", "[500, 500]"),
    "either": ("[20, 40, 180, 160]", "[100, 100]"),
}
"""A box and a point."""


@dataclass(frozen=True)
class Looking(FormTool):
    """What tools that cut a picture share. Derive from it."""

    coordinates: Coordinates = "shown"
    """What the numbers of a call mean."""
    plans: Plans | None = None
    """Knows in which size pictures are shown, `Policy.processing`; None: in their own."""
    default: Literal["first", "last"] = "first"
    """Which picture a call means that does not say so."""
    least_area: int = 0
    """Smaller crops are enlarged to so many pixels; 0: none."""
    said: str = SAID
    """What the model reads; {new} and {old} are numbers of pictures."""

    def __post_init__(self) -> None:
        require(
            self, least_area=(0 <= self.least_area <= 1 << 24, "0 (off) to 16,777,216 pixels")
        )
        super().__post_init__()

    def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Cut the picture."""
        last = len(trajectory.media)
        old = whole_number(action.arguments, TARGET, last if self.default == "last" else 1)
        medium = trajectory.picture(old)
        if medium.is_video:
            raise BadAction(f"Picture {old} is a clip; only pictures can be cropped.")
        height, width = medium.frames.shape[-2:]
        shown = shown_size(self.plans, trajectory, old)
        box = self.box(action, (height, width), shown)
        part = enlarged(cut(medium.frames, box), self.least_area)
        new = last + 1
        x0, y0, x1, y1 = box
        found = {
            "picture": new,
            "of": old,
            "box": list(box),
            "area": (x1 - x0) * (y1 - y0) / (width * height),
        }
        said = self.said.replace("{new}", str(new)).replace("{old}", str(old))
        return Observation(said, (Media(part),), found=found)

    def box(self, action: Action, size: Size, shown: Size) -> Box:
        """What is cut out of a picture of this size. Raises BadAction."""
        raise NotImplementedError(f"{type(self).__name__} has no box.")

    def _which(self) -> str:
        """What a usage text says about the choice of the picture."""
        if self.form.tag:
            which = "most recent" if self.default == "last" else "first"
            return f"It is cut from the {which} picture."
        return (
            f'With "{TARGET}": n it is cut from picture n; pictures are numbered from 1 as they come, crops among '
            f"them. Without, from the {self.default} one."
        )


@dataclass(frozen=True)
class Crop(Looking):
    """A box of a picture."""

    name: str = "crop_image"
    form: Form = BY_BOX
    padding: float = 0.1
    """Share of the sides that is added on each side of the box."""
    most_padding: int = 600
    """Most pixels that are added on one side."""
    grow: float = 0.0
    """Added on each side of the box, in the units of the call (VRAG-RL at evaluation: 28)."""
    least_side: int = 0
    """A box whose shorter side, unpadded, has at most so many true pixels is refused; 0: none is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            padding=(0 <= self.padding <= 1, "in [0, 1]"),
            most_padding=(0 <= self.most_padding <= 1 << 16, "0 to 65,536 pixels"),
            grow=(0 <= self.grow <= 1 << 16, "0 to 65,536"),
            least_side=(0 <= self.least_side <= 1 << 16, "0 (off) to 65,536 pixels"),
        )

    def box(self, action: Action, size: Size, shown: Size) -> Box:
        """The box of the call, padded. Raises BadAction."""
        example = EXAMPLES[self.coordinates][0]
        corners = numbers(action.arguments, self.form.argument, 4, example)
        x0, y0, x1, y1 = cut_box(corners, size, shown, self.coordinates)
        if min(x1 - x0, y1 - y0) <= self.least_side:
            raise BadAction(
                f"The box {corners} is {x1 - x0} by {y1 - y0} pixels of the picture; take one whose sides have more "
                f"than {self.least_side}."
            )
        padding, most = self.padding, self.most_padding
        return cut_box(corners, size, shown, self.coordinates, padding, most, self.grow)

    def instructions(self) -> str:
        """What a prompt says about it."""
        example = self.form.example(self.name, EXAMPLES[self.coordinates][0])
        return (
            f"To see a part of a picture in full detail, write {example} - left, top, right and bottom in "
            f"{UNITS[self.coordinates]}. {self._which()}"
        )


@dataclass(frozen=True)
class PointCrop(Looking):
    """A square round a point of a picture."""

    name: str = "look_at"
    form: Form = BY_POINT
    side: int = 384
    """Of the square, in true pixels; ViGoRL: 384 to 672."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, side=(1 <= self.side <= 1 << 16, "1 to 65,536 pixels"))

    def box(self, action: Action, size: Size, shown: Size) -> Box:
        """The square round the point of the call. Raises BadAction."""
        example = EXAMPLES[self.coordinates][1]
        point = numbers(action.arguments, self.form.argument, 2, example)
        return window(point, size, shown, self.side, self.coordinates)

    def instructions(self) -> str:
        """What a prompt says about it."""
        example = self.form.example(self.name, EXAMPLES[self.coordinates][1])
        return (
            f"To see what is around a point of a picture in full detail, write {example} - x and y in "
            f"{UNITS[self.coordinates]}. {self._which()}"
        )


def cut(frames: Tensor, box: Box) -> Tensor:
    """Pixels [F, 3, y1 - y0, x1 - x0] of a box, in memory of their own."""
    x0, y0, x1, y1 = box
    return frames[..., y0:y1, x0:x1].clone()


def enlarged(frames: Tensor, area: int) -> Tensor:
    """uint8 [F, 3, H, W], enlarged to at least so many pixels with the same shape of its sides."""
    height, width = frames.shape[-2:]
    if height * width >= area:
        return frames
    scale = (area / (height * width)) ** 0.5
    size = [-int(-side * scale // 1) for side in (height, width)]
    large = torch.nn.functional.interpolate(frames.float(), size=size, mode="bicubic")
    return large.round().clamp(0, 255).to(torch.uint8)
