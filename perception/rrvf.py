"""RRVF (arXiv 2507.20766): a picture is rebuilt by code, and the drawing is compared with the picture.

Writing code that draws a chart or page is hard, comparing two pictures is easy: pictures alone are enough to learn
from, without any code that belongs to them.

    R      = 0.8 · R_vision + 0.2 · (1 + R_form)
    R_form = 0 if the answer holds code that draws a picture, else -1; R_vision is then 0
    R_vision = max(0, (S - S_0) / (1 - S_0))
    S      = likeness of drawing and picture (`perception/likeness.py`)
    S_0    = the largest likeness of what costs no looking: a white page, and one of the picture's commonest colour

The code is the last fenced block inside the last <answer> </answer>, or all of its text without one.

Departures: no code is published, only the idea, its parts and their aims (README, abstract).
1. The published R_vision is the score of a large vision-language model: `JudgedDrawing`, the part `vision`, with words
   of ours (`rewards/prompts/drawing_likeness.md`). Without a judge it is the likeness above, and the part is called
   `similarity`: no curve of it passes for the paper's.
2. The weights 0.8 and 0.2 are those of the framework that RRVF is built on (DeepEyes); its own are not published.
3. S_0 is ours: a blank page is like any chart, and would be paid.
4. Rounds in which the model sees its drawings: `rrvf_rounds.py`.
5. Charts are drawn by Matplotlib as published, pages by WeasyPrint and not by a browser; SVG is ours.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from PIL import Image

from mmrl.ground.require import require
from mmrl.perception.likeness import Likeness, Pixels
from mmrl.perception.rendering import Drawing
from mmrl.rewards.code_answers import code_of
from mmrl.rewards.contract import Reward
from mmrl.rewards.judge_prompts import judge_prompt
from mmrl.rewards.judged import Judged

if TYPE_CHECKING:
    from mmrl.types import Rollout

NO_CODE = Drawing(fault="no code")
_SCORE = re.compile(r"<score>\s*(\d{1,2}(?:\.\d{1,3})?)\s*</score>")


@dataclass(frozen=True)
class RRVF:
    """What a drawing is paid for."""

    vision: float = 0.8
    """Weight of the likeness of drawing and picture."""
    form: float = 0.2
    """Weight of code that draws anything."""
    right_above: float = 0.9
    """A drawing is right where its R_vision exceeds this, for methods that ask."""

    def __post_init__(self) -> None:
        require(
            self,
            vision=(0 <= self.vision <= 100, "0 (logged only) to 100"),
            form=(0 <= self.form <= 100, "0 (logged only) to 100"),
            right_above=(0 <= self.right_above < 1, "at least 0, below 1"),
        )


class Pen(Protocol):
    """Draws code of one language (`perception/rendering.py`)."""

    counts: Counter[str]
    """What became of the drawings, by name."""

    def begin(self, source: str) -> Future[Drawing]:
        """What the code will have drawn."""
        ...

    def blanks(self, picture: Pixels) -> list[Pixels]:
        """What it can draw without looking at the picture."""
        ...


def rescaled(likeness: float, blank: float) -> float:
    """R_vision of a likeness S, given that of a blank page, S_0; both in [0, 1]. 0 for a picture that is blank."""
    return max(0.0, (likeness - blank) / (1 - blank)) if blank < 1 else 0.0


@dataclass(frozen=True)
class Similarity(Reward):
    """R_vision of an answer, in [0, 1]. An async reward; the pen draws the code."""

    pen: Pen
    likeness: Likeness = field(default_factory=Likeness)
    words: str = "words"
    """Column with the texts of the picture, for rows that know them; without it texts are not compared."""
    blank: dict[bytes, float] = field(default_factory=dict, repr=False, compare=False)
    """S_0 by picture: the same for all answers to a question."""

    async def __call__(self, rollout: Rollout) -> float | None:
        picture = given_picture(rollout)
        if picture is None:  # nothing to compare with
            return None
        drawn = await drawing(self.pen, rollout.text)
        if drawn.picture is None:
            return 0.0
        # On a thread: other answers go on being drawn.
        return await asyncio.to_thread(self.paid, picture, drawn, self.known(rollout))

    def known(self, rollout: Rollout) -> tuple[str, ...] | None:
        """The texts of a question's picture; None if they are not known."""
        texts = rollout.prompt.extra.get(self.words)
        return None if texts is None else _texts(texts)

    def alike(
        self, picture: Pixels, drawn: Drawing, words: tuple[str, ...] | None = None
    ) -> float:
        """S of a drawing; `words`: the texts of the picture, None if they are not known."""
        assert drawn.picture is not None
        compared = None if words is None else (words, drawn.words)
        return self.likeness(picture, drawn.picture, compared)

    def paid(
        self, picture: Pixels, drawn: Drawing, words: tuple[str, ...] | None = None
    ) -> float:
        """R_vision of a drawing; `words`: the texts of the picture, None if they are not known."""
        return rescaled(self.alike(picture, drawn, words), self._blank(picture, words))

    def _blank(self, picture: Pixels, words: tuple[str, ...] | None) -> float:
        """S_0 of a picture."""
        key = hashlib.sha256(repr((picture.shape, words)).encode() + picture.tobytes()).digest()
        if key not in self.blank:
            # A blank page has no texts.
            compared = None if words is None else (words, ())
            pages = self.pen.blanks(picture)
            self.blank[key] = max(self.likeness(picture, page, compared) for page in pages)
        return self.blank[key]


