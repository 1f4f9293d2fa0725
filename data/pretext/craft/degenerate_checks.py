"""Defences against shortcuts, as plain functions on uint8 pictures, and the tests that refuse degenerate content.

| leak | defence |
| --- | --- |
| lens position (vignetting, chromatic fringe), JPEG grid phase and quantisation | `harmless_history` |
| continuous borders, size of a piece | `cut_tiles` |
| absolute colour of a place, histograms | `jittered` (a common and a small own change), `equalised` |
| blur of a resampled piece | `resampled_alike` |
| exchangeable, empty or self-similar pieces | `alike`, `textureless`, `nearly_invariant` |

Every draw comes from the generators that are passed in. Sizes and thresholds are in pixels and grey levels (0 to 255).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmrl.data.pretext.contract import Array
from mmrl.data.pretext.craft.rng import Streams

ALIKE = 4.0
"""Two pieces whose 16×16 thumbnails differ by less (mean absolute grey levels) cannot be told apart."""
FLAT = 6.0
"""A piece with less standard deviation than this has no texture."""
INVARIANT = 8.0
"""A picture that changes less than this under the asked-for transformation gives no well-posed question."""


def harmless_history(picture: Array, rng: Streams, side: int, lens: bool = True) -> Array:
    """Remove what tells where a pixel was in the photograph.

    A random off-centre crop (85 to 100 % of each side), rescaled with antialiasing by 0.7 to 0.95 and to at most `side`
    pixels; then, with `lens`, a shift of the red and blue planes by at most one pixel and a weak radial gain around a
    random centre."""
    draw = rng["history"]
    height, width = picture.shape[:2]
    shares = draw.uniform(0.85, 1.0, size=2)
    tall, wide = max(1, int(height * shares[0])), max(1, int(width * shares[1]))
    top, left = int(draw.integers(height - tall + 1)), int(draw.integers(width - wide + 1))
    scale = float(draw.uniform(0.7, 0.95)) * min(1.0, side / (0.7 * max(tall, wide)))
    scale = min(scale, 0.95, side / max(tall, wide))
    target = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    out = resize(picture[top : top + tall, left : left + wide], *target)
    if not lens or min(target) < 16:
        return out
    return _radial_gain(_fringe(out, draw), draw)


def resize(picture: Array, width: int, height: int) -> Array:
    """Bicubic with antialiasing. Large reductions start with an integer box filter, which is much quicker."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0))


def random_crop(
    picture: Array, width: int, height: int, rng: np.random.Generator
) -> Array | None:
    """A crop of exactly this size at a random place; None if the picture is smaller."""
    tall, wide = picture.shape[:2]
    if tall < height or wide < width:
        return None
    top, left = int(rng.integers(tall - height + 1)), int(rng.integers(wide - width + 1))
    return picture[top : top + height, left : left + width]


