"""Frames, rate and size of clips by flags, in every recipe that can meet a video."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest
from PIL import Image

from mmrl.data.pretext.catalogue import find
from mmrl.model.policy import Policy
from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.clip_asking import Asking
from mmrl.recipes.shared.clip_data import ClipQuestions, Clips
from mmrl.recipes.shared.opening import OF_CLIPS, UNLIMITED, Data, Load, open_data, open_policy
from mmrl.recipes.shared.pretext_data import Puzzles

RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}


@pytest.fixture
def rows(tmp_path):
    for number in range(8):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / f"{number}.png")
    row = {
        "question": "When?",
        "answer": "x",
        "frames": [f"{number}.png" for number in range(8)],
        "fps": 2.0,
    }
    name = tmp_path / "rows.jsonl"
    name.write_text(f"{json.dumps(row)}\n" * 4)
    return str(name)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_with_a_dataset_has_flags_for_clips(name):
    parameters = inspect.signature(RECIPES[name].main).parameters
    if "dataset" not in parameters:
        pytest.skip("makes its own data")
    kinds = {type(each.default) for each in parameters.values()}
    assert kinds & {Data, Clips, Puzzles}, "frames and rate"
    assert Load in kinds, "sizes"


def test_rows_of_any_recipe_obey_and_are_others_to_a_resumed_run(rows):
    train, heldout = open_data(rows, Data(frames=4, heldout_rows=1), 0)
    for side in (train, heldout):
        assert side[0].media[0].frames.shape[0] == 4
    plain, _ = open_data(rows, Data(heldout_rows=1), 0)
    assert plain[0].media[0].frames.shape[0] == 8
    assert plain.content(0) != train.content(0)


def test_sizes_reach_the_processor(tiny_folder, rows):
    prompts, _ = open_data(rows, Data(), 0)
    lengths = []
    for limits in ({}, {"max_frame_pixels": 32 * 32}, {"max_video_pixels": 8 * 16 * 16}):
        policy = open_policy(str(tiny_folder), Load(device="cpu", min_frame_pixels=1, **limits))
        lengths.append(len(policy.encode(prompts[0]).ids))
    assert lengths[0] > lengths[1] > lengths[2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"frames": 0}, r"Data\.frames is 0; it must be at least 1"),
        ({"fps": -1.0}, r"Data\.fps is -1\.0; it must be positive"),
        ({"max_frames": 1}, r"Data\.max_frames is 1; it must be at least 2"),
        ({"frames": 8, "fps": 1.0}, r"--data\.frames 8 .*--data\.fps"),
        ({"frames": 8, "max_frames": 9}, r"--data\.frames 8 .*--data\.max-frames"),
    ],
)
def test_what_nobody_can_mean_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Data(**given)


@pytest.mark.parametrize("name", UNLIMITED)
def test_sizes_of_nothing_are_refused(name):
    with pytest.raises(ValueError, match=rf"Load\.{name} is 0; it must be positive"):
        Load(**{name: 0})


@pytest.mark.parametrize("name", OF_CLIPS)
def test_drawn_data_refuse_them(name):
    with pytest.raises(ValueError, match=rf"--data\.{name.replace('_', '-')} is for rows"):
        open_data("drawn:lookup", Data(**{name: 4}), 0)


@pytest.mark.parametrize(
    ("data", "load", "flag"),
    [
        *(({name: 4}, {}, f"--data.{name}".replace("_", "-")) for name in OF_CLIPS),
        *(({}, {name: 4}, f"--load.{name}".replace("_", "-")) for name in UNLIMITED),
    ],
)
def test_recipes_with_clips_of_their_own_refuse_them_before_anything_is_loaded(
    data, load, flag, monkeypatch
):
    monkeypatch.setattr(Policy, "load", None)
    questions = ClipQuestions("spans.jsonl", None, Data(**data), Clips(), Asking())
    with pytest.raises(ValueError, match=rf"{flag} is for rows.*--clips"):
        questions.open_policy("a/b", Load(**load))


def test_puzzles_about_clips_obey():
    knobs = {
        part.task: part.knobs
        for part in Puzzles("mmrl-mix-v1", frames=9).task_mix().ingredients
    }
    with_frames = [task for task in knobs if "frames" in find(task).knobs]
    assert with_frames and all(knobs[task]["frames"] == 9 for task in with_frames)
    assert all("frames" not in knobs[task] for task in knobs if task not in with_frames)
    (jigsaw,) = Puzzles("temporal-jigsaw", fps=1.0).task_mix().ingredients
    assert jigsaw.knobs["fps"] == 1.0
    with pytest.raises(
        ValueError, match=r"--puzzles\.frames is 9, but no task of the mix rotation"
    ):
        Puzzles("rotation", frames=9).task_mix()
