"""How alike two pictures are, without a model: structure, colours, edges and words. numpy and scipy only.

    S = 0.35 · structure + 0.25 · colours + 0.2 · edges + 0.2 · words          every part and S in [0, 1]

    structure   multi-scale SSIM of the lightness (Wang, Simoncelli and Bovik 2003), 11-pixel Gaussian
                window, as many of the five scales as the side allows, their exponents summing to 1
    colours     1 - mean over L*, a*, b* of the earth mover's distance between the two distributions of values, as a
                share of the channel's range in sRGB
    edges       F1 of the edge pixels, found within two pixels
    words       F1 of the texts as multisets, where those of both pictures are known; else the other three parts share
                its weight in proportion

Both pictures are laid, as large as they fit, on white of one shape, as wide for its height as the wider of them.
S(a, b) = S(b, a), and S(a, a) = 1. The weights are ours: the system that this serves (RRVF) asks a judge.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mmrl.ground.require import require

Pixels = NDArray[np.uint8]
"""uint8 [H, W, 3], sRGB."""
Floats = NDArray[np.float64]
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of multi-scale SSIM, the finest first (Wang et al. 2003, table 1)."""
WINDOW = 11
"""Pixels of the Gaussian window of SSIM; no scale is smaller."""
RANGES = np.array([100.0, 184.5, 202.4])
"""Largest minus smallest L*, a* and b* of any sRGB colour."""
WHITE = np.array([0.95047, 1.0, 1.08883])
"""XYZ of the white of sRGB, D65."""
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
"""Linear sRGB to XYZ (IEC 61966-2-1)."""
EDGE = 12.0
"""Lightness per pixel from which a pixel is on an edge."""
REACH = 2
"""Pixels by which an edge may be displaced."""


