"""Drawn tasks: answers are read back from the pixels, splits are disjoint, streams are deterministic."""

from __future__ import annotations

import re
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.data.drawn.drawn import Drawn, tokenizer_texts, warmup
from mmrl.data.drawn.scenes import (
    BACKGROUND,
    COLOURS,
    NAMES,
    SHAPES,
    TINT,
    grid_content,
    is_heldout,
    shuffle_pieces,
)

TASKS = ("lookup", "describe", "counting", "jigsaw", "clips", "narrate")


def text_of(prompt) -> str:
    content = prompt.messages[0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def name_of(tile: np.ndarray) -> str:
    """What a tile [3, c, c] shows, judged by single pixels: independent of how it was drawn."""
    side = tile.shape[1]
    at = lambda x, y: tile[:, round((y + 0.5) * side - 0.5), round((x + 0.5) * side - 0.5)]  # noqa: E731
    ink = at(0.0, 0.0)
    colour = next((name for name, value in COLOURS.items() if (ink == value).all()), None)
    if colour is None:
        assert ink.min() >= BACKGROUND - TINT
        return "nothing"
    if (at(-0.325, -0.325) == ink).all():
        return f"{colour} square"
    return f"{colour} circle" if (at(-0.2, -0.28) == ink).all() else f"{colour} triangle"


def grid_of(picture: torch.Tensor, cells: int) -> list[list[str]]:
    pixels = picture.numpy()
    cell = pixels.shape[1] // cells
    margin = (pixels.shape[1] - cells * cell) // 2
    starts = [margin + cell * number for number in range(cells)]
    return [
        [name_of(pixels[:, top : top + cell, left : left + cell]) for left in starts]
        for top in starts
    ]


@given(
    index=st.integers(0, 10**9),
    seed=st.integers(0, 2**31),
    split=st.sampled_from(["train", "heldout"]),
    cells=st.integers(2, 6),
    size_px=st.sampled_from([48, 100, 256]),
)
@settings(max_examples=40, deadline=None)
def test_lookup_answer_is_in_the_picture(index, seed, split, cells, size_px):
    prompt = Drawn("lookup", split, seed, cells=cells, size_px=max(size_px, 16 * cells))[index]
    row, column = map(int, re.findall(r"\d+", text_of(prompt)))
    grid = grid_of(prompt.media[0].frames[0], cells)
    assert prompt.answer == grid[row - 1][column - 1]
    assert prompt.extra["target"] == f"<answer> {prompt.answer} </answer>"
    ((x0, y0, x1, y1),) = prompt.extra["evidence"]["boxes"]
    assert name_of(prompt.media[0].frames[0, :, y0:y1, x0:x1].numpy()) == prompt.answer
    frames = prompt.media[0].frames
    assert frames.dtype == torch.uint8 and frames.shape == (
        1,
        3,
        *2 * (max(size_px, 16 * cells),),
    )


def test_describe_and_counting_agree_with_the_picture():
    for index in range(40):
        described = Drawn("describe", seed=3)[index]
        assert described.answer.split(", ") == [
            n for row in grid_of(described.media[0].frames[0], 3) for n in row
        ]
        counted = Drawn("counting", seed=3)[index]
        grid = grid_of(counted.media[0].frames[0], 3)
        kind = text_of(counted).removeprefix("How many ").removesuffix(" are there?")
        word = (
            kind.removesuffix(" shapes") if kind.endswith("shapes") else kind.removesuffix("s")
        )
        rows = [sum(word in name for name in row) for row in grid]
        assert counted.answer == str(sum(rows))
        assert (
            counted.extra["target"]
            == f"<think> {' '.join(map(str, rows))} </think> <answer> {sum(rows)} </answer>"
        )


def test_jigsaw_answer_restores_one_shape():
    for index in range(30):
        prompt = Drawn("jigsaw")[index]
        order = [int(place) - 1 for place in prompt.answer.split()]
        shown = prompt.media[0].frames[0].numpy()
        pieces = {
            place: shuffle_pieces(shown, (shown_at,) * 4)[:, :24, :24]
            for shown_at, place in enumerate(order)
        }
        top = np.concatenate([pieces[0], pieces[1]], axis=2)
        whole = np.concatenate([top, np.concatenate([pieces[2], pieces[3]], axis=2)], axis=1)
        tint = whole[:, 0, 0]
        assert all((whole[:, y, x] == tint).all() for y in (0, -1) for x in (0, -1)), (
            "corners are background"
        )
        ink = (whole != tint[:, None, None]).any(axis=0)
        assert all(
            quarter.any()
            for quarter in (ink[:24, :24], ink[:24, 24:], ink[24:, :24], ink[24:, 24:])
        )
        runs = np.diff(np.pad(ink, ((0, 0), (1, 1))).astype(int), axis=1).clip(0).sum(axis=1)
        assert runs.max() == 1, "each row of one solid shape is one run"
        assert len({piece.tobytes() for piece in pieces.values()}) == 4, (
            "every piece has one right place"
        )


def test_clip_answer_is_when_the_shape_is_visible():
    for index in range(30):
        prompt = Drawn("clips", frames=16, fps=2.0)[index]
        media = prompt.media[0]
        assert (
            media.is_video and media.frames.shape == (16, 3, 32, 32) and media.duration == 8.0
        )
        assert media.times is not None and media.times.dtype == torch.float64
        assert media.times.tolist() == [frame / 2 for frame in range(16)]
        colour, shape = re.findall(r"(\w+) (\w+) shown", text_of(prompt))[0]
        start, end = map(int, prompt.answer.split(" to "))
        first, last = prompt.extra["evidence"]["span"]
        assert [first <= time <= last for time in media.times.tolist()] == [
            start <= n / 2 < end for n in range(16)
        ]
        assert prompt.extra["spans"] == ((float(start), float(end)),)
        ink = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
        visible = [bool((frame == ink).all(dim=0).any()) for frame in media.frames]
        others = {
            name
            for name in narrated_names(index)
            if name.split()[0] == colour and name != f"{colour} {shape}"
        }
        if not others:  # a second shape of the same colour would confuse this colour test
            assert visible == [start <= frame / 2 < end for frame in range(16)]


def narrated_names(index: int) -> set[str]:
    clip = Drawn("clips")[index].media[0]
    tiles = [
        frame[:, top : top + 16, left : left + 16].numpy()
        for frame in clip.frames
        for top in (0, 16)
        for left in range(17)
    ]
    return {name_of(tile) for tile in tiles if framed(tile)} - {"nothing"}


def framed(tile: np.ndarray) -> bool:
    """Whether a whole shape lies centred in the tile: its ink is symmetric and does not touch the left edge."""
    ink = (tile != BACKGROUND).any(axis=0)
    return bool(ink.any()) and bool((ink == ink[:, ::-1]).all()) and not ink[:, 0].any()


def test_narrate_lists_each_second():
    for index in range(20):
        prompt = Drawn("narrate", frames=8, fps=2.0)[index]
        frames = prompt.media[0].frames
        seconds = prompt.answer.split(", ")
        assert len(seconds) == 4
        for second, words in enumerate(seconds):
            halves = [frames[2 * second][:, top : top + 16] for top in (0, 16)]
            shown = [half for half in halves if (half != BACKGROUND).any()]
            assert len(shown) == (0 if words == "nothing" else len(words.split(" and ")))


@pytest.mark.parametrize("task", TASKS)
def test_reading_order_workers_and_global_state_do_not_matter(task):
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state()
    forward = [Drawn(task, seed=5)[index] for index in range(6)]
    again = Drawn(task, seed=5)
    for index in reversed(range(6)):
        prompt = again[index]
        assert prompt.id == forward[index].id and prompt.messages == forward[index].messages
        assert prompt.answer == forward[index].answer and dict(prompt.extra) == dict(
            forward[index].extra
        )
        assert torch.equal(prompt.media[0].frames, forward[index].media[0].frames)
    assert np.random.get_state()[1].tobytes() == before[0] and torch.equal(
        torch.get_rng_state(), before[1]
    )
    other = [Drawn(task, seed=6)[index].media[0].frames for index in range(6)]
    assert not all(
        torch.equal(mine, prompt.media[0].frames)
        for mine, prompt in zip(other, forward, strict=True)
    )


def test_heldout_grids_are_disjoint_from_train_for_every_seed_and_task():
    """The side is a function of what the pixels show, so no picture can be on both sides."""
    for task in ("lookup", "describe", "counting"):
        for split in ("train", "heldout"):
            for index in range(60):
                picture = Drawn(task, split, seed=index % 7)[index].media[0].frames[0]
                codes = np.array(
                    [[NAMES.index(name) for name in row] for row in grid_of(picture, 3)],
                    dtype=np.int8,
                )
                assert is_heldout(grid_content(codes)) == (split == "heldout")


def test_heldout_puzzles_are_told_by_their_background():
    for split in ("train", "heldout"):
        for index in range(60):
            picture = Drawn("jigsaw", split, seed=index % 5)[index].media[0].frames[0]
            colours = {tuple(pixel) for pixel in picture.flatten(1).T.tolist()}
            (tint,) = colours - set(COLOURS.values())
            assert is_heldout(bytes(tint)) == (split == "heldout")


@pytest.mark.parametrize(
    ("task", "options"), [("lookup", {"cells": 2}), ("clips", {"frames": 4, "fps": 1.0})]
)
def test_heldout_pixels_never_occur_in_training(task, options):
    """Small scene spaces, so that a leak would show: shapes clamped at the border or swapped lanes give equal clips."""
    pixels = {
        split: {
            Drawn(task, split, seed, **options)[i].media[0].frames.numpy().tobytes()
            for seed in (0, 1)
            for i in n
        }
        for split, n in (("train", range(1500)), ("heldout", range(600)))
    }
    assert not pixels["train"] & pixels["heldout"]
    assert len(pixels["train"]) < 2950, "the space is small enough for repeats within a split"


def test_many_pictures_and_no_picture():
    seen = set()
    for index in range(12):
        prompt = Drawn("lookup", pictures=3)[index]
        assert [part["type"] for part in prompt.messages[0]["content"]] == ["image"] * 3 + [
            "text"
        ]
        asked = next(
            n
            for n, word in enumerate(("first", "second", "third"))
            if f"In the {word} picture, what" in text_of(prompt)
        )
        row, column = prompt.extra["row"], prompt.extra["column"]
        assert prompt.answer == grid_of(prompt.media[asked].frames[0], 3)[row - 1][column - 1]
        seen.add(asked)
        told = Drawn("lookup", pictures=0)[index]
        assert told.media == () and isinstance(told.messages[0]["content"], str)
        rows = re.findall(r"row \d: ([^;]+);", text_of(told))
        assert rows[told.extra["row"] - 1].split(", ")[told.extra["column"] - 1] == told.answer
    assert len(seen) == 3


def test_noise_changes_targets_but_not_answers():
    clean, noisy = Drawn("lookup", seed=1), Drawn("lookup", seed=1, noise=0.4)
    wrong = 0
    for index in range(400):
        assert clean[index].answer == noisy[index].answer
        assert clean[index].extra["target"] == f"<answer> {clean[index].answer} </answer>"
        wrong += noisy[index].extra["target"] != clean[index].extra["target"]
    assert 0.28 < wrong / 400 < 0.46  # 0.4 less the random names that happen to be right


def test_no_answer_dominates_lookup():
    counts = Counter(Drawn("lookup")[index].answer for index in range(1000))
    assert set(counts) == set(NAMES) and max(counts.values()) < 140


def test_warmup_mixes_dense_targets():
    prompts = warmup(seed=2, noise=0.3, describe_share=0.25)
    tasks = Counter(prompts[index].extra["task"] for index in range(400))
    assert set(tasks) == {"lookup", "describe"} and 70 < tasks["describe"] < 130
    assert prompts[7].id == prompts[7].id and prompts.size is None
    assert {warmup(task="clips")[index].extra["task"] for index in range(20)} == {
        "clips",
        "narrate",
    }
    with pytest.raises(ValueError, match="describe_share"):
        warmup(describe_share=1.5)


def test_corpus_contains_every_word():
    known = set(re.findall(r"[a-z]+|\S", " ".join(tokenizer_texts()).lower()))
    for task in TASKS:
        for pictures in (0, 1, 4) if task in ("lookup", "describe", "counting") else (1,):
            for index in range(40):
                prompt = Drawn(task, pictures=pictures)[index]
                words = re.findall(
                    r"[a-z]+|\S", f"{text_of(prompt)} {prompt.extra['target']}".lower()
                )
                assert set(words) <= known


def test_drawing_is_fast():
    spec = Drawn("lookup")
    spec[0]
    best = min(_seconds(spec, start) for start in (0, 64, 128, 192))
    assert best < 0.1, f"64 scenes took {best:.3f} CPU seconds"


def _seconds(spec: Drawn, start: int) -> float:
    begin = time.process_time()
    for index in range(start, start + 64):
        spec[index]
    return time.process_time() - begin


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"task": "lookups"}, "lookup, describe"),
        ({"split": "test"}, "heldout"),
        ({"cells": 1}, "at least 2"),
        ({"size_px": 10}, "size_px"),
        ({"size_px": 49}, "even"),
        ({"fill": 1.0}, "between 0 and 1"),
        ({"task": "jigsaw", "pictures": 2}, "pictures"),
        ({"noise": 1.1}, "noise"),
        ({"size": 0}, "endless"),
        ({"frames": 5}, "whole number of seconds"),
        ({"fps": 0.5}, "fps"),
    ],
)
def test_wrong_settings_are_refused_by_name(fields, word):
    with pytest.raises(ValueError, match=word):
        Drawn(**fields)


