"""The pictures of a prompt as a judge that sees is shown them. No torch.

Each picture is a `data:` address of at most `LONGEST` pixels a side; of a clip `FRAMES` frames stand for it, evenly
chosen, the first and the last among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmrl.report.pictures import data_uri, reduced, spread

if TYPE_CHECKING:
    from mmrl.types import Media

LONGEST = 1024
FRAMES = 8


def addresses_of(media: Sequence[Media]) -> list[str]:
    """One address for each picture, in order, and up to `FRAMES` for each clip."""
    found: list[str] = []
    for medium in media:
        for place in spread(len(medium.frames), FRAMES):
            pixels = medium.frames[place].permute(1, 2, 0).numpy()  # [H, W, 3]
            found.append(data_uri(reduced(pixels, LONGEST)))
    return found
