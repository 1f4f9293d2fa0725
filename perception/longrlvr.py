r"""LongRLVR (arXiv 2603.02146): paid for saying where the answer can be seen, too, in pictures and clips as in texts.

An answer names its evidence in one block and answers in another. P is the share of what it names that belongs to the
evidence, R the share of the evidence that it names, `ans` in [0, 1] its accuracy:

    F = (1 + beta²)·P·R / (beta²·P + R)
    reward = ans + eta·F + (1 - eta)·ans·F          in [0, 2]; 0 unless each block is there exactly once

so that with eta = 0.1 a wrong answer earns at most 0.1, less than any right one. Read for pictures and clips:

    P = |named ∩ evidence| / Σ |item|,   R = |named ∩ evidence| / |evidence|

where |·| counts chunks, pages and whole pictures, and measures areas of boxes (pixels), times (seconds) or frames, or
their product where the evidence says both. The sum goes over all items that are named, repeats included; overlaps count
once in the numerators. The evidence is the row's (`perception.evidence`): regions with `visual`, `boxes`, `frames`,
`span`; or whole numbers, the ids of chunks or pages of a text.

What is read in the block, one picture a line (or between semicolons), with all boxes at all times of its line:

    <CHUNK_3>, chunk 3, page 3        picture 2, image 2, clip 1
    [10, 20, 90, 64]                  frame 3, frames 3-7, 2.5 to 4 s

Pictures and frames are counted from 1 there (the column counts from 0); without a picture it is the first. A place in a
picture without evidence, and one that lacks what the evidence says of its picture (a box, a time, in its unit), hits
nothing and counts as a mean place of the evidence. What the evidence does not speak of, and words, are ignored.
Degenerate: nothing named is F = 0, and so are more than `MOST` boxes and times in a picture; a row whose column is
empty or missing has no context reward.

Departures from the official code (github.com/real-absolute-AI/LongRLVR, commit 45313061)
1. Accuracy is the style's, there a judge's.
2. Boxes, frames and seconds are ours, by measure; for ids it is the official count, repeats included.
3. Ids with an empty reference divide by 0 there.

No torch, so that a reward worker stays small.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrl.ground.answers import DECIMAL, strict_json
from mmrl.ground.require import require
from mmrl.perception.boxes import Floats, Space, canvas_of, convert
from mmrl.rewards.contract import Reward
from mmrl.rewards.worker import marker

if TYPE_CHECKING:
    from mmrl.types import Prompt, Rollout

__all__ = [
    "ContextReward",
    "EvidenceScore",
    "GroundedAccuracy",
    "LongRLVR",
    "Place",
    "evidence_score",
    "f_beta",
    "named_places",
    "written",
]

MOST = 64
"""Boxes and times that an answer may name in a picture."""
KEYS = ("visual", "boxes", "frames", "span", "mask")
EVERYWHERE, ALWAYS = (0.0, 0.0, 1.0, 1.0), (0.0, 1.0)
"""What stands for a box or a time that the evidence does not speak of: a measure of 1."""
AXES = ((0, 1), (2, 4), (3, 5))
"""Columns of a place [start, end, x0, y0, x1, y1] with the two ends of each axis."""
_CHUNK = re.compile(r"<\s*chunk_(\d{1,9})\s*>|\b(?:chunk|page)s?\s*(\d{1,9})\b", re.IGNORECASE)
_MEDIUM = re.compile(r"\b(?:picture|image|video|clip)\s*(\d{1,9})\b", re.IGNORECASE)
_BOX = re.compile(r"\[" + r"\s*,\s*".join([rf"\s*({DECIMAL})"] * 4) + r"\s*\]")
_FRAMES = re.compile(r"\bframes?\s*(\d{1,9})(?:\s*(?:-|to)\s*(\d{1,9}))?\b", re.IGNORECASE)
_SECONDS = re.compile(rf"({DECIMAL})\s*(?:s|sec|seconds)?\s*(?:-|to)\s*({DECIMAL})")
_PAIR = re.compile(rf"\[\s*({DECIMAL})\s*,\s*({DECIMAL})\s*\]")


@dataclass(frozen=True)
class LongRLVR:
    """The context reward."""

    weight: float = 1.0
    """Factor on what the evidence adds; 0: no context reward, and no block is asked for."""
    beta: float = 2.0
    """How much more recall counts than precision."""
    eta: float = 0.1
    """Share of the context reward that a wrong answer may earn."""
    tag: str = "evidence"
    """Name of the block with the evidence (published: useful_chunks)."""
    predicted: Space = "original"
    """Coordinate space in which the model speaks of boxes; the column's is original."""

    def __post_init__(self) -> None:
        is_word = re.fullmatch(r"\w+", self.tag) is not None
        require(
            self,
            weight=(self.weight >= 0, "0 (off) or positive"),
            beta=(self.beta > 0, "positive"),
            eta=(0 <= self.eta <= 1, "in [0, 1]"),
            tag=(is_word and self.tag != "answer", "one word, not answer"),
            predicted=(self.predicted in ("original", "resized", "thousand"), "original, resized or thousand"),
        )  # fmt: skip

    def block(self, text: str) -> str | None:
        """What the evidence block holds; None unless it and the answer are there exactly once."""
        evidence = _blocks(text, self.tag)
        whole = len(evidence) == 1 and len(_blocks(text, "answer")) == 1
        return evidence[0] if whole else None


