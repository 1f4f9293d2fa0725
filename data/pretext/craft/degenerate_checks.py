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
from numpy.random import Generator
from PIL import Image

from mmrl.data.pretext.contract import Array
from mmrl.ground.seeds import Streams

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
    tall = max(1, int(height * shares[0]))
    wide = max(1, int(width * shares[1]))
    top = int(draw.integers(height - tall + 1))
    left = int(draw.integers(width - wide + 1))
    longer = max(tall, wide)
    scale = float(draw.uniform(0.7, 0.95)) * min(1.0, side / (0.7 * longer))
    # Always reduced, if only by 5 %: a picture that kept its pixels would also keep its 8×8 JPEG grid.
    scale = min(scale, 0.95, side / longer)
    target = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    reduced = resize(picture[top : top + tall, left : left + wide], *target)
    if not lens or min(target) < 16:
        return reduced
    return _radial_gain(_fringe(reduced, draw), draw)


def resize(picture: Array, width: int, height: int) -> Array:
    """Bicubic with antialiasing. Large reductions start with an integer box filter, which is much quicker."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0))


def random_crop(picture: Array, width: int, height: int, rng: Generator) -> Array | None:
    """A crop of exactly this size at a random place; None if the picture is smaller."""
    tall, wide = picture.shape[:2]
    if tall < height or wide < width:
        return None
    top = int(rng.integers(tall - height + 1))
    left = int(rng.integers(wide - width + 1))
    return picture[top : top + height, left : left + width]


def cut_tiles(
    picture: Array,
    rows: int,
    columns: int,
    gap: float,
    unit: int,
    rng: Generator,
    *,
    square: bool = False,
) -> list[Array] | None:
    """rows·columns tiles in reading order, all of one size, with sides that are multiples of `unit`.

    A ring is removed from every tile: 2/3 to 4/3 of `gap` (a share of the cell's side) at each side, drawn per tile
    and axis. The grid lies at a random place. None if the picture is too small for tiles of `unit` pixels."""
    height, width = picture.shape[:2]
    tall = _tile_side(height // rows, gap, unit)
    wide = _tile_side(width // columns, gap, unit)
    if square:
        tall = wide = min(tall, wide)
    if min(tall, wide) < unit:
        return None
    # A cell is the tile with what is cut off around it.
    kept = 1.0 - 2.0 * gap
    cell_tall, cell_wide = round(tall / kept), round(wide / kept)
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
    pieces: Sequence[Array], rng: Generator, own: float = 0.03, common: float = 0.08
) -> list[Array]:
    """Brightness and colour balance: one change for all pieces (up to `common`) and a smaller one per piece."""
    brightness = rng.uniform(-common, common)
    balance = rng.uniform(-common / 3, common / 3, size=3)
    shared = 1.0 + brightness + balance
    changed = []
    for piece in pieces:
        small = rng.uniform(-own, own, size=3)
        changed.append(_scaled(piece, shared * (1.0 + small)))
    return changed


def equalised(picture: Array, rng: Generator) -> Array:
    """Every colour plane with a flat histogram; equal values are spread by sub-grey-level noise."""
    # Sixteen levels per grey level: without the noise a flat area would stay one peak of the histogram.
    noise = rng.integers(0, 16, size=picture.shape, dtype=np.uint16)
    fine = picture.astype(np.uint16) * 16 + noise
    out = np.empty_like(picture)
    for plane in range(3):
        counts = np.bincount(fine[..., plane].ravel(), minlength=4096)
        below = np.cumsum(counts)
        table = (below * (255.0 / below[-1])).astype(np.uint8)
        out[..., plane] = table[fine[..., plane]]
    return out


def thumbnail(picture: Array, side: int = 16) -> Array:
    """int16 [side, side, 3]: area averages."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=np.int16)


def difference(first: Array, second: Array) -> float:
    """Mean absolute difference of two pictures of one shape, in grey levels."""
    # Signed first: uint8 differences wrap around.
    apart = first.astype(np.int16) - second.astype(np.int16)
    return float(np.abs(apart).mean())


def textureless(piece: Array) -> bool:
    """Is there nothing to see?"""
    return float(thumbnail(piece).std(axis=(0, 1)).max()) < FLAT


def alike(pieces: Sequence[Array], *, turns: bool = False, threshold: float = ALIKE) -> bool:
    """Can two pieces be exchanged without anyone noticing (also after quarter turns, if `turns`)?"""
    small = np.stack([thumbnail(piece) for piece in pieces])
    for first in range(len(small)):
        for step in range(4 if turns else 1):
            turned = np.rot90(small[first], step)
            # Upright, each pair is looked at once. A turned piece is also compared with itself: one that looks the
            # same after a quarter turn has no right angle.
            others = small[first if step else first + 1 :]
            distance = np.abs(others - turned).mean(axis=(1, 2, 3))
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
    """The largest multiple of `unit` whose cell, gaps included, is at most `cell` pixels; 0 if there is none."""
    kept = 1.0 - 2.0 * gap
    side = int(cell * kept) // unit * unit
    # Rounding up from the tile to its cell can take one pixel too many.
    while side >= unit and round(side / kept) > cell:
        side -= unit
    return side


def _ring(total: int, rng: Generator) -> int:
    low, high = round(total / 3), round(2 * total / 3)
    return int(rng.integers(low, high + 1))


def _fringe(picture: Array, rng: Generator) -> Array:
    """Shift red and blue by −1, 0 or 1 pixels along each axis and cut the border that has no source."""
    red, blue = rng.integers(0, 3, size=(2, 2))
    green = (1, 1)  # the middle of the three places: not shifted
    tall, wide = picture.shape[0] - 2, picture.shape[1] - 2
    planes = []
    for channel, (down, right) in enumerate((red, green, blue)):
        planes.append(picture[down : down + tall, right : right + wide, channel])
    return np.stack(planes, axis=-1)


def _radial_gain(picture: Array, rng: Generator) -> Array:
    """Brighter or darker with the square of the distance from a random centre: hides the lens's own vignetting."""
    height, width = picture.shape[:2]
    strength = float(rng.uniform(-0.08, 0.08))
    centre_y, centre_x = rng.uniform(0.2, 0.8, size=2)
    # float32 throughout: a picture of float64 would take eight times its memory.
    down = np.arange(height, dtype=np.float32) / height - np.float32(centre_y)
    right = np.arange(width, dtype=np.float32) / width - np.float32(centre_x)
    squared = (down**2)[:, None] + (right**2)[None, :]
    gain = np.float32(1.0) + np.float32(strength) * squared
    return np.clip(picture * gain[..., None], 0, 255).astype(np.uint8)


def _scaled(picture: Array, gain: Array) -> Array:
    # A table of 256 values per plane is much quicker than arithmetic on every pixel.
    table = np.clip(np.arange(256)[:, None] * gain, 0, 255).astype(np.uint8)
    planes = [table[:, channel][picture[..., channel]] for channel in range(3)]
    return np.stack(planes, axis=-1)
