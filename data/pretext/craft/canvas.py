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
    shortest = min(piece.shape[0] for piece in pieces)
    strip = max(16, min(28, shortest // 5))
    cells = [
        _captioned(piece, label, strip) for piece, label in zip(pieces, labels, strict=True)
    ]
    rows = _rows(cells, columns)
    height = MARGIN + sum(_tallest(row) + MARGIN for row in rows)
    width = MARGIN + max(_used(row) for row in rows)
    canvas = np.full((height, width, 3), 255, dtype=np.uint8)
    top = MARGIN
    for row in rows:
        left = MARGIN
        for cell in row:
            tall, wide = cell.shape[:2]
            canvas[top : top + tall, left : left + wide] = cell
            left += wide + MARGIN
        top += _tallest(row) + MARGIN
    return canvas


def _rows(cells: Sequence[Array], columns: int | None) -> list[list[Array]]:
    """The cells in reading order, broken into rows."""
    one_size = len({cell.shape for cell in cells}) == 1
    nearly_square = int(np.ceil(np.sqrt(len(cells))))
    across = columns or (nearly_square if one_size else len(cells))
    area = sum(cell.size // 3 for cell in cells)
    # A fifth wider than a square of this area, since rows of unequal pieces are never filled to the end.
    limit = max(max(cell.shape[1] for cell in cells), int(np.sqrt(area) * 1.2))
    flows = columns is None and not one_size
    rows: list[list[Array]] = [[]]
    for cell in cells:
        too_wide = flows and _used(rows[-1]) + cell.shape[1] > limit
        if rows[-1] and (len(rows[-1]) == across or too_wide):
            rows.append([])
        rows[-1].append(cell)
    return rows


def _tallest(row: Sequence[Array]) -> int:
    return max(cell.shape[0] for cell in row)


def _used(row: Sequence[Array]) -> int:
    return sum(cell.shape[1] + MARGIN for cell in row)


def _captioned(piece: Array, label: str, strip: int) -> Array:
    head = caption(label.rstrip(":"), piece.shape[1], strip)
    return np.concatenate([head, piece], axis=0)


@lru_cache(maxsize=512)
def caption(text: str, width: int, height: int) -> Array:
    """uint8 [height, width, 3]: black text on white."""
    picture = Image.new("RGB", (width, height), "white")
    face = ImageFont.load_default(size=height * 0.7)
    ImageDraw.Draw(picture).text((2, 1), text, fill="black", font=face)
    return np.asarray(picture)


def grid_canvas(
    tiles: Sequence[Array], columns: int, line: int = 6, colour: int = 128
) -> tuple[Array, list[tuple[int, int, int, int]]]:
    """Equal tiles in place, separated by grey lines. Returns the picture and the box of every tile."""
    tall, wide = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)  # rounded up
    height = rows * (tall + line) + line
    width = columns * (wide + line) + line
    canvas = np.full((height, width, 3), colour, dtype=np.uint8)
    boxes = []
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        top = line + row * (tall + line)
        left = line + column * (wide + line)
        canvas[top : top + tall, left : left + wide] = tile
        boxes.append((left, top, left + wide, top + tall))
    return canvas, boxes