@dataclass(frozen=True)
class Place:
    """Something that is named: where, and when."""

    of: tuple[str, int]
    """("chunk", id) or ("visual", index from 0)."""
    box: tuple[float, ...] | None = None
    """(x0, y0, x1, y1); None: everywhere."""
    time: tuple[float, float] | None = None
    """Both ends, end exclusive; None: always."""
    unit: str = ""
    """"seconds" or "frames" of `time`."""


def f_beta(precision: float, recall: float, beta: float = 2.0) -> float:
    """Weighted harmonic mean of both, in [0, 1]; 0 if both are 0."""
    below = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / below if below else 0.0


def evidence_score(
    named: Sequence[Place], evidence: Sequence[Place], beta: float = 2.0
) -> float:
    """F of the named places; 0 without any. Raises ValueError for evidence that contradicts itself."""
    if not named or not evidence:
        return 0.0
    says = _dimensions(evidence)
    shared = total = 0.0
    for of in says:
        truth, mine = (_cells(places, of, says[of]) for places in (evidence, named))
        if any(says[of]) and len(mine) > MOST:
            return 0.0
        total += _volumes(truth, truth)
        shared += _volumes(mine, truth) if len(mine) else 0.0
    mean = total / len(set(evidence))
    sizes = [_size(place, says, mean) for place in named]
    return f_beta(shared / sum(sizes), shared / total, beta)


@dataclass(frozen=True)
class EvidenceScore(Reward):
    """F of an answer in [0, 1]: how well it names the row's evidence; None for a row without any."""

    longrlvr: LongRLVR = LongRLVR()

    def __call__(self, rollout: Rollout) -> float | None:
        evidence = evidence_of(rollout.prompt)
        if not evidence:
            return None
        block = self.longrlvr.block(rollout.text)
        if block is None:
            return 0.0
        named = [
            _converted(place, self.longrlvr, rollout.prompt) for place in named_places(block)
        ]
        try:
            return evidence_score(named, evidence, self.longrlvr.beta)
        except ValueError as problem:
            raise ValueError(f"prompt {rollout.prompt.id!r}: {problem}") from None


@dataclass(frozen=True)
class GroundedAccuracy(Reward):
    """The accuracy of an answer that has both blocks exactly once, else 0."""

    accuracy: Callable[[Any], float]
    """Pays in [0, 1]."""
    longrlvr: LongRLVR = LongRLVR()

    def __post_init__(self) -> None:
        _take_markers(self, self.accuracy)

    def __call__(self, rollout: Rollout) -> float:
        return self.accuracy(rollout) if self.longrlvr.block(rollout.text) is not None else 0.0


@dataclass(frozen=True)
class ContextReward(Reward):
    """What the evidence adds: eta·F + (1 - eta)·ans·F, in [0, 1]; None for a row without any."""

    accuracy: Callable[[Any], float]
    """Pays in [0, 1]."""
    longrlvr: LongRLVR = LongRLVR()

    def __post_init__(self) -> None:
        _take_markers(self, self.accuracy)

    def __call__(self, rollout: Rollout) -> float | None:
        score = EvidenceScore(self.longrlvr)(rollout)
        if not score:  # no evidence to name, or none of it named
            return score
        eta = self.longrlvr.eta
        return eta * score + (1 - eta) * self.accuracy(rollout) * score


def _blocks(text: str, tag: str) -> list[str]:
    """What stands between `<tag>` and the next `</tag>`, block by block; in linear time."""
    found: list[str] = []
    _, opened, rest = text.partition(f"<{tag}>")
    while opened:
        inside, closed, rest = rest.partition(f"</{tag}>")
        if not closed:
            break
        found.append(inside.strip())
        _, opened, rest = rest.partition(f"<{tag}>")
    return found


