"""Programs that draw, and what they draw: Matplotlib, SVG and HTML, each run in a sandbox.

    with Renderer("svg") as render:
        drawn = render('<svg xmlns="http://www.w3.org/2000/svg" …')
        drawn.picture       # uint8 [H, W, 3], or None with `drawn.fault`
        drawn.words         # the texts in it

A program is run without network, file of ours or more than its share of the machine (`mmrl.ground.sandbox`), from
equal seeds: the same program always draws the same picture. What draws in several figures is seen by the last of them.

    matplotlib   Python; 100 dots per inch, at most 2,048 pixels; showing and closing do nothing, the figure is taken
    svg          resvg with the fonts of Matplotlib; scripts and animation are no part of it
    html         WeasyPrint on a page of 1024 x 2048 pixels, cut below its contents but not above 768; no scripts;
                 nothing is fetched, pictures are grey boxes; fonts are those of the machine

What could show the picture that was given instead of drawing one is refused before it is run: reading images, data
addresses, base64 (`FORBIDDEN`). Packages: pip install "mmrl[render]".
"""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from mmrl.ground.faults import BadMedia
from mmrl.ground.images import decode_image
from mmrl.ground.sandbox import Limits, Outcome, say_what_is_missing
from mmrl.ground.sandbox_warm import WarmPython

Language = Literal["matplotlib", "svg", "html"]
LONGEST = 2048
"""Pixels of the longer side of what is drawn."""
SOURCE_LIMIT = 100_000
"""Characters of a program."""
FORBIDDEN = ("imread", "base64", "data:", "imageio", "frombytes", "fromstring", "frombuffer")
"""Words, lower case, of a program that shows pixels instead of drawing."""
KEPT = 4096
"""Programs whose drawings are remembered."""
LIMITS = Limits(seconds=10.0, memory_mb=1024, processes=16, output_kb=16, files_mb=16)
"""For one program; time, memory and files are those of our specification of RRVF."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "matplotlib": ("matplotlib",),
    "svg": ("resvg_py", "matplotlib"),
    "html": ("weasyprint", "pypdfium2"),
}
"""Packages by language."""
PRELOAD: Mapping[str, tuple[str, ...]] = {
    "matplotlib": ("matplotlib.pyplot", "matplotlib.backends.backend_agg"),
    "svg": ("resvg_py", "xml.etree.ElementTree"),
    "html": ("weasyprint", "pypdfium2"),
}
MATPLOTLIB = """
import json, random, runpy
import numpy, matplotlib, matplotlib.pyplot as plt
from matplotlib.text import Text

random.seed(0)
numpy.random.seed(0)
plt.show = plt.close = lambda *_, **__: None
runpy.run_path("drawing", run_name="__main__")
figure = plt.figure(plt.get_fignums()[-1]) if plt.get_fignums() else None
if figure is None:
    raise SystemExit("it draws no figure")
dots = min(100, 2048 / max(figure.get_size_inches()))
figure.savefig("drawing.png", dpi=dots, facecolor="white", metadata={"Software": None})
shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_alpha() != 0]
frame = figure.bbox
inside = [text for text in shown if text.get_text().strip() and frame.overlaps(text.get_window_extent())]
json.dump([text.get_text() for text in inside], open("words.json", "w"))
"""
SVG = """
import importlib.util, json, os, resvg_py
import xml.etree.ElementTree as tree

# Matplotlib brings fonts along: the same picture on every machine. It need not be read for that.
place = os.path.dirname(importlib.util.find_spec("matplotlib").origin) + "/mpl-data/fonts/ttf"
sans, serif, mono = "DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono"
fonts = dict(font_dirs=[place], skip_system_fonts=True, font_family=sans, sans_serif_family=sans)
fonts |= dict(serif_family=serif, monospace_family=mono, cursive_family=serif, fantasy_family=serif)

source = open("drawing").read()
root = tree.fromstring(source)
picture = resvg_py.svg_to_bytes(svg_string=source, background="white", **fonts)
open("drawing.png", "wb").write(bytes(picture))
texts = ["".join(node.itertext()) for node in root.iter() if str(node.tag).endswith("}text")]
json.dump(texts, open("words.json", "w"))
"""
HTML = """
import io, json, logging
import numpy, pypdfium2, weasyprint
from PIL import Image
from weasyprint.urls import URLFetcher, URLFetcherResponse

logging.disable()
grey = io.BytesIO()
Image.new("RGB", (1, 1), "#cccccc").save(grey, "PNG")

class Nothing(URLFetcher):
    def fetch(self, address, *_, **__):
        return URLFetcherResponse(address, grey.getvalue(), {"Content-Type": "image/png"})

