"""Putting labelled pieces on one picture: the "canvas" layout of a surface.

Pieces keep their pixels; each stands in a cell of equal size under a white strip with its label in black, cells are
separated by a white margin, so that no two pieces touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.pretext.contract import Array

MARGIN = 8
"""White pixels between cells."""


def numbered_canvas(pieces: Sequence[Array], labels: Sequence[str], columns: int | None = None) -> Array:
    """uint8 [H, W, 3] with the pieces in reading order; `columns` defaults to a nearly square arrangement."""
    across = columns or int(np.ceil(np.sqrt(len(pieces))))
    strip = max(16, min(28, pieces[0].shape[0] // 5))
    tall, wide = max(p.shape[0] for p in pieces) + strip, max(p.shape[1] for p in pieces)
    rows = -(-len(pieces) // across)
    canvas = np.full((rows * (tall + MARGIN) + MARGIN, across * (wide + MARGIN) + MARGIN, 3), 255, dtype=np.uint8)
    for place, (piece, label) in enumerate(zip(pieces, labels, strict=True)):
        top, left = MARGIN + place // across * (tall + MARGIN), MARGIN + place % across * (wide + MARGIN)
        canvas[top : top + strip, left : left + wide] = caption(label.rstrip(":"), wide, strip)
        canvas[top + strip : top + strip + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas


@lru_cache(maxsize=512)
def caption(text: str, width: int, height: int) -> Array:
    """uint8 [height, width, 3]: black text on white."""
    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).text((2, 1), text, fill="black", font=ImageFont.load_default(size=height * 0.7))
    return np.asarray(picture)


def grid_canvas(
    tiles: Sequence[Array], columns: int, line: int = 6, colour: int = 128
) -> tuple[Array, list[tuple[int, int, int, int]]]:
    """Equal tiles in place, separated by grey lines. Returns the picture and the box of every tile."""
    tall, wide = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * (tall + line) + line, columns * (wide + line) + line, 3), colour, dtype=np.uint8)
    boxes = []
    for place, tile in enumerate(tiles):
        top, left = line + place // columns * (tall + line), line + place % columns * (wide + line)
        canvas[top : top + tall, left : left + wide] = tile
        boxes.append((left, top, left + wide, top + tall))
    return canvas, boxes
