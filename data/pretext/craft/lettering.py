"""Text on drawn pictures: one font, loaded once per size."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=64)
def font(size: int) -> Font:
    """Pillow's own font at this height in pixels."""
    return ImageFont.load_default(size=size)