def cut_tiles(
    picture: Array,
    rows: int,
    columns: int,
    gap: float,
    unit: int,
    rng: np.random.Generator,
    *,
    square: bool = False,
) -> list[Array] | None:
    """rows·columns tiles in reading order, all of one size, with sides that are multiples of `unit`.

    A ring is removed from every tile: 2/3 to 4/3 of `gap` (a share of the cell's side) at each side, drawn per tile
    and axis. The grid lies at a random place. None if the picture is too small for tiles of `unit` pixels."""
    sides = [
        _tile_side(length // parts, gap, unit)
        for length, parts in zip(picture.shape[:2], (rows, columns), strict=True)
    ]
    if square:
        sides = [min(sides)] * 2
    if min(sides) < unit:
        return None
    (tall, cell_tall), (wide, cell_wide) = (
        (side, round(side / (1.0 - 2.0 * gap))) for side in sides
    )
    cut = random_crop(picture, cell_wide * columns, cell_tall * rows, rng)
    assert cut is not None, f"cells {cell_tall}×{cell_wide} do not fit {picture.shape}"
    tiles = []
    for row in range(rows):
        for column in range(columns):
            top = row * cell_tall + _ring(cell_tall - tall, rng)
            left = column * cell_wide + _ring(cell_wide - wide, rng)
            tiles.append(cut[top : top + tall, left : left + wide])
    return tiles


def jittered(
    pieces: Sequence[Array], rng: np.random.Generator, own: float = 0.03, common: float = 0.08
) -> list[Array]:
    """Brightness and colour balance: one change for all pieces (up to `common`) and a smaller one per piece."""
    shared = 1.0 + rng.uniform(-common, common) + rng.uniform(-common / 3, common / 3, size=3)
    return [_scaled(piece, shared * (1.0 + rng.uniform(-own, own, size=3))) for piece in pieces]


def equalised(picture: Array, rng: np.random.Generator) -> Array:
    """Every colour plane with a flat histogram; equal values are spread by sub-grey-level noise."""
    fine = picture.astype(np.uint16) * 16 + rng.integers(
        0, 16, size=picture.shape, dtype=np.uint16
    )
    out = np.empty_like(picture)
    for plane in range(3):
        below = np.cumsum(np.bincount(fine[..., plane].ravel(), minlength=4096))
        out[..., plane] = (below * (255.0 / below[-1])).astype(np.uint8)[fine[..., plane]]
    return out


def thumbnail(picture: Array, side: int = 16) -> Array:
    """int16 [side, side, 3]: area averages."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.int16)


def difference(first: Array, second: Array) -> float:
    """Mean absolute difference of two pictures of one shape, in grey levels."""
    return float(np.abs(first.astype(np.int16) - second.astype(np.int16)).mean())


def textureless(piece: Array) -> bool:
    """Is there nothing to see?"""
    return float(thumbnail(piece).std(axis=(0, 1)).max()) < FLAT


def alike(pieces: Sequence[Array], *, turns: bool = False, threshold: float = ALIKE) -> bool:
    """Can two pieces be exchanged without anyone noticing (also after quarter turns, if `turns`)?"""
    small = np.stack([thumbnail(piece) for piece in pieces])
    for first in range(len(small)):
        for step in range(4 if turns else 1):
            turned = np.rot90(small[first], step)
            distance = np.abs(small[first if step else first + 1 :] - turned).mean(
                axis=(1, 2, 3)
            )
            if distance.size and float(distance.min()) < threshold:
                return True
    return False


def nearly_invariant(
    picture: Array, others: Sequence[Array], threshold: float = INVARIANT
) -> bool:
    """Does one of the other versions look like the picture (32×32 thumbnails)?"""
    small = thumbnail(picture, 32)
    return any(difference(small, thumbnail(other, 32)) < threshold for other in others)


def _tile_side(cell: int, gap: float, unit: int) -> int:
    side = int(cell * (1.0 - 2.0 * gap)) // unit * unit
    while side >= unit and round(side / (1.0 - 2.0 * gap)) > cell:
        side -= unit
    return side


def _ring(total: int, rng: np.random.Generator) -> int:
    low, high = round(total / 3), round(2 * total / 3)
    return int(rng.integers(low, high + 1))


def _fringe(picture: Array, rng: np.random.Generator) -> Array:
    """Shift red and blue by −1, 0 or 1 pixels along each axis and cut the border that has no source."""
    shifts = rng.integers(0, 3, size=(2, 2))
    tall, wide = picture.shape[0] - 2, picture.shape[1] - 2
    planes = [
        picture[dy : dy + tall, dx : dx + wide, channel]
        for channel, (dy, dx) in ((0, shifts[0]), (1, (1, 1)), (2, shifts[1]))
    ]
    return np.stack(planes, axis=-1)


def _radial_gain(picture: Array, rng: np.random.Generator) -> Array:
    height, width = picture.shape[:2]
    strength, (cy, cx) = float(rng.uniform(-0.08, 0.08)), rng.uniform(0.2, 0.8, size=2)
    ys = ((np.arange(height, dtype=np.float32) / height - np.float32(cy)) ** 2)[:, None]
    xs = ((np.arange(width, dtype=np.float32) / width - np.float32(cx)) ** 2)[None, :]
    gain = np.float32(1.0) + np.float32(strength) * (ys + xs)
    return np.clip(picture * gain[..., None], 0, 255).astype(np.uint8)


def _scaled(picture: Array, gain: Array) -> Array:
    table = np.clip(np.arange(256)[:, None] * gain, 0, 255).astype(np.uint8)
    return np.stack([table[:, channel][picture[..., channel]] for channel in range(3)], axis=-1)