@dataclass(frozen=True)
class Form(Reward):
    """1 + R_form: 1 for an answer with code that draws a picture, else 0. An async reward."""

    pen: Pen

    async def __call__(self, rollout: Rollout) -> float:
        drawn = await drawing(self.pen, rollout.text)
        return float(drawn.picture is not None)

    def metrics(self) -> Mapping[str, float]:
        """How many programs were drawn, refused, failed, … since the last call (`render/...`)."""
        found = {
            f"render/{name.replace(' ', '_')}": float(n) for name, n in self.pen.counts.items()
        }
        self.pen.counts.clear()
        return {"render/drawn": 0.0, **found}


@dataclass(frozen=True)
class JudgedDrawing(Judged):
    """R_vision as a vision-language model sees it: its points from 0 to 10, as a share. An async reward."""

    pen: Pen

    judge_prompts: ClassVar[tuple[str, ...]] = ("drawing_likeness",)

    async def __call__(self, rollout: Rollout) -> float | None:
        picture = given_picture(rollout)
        if picture is None:
            return None
        drawn = await drawing(self.pen, rollout.text)
        if drawn.picture is None:
            return 0.0
        request = judge_prompt("drawing_likeness").filled(
            pictures=[png_address(picture), png_address(drawn.picture)]
        )
        return await self.ask(request, points, f"prompt {rollout.prompt.id!r}")


def points(reply: str) -> float | None:
    """The last <score> of a reply in [0, 10], as a share; None without one."""
    found = [float(number) for number in _SCORE.findall(reply)]
    return found[-1] / 10 if found and found[-1] <= 10 else None


def png_address(picture: Pixels) -> str:
    """A picture as a `data:` address, for a judge."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def drawing(pen: Pen, text: str) -> Drawing:
    """What the code of an answer draws."""
    code = code_of(text)
    return NO_CODE if code is None else await asyncio.wrap_future(pen.begin(code))


def given_picture(rollout: Rollout) -> Pixels | None:
    """The last picture of a question, uint8 [H, W, 3]; None without one."""
    pictures = [medium for medium in rollout.prompt.media if not medium.is_video]
    return pictures[-1].frames[0].permute(1, 2, 0).contiguous().numpy() if pictures else None


def _texts(known: Iterable[str] | str) -> tuple[str, ...]:
    """A column of texts: a list, or one text a line."""
    return tuple(known.splitlines() if isinstance(known, str) else map(str, known))