def named_places(block: str) -> list[Place]:
    """The places that a block names, in its order."""
    lines = re.split(r"[;\n]", block.replace("–", "-"))
    return [place for line in lines for place in _of_line(line)]


def written(places: Sequence[Place]) -> str:
    """The places as a block may name them, one a line."""
    return "\n".join(_written(place) for place in places)


def evidence_of(prompt: Prompt) -> list[Place]:
    """The places of a row's evidence; none if it has no such column. Raises ValueError for what cannot be read."""
    given = prompt.extra.get("evidence")
    if given is None:
        return []
    # Text that is no JSON stays what it is, and is refused as a region.
    decoded = strict_json(given) if isinstance(given, str) else None
    stated = given if decoded is None else decoded
    several = isinstance(stated, Sequence) and not isinstance(stated, str)
    return [place for region in (stated if several else [stated]) for place in _of_region(region, prompt)]  # fmt: skip


def _written(place: Place) -> str:
    kind, number = place.of
    if kind == "chunk":
        return f"<CHUNK_{number}>"
    said = [f"picture {number + 1}"] if number or not (place.box or place.time) else []
    if place.box:
        said.append(f"[{', '.join(f'{edge:.9g}' for edge in place.box)}]")
    if place.time:
        start, end = place.time
        frames = f"frames {start + 1:g}-{end:g}"
        said.append(frames if place.unit == "frames" else f"{start:.9g} to {end:.9g} s")
    return " ".join(said)


def _of_line(line: str) -> Iterator[Place]:
    yield from (Place(("chunk", int(one or other))) for one, other in _CHUNK.findall(line))
    # Before the first name of a picture, what stands there belongs to the first one.
    first, *rest = _MEDIUM.split(_CHUNK.sub(" ", line))
    yield from _within(first, 0)
    for number, text in zip(rest[::2], rest[1::2], strict=True):
        medium = int(number) - 1
        yield from [*_within(text, medium)] or [Place(("visual", medium))]


def _within(text: str, medium: int) -> Iterator[Place]:
    """Boxes and times of one picture: every box at every time."""
    boxes = [tuple(map(float, numbers)) for numbers in _BOX.findall(text)]
    text = _BOX.sub(" ", text)
    times = [("frames", float(a) - 1, float(b or a)) for a, b in _FRAMES.findall(text)]
    text = _FRAMES.sub(" ", text)
    pairs = [*_SECONDS.findall(text), *_PAIR.findall(text)]
    times += [("seconds", float(a), float(b)) for a, b in pairs]
    for box in boxes or ([None] if times else []):
        for unit, start, end in times or [("", 0.0, 0.0)]:
            time = (start, end) if unit else None
            yield Place(("visual", medium), box, time, unit)


def _of_region(region: Any, prompt: Prompt) -> Iterator[Place]:
    """The places of one region of the column: every box in every frame, or in the span."""
    if isinstance(region, int) and not isinstance(region, bool):
        yield Place(("chunk", region))
        return
    entry = _entry(region, prompt)
    of = ("visual", int(entry.get("visual") or 0))
    for box in _true_boxes(entry, prompt) or [None]:
        for unit, time in _true_times(entry, prompt) or [("", None)]:
            yield Place(of, box, time, unit)


def _entry(region: Any, prompt: Prompt) -> Mapping[str, Any]:
    """A region as a mapping of what can be named."""
    entry: Any = region
    if is_dataclass(region) and not isinstance(region, type):
        entry = {one.name: getattr(region, one.name) for one in fields(region)}
    readable = isinstance(entry, Mapping) and set(entry) <= set(KEYS)
    if not readable or entry.get("mask") is not None:
        raise ValueError(
            f"prompt {prompt.id!r}: the evidence {region!r} cannot be named in words; a region is the number of "
            "a chunk, or a mapping with some of the keys visual, boxes, frames and span."
        )
    return entry


def _true_boxes(entry: Mapping[str, Any], prompt: Prompt) -> list[tuple[float, ...]]:
    boxes = entry.get("boxes")
    # Asked for by name: boxes may be an array, whose truth is not defined.
    corners = [tuple(float(edge) for edge in box) for box in boxes] if boxes is not None else []
    for box in corners:
        if not _is_solid(box):
            raise ValueError(
                f"prompt {prompt.id!r}: the evidence box {list(box)} is not [x0, y0, x1, y1] with x0 < x1 and y0 < y1."
            )
    return corners


