"""The contract of a pretext task: propose, render, parse, verify.

    Medium(s) --propose--> Draft or Reject --render--> Sample --answer text--> parse --> verify --> Score

`propose` is pure: pixels and truth follow from (media, knobs, random streams) alone. `render` adds words. `score` never
raises on any text: a reply that cannot be read earns 0. What every task must keep, checked by the conformance suite:
the formatted truth earns 1; rewards lie in [0, 1]; `correct` implies a reward of 1; `chance` and `chance_reward` agree
with simulated random guesses; the truth cannot be read off the metadata; the same identity gives the same bytes.

To add a task: subclass `Task` in one file, set `name`, `version`, `kinds`, `knobs`, `wordings`, implement `propose`,
`read`, `verify`, `format`, `guess`, `chance` and `chance_reward`, and append an instance to `catalogue.TASKS`. Any
change of pixels or truth bumps `version`.

Conventions: images are uint8 [H, W, 3] RGB; clips uint8 [F, H, W, 3] with float64 times [F] in seconds from 0; boxes
are (x0, y0, x1, y1) in pixels, end exclusive; shown positions count from 1, array indices from 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.random import Generator

from mmrl.data.pretext.marking.parsing import Parsed, ParseError, extract
from mmrl.data.pretext.surface import EXAMPLE_CHANCE, Surface
from mmrl.ground.seeds import Streams

Array = np.ndarray
Kind = Literal["image", "rgbd", "video", "document", "none"]
KnobValue = int | float | str | bool
Knobs = Mapping[str, KnobValue]
Truth = Mapping[str, Any]
"""JSON values only. "answer" is the canonical solution; further keys hold what `verify` needs."""
INVALID = "invalid"
"""The solution key of a reply that cannot be read."""


class Clip(Protocol):
    """A video whose frames are decoded when asked for."""

    @property
    def times(self) -> Array:
        """float64 [N], seconds from 0, ascending: one per frame that can be read."""
        ...

    def read(self, indices: Sequence[int]) -> Array:
        """uint8 [len(indices), H, W, 3]; indices may repeat and need not be sorted."""
        ...


@dataclass(frozen=True)
class ArrayClip:
    """A clip that is already in memory."""

    frames: Array
    """uint8 [N, H, W, 3]."""
    times: Array
    """float64 [N]."""

    def read(self, indices: Sequence[int]) -> Array:
        return self.frames[np.asarray(indices, dtype=np.int64)]


@dataclass(frozen=True)
class Medium:
    """One raw source item. Only the fields of its kind are set; `id` is made of its content, never of its path."""

    id: str
    kind: Kind
    image: Array | None = None
    """uint8 [H, W, 3] (image, rgbd, document)."""
    depth: Array | None = None
    """float32 [H, W], metres, 0 or NaN where unknown (rgbd)."""
    clip: Clip | None = None
    """Frames on demand (video)."""

    def picture(self) -> Array:
        """The image, or an error that names the medium."""
        if self.image is None:
            raise ValueError(
                f"medium {self.id} is a {self.kind} without an image; feed it to a task of its kind."
            )
        return self.image

    def video(self) -> Clip:
        """The clip, or an error that names the medium."""
        if self.clip is None:
            raise ValueError(
                f"medium {self.id} is a {self.kind} without a clip; feed it to a task of its kind."
            )
        return self.clip


@dataclass(frozen=True)
class Visual:
    """One image or clip as the model sees it."""

    pixels: Array
    """uint8 [H, W, 3], or [F, H, W, 3] if `times` is given."""
    times: Array | None = None
    """float64 [F], seconds from 0; None for an image."""
    label: str = ""
    """Shown as text before the pixels, e.g. "Piece 3:"."""

    @property
    def is_video(self) -> bool:
        return self.times is not None


@dataclass(frozen=True)
class Evidence:
    """Where the answer can be seen: boxes in an image, frames of a clip, or both."""

    visual: int = 0
    """Index of the visual."""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    """(x0, y0, x1, y1), end exclusive; empty means the whole picture."""
    frames: tuple[int, ...] = ()
    """Frame indices; empty means all frames."""

    def mask(self, pixels: Array) -> Array:
        """bool, the shape of `pixels` without its last axis."""
        height, width = pixels.shape[-3:-1]
        area = np.zeros((height, width), dtype=bool)
        for x0, y0, x1, y1 in self.boxes or ((0, 0, width, height),):
            # Boxes may reach out of the picture; a negative start would count from the other end.
            rows = slice(max(y0, 0), max(y1, 0))
            area[rows, max(x0, 0) : max(x1, 0)] = True
        if pixels.ndim == 3:
            return area
        chosen = np.zeros(pixels.shape[0], dtype=bool)
        chosen[list(self.frames) if self.frames else slice(None)] = True
        return chosen[:, None, None] & area


@dataclass(frozen=True)
class Reject:
    """Why this medium gives no well-posed question with these draws."""

    reason: str
    """A short code, counted per source."""


@dataclass(frozen=True)
class Draft:
    """Pixels and truth, not yet worded."""

    visuals: tuple[Visual, ...]
    truth: Truth
    key: Hashable
    """The canonical solution: what two replies must share to count as the same answer."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fills the placeholders of `Task.wordings`. Must not contain the truth."""
    evidence: tuple[Evidence, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON values for logs; never shown to the model."""


RawMedia = Sequence[Medium]
"""What a question is made of."""
Proposal = Draft | Reject
"""A question, or why there is none."""


@dataclass(frozen=True)
class Sample:
    """One finished question."""

    id: str
    task: str
    version: int
    messages: tuple[Mapping[str, Any], ...]
    """A chat; visual parts are {"type": "image"} or {"type": "video"} in the order of `visuals`."""
    visuals: tuple[Visual, ...]
    truth: Truth
    key: Hashable
    knobs: Knobs
    surface: Surface
    evidence: tuple[Evidence, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """JSON: what rebuilds the sample (source ids, knobs, seed, index, attempt)."""


@dataclass(frozen=True)
class Score:
    """What a reply earns."""

    reward: float
    """In [0, 1]."""
    correct: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    key: Hashable = INVALID


@dataclass(frozen=True)
class Knob:
    """One setting of a task."""

    default: KnobValue
    values: tuple[KnobValue, ...] = ()
    """Ordered from easy to hard; the level sweeps them. Empty: the level leaves this setting alone."""
    smooth: bool = False
    """Interpolate numbers between the values instead of stepping."""
    help: str = ""
    allowed: tuple[KnobValue, ...] = ()
    """Every value that may be set; empty: any value of the default's type (an int also where a float is expected)."""

    def at(self, level: float) -> KnobValue:
        """The value at difficulty `level` in [0, 1]."""
        if not self.values:
            return self.default
        if self.smooth:
            grid = np.linspace(0.0, 1.0, len(self.values))
            return float(np.interp(level, grid, np.asarray(self.values, dtype=np.float64)))
        # Equal stretches of the level for every value; 1 itself belongs to the last one.
        place = int(level * len(self.values))
        return self.values[min(place, len(self.values) - 1)]


class Task(ABC):
    """A pretext task. Instances have no state."""

    name: str
    version: int = 1
    kinds: tuple[Kind, ...]
    """Media it accepts; ("none",) draws everything itself."""
    knobs: Mapping[str, Knob] = {}
    wordings: tuple[str, ...]
    """Question templates with `str.format` placeholders from `Draft.fields`; at least two."""
    intended: tuple[str, ...] = ()
    """Auditors (see `audit`) whose cue is what this task is about; they may beat chance."""
    avoid: tuple[str, ...] = ()
    """Traits a medium must not have, e.g. "flat-shapes" where flat shapes are painted and counted. Sources that draw
    obey; photographs are taken as they are."""
    hint: str
    """What the answer looks like, e.g. "the piece numbers in reading order, separated by commas"."""

    @abstractmethod
    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        """Make a question from `media_count(knobs)` media, or say why not."""

    @abstractmethod
    def read(self, body: str, truth: Truth) -> Any | ParseError:
        """The value of an answer body (already cut out and normalised). Uses `parsing`; never raises."""

    @abstractmethod
    def verify(self, value: Any, truth: Truth) -> Score:
        """Pay a value that `read` returned. Closed form, no I/O; 0 for values that are no valid solution."""

    @abstractmethod
    def format(self, truth: Truth) -> str:
        """The true answer as text: `verify(read(format(truth)))` is 1."""

    @abstractmethod
    def guess(self, truth: Truth, rng: Generator) -> str:
        """A random well-formed answer, drawn without looking at the solution (only at sizes and options)."""

    @abstractmethod
    def chance(self, knobs: Knobs) -> float:
        """Probability that `guess` is correct."""

    @abstractmethod
    def chance_reward(self, knobs: Knobs) -> float:
        """Expected reward of `guess`."""

    def media_count(self, knobs: Knobs) -> int:
        """How many media `propose` needs; 0 for tasks of kind "none"."""
        return 0 if self.kinds == ("none",) else 1

    def defaults(self) -> dict[str, KnobValue]:
        return {name: knob.default for name, knob in self.knobs.items()}

    def at_level(self, level: float) -> dict[str, KnobValue]:
        """Knobs for a difficulty in [0, 1]; 0 is the easiest."""
        if not 0.0 <= level <= 1.0:
            raise ValueError(f"{self.name}: difficulty level {level} must lie in [0, 1].")
        return {name: knob.at(level) for name, knob in self.knobs.items()}

    def complete(self, knobs: Knobs) -> dict[str, KnobValue]:
        """Defaults with `knobs` on top. Refuses unknown names and values of the wrong kind."""
        unknown = sorted(set(knobs) - set(self.knobs))
        if unknown:
            raise ValueError(
                f"{self.name} has no knob {unknown[0]!r}; it has {sorted(self.knobs)}."
            )
        full = self.defaults() | dict(knobs)
        for name, knob in self.knobs.items():
            full[name] = _checked(self.name, name, knob, full[name])
        return full

    def parse(
        self, text: str, truth: Truth, surface: Surface | None = None
    ) -> Parsed | ParseError:
        """Cut the answer out of a reply and read it."""
        body = extract(text, surface)
        if isinstance(body, ParseError):
            return body
        value = self.read(body, truth)
        return value if isinstance(value, ParseError) else Parsed(value, body)

    def score(self, text: str, truth: Truth, surface: Surface | None = None) -> Score:
        """Pay a reply: parse and verify; 0 if it cannot be read."""
        parsed = self.parse(text, truth, surface)
        if isinstance(parsed, ParseError):
            return Score(0.0, False, {"parsed": 0.0})
        score = self.verify(parsed.value, truth)
        return replace(score, parts={**score.parts, "parsed": 1.0})

    def question(self, draft: Draft, knobs: Knobs, surface: Surface, rng: Generator) -> str:
        """The words: one of the wordings, what the answer looks like, an example where it cannot help, the form."""
        # Drawn even if the variant is given: the example after it must be the same in every wording.
        pick = int(rng.integers(len(self.wordings)))
        variant = pick if surface.variant is None else surface.variant
        wording = self.wordings[variant % len(self.wordings)]
        text = f"{wording.format(**draft.fields)} The answer is {self.hint.format(**draft.fields)}."
        example = self._example(draft.truth, knobs, rng)
        if example:
            text = f"{text} For example: {example}"
        return f"{text}\n{surface.instruction}"

    def _example(self, truth: Truth, knobs: Knobs, rng: Generator) -> str:
        # Of few options an example that is never right would rule one out.
        if self.chance(knobs) > EXAMPLE_CHANCE:
            return ""
        for _ in range(8):
            example = self.guess(truth, rng)
            if not self.score(Surface().wrap(example), truth).correct:
                return example
        return ""


def _checked(task: str, name: str, knob: Knob, value: Any) -> KnobValue:
    kind = type(knob.default)
    # A bool is an int in Python, and no number here.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ValueError(
            f"{task}.{name} is {value!r}; it must be of type {kind.__name__}, e.g. {knob.default!r}."
        )
    if knob.allowed and value not in knob.allowed:
        raise ValueError(f"{task}.{name} is {value!r}; it must be one of {list(knob.allowed)}.")
    return value
