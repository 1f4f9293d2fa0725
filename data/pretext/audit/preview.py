"""An HTML sheet to look at: per sample its pictures, prompt, truth, evidence and what was drawn.

One self-contained file (`mmrl.report.page`): pictures are embedded, clips become film strips of at most `STRIP` frames,
each with its time; evidence boxes are outlined in a second copy that opens on click.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Array, Evidence, Sample, Visual
from mmrl.data.pretext.craft.lettering import font
from mmrl.report.page import is_page, render, write_page
from mmrl.report.pictures import data_uri

STRIP = 48
"""Most frames of a clip that are shown: all, for tasks as they ship, so that counts can be checked by eye."""
GAP, TEXT = 4, 14
"""Pixels between the frames of a strip, and the height of their times."""


def write_preview(samples: Iterable[Sample], path: Path, title: str = "Pretext samples") -> int:
    """Write the sheet; returns the number of samples on it."""
    cards = [_card(number, sample) for number, sample in enumerate(samples, 1)]
    page = render("samples.html", kind="preview", title=title, heading=title, cards=cards)
    write_page(path, page)
    return len(cards)


def is_preview(page: str) -> bool:
    """Is this a sheet that `write_preview` wrote?"""
    return is_page(page, "preview")


def _card(number: int, sample: Sample) -> dict[str, Any]:
    task = find(sample.task)
    parts = sample.messages[0]["content"]
    text = "".join(part.get("text", f"[{part['type']}] ") for part in parts)
    shown = [evidence for evidence in sample.evidence if evidence.boxes or evidence.frames]
    details = {
        "truth": sample.truth,
        "knobs": sample.knobs,
        "recipe": sample.recipe,
        "meta": sample.meta,
    }
    return {
        "id": sample.id,
        "number": number,
        "task": sample.task,
        "version": sample.version,
        "pictures": [_picture(index, visual) for index, visual in enumerate(sample.visuals)],
        "prompt": text,
        "truth": task.format(sample.truth),
        "evidence": [_outlined(sample, evidence) for evidence in shown],
        "details": json.dumps(details, indent=1, default=str),
    }


def _picture(index: int, visual: Visual) -> dict[str, Any]:
    if visual.times is None:
        pixels = visual.pixels
        caption = visual.label or f"image {index + 1}"
    else:
        pixels = _strip(visual, range(len(visual.pixels)))
        name = visual.label.rstrip(":") or f"clip {index + 1}"
        caption = f"{name}: {len(visual.pixels)} frames, {visual.times[-1]:.2f} s"
    height, width = pixels.shape[:2]
    return {"uri": data_uri(pixels), "caption": caption, "width": width, "height": height}


def _strip(visual: Visual, wanted: Iterable[int]) -> Array:
    """Frames with their times below, eight in a row, each at most 130 pixels wide."""
    assert visual.times is not None
    frames, indices = visual.pixels, list(wanted)
    if len(indices) > STRIP:
        spread = np.linspace(0, len(indices) - 1, STRIP).round()
        indices = [indices[int(place)] for place in spread]
    scale = min(1.0, 130 / frames.shape[2])
    wide = max(1, round(scale * frames.shape[2]))
    tall = max(1, round(scale * frames.shape[1]))
    across = min(8, len(indices))
    rows = -(-len(indices) // across)  # rounded up
    size = (across * (wide + GAP), rows * (tall + GAP + TEXT))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for place, index in enumerate(indices):
        row, column = divmod(place, across)
        x, y = column * (wide + GAP), row * (tall + GAP + TEXT)
        frame = Image.fromarray(np.ascontiguousarray(frames[index]))
        sheet.paste(frame.resize((wide, tall)), (x, y))
        time = f"{visual.times[index]:.1f}"
        pen.text((x, y + tall + 1), time, fill="black", font=font(TEXT - 3))
    return np.asarray(sheet)


def _outlined(sample: Sample, evidence: Evidence) -> dict[str, str]:
    visual = sample.visuals[evidence.visual]
    caption = f"evidence in visual {evidence.visual + 1}"
    if visual.times is not None:
        pixels = _strip(visual, evidence.frames or range(len(visual.pixels)))
        return {"uri": data_uri(pixels), "caption": caption}
    image = Image.fromarray(np.ascontiguousarray(visual.pixels))
    pen = ImageDraw.Draw(image)
    for x0, y0, x1, y1 in evidence.boxes:
        # Ends are exclusive here and inclusive in Pillow.
        box = (x0, y0, max(x0, x1 - 1), max(y0, y1 - 1))
        pen.rectangle(box, outline=(255, 0, 200), width=2)
    return {"uri": data_uri(np.asarray(image)), "caption": caption}