def _true_times(
    entry: Mapping[str, Any], prompt: Prompt
) -> list[tuple[str, tuple[float, float]]]:
    """(unit, both ends) of each stretch."""
    given, span = entry.get("frames"), entry.get("span")
    frames = sorted({int(n) for n in given}) if given is not None else []
    if frames and span is not None:
        raise ValueError(
            f"prompt {prompt.id!r}: the evidence {dict(entry)!r} has frames and a span, and an answer says one of "
            "both; leave one out."
        )
    if span is not None:
        return [("seconds", _span(span, prompt))]
    return [("frames", (float(n), float(n) + 1)) for n in frames]


def _span(span: Any, prompt: Prompt) -> tuple[float, float]:
    """Both ends in seconds; an instant is the second around it."""
    start, end = (float(x) for x in span)
    if not start <= end:
        raise ValueError(f"prompt {prompt.id!r}: the evidence span {list(span)} ends before it starts.")  # fmt: skip
    return (start, end) if start < end else (start - 0.5, end + 0.5)


def _is_solid(box: Sequence[float]) -> bool:
    return len(box) == 4 and box[0] < box[2] and box[1] < box[3]


def _dimensions(evidence: Sequence[Place]) -> dict[tuple[str, int], tuple[bool, str]]:
    """Chunk or picture -> whether the evidence says a box of it, and in which unit a time ("": none)."""
    says: dict[tuple[str, int], tuple[bool, str]] = {}
    for place in evidence:
        own = (place.box is not None, place.unit)
        if says.setdefault(place.of, own) != own:
            raise ValueError(
                "the regions of the evidence say different things of one picture (a box or none, frames, a span or no "
                "time); say the same of all."
            )
    return says


def _cells(places: Sequence[Place], of: tuple[str, int], says: tuple[bool, str]) -> Floats:
    """The places of a chunk or picture that say what the evidence says of it; [n, 6], see AXES."""
    rows = [_cell(place, says) for place in places if _compares(place, of, says)]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def _cell(place: Place, says: tuple[bool, str]) -> tuple[float, ...]:
    time = place.time if says[1] and place.time else ALWAYS
    box = place.box if says[0] and place.box else EVERYWHERE
    return (*time, *box)


def _compares(place: Place, of: tuple[str, int], says: tuple[bool, str]) -> bool:
    """Does a place say of this picture what the evidence says, with a size?"""
    if place.of != of:
        return False
    placed = not says[0] or (place.box is not None and _is_solid(place.box))
    span = place.time if place.unit == says[1] else None
    timed = not says[1] or (span is not None and span[0] < span[1])
    return placed and timed


def _size(place: Place, says: Mapping[tuple[str, int], tuple[bool, str]], mean: float) -> float:
    """The measure of a named place; a mean one for what cannot be compared."""
    own = says.get(place.of)
    if own is None or not _compares(place, place.of, own):
        return mean
    start, end, left, top, right, bottom = _cell(place, own)
    return (end - start) * (right - left) * (bottom - top)


def _volumes(first: Floats, second: Floats) -> float:
    """The measure of what lies in some place of both, [m, 6] and [n, 6]."""
    both = np.concatenate([first, second])
    # All ends of an axis cut it into stretches; each cell of the grid lies in a place or not.
    ends = [np.unique(both[:, list(axis)]) for axis in AXES]
    filled = [_filled(cells, ends) for cells in (first, second)]
    lengths = [np.diff(axis) for axis in ends]
    return float(np.einsum("txy,t,x,y->", filled[0] & filled[1], *lengths))


def _filled(cells: Floats, ends: Sequence[Floats]) -> Any:
    """Which cells of the grid lie in some place, bool [t, x, y]."""
    grid = np.zeros([len(axis) - 1 for axis in ends], dtype=bool)
    for cell in cells:
        bounds = [np.searchsorted(axis, cell[list(pair)]) for axis, pair in zip(ends, AXES, strict=True)]  # fmt: skip
        grid[tuple(slice(low, high) for low, high in bounds)] = True
    return grid


def _converted(place: Place, longrlvr: LongRLVR, prompt: Prompt) -> Place:
    """A named place with its box in original pixels."""
    if place.box is None or longrlvr.predicted == "original":
        return place
    box = convert([place.box], longrlvr.predicted, "original", canvas_of(prompt.extra))[0]
    return Place(place.of, tuple(box.tolist()), place.time, place.unit)


def _take_markers(reward: Reward, inner: Callable[..., Any]) -> None:
    """What a worker must know of the accuracy inside."""
    for name in ("needs", "needs_tags", "preload", "in_process"):
        object.__setattr__(reward, name, marker(inner, name, getattr(Reward, name)))
