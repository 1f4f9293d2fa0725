"""Drawn tasks: questions about procedural pictures and clips, with exact answers, endless and deterministic by seed.

lookup    "What is at row 2 column 3?"               -> "red circle" or "nothing"
describe  "Describe."                                -> all cells in reading order (dense target for a warm-up)
counting  "How many red shapes are there?"           -> "3", target with the counts per row as a chain of thought
jigsaw    "Give the true place of each piece."       -> "3 1 4 2": place of the piece shown first, second, ...
clips     "When is the red circle shown?"            -> "2 to 5" (seconds; the event fills [2, 5))
narrate   "Describe each second."                    -> what is shown in each second (dense target for clips)

`extra["target"]` is the supervised answer text, for example `<answer> red circle </answer>`; `prompt.answer` is the
exact answer; `extra["evidence"]` says where it can be seen (the cell of a lookup, the span of a clip's event);
`extra["cells"]` names all cells of the asked grid in reading order, `extra["visual_key_info"]` the facts that answer a
lookup, and `extra["depends_on"]` what a view must leave alone ("geometry": places, "order": times). Each
index has its own generator, keyed by (task, split, seed, index), so any order of reading and any number of workers give
the same prompts. Train and held-out pictures are disjoint for every seed (`data/drawn/scenes.py`).

Lookup asks about an empty cell in a tenth of the questions only (`ask_empty`): at the natural frequency of empty cells
"nothing" would be right more than twice as often as any other answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from mmrl.data.drawn.scenes import (
    COLOURS,
    NAMES,
    SHAPES,
    Grid,
    Pixels,
    Split,
    cell_box,
    draw_grid,
    draw_puzzle,
    draw_tracks,
    render_grid,
    render_puzzle,
    render_tracks,
)
from mmrl.ground.seeds import derive_seed
from mmrl.types import Media, Prompt

Task = Literal["lookup", "describe", "counting", "jigsaw", "clips", "narrate"]
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Drawn:
    """A drawn task as `Prompts`. Index i always gives the same prompt; without `size` it is endless."""

    task: Task = "lookup"
    split: Split = "train"
    seed: int = 0
    size: int | None = None
    """Number of prompts; None is endless."""
    size_px: int | None = None
    """Side of a picture or frame in pixels; None gives 48, or 32 for clips."""
    cells: int = 3
    """Rows and columns of the grid."""
    fill: float | None = None
    """Probability that a cell is filled; None gives 0.8, or 0.5 for counting."""
    pictures: int = 1
    """Pictures per prompt, of which one is asked about; 0 writes the scene as text. Grid tasks only."""
    noise: float = 0.0
    """Share of lookup targets replaced by a random colour and shape; `answer` stays exact."""
    swapped: float = 0.0
    """Share of lookup targets that put the shape before the colour ("circle red"), and of clip targets that put the end
    before the start ("5 to 2"); `answer` stays exact."""
    ask_empty: float = 0.1
    """Share of lookup questions about an empty cell (if there is one)."""
    frames: int = 16
    """Frames of a clip."""
    fps: float = 2.0
    """Frames per second of a clip."""

    def __post_init__(self) -> None:
        grid = self.task in ("lookup", "describe", "counting")
        seconds = self.frames / self.fps if self.fps > 0 else 0.0
        allowed = {
            "task": (self.task in get_args(Task), f"one of {', '.join(get_args(Task))}"),
            "split": (self.split in get_args(Split), "'train' or 'heldout'"),
            "size": (
                self.size is None or self.size >= 1,
                "at least 1, or None for an endless stream",
            ),
            "cells": (self.cells >= 2, "at least 2"),
            "size_px": (
                self.side >= 4 * self.cells and self.side % 2 == 0,
                "even and at least 4 pixels per cell",
            ),
            "fill": (0 < self.filled < 1, "between 0 and 1"),
            "pictures": (
                0 <= self.pictures <= 4 if grid else self.pictures == 1,
                "0 to 4 (1 for jigsaw and clips)",
            ),
            "noise": (0 <= self.noise <= 1, "in [0, 1]"),
            "swapped": (0 <= self.swapped <= 1, "in [0, 1]"),
            "ask_empty": (0 <= self.ask_empty <= 1, "in [0, 1]"),
            "fps": (self.fps >= 1, "at least 1, so that each second is seen"),
            "frames": (
                seconds >= 3 and seconds == int(seconds),
                "a whole number of seconds, at least 3 (see fps)",
            ),
        }
        for name, (fine, rule) in allowed.items():
            if not fine:
                raise ValueError(f"Drawn.{name} is {getattr(self, name)!r}; it must be {rule}.")

    @property
    def side(self) -> int:
        """Side of a picture in pixels."""
        return self.size_px or (32 if self.task in ("clips", "narrate") else 48)

    @property
    def filled(self) -> float:
        """Probability that a cell is filled."""
        return self.fill if self.fill is not None else (0.5 if self.task == "counting" else 0.8)

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("This drawn task is endless and has no length; set Drawn.size.")
        return self.size

    def __iter__(self) -> Iterator[Prompt]:
        index = 0
        while self.size is None or index < self.size:
            yield self[index]
            index += 1

    def __getitem__(self, index: int) -> Prompt:
        if index < 0 or (self.size is not None and index >= self.size):
            raise IndexError(
                f"Index {index} lies outside drawn:{self.task} with size {self.size}."
            )
        rng = np.random.default_rng(
            derive_seed("drawn", self.task, self.split, self.seed, index)
        )
        question = _TASKS[self.task](rng, self)
        name = f"drawn:{self.task}"
        content: Any = [*question.visual_parts(), {"type": "text", "text": question.text}]
        return Prompt(
            id=f"{name}:{self.split}:{self.seed}:{index}",
            messages=(
                {"role": "user", "content": content if question.media else question.text},
            ),
            media=question.media,
            answer=question.answer,
            source=name,
            extra={"task": self.task, "target": question.target, **question.extra},
        )


@dataclass(frozen=True)
class DrawnQuestion:
    """What a task draws."""

    text: str
    answer: str
    target: str
    media: tuple[Media, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def visual_parts(self) -> list[dict[str, str]]:
        """One chat part per medium."""
        return [{"type": "video" if medium.is_video else "image"} for medium in self.media]


@dataclass(frozen=True)
class Warmup:
    """A mixture of a task and its dense counterpart for supervised warm-up."""

    plain: Drawn
    dense: Drawn
    dense_share: float
    """Share of dense prompts, in [0, 1]."""
    size: int | None = None

    def __getitem__(self, index: int) -> Prompt:
        draw = np.random.default_rng(derive_seed("warmup", self.plain.seed, index)).random()
        return (self.dense if draw < self.dense_share else self.plain)[index]


def warmup(
    seed: int = 0,
    noise: float = 0.0,
    describe_share: float = 0.5,
    *,
    task: Task = "lookup",
    **options: Any,
) -> Warmup:
    """Endless training prompts for a supervised warm-up: `task`, mixed with dense descriptions of the same scenes.

    Learn `extra["target"]`. `noise` is the share of wrong lookup targets (it keeps the policy's entropy up); `options`
    are fields of `Drawn`. Clips are mixed with `narrate`, pictures with `describe`.
    """
    if not 0 <= describe_share <= 1:
        raise ValueError(
            f"warmup got describe_share={describe_share}; it is a share and must lie in [0, 1]."
        )
    plain = Drawn(task, seed=seed, noise=noise, **options)
    dense_task: Task = "narrate" if task == "clips" else "describe"
    return Warmup(plain, Drawn(dense_task, seed=seed, **options), describe_share)


def tokenizer_texts() -> list[str]:
    """Texts that contain every word of all drawn tasks, to train a tokenizer on."""
    numbers = " ".join(str(number) for number in range(10))
    texts = [
        *(_lookup_text(row, column) for row in range(1, 10) for column in range(1, 10)),
        *(f"How many {thing} are there?" for thing in _countable()),
        *(
            _in_picture(index, text)
            for index in range(4)
            for text in ("what is at row 1 column 2?", "describe.")
        ),
        *(
            _in_picture(index, f"how many {thing} are there?")
            for index in range(4)
            for thing in _countable()
        ),
        *(f"When is the {name} shown? <answer> 2 to 5 </answer>" for name in NAMES[1:]),
        *(f"Describe. {_tagged(f'{name}, {name}, nothing')}" for name in NAMES),
        *(
            f"Describe each second. {_tagged(f'nothing, {name}, {name} and {name}')}"
            for name in NAMES[1:]
        ),
        *(f"row 1: {name}, {name}; row 2: {name}, nothing;" for name in NAMES),
        f"Give the true place of each piece. {_tagged('3 1 4 2')}",
        f"<think> {numbers} </think> {_tagged(numbers)}",
    ]
    backwards = [" ".join(reversed(name.split())) for name in NAMES]
    return texts + [_tagged(name) for name in (*NAMES, *backwards)]


def _lookup(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """One cell of one picture."""
    grids, asked = _draw_pictures(rng, spec)
    grid = grids[asked]
    empty = bool(rng.random() < spec.ask_empty)
    places = np.argwhere((grid == 0) == empty)
    if not len(places):
        places = np.argwhere(grid >= 0)
    row, column = (int(place) for place in places[rng.integers(len(places))])
    answer = NAMES[grid[row, column]]
    wrong = bool(rng.random() < spec.noise)
    told = NAMES[rng.integers(1, len(NAMES))] if wrong else answer
    if rng.random() < spec.swapped:
        told = " ".join(reversed(told.split()))
    text = _about(spec, asked, _lookup_text(row + 1, column + 1))
    extra: dict[str, Any] = {
        "row": row + 1,
        "column": column + 1,
        "visual_key_info": answer.split(),
    }
    if spec.pictures:
        extra["evidence"] = {
            "visual": asked,
            "boxes": [cell_box(spec.side, spec.cells, row, column)],
        }
    return _grid_question(spec, grids, asked, text, answer, _tagged(told), extra)


def _describe(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """All cells of one picture in reading order."""
    grids, asked = _draw_pictures(rng, spec)
    answer = ", ".join(NAMES[code] for code in grids[asked].ravel())
    return _grid_question(
        spec, grids, asked, _about(spec, asked, "Describe."), answer, _tagged(answer), {}
    )


def _counting(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """How many cells have one colour or one shape; the target counts row by row first."""
    grids, asked = _draw_pictures(rng, spec)
    kinds = _countable()
    kind = int(rng.integers(len(kinds)))
    colours, shapes = np.divmod(grids[asked] - 1, len(SHAPES))  # empty cells become colour -1
    hits = (
        (colours == kind)
        if kind < len(COLOURS)
        else (shapes == kind - len(COLOURS)) & (colours >= 0)
    )
    rows = hits.sum(axis=1)
    thought = " ".join(str(int(count)) for count in rows)
    answer = str(int(rows.sum()))
    text = _about(spec, asked, f"How many {kinds[kind]} are there?")
    return _grid_question(
        spec, grids, asked, text, answer, f"<think> {thought} </think> {_tagged(answer)}", {}
    )


def _jigsaw(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """The true places of four shuffled pieces."""
    puzzle = draw_puzzle(rng, spec.split)
    answer = " ".join(str(place + 1) for place in puzzle.order)
    text = "Give the true place of each piece."
    picture = _picture(render_puzzle(puzzle, spec.side))
    return DrawnQuestion(
        text, answer, _tagged(answer), (picture,), {"depends_on": ("geometry",)}
    )


def _clips(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """When the first of one or two moving shapes is shown."""
    media, tracks, _ = _draw_clip(rng, spec)
    event = tracks[0]
    answer = f"{event.start} to {event.end}"
    text = f"When is the {NAMES[event.code]} shown?"
    last = event.end - 1 / spec.fps  # an evidence span includes both ends
    extra: dict[str, Any] = {
        "spans": ((float(event.start), float(event.end)),),
        "depends_on": ("order",),
    }
    extra["evidence"] = {"span": [float(event.start), last]}
    told = f"{event.end} to {event.start}" if rng.random() < spec.swapped else answer
    return DrawnQuestion(text, answer, _tagged(told), (media,), extra)


def _narrate(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """What each second shows, the upper half first."""
    media, tracks, swap = _draw_clip(rng, spec)
    lanes = tracks[::-1] if swap else tracks
    seconds = range(int(spec.frames / spec.fps))
    shown = [
        [NAMES[track.code] for track in lanes if track.start <= second < track.end]
        for second in seconds
    ]
    answer = ", ".join(" and ".join(names) or "nothing" for names in shown)
    return DrawnQuestion(
        "Describe each second.", answer, _tagged(answer), (media,), {"depends_on": ("order",)}
    )


_TASKS = {
    "lookup": _lookup,
    "describe": _describe,
    "counting": _counting,
    "jigsaw": _jigsaw,
    "clips": _clips,
    "narrate": _narrate,
}


def _draw_pictures(rng: np.random.Generator, spec: Drawn) -> tuple[list[Grid], int]:
    """The grids of a prompt and the index of the one that is asked about."""
    grids = [
        draw_grid(rng, spec.split, spec.cells, spec.filled)
        for _ in range(max(1, spec.pictures))
    ]
    return grids, int(rng.integers(len(grids)))


def _draw_clip(rng: np.random.Generator, spec: Drawn) -> tuple[Media, tuple[Any, ...], bool]:
    """A clip, its tracks, and whether the first track runs in the lower half."""
    tracks = draw_tracks(rng, spec.split, spec.side, spec.frames, spec.fps)
    swap = bool(rng.integers(2))
    pixels = render_tracks(tracks, spec.side, spec.frames, spec.fps, swap)
    times = torch.arange(spec.frames, dtype=torch.float64) / spec.fps
    return Media(torch.from_numpy(pixels), times, spec.frames / spec.fps), tracks, swap


def _grid_question(
    spec: Drawn,
    grids: list[Grid],
    asked: int,
    text: str,
    answer: str,
    target: str,
    extra: dict[str, Any],
) -> DrawnQuestion:
    """The question with its pictures, or with the scene written out when the task has none."""
    extra = {
        **extra,
        "cells": [NAMES[code] for code in grids[asked].ravel()],
        "depends_on": ("geometry",),
    }
    if spec.pictures == 0:
        rows = [", ".join(NAMES[code] for code in row) for row in grids[0]]
        scene = " ".join(
            f"row {number}: {words};" for number, words in enumerate(rows, start=1)
        )
        return DrawnQuestion(f"{scene} {text}", answer, target, (), extra)
    media = tuple(_picture(render_grid(grid, spec.side)) for grid in grids)
    return DrawnQuestion(text, answer, target, media, extra)


def _picture(pixels: Pixels) -> Media:
    return Media(torch.from_numpy(pixels)[None])  # [1, 3, H, W]


def _about(spec: Drawn, asked: int, text: str) -> str:
    """Name the picture if there are several."""
    return text if spec.pictures < 2 else _in_picture(asked, text[0].lower() + text[1:])


def _in_picture(index: int, text: str) -> str:
    return f"In the {ORDINALS[index]} picture, {text}"


def _lookup_text(row: int, column: int) -> str:
    return f"What is at row {row} column {column}?"


def _countable() -> list[str]:
    return [*(f"{colour} shapes" for colour in COLOURS), *(f"{shape}s" for shape in SHAPES)]


def _tagged(answer: str) -> str:
    return f"<answer> {answer} </answer>"
