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
from mmrl.ground.require import require
from mmrl.ground.seeds import derive_seed
from mmrl.types import Media, Prompt, Prompts

Task = Literal["lookup", "describe", "counting", "jigsaw", "clips", "narrate"]
ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Drawn(Prompts):
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
        of_grids = self.task in ("lookup", "describe", "counting")
        counts = range(5) if of_grids else (1,)
        seconds = self.frames / self.fps if self.fps > 0 else 0.0
        whole = seconds >= 3 and seconds == int(seconds)
        roomy = self.side >= 4 * self.cells and self.side % 2 == 0
        endless = "at least 1, or None for an endless stream"
        # In this order: whether the side fits depends on the task and the cells, which must be right first.
        require(
            self,
            task=(self.task in get_args(Task), f"one of {', '.join(get_args(Task))}"),
            split=(self.split in get_args(Split), "'train' or 'heldout'"),
            size=(self.size is None or self.size >= 1, endless),
            cells=(self.cells >= 2, "at least 2"),
            size_px=(roomy, "even and at least 4 pixels per cell"),
            fill=(0 < self.filled < 1, "between 0 and 1"),
            pictures=(self.pictures in counts, "0 to 4 (1 for jigsaw and clips)"),
            noise=(0 <= self.noise <= 1, "in [0, 1]"),
            swapped=(0 <= self.swapped <= 1, "in [0, 1]"),
            ask_empty=(0 <= self.ask_empty <= 1, "in [0, 1]"),
            fps=(self.fps >= 1, "at least 1, so that each second is seen"),
            frames=(whole, "a whole number of seconds, at least 3 (see fps)"),
        )

    @property
    def side(self) -> int:
        """Side of a picture in pixels."""
        return self.size_px or (32 if self.task in ("clips", "narrate") else 48)

    @property
    def filled(self) -> float:
        """Probability that a cell is filled."""
        if self.fill is not None:
            return self.fill
        return 0.5 if self.task == "counting" else 0.8

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
        # Keyed by what decides the prompt and by nothing else, so that order and workers do not matter.
        key = derive_seed("drawn", self.task, self.split, self.seed, index)
        question = _TASKS[self.task](np.random.default_rng(key), self)
        name = f"drawn:{self.task}"
        content: Any = question.text
        if question.media:
            content = [*question.visual_parts(), {"type": "text", "text": question.text}]
        return Prompt(
            id=f"{name}:{self.split}:{self.seed}:{index}",
            messages=({"role": "user", "content": content},),
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
class Warmup(Prompts):
    """A mixture of a task and its dense counterpart for supervised warm-up."""

    plain: Drawn
    dense: Drawn
    dense_share: float
    """Share of dense prompts, in [0, 1]."""
    size: int | None = None

    def __getitem__(self, index: int) -> Prompt:
        # A generator of its own: which of both is taken must not shift what either draws.
        draw = np.random.default_rng(derive_seed("warmup", self.plain.seed, index)).random()
        chosen = self.dense if draw < self.dense_share else self.plain
        return chosen[index]


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
    # In this order: between equally frequent pairs a tokenizer may merge the one that it met first.
    texts = []
    for row in range(1, 10):
        texts += [_lookup_text(row, column) for column in range(1, 10)]
    texts += [f"How many {thing} are there?" for thing in _countable()]
    for index in range(4):
        texts += [
            _in_picture(index, "what is at row 1 column 2?"),
            _in_picture(index, "describe."),
        ]
    for index in range(4):
        counts = [f"how many {thing} are there?" for thing in _countable()]
        texts += [_in_picture(index, count) for count in counts]
    texts += [f"When is the {name} shown? <answer> 2 to 5 </answer>" for name in NAMES[1:]]
    for name in NAMES:
        texts.append(f"Describe. {_tagged(f'{name}, {name}, nothing')}")
    for name in NAMES[1:]:
        texts.append(f"Describe each second. {_tagged(f'nothing, {name}, {name} and {name}')}")
    texts += [f"row 1: {name}, {name}; row 2: {name}, nothing;" for name in NAMES]
    texts.append(f"Give the true place of each piece. {_tagged('3 1 4 2')}")
    numbers = " ".join(str(number) for number in range(10))
    texts.append(f"<think> {numbers} </think> {_tagged(numbers)}")
    # Backwards too, as `Drawn.swapped` writes them.
    backwards = [" ".join(reversed(name.split())) for name in NAMES]
    return texts + [_tagged(name) for name in (*NAMES, *backwards)]


def _lookup(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """One cell of one picture."""
    grids, asked = _draw_pictures(rng, spec)
    grid = grids[asked]
    empty = bool(rng.random() < spec.ask_empty)
    places = np.argwhere((grid == 0) == empty)
    if not len(places):
        # A full grid has no empty cell to ask about, an empty one no filled.
        places = np.argwhere(grid >= 0)
    row, column = places[rng.integers(len(places))].tolist()
    answer = NAMES[grid[row, column]]
    wrong = bool(rng.random() < spec.noise)
    target = NAMES[rng.integers(1, len(NAMES))] if wrong else answer
    # Drawn even if `swapped` is 0: settings of the targets never change the questions.
    if rng.random() < spec.swapped:
        target = " ".join(reversed(target.split()))
    text = _about(spec, asked, _lookup_text(row + 1, column + 1))
    extra: dict[str, Any] = {
        "row": row + 1,
        "column": column + 1,
        "visual_key_info": answer.split(),
    }
    if spec.pictures:
        box = cell_box(spec.side, spec.cells, row, column)
        extra["evidence"] = {"visual": asked, "boxes": [box]}
    return _grid_question(spec, grids, asked, text, answer, _tagged(target), extra)


def _describe(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """All cells of one picture in reading order."""
    grids, asked = _draw_pictures(rng, spec)
    answer = ", ".join(NAMES[code] for code in grids[asked].ravel())
    text = _about(spec, asked, "Describe.")
    return _grid_question(spec, grids, asked, text, answer, _tagged(answer), {})


def _counting(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """How many cells have one colour or one shape; the target counts row by row first."""
    grids, asked = _draw_pictures(rng, spec)
    kinds = _countable()
    kind = int(rng.integers(len(kinds)))
    colours, shapes = np.divmod(grids[asked] - 1, len(SHAPES))  # empty cells become colour -1
    if kind < len(COLOURS):
        hits = colours == kind
    else:
        # An empty cell leaves a remainder that looks like the last shape.
        hits = (shapes == kind - len(COLOURS)) & (colours >= 0)
    rows = hits.sum(axis=1)
    thought = " ".join(str(int(count)) for count in rows)
    answer = str(int(rows.sum()))
    text = _about(spec, asked, f"How many {kinds[kind]} are there?")
    target = f"<think> {thought} </think> {_tagged(answer)}"
    return _grid_question(spec, grids, asked, text, answer, target, {})


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
        "evidence": {"span": [float(event.start), last]},
    }
    target = f"{event.end} to {event.start}" if rng.random() < spec.swapped else answer
    return DrawnQuestion(text, answer, _tagged(target), (media,), extra)


def _narrate(rng: np.random.Generator, spec: Drawn) -> DrawnQuestion:
    """What each second shows, the upper half first."""
    media, tracks, swap = _draw_clip(rng, spec)
    lanes = tracks[::-1] if swap else tracks
    said = []
    for second in range(int(spec.frames / spec.fps)):
        shown = [track for track in lanes if track.start <= second < track.end]
        said.append(" and ".join(NAMES[track.code] for track in shown) or "nothing")
    answer = ", ".join(said)
    extra = {"depends_on": ("order",)}
    return DrawnQuestion("Describe each second.", answer, _tagged(answer), (media,), extra)


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
    count = max(1, spec.pictures)  # without pictures one scene is written out
    grids = [draw_grid(rng, spec.split, spec.cells, spec.filled) for _ in range(count)]
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
        rows = []
        for number, codes in enumerate(grids[0], start=1):
            names = ", ".join(NAMES[code] for code in codes)
            rows.append(f"row {number}: {names};")
        scene = " ".join(rows)
        return DrawnQuestion(f"{scene} {text}", answer, target, (), extra)
    media = tuple(_picture(render_grid(grid, spec.side)) for grid in grids)
    return DrawnQuestion(text, answer, target, media, extra)


def _picture(pixels: Pixels) -> Media:
    return Media(torch.from_numpy(pixels)[None])  # [1, 3, H, W]


def _about(spec: Drawn, asked: int, text: str) -> str:
    """Name the picture if there are several."""
    if spec.pictures < 2:
        return text
    return _in_picture(asked, text[0].lower() + text[1:])


def _in_picture(index: int, text: str) -> str:
    return f"In the {ORDINALS[index]} picture, {text}"


def _lookup_text(row: int, column: int) -> str:
    return f"What is at row {row} column {column}?"


def _countable() -> list[str]:
    """Colours first, then shapes; `_counting` draws an index of this list."""
    colours = [f"{colour} shapes" for colour in COLOURS]
    return colours + [f"{shape}s" for shape in SHAPES]


def _tagged(answer: str) -> str:
    return f"<answer> {answer} </answer>"
