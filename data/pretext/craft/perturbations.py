"""What can happen to a stretch of a video: the perturbations of VideoSSR (arXiv 2511.06281, Table 8 and code).

A function takes the segment uint8 [t, H, W, 3] and a generator, and returns a segment of the same shape. `slow`, `fast`
and `swap` are not pixel functions: the anomaly task changes which source frames are read.

Departures from the code: every random constant (noise strength, zoom factor) is drawn once per segment, as a draw per
frame makes a jitter that gives the kind away; noise is cut at random places from one field per segment; quarter turns
need square frames instead of growing the canvas; what zooming out uncovers is a blurred copy unless `fill` is "black".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from mmrl.data.pretext.contract import Array

Change = Callable[[Array, Generator], Array]


def channel_swap(segment: Array, rng: Generator) -> Array:
    return segment[..., ::-1]


def grayscale(segment: Array, rng: Generator) -> Array:
    return np.repeat(_luminance(segment)[..., None], 3, axis=-1)


def invert(segment: Array, rng: Generator) -> Array:
    return 255 - segment


def noise(segment: Array, rng: Generator) -> Array:
    """Gaussian, standard deviation 35 to 70 grey levels."""
    height, width = segment.shape[1:3]
    strength = np.float32(float(rng.uniform(35, 70)))
    # One field a little larger than a frame, seen through another window in each frame: a tenth of the draws, and the
    # noise still jumps from frame to frame.
    field = rng.standard_normal((height + 31, width + 31, 3), dtype=np.float32) * strength
    field = field.astype(np.int16)
    places = rng.integers(0, 32, size=(len(segment), 2))
    grain = np.stack([field[y : y + height, x : x + width] for y, x in places])
    return np.clip(segment + grain, 0, 255).astype(np.uint8)


def blur(segment: Array, rng: Generator) -> Array:
    """Gaussian of radius 2 pixels at 256 pixels, in proportion for other sizes."""
    soft = ImageFilter.GaussianBlur(2.0 * max(segment.shape[1:3]) / 256)
    return np.stack([np.asarray(Image.fromarray(frame).filter(soft)) for frame in segment])


def saturation(segment: Array, rng: Generator) -> Array:
    """Twice as far from grey."""
    grey = _luminance(segment).astype(np.int16)[..., None]
    return np.clip(2 * segment.astype(np.int16) - grey, 0, 255).astype(np.uint8)


def rotate180(segment: Array, rng: Generator) -> Array:
    return segment[:, ::-1, ::-1]


def rotate90(segment: Array, rng: Generator) -> Array:
    """A quarter turn clockwise; frames must be square."""
    return np.rot90(segment, -1, axes=(1, 2))


def rotate270(segment: Array, rng: Generator) -> Array:
    """A quarter turn counter-clockwise; frames must be square."""
    return np.rot90(segment, 1, axes=(1, 2))


def mirror(segment: Array, rng: Generator) -> Array:
    return segment[:, :, ::-1]


def zoom_in(segment: Array, rng: Generator) -> Array:
    """The centre, enlarged 1.3 to 1.5 times."""
    height, width = segment.shape[1:3]
    share = 1.0 / float(rng.uniform(1.3, 1.5))
    left = width * (1 - share) / 2
    top = height * (1 - share) / 2
    return resampled(segment, (left, top, width - left, height - top))


def zoom_out(segment: Array, rng: Generator, fill: str = "blur") -> Array:
    """The frame, reduced 1.2 to 1.4 times, in the middle of a blurred copy (or of black)."""
    height, width = segment.shape[1:3]
    share = 1.0 / float(rng.uniform(1.2, 1.4))
    tall, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = (height - tall) // 2, (width - wide) // 2
    if fill == "black":
        out = np.zeros_like(segment)
    else:
        out = np.stack([_smeared(frame) for frame in segment])
    for place, frame in enumerate(segment):
        small = Image.fromarray(frame).resize((wide, tall), Image.Resampling.BILINEAR)
        out[place, top : top + tall, left : left + wide] = np.asarray(small)
    return out


def shuffle(segment: Array, rng: Generator) -> Array:
    """The frames in another order, no third of which stays in place."""
    while True:
        order = rng.permutation(len(segment))
        in_place = (order == np.arange(len(segment))).mean()
        if in_place <= 1 / 3:
            return segment[order]


def stutter(segment: Array, rng: Generator) -> Array:
    """2 to 5 evenly spaced frames, each held; the first ones one frame longer."""
    length = len(segment)
    held = min(int(rng.integers(2, 6)), max(1, length // 2))
    chosen = np.linspace(0, length - 1, held).round().astype(int)
    # What is left over by the division goes to the first ones, one frame each.
    longer = np.arange(held) < length % held
    return segment[np.repeat(chosen, length // held + longer)]


PIXEL_KINDS: dict[str, Change] = {
    "channel-swap": channel_swap,
    "grayscale": grayscale,
    "invert": invert,
    "noise": noise,
    "blur": blur,
    "saturation": saturation,
    "rotate180": rotate180,
    "rotate90": rotate90,
    "rotate270": rotate270,
    "mirror": mirror,
    "zoom-in": zoom_in,
    "zoom-out": zoom_out,
}
ORDER_KINDS: dict[str, Change] = {"shuffle": shuffle, "stutter": stutter}
SPEEDS = {"slow": 0.5, "fast": 2.0}
"""Playing speed inside the segment."""
SQUARE_KINDS = frozenset({"rotate90", "rotate270"})
RESAMPLING_KINDS = frozenset({"zoom-in", "zoom-out"})
"""Kinds whose untouched frames go through the same resampler."""
TRAIN_MIX = ("channel-swap", "mirror", "zoom-out", "rotate180")
"""The four kinds of VideoSSR-30K."""

DESCRIPTIONS: dict[str, str] = {
    "channel-swap": "the red and blue of the colours are exchanged",
    "grayscale": "the colours are gone and only shades of grey are left",
    "invert": "all colours are inverted as in a negative",
    "noise": "strong random noise covers the picture",
    "blur": "the picture is out of focus",
    "saturation": "the colours are far too strong",
    "rotate180": "the picture stands on its head",
    "rotate90": "the picture is turned by a quarter clockwise",
    "rotate270": "the picture is turned by a quarter counter-clockwise",
    "mirror": "left and right are exchanged",
    "zoom-in": "the picture is enlarged",
    "zoom-out": "the picture is smaller than its frame",
    "shuffle": "the frames are in a wrong order",
    "stutter": "the picture freezes and jumps",
    "slow": "the action runs at half speed (timestamps stay even)",
    "fast": "the action runs at double speed (timestamps stay even)",
    "swap": "another video is shown",
}


def resampled(segment: Array, box: tuple[float, float, float, float]) -> Array:
    """The box (x0, y0, x1, y1) of every frame, bilinearly, at the size of the frame."""
    size = segment.shape[2], segment.shape[1]
    frames = []
    for frame in segment:
        image = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR, box=box)
        frames.append(np.asarray(image))
    return np.stack(frames)


def untouched(segment: Array) -> Array:
    """Nearly the same picture with the traces of a resampler: shifted by half a pixel."""
    height, width = segment.shape[1:3]
    return resampled(segment, (0.5, 0.5, width - 0.5, height - 0.5))


def _luminance(segment: Array) -> Array:
    red, green, blue = (segment[..., channel].astype(np.uint16) for channel in range(3))
    # The weights 0.299, 0.587, 0.114 in 256ths; uint16 holds the sum without overflow.
    return ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.uint8)


def _smeared(frame: Array) -> Array:
    image = Image.fromarray(frame)
    # Twelve pixels are blurred and enlarged again: as soft as a very wide blur, at a fraction of the cost.
    small = image.resize((12, 12), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1))
    return np.array(small.resize(image.size, Image.Resampling.BICUBIC))
