"""Views that change how a picture looks or when frames are shown, but neither its size nor the number of frames.

One draw serves a whole clip, so a perturbation moves with the camera rather than flickering. Each class declares
`changes_geometry` (left, right, angles, places, counts near the border: the answer of a geometric question may change)
and `changes_order` (what happens when: the answer of a temporal question may change); a trainer refuses such views on
questions whose answer they would change.

VOGUE's released perturbation is
`ViewChain((Flip(0.5, 0.5), RandomRotation(10), ColourJitter(0.15, 0.15), GaussianNoise(0.2)))`.

Departures from VOGUE's code:
1. It perturbs the first image of a sample only; a view perturbs each medium that it is given.
2. An exception there silently means "no uncertainty"; here it is raised.
3. Rotation interpolates between pixels (there: nearest neighbour).

torchvision is imported inside the calls, because its import takes more than a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.perception.pixels import a_share, checked, uniform_grid
from mmrl.types import Now, View, ViewContext, require_view


@dataclass(frozen=True)
class Flip(View):
    """Mirror the picture."""

    horizontal: float = 0.5
    """Probability of swapping left and right."""
    vertical: float = 0.0
    """Probability of swapping top and bottom."""

    changes_geometry: ClassVar[bool] = True
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, horizontal=a_share(self.horizontal), vertical=a_share(self.vertical))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        checked(frames, "Flip")
        # Both coins are thrown whatever the first says, so that one setting does not shift the other's draws.
        sideways = _between(0, 1, rng) < self.horizontal
        upside_down = _between(0, 1, rng) < self.vertical
        if sideways:
            frames = frames.flip(-1)
        if upside_down:
            frames = frames.flip(-2)
        return frames


@dataclass(frozen=True)
class RandomRotation(View):
    """Turn the picture about its centre by a random angle; corners that come into view are filled."""

    degrees: float = 10.0
    """Largest angle to either side, degrees."""
    fill: int = 0
    """Grey level of the corners, 0 (black) to 255."""

    changes_geometry: ClassVar[bool] = True
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, degrees=(0.0 <= self.degrees <= 180.0, "in [0, 180]"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        angle = _between(-self.degrees, self.degrees, rng)
        # Not expanded: a view keeps the size, so corners leave and others come in.
        return functional.rotate(
            checked(frames, "RandomRotation"),
            angle,
            interpolation=InterpolationMode.BILINEAR,
            fill=[float(self.fill)] * 3,
        )


@dataclass(frozen=True)
class Crop(View):
    """Cut out a random window and enlarge it to the size of the picture."""

    smallest: float = 0.8
    """Smallest side of the window as a share of the side of the picture, in (0, 1]."""

    changes_geometry: ClassVar[bool] = True
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, smallest=(0.0 < self.smallest <= 1.0, "a share of the side, in (0, 1]"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        from torchvision.transforms.v2 import functional

        height, width = checked(frames, "Crop").shape[-2:]
        share = _between(self.smallest, 1.0, rng)
        rows = max(round(height * share), 1)
        columns = max(round(width * share), 1)
        top = int(_between(0, height - rows + 1, rng))
        left = int(_between(0, width - columns + 1, rng))
        return functional.resized_crop(
            frames, top, left, rows, columns, [height, width], antialias=True
        )


@dataclass(frozen=True)
class ColourJitter(View):
    """Change brightness, contrast, saturation and hue, in this order, each by a random factor or shift."""

    brightness: float = 0.15
    """Factor from [1 - x, 1 + x], at least 0."""
    contrast: float = 0.15
    """Factor from [1 - x, 1 + x], at least 0."""
    saturation: float = 0.0
    """Factor from [1 - x, 1 + x], at least 0."""
    hue: float = 0.0
    """Shift from [-x, x] of a full turn of the colour circle, x in [0, 0.5]."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            brightness=(self.brightness >= 0.0, "0 (off) or positive"),
            contrast=(self.contrast >= 0.0, "0 (off) or positive"),
            saturation=(self.saturation >= 0.0, "0 (off) or positive"),
            hue=(0.0 <= self.hue <= 0.5, "a share of a full turn, in [0, 0.5]"),
        )

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        from torchvision.transforms.v2 import functional

        checked(frames, "ColourJitter")
        adjustments = (
            (functional.adjust_brightness, self.brightness),
            (functional.adjust_contrast, self.contrast),
            (functional.adjust_saturation, self.saturation),
        )
        for adjust, spread in adjustments:
            if spread > 0.0:  # what is off draws nothing
                factor = _between(max(1.0 - spread, 0.0), 1.0 + spread, rng)
                frames = adjust(frames, factor)
        if self.hue > 0.0:
            frames = functional.adjust_hue(frames, _between(-self.hue, self.hue, rng))
        return frames