page = weasyprint.CSS(string="@page { size: 1024px 2048px; margin: 0 }")
document = weasyprint.HTML(
    string=open("drawing").read(),
    base_url="http://page/",
    url_fetcher=Nothing(),
    media_type="screen",
)
written = document.write_pdf(stylesheets=[page], presentational_hints=True)
first = pypdfium2.PdfDocument(written)[0]
picture = first.render(scale=96 / 72).to_pil().convert("RGB")
rows = numpy.asarray(picture)
used = numpy.flatnonzero((rows != rows[-1, -1]).any(axis=(1, 2)))
below = max(768, int(used[-1]) + 9 if len(used) else 0)
picture.crop((0, 0, picture.width, min(below, picture.height))).save("drawing.png")
texts = first.get_textpage().get_text_bounded().splitlines()
json.dump(texts, open("words.json", "w"))
"""
PROGRAMS: Mapping[str, str] = {"matplotlib": MATPLOTLIB, "svg": SVG, "html": HTML}


@dataclass(frozen=True)
class Drawing:
    """What a program drew."""

    picture: NDArray[np.uint8] | None = None
    """uint8 [H, W, 3]; None if there is none."""
    words: tuple[str, ...] = ()
    """The texts in it."""
    fault: str = ""
    """Why there is no picture: "forbidden", "too long", "time", "output", "signal", "error" or "no picture"."""
    detail: str = ""
    """The program's own last words."""


class Renderer:
    """Draws programs of one language, each once, several at a time. `counts` holds what became of them."""

    def __init__(
        self, language: Language, limits: Limits = LIMITS, workers: int | None = None
    ) -> None:
        """`workers`: programs at one time; None: one for each core. Raises ValueError if packages are missing."""
        refuse_missing(language)
        say_what_is_missing("Drawings")
        self.language, self.limits = language, limits
        self.counts: Counter[str] = Counter()
        """Programs by their fault, "drawn", "again" for those that were known, and "milliseconds" in sandboxes."""
        self._threads = ThreadPoolExecutor(workers or os.cpu_count() or 1, "mmrl-drawing")
        self._warm = WarmPython(PRELOAD[language], limits)
        self._known: OrderedDict[str, Future[Drawing]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Renderer({self.language!r}, {self.limits})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, source: str) -> Drawing:
        """What the program draws."""
        return self.begin(source).result()

    def begin(self, source: str) -> Future[Drawing]:
        """What the program will have drawn: for callers that do not wait."""
        with self._lock:
            known = self._known.get(source)
            if known is not None:
                self._known.move_to_end(source)
                self.counts["again"] += 1
                return known
            drawing = self._threads.submit(self._drawn, source)
            self._known[source] = drawing
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return drawing

    def blanks(self, picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """What can be drawn without looking at the picture, uint8 [H, W, 3] each."""
        return blank_pages(picture)

    def close(self) -> None:
        """End the processes. A later call starts them again."""
        self._warm.close()

    def _drawn(self, source: str) -> Drawing:
        refused = _refused(source)
        if refused is None:
            given = {"drawing": source.encode("utf-8", "replace")}
            program, wanted = PROGRAMS[self.language], ["drawing.png", "words.json"]
            outcome = self._warm.run(program, files=given, wanted=wanted)
            drawn, seconds = _read(outcome), outcome.seconds
        else:
            drawn, seconds = refused, 0.0
        with self._lock:
            self.counts[drawn.fault or "drawn"] += 1
            self.counts["milliseconds"] += round(1000 * seconds)
            if drawn.fault == "time":  # another time the machine may be less busy
                self._known.pop(source, None)
        return drawn


def blank_pages(picture: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """A white page, and one of the commonest colour, like the picture uint8 [H, W, 3]."""
    colours, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return [
        np.full_like(picture, 255),
        np.full_like(picture, colours[counts.argmax()]),
    ]


def _refused(source: str) -> Drawing | None:
    """Why a program is not run, if it is not."""
    if len(source) > SOURCE_LIMIT:
        return Drawing(fault="too long", detail=f"{len(source)} characters")
    lower = source.lower()
    found = [word for word in FORBIDDEN if word in lower]
    return Drawing(fault="forbidden", detail=f"{found[0]!r} shows pixels") if found else None


def refuse_missing(language: str) -> None:
    """Raise ValueError if the language is none of ours, or its packages are not installed."""
    if language not in get_args(Language):
        raise ValueError(
            f"{language!r} is no drawing language; it is one of {', '.join(get_args(Language))}."
        )
    missing = [name for name in NEEDS[language] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"Drawing {language} needs {' and '.join(missing)}, which is not installed here: "
            'pip install "mmrl[render]".'
        )


def _read(outcome: Outcome) -> Drawing:
    """Picture and texts of a program that has run."""
    last = outcome.errors.strip().splitlines()[-1:] or [""]
    if outcome.ended == "failed":
        raise RuntimeError(f"The sandbox did not come up: {last[0]}")
    if not outcome.ok:
        fault = "error" if outcome.ended == "exit" else outcome.ended
        return Drawing(fault=fault, detail=last[0])
    try:
        picture = decode_image(outcome.files["drawing.png"], "the drawing", longest=LONGEST)
        found = json.loads(outcome.files["words.json"])
    except (KeyError, ValueError, BadMedia) as error:
        return Drawing(fault="no picture", detail=str(error))
    words = tuple(str(text) for text in found) if isinstance(found, list) else ()
    return Drawing(picture, words)
