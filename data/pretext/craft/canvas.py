"""Putting labelled pieces on one picture: the "canvas" layout of a surface.

Pieces keep their pixels; each stands under a white strip with its label in black, separated by a white margin, so that
no two pieces touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrl.data.pretext.contract import Array

MARGIN = 8
"""White pixels between cells."""


def numbered_canvas(
    pieces: Sequence[Array], labels: Sequence[str], columns: int | None = None
) -> Array:
    """uint8 [H, W, 3] with the pieces in reading order, `columns` to a row.

    Without `columns` pieces of one size are arranged nearly square, and pieces of several sizes flow into rows that are
    as wide as the widest piece or as a square of the same area."""
    strip = max(16, min(28, min(piece.shape[0] for piece in pieces) // 5))
    cells = [
        _captioned(piece, label, strip) for piece, label in zip(pieces, labels, strict=True)
    ]
    one_size = len({cell.shape for cell in cells}) == 1
    limit = max(
        max(cell.shape[1] for cell in cells),
        int(np.sqrt(sum(cell.size // 3 for cell in cells)) * 1.2),
    )
    across = columns or (int(np.ceil(np.sqrt(len(cells)))) if one_size else len(cells))
    rows: list[list[Array]] = []
    for cell in cells:
        used = sum(other.shape[1] + MARGIN for other in rows[-1]) if rows else 0
        full = (
            not rows
            or len(rows[-1]) == across
            or (columns is None and not one_size and used + cell.shape[1] > limit)
        )
        rows = [*rows, [cell]] if full else [*rows[:-1], [*rows[-1], cell]]
    height = MARGIN + sum(max(cell.shape[0] for cell in row) + MARGIN for row in rows)
    width = MARGIN + max(sum(cell.shape[1] + MARGIN for cell in row) for row in rows)
    canvas, top = np.full((height, width, 3), 255, dtype=np.uint8), MARGIN
    for row in rows:
        left = MARGIN
        for cell in row:
            canvas[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
            left += cell.shape[1] + MARGIN
        top += max(cell.shape[0] for cell in row) + MARGIN
    return canvas


def _captioned(piece: Array, label: str, strip: int) -> Array:
    return np.concatenate([caption(label.rstrip(":"), piece.shape[1], strip), piece], axis=0)


@lru_cache(maxsize=512)
def caption(text: str, width: int, height: int) -> Array:
    """uint8 [height, width, 3]: black text on white."""
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).text(
        (2, 1), text, fill="black", font=ImageFont.load_default(size=height * 0.7)
    )
    return np.asarray(picture)


def grid_canvas(
    tiles: Sequence[Array], columns: int, line: int = 6, colour: int = 128
) -> tuple[Array, list[tuple[int, int, int, int]]]:
    """Equal tiles in place, separated by grey lines. Returns the picture and the box of every tile."""
    tall, wide = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    canvas = np.full(
        (rows * (tall + line) + line, columns * (wide + line) + line, 3), colour, dtype=np.uint8
    )
    boxes = []
    for place, tile in enumerate(tiles):
        top, left = (
            line + place // columns * (tall + line),
            line + place % columns * (wide + line),
        )
        canvas[top : top + tall, left : left + wide] = tile
        boxes.append((left, top, left + wide, top + tall))
    return canvas, boxes
