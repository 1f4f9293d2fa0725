"""The tools of recipes: their settings, the tools themselves, and questions that say what tools there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmrl.data.drawn.closer import Closer
from mmrl.data.rows.images import media_path, read_image
from mmrl.data.rows.sources import open_table
from mmrl.ground.contents import Content, content_of
from mmrl.ground.faults import BadRow
from mmrl.ground.require import require
from mmrl.model.processing import Processing
from mmrl.rollouts.rewording import with_text
from mmrl.tools.boxes import Coordinates
from mmrl.tools.crop import SAID, Crop
from mmrl.tools.frames import SelectFrames
from mmrl.tools.indexes import BM25, Embeddings, Index, trigrams
from mmrl.tools.reading import Form
from mmrl.tools.search import Library, Search
from mmrl.tools.tool import IMAGE, Tool
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.types import Media, Prompt, Prompts

PAGE_TAGS = ("search", "bbox", "answer")
"""Of VRAG-RL's actions the first that is closed counts."""


@dataclass(frozen=True)
class VisualTools:
    """Which visual tools there are."""

    crop: bool = True
    """Crop a box of a picture."""
    frames: bool = True
    """Select frames of a clip."""
    coordinates: Coordinates = "either"
    """Numbers of a box: pixels as shown, shares (normalised), thousandths, or either pixels or shares."""
    padding: float = 0.1
    """Share of the sides that is added on each side of a box."""
    most_padding: int = 600
    """Most pixels that are added on one side."""
    least_side: int = 0
    """Boxes whose shorter side has at most so many pixels of the picture are refused (DeepEyes: 30)."""
    least_area: int = 0
    """Smaller crops are enlarged to so many pixels (DeepEyes: 3,136)."""
    most_frames: int = 8
    """Most frames of a call."""
    tag: str = ""
    """Crop by <TAG>[numbers]</TAG>; empty: by a JSON object in <tool_call>."""
    said: str = SAID
    """What the model reads with a crop; {new} and {old} are numbers of pictures."""
    told: bool = True
    """Say below each question which tools there are; off for a model that knows."""

    def __post_init__(self) -> None:
        plain = not set(self.tag) & set("<>/ ")
        require(
            self,
            crop=(self.crop or self.frames, "on, or else frames: a run needs a tool"),
            tag=(plain, "a word, or empty"),
        )

    def toolbox(self, processing: Processing, use: ToolUse) -> Toolbox:
        """The tools, for pictures as this model is shown them."""
        tools: list[Tool] = []
        if self.crop:
            crop = Crop(
                form=Form("bbox_2d", self.tag),
                coordinates=self.coordinates,
                plans=processing,
                padding=self.padding,
                most_padding=self.most_padding,
                least_side=self.least_side,
                least_area=self.least_area,
                said=self.said,
            )
            tools.append(crop)
        if self.frames:
            tools.append(SelectFrames(most=self.most_frames))
        return Toolbox(tuple(tools), use)


@dataclass(frozen=True)
class Pages:
    """What can be searched, and how pages are looked at."""

    file: str = ""
    """Table with a row per page: columns id, image, caption. Empty: of a drawn task, which has pages of its own."""
    index: Literal["bm25", "trigrams"] = "bm25"
    """By words that query and caption share, or by groups of three letters, which finds misspelt words, too."""
    ranking: int = 10
    """How many results of a query are looked at for a page that is new."""
    told: bool = True
    """Say below each question which tools there are; off for a model that knows."""

    def toolbox(self, processing: Processing, use: ToolUse, rows: Prompts) -> Toolbox:
        """Search and crop, as VRAG-RL has them. Raises ValueError without pages."""
        search = Search(
            form=Form("query", "search", _rivals("search")),
            library=self.library(rows),
            ranking=self.ranking,
        )
        crop = Crop(
            name="bbox",
            form=Form("bbox_2d", "bbox", _rivals("bbox")),
            coordinates="shown",
            plans=processing,
            default="last",
            padding=0.0,
            said=IMAGE,
        )
        return Toolbox((search, crop), use)

    def library(self, rows: Prompts) -> Callable[[Prompt], Library]:
        """What can be found for a question. Raises ValueError without pages."""
        if self.file:
            everything = self._of_file()
            return lambda _: everything
        if isinstance(rows, Closer) and rows.task == "pages":
            return lambda prompt: self._drawn(rows, prompt)
        raise ValueError(
            "--pages.file is empty, and the rows bring no pages of their own; name a table of pages with the columns "
            "id, image and caption, or train on drawn:pages."
        )

    def _of_file(self) -> Library:
        """The pages of a table. Raises ValueError for one that is none."""
        folder = Path(self.file).expanduser().parent
        captions: dict[str, str] = {}
        pictures: dict[str, str] = {}
        for number, row in enumerate(open_table(self.file).scan()):
            where = f"--pages.file {self.file}, row {number}"
            name, image, caption = (_text(row, key, where) for key in PAGE_COLUMNS)
            if name in captions:
                raise ValueError(f"{where}: the id {name!r} stands there twice; keep one.")
            try:
                media_path(image, folder)
            except BadRow as error:
                raise ValueError(f"{where}: its picture cannot be read: {error}") from None
            captions[name], pictures[name] = caption, image
        return Library(
            self._index(captions), lambda name: Media(read_image(pictures[name], folder))
        )

    def _drawn(self, rows: Closer, prompt: Prompt) -> Library:
        captions = rows.captions(list(prompt.extra["pages"]))
        return Library(self._index(captions), rows.page)

    def _index(self, captions: Mapping[str, str]) -> Index:
        if self.index == "bm25":
            return BM25(captions)
        return Embeddings.of(captions, trigrams)


PAGE_COLUMNS = ("id", "image", "caption")


class Told(Prompts):
    """Questions with what is said about the tools below them."""

    def __init__(self, prompts: Prompts, usage: str) -> None:
        self.prompts, self.usage, self.size = prompts, usage, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        return with_text(self.prompts[index], f"\n\n{self.usage}")

    def __len__(self) -> int:
        assert self.size is not None, "asked only of what ends"
        return self.size

    def drain(self) -> Mapping[str, int]:
        """What the rows counted."""
        return self.prompts.drain()

    def left_out(self) -> Sequence[BadRow]:
        """Bad rows among them; a collection of the user's need not know any."""
        return getattr(self.prompts, "left_out", tuple)()

    def content(self, index: int) -> Content:
        """Digests of what a row asks and shows; what is said about tools is the same for all."""
        return content_of(self.prompts, index)


def told(prompts: Prompts, toolbox: Toolbox | None, wanted: bool) -> Prompts:
    """The questions with what tools there are, if that is wanted and there are any."""
    return Told(prompts, toolbox.usage) if wanted and toolbox is not None else prompts


def _rivals(own: str) -> tuple[str, ...]:
    return tuple(tag for tag in PAGE_TAGS if tag != own)


def _text(row: Any, key: str, where: str) -> str:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} cannot be read: {row}")
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"{where}: column {key!r} holds {value!r:.60}; each page needs id, image (a path) and caption as texts. "
            f"The row has {sorted(row)}."
        )
    return value