@dataclass(frozen=True)
class Likeness:
    """How pictures are compared: weights of the parts, and the size they are compared at."""

    structure: float = 0.35
    """Weight of multi-scale SSIM."""
    colours: float = 0.25
    """Weight of the distributions of colours."""
    edges: float = 0.2
    """Weight of the edges."""
    words: float = 0.2
    """Weight of the texts, where both are known."""
    side: int = 512
    """Pixels of the longer side at which both are compared."""

    def __post_init__(self) -> None:
        names = ("structure", "colours", "edges", "words")
        weights = [getattr(self, name) for name in names]
        fine = {name: (0 <= getattr(self, name) <= 1, "in [0, 1]") for name in names}
        require(self, **fine, side=(16 <= self.side <= 4096, "16 to 4,096 pixels"))
        if abs(sum(weights) - 1) > 1e-9 or self.words == 1:
            raise ValueError(
                f"The weights of Likeness are {weights}: structure, colours, edges and words must sum to 1, and the "
                "words cannot be all."
            )

    def __call__(
        self,
        one: Pixels,
        other: Pixels,
        words: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> float:
        """Likeness of two pictures, uint8 [H, W, 3] of any sizes, in [0, 1]; `words`: the texts of both, if known."""
        a, b = framed(one, other, self.side)
        first, second = lab(a), lab(b)
        parts = [
            (self.structure, structure_likeness(first[..., 0], second[..., 0])),
            (self.colours, colour_likeness(first, second)),
            (self.edges, edge_likeness(first[..., 0], second[..., 0])),
        ]
        if words is not None:
            parts.append((self.words, word_likeness(*words)))
        whole = sum(weight for weight, _ in parts)
        return sum(weight * value for weight, value in parts) / whole


def framed(one: Pixels, other: Pixels, side: int) -> tuple[Pixels, Pixels]:
    """Both on white of the same shape, the longer side `side` pixels: uint8 [H, W, 3] twice."""
    wide = max(picture.shape[1] / picture.shape[0] for picture in (one, other))
    # Thinner pictures are nobody's chart, and SSIM needs a window.
    wide = min(max(wide, WINDOW / side), side / WINDOW)
    height, width = round(side / max(wide, 1)), round(side * min(wide, 1))
    return _fitted(one, height, width), _fitted(other, height, width)


def _fitted(picture: Pixels, height: int, width: int) -> Pixels:
    """The whole picture, as large as fits, in the middle of white: uint8 [height, width, 3]."""
    rows, columns = picture.shape[:2]
    scale = min(height / rows, width / columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    canvas = Image.new("RGB", (width, height), "white")
    shown = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    canvas.paste(shown, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.asarray(canvas)


def lab(picture: Pixels) -> Floats:
    """CIE L*a*b* of sRGB, float64 [H, W, 3]: L* in [0, 100]."""
    share = picture.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    scaled = linear @ TO_XYZ.T / WHITE
    bent = np.where(
        scaled > (6 / 29) ** 3, np.cbrt(scaled), scaled * (29 / 6) ** 2 / 3 + 4 / 29
    )
    x, y, z = bent[..., 0], bent[..., 1], bent[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def structure_likeness(one: Floats, other: Floats) -> float:
    """Multi-scale SSIM of two lightness maps [H, W] of the same shape, at least 11 pixels each way, in [0, 1]."""
    scales = 1 + int(np.log2(min(one.shape) / WINDOW))
    exponents = np.array(SCALES[: min(scales, len(SCALES))])
    exponents /= exponents.sum()
    found = 1.0
    for number, exponent in enumerate(exponents):
        contrast, whole = ssim(one, other)
        last = number + 1 == len(exponents)
        # Opposite structure is no likeness, and a negative number has no such power.
        found *= max(whole if last else contrast, 0.0) ** exponent
        one, other = _halved(one), _halved(other)
    return float(found)


def ssim(one: Floats, other: Floats) -> tuple[float, float]:
    """Means of contrast-structure and of SSIM with an 11-pixel Gaussian window over two maps [H, W] of 0 to 100."""

    def blur(values: Floats) -> Floats:
        return ndimage.gaussian_filter(values, 1.5, truncate=(WINDOW // 2) / 1.5)

    small, smaller = (0.01 * 100) ** 2, (0.03 * 100) ** 2
    mean, mean_other = blur(one), blur(other)
    variance = blur(one * one) - mean * mean
    variance_other = blur(other * other) - mean_other * mean_other
    shared = blur(one * other) - mean * mean_other
    contrast = (2 * shared + smaller) / (variance + variance_other + smaller)
    light = (2 * mean * mean_other + small) / (mean * mean + mean_other * mean_other + small)
    return float(contrast.mean()), float((contrast * light).mean())


def colour_likeness(one: Floats, other: Floats) -> float:
    """1 - mean earth mover's distance of the L*, a*, b* values [H, W, 3], in shares of their ranges."""
    # Of two samples of one size the distance is that of the sorted values.
    first, second = (np.sort(values.reshape(-1, 3), axis=0) for values in (one, other))
    return float(1 - (np.abs(first - second).mean(axis=0) / RANGES).mean())


def edge_likeness(one: Floats, other: Floats) -> float:
    """F1 of the edges of two lightness maps [H, W], found within `REACH` pixels; 1 if neither has any."""
    first, second = edges(one), edges(other)
    if not first.any() and not second.any():
        return 1.0
    if not first.any() or not second.any():
        return 0.0
    near = np.ones((2 * REACH + 1,) * 2, dtype=bool)
    found = (second & _spread(first, near)).sum() / second.sum()
    kept = (first & _spread(second, near)).sum() / first.sum()
    return float(2 * found * kept / (found + kept)) if found + kept else 0.0


def _spread(marks: NDArray[np.bool_], near: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All that lies near a mark."""
    return np.asarray(ndimage.binary_dilation(marks, near), dtype=bool)


def edges(values: Floats) -> NDArray[np.bool_]:
    """Pixels of a lightness map [H, W] where it changes by at least `EDGE` a pixel."""
    slopes = [ndimage.sobel(values, axis) / 8 for axis in (0, 1)]
    return np.hypot(*slopes) >= EDGE


def word_likeness(one: Sequence[str], other: Sequence[str]) -> float:
    """F1 of two collections of texts, compared without case and outer space; 1 if both are empty."""
    first, second = (
        Counter(filter(None, (text.strip().lower() for text in texts)))
        for texts in (one, other)
    )
    if not first and not second:
        return 1.0
    return 2 * (first & second).total() / (first.total() + second.total())


def _halved(values: Floats) -> Floats:
    """Means of 2 x 2 values."""
    height, width = (size // 2 * 2 for size in values.shape)
    return values[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