def test_size_bounds_the_stream():
    assert len(Drawn(size=3)) == 3 and len(list(Drawn(size=3))) == 3
    with pytest.raises(IndexError, match="size 3"):
        Drawn(size=3)[3]
    with pytest.raises(TypeError, match="endless"):
        len(Drawn())
    assert len(SHAPES) * len(COLOURS) + 1 == len(NAMES)


def test_prompts_say_what_can_be_seen_and_what_a_view_must_leave_alone():
    for index in range(20):
        lookup = Drawn("lookup", seed=4)[index]
        place = 3 * (lookup.extra["row"] - 1) + lookup.extra["column"] - 1
        assert len(lookup.extra["cells"]) == 9 and lookup.extra["cells"][place] == lookup.answer
        assert " ".join(lookup.extra["visual_key_info"]) == lookup.answer
        assert (
            ", ".join(Drawn("describe", seed=4)[index].extra["cells"])
            == Drawn("describe", seed=4)[index].answer
        )
    needs = {
        task: Drawn(task)[0].extra["depends_on"]
        for task in ("lookup", "counting", "jigsaw", "clips", "narrate")
    }
    assert needs == {
        **dict.fromkeys(("lookup", "counting", "jigsaw"), ("geometry",)),
        **dict.fromkeys(("clips", "narrate"), ("order",)),
    }