@dataclass(frozen=True)
class JPEG(View):
    """Compress and decompress each frame."""

    quality: int = 30
    """JPEG quality, 1 (worst) to 100."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(self, quality=(1 <= self.quality <= 100, "1 to 100"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        from torchvision.transforms.v2 import functional

        # The codec runs on the CPU alone.
        shown = checked(frames, "JPEG").cpu()
        return functional.jpeg(shown, self.quality).to(frames.device)


@dataclass(frozen=True)
class Blur(View):
    """Gaussian blur."""

    sigma: float = 2.0
    """Standard deviation in pixels."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __post_init__(self) -> None:
        fits = 0.0 < self.sigma < float("inf")
        require(self, sigma=(fits, "positive, a number of pixels"))

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        from torchvision.transforms.v2 import functional

        height, width = checked(frames, "Blur").shape[-2:]
        reach = int(3.0 * self.sigma) + 1
        # The border is mirrored, which needs a kernel that reaches less far than the picture.
        across, down = min(reach, width - 1), min(reach, height - 1)
        kernel = [2 * across + 1, 2 * down + 1]
        return functional.gaussian_blur(frames, kernel, [self.sigma, self.sigma])


@dataclass(frozen=True)
class Grayscale(View):
    """Take the colour away; three equal channels remain."""

    changes_geometry: ClassVar[bool] = False
    changes_order: ClassVar[bool] = False
    runs_ahead: ClassVar[bool] = True

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        from torchvision.transforms.v2 import functional

        return functional.rgb_to_grayscale(checked(frames, "Grayscale"), num_output_channels=3)


@dataclass(frozen=True)
class Transform(View):
    """Any torchvision v2 transform (or callable on uint8 [F, 3, H, W]) as a view, drawn from the branch's generator.

    The transform runs under the global generators of torch (CPU), numpy and Python, seeded for the call and set back
    afterwards; pixels are moved to the CPU for it, so that all devices see the same draw.
    """

    transform: Callable[[Tensor], Tensor]
    """Takes and returns uint8 [F, 3, H, W]; must not change the size."""
    changes_geometry: bool = True
    """Say False if the transform leaves all places, angles and sides as they are."""
    changes_order: bool = False
    """Say True if it changes the order or the times of frames."""

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        # One draw of the branch's generator stands for all that the transform draws.
        seed = int(torch.randint(2**31 - 1, (), generator=rng, device=rng.device))
        seen = _seeded(self.transform, checked(frames, "Transform").cpu(), seed)
        if seen.shape != frames.shape or seen.dtype != torch.uint8:
            raise ValueError(
                f"{self.transform} returned {seen.dtype} {tuple(seen.shape)} for uint8 {tuple(frames.shape)}; a view "
                "keeps both. Add v2.Resize back to the size, or v2.ToDtype(torch.uint8, scale=True), at the end."
            )
        return seen.to(frames.device)


def _seeded(transform: Callable[[Tensor], Tensor], frames: Tensor, seed: int) -> Tensor:
    """Call the transform under seeded global generators and restore their states."""
    # torchvision draws from torch's global generator, other libraries from numpy's or Python's.
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        return torch.as_tensor(transform(frames))
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@dataclass(frozen=True)
class ViewChain(View):
    """Several views one after the other."""

    views: tuple[View, ...]
    """Applied from left to right, all drawing from the same generator."""

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError(
                "ViewChain.views is empty; name at least one view, or leave the branch out."
            )
        for number, view in enumerate(self.views):
            require_view(f"ViewChain.views[{number}]", view)
            if view.shows == "nothing":
                raise ValueError(
                    f"ViewChain.views[{number}] is {view!r}, which takes all visual tokens away: use it alone."
                )

    @property
    def changes_geometry(self) -> bool:
        """Whether any of the views may change the answer of a geometric question."""
        return any(view.changes_geometry for view in self.views)

    @property
    def changes_order(self) -> bool:
        """Whether any of the views may change the answer of a temporal question."""
        return any(view.changes_order for view in self.views)

    @property
    def reads_saliency(self) -> bool:
        """Whether any of the views asks for the policy's visual attention."""
        return any(view.reads_saliency for view in self.views)

    @property
    def runs_ahead(self) -> bool:
        """Whether all of the views may run before their step."""
        return all(view.runs_ahead for view in self.views)

    def __call__(
        self, frames: Tensor, context: ViewContext, rng: torch.Generator, now: Now
    ) -> Tensor:
        for view in self.views:
            frames = view(frames, context, rng, now)
        return frames


def _between(low: float, high: float, rng: torch.Generator) -> float:
    """One number from [low, high)."""
    return low + (high - low) * uniform_grid((), rng).item()
