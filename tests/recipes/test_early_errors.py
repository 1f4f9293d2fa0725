"""What a user can get wrong is told before weights are loaded or warmed up, in words of flags, and leaves no trace."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared import (
    clip_data,
    embedded,
    opening,
    pretext_warmup,
    solution_data,
    supervised,
)
from mmrl.recipes.shared.launch import launch, resolved
from mmrl.recipes.shared.rehearsal import is_doubtful, rehearse

RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
MAINS = {name: recipe.main.__annotations__ for name, recipe in RECIPES.items()}
TRAIN = [name for name, arguments in MAINS.items() if "run" in arguments]
ROWS = [n for n in TRAIN if "data" in MAINS[n] and not {"asking", "puzzles"} & MAINS[n].keys()]
SPANS = ["timelens", "tempsamp_r1"]
PRETEXT = [name for name in TRAIN if "puzzles" in MAINS[name] and name != "np_engine"]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """What a user may have by mistake."""
    place = tmp_path_factory.mktemp("things")
    (place / "photos").mkdir()
    rows = []
    for number in range(4):
        picture = Image.new("RGB", (32, 32), (8 * number, 0, 90))
        picture.save(place / "photos" / f"{number}.png")
        rows.append({"question": f"Which? {number}", "image": f"photos/{number}.png"})
    lines = "\n".join(map(json.dumps, rows))
    (place / "unanswered.jsonl").write_text(lines)
    (place / "empty_answers.jsonl").write_text(
        "\n".join(json.dumps({**row, "answer": ""}) for row in rows)
    )
    (place / "empty.jsonl").write_text("")
    for name in ("not_a_model", "no_weights", "others"):
        (place / name).mkdir()
    (place / "no_weights" / "config.json").write_text("{}")
    (place / "others" / "metrics.jsonl").write_text("theirs")
    with av.open(str(place / "clip.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for number in range(8):  # two seconds
            pixels = np.full((32, 32, 3), 20 * number, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        file.mux(stream.encode())
    outside = {"video": "clip.mp4", "query": "a dog jumps", "span": [5.0, 6.0]}
    (place / "outside.jsonl").write_text(json.dumps(outside))
    told = {**outside, "duration": 2.0}
    (place / "outside_told.jsonl").write_text(json.dumps(told))
    return place


def refused(name, flags, tmp_path, monkeypatch):
    """What the command line ends with; it fails if anything was loaded, warmed up or left behind."""

    def never(*_, **__):
        raise AssertionError("too late")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening.Policy, "load", never)
    for module in (opening, clip_data, embedded, pretext_warmup, solution_data):
        monkeypatch.setattr(module, "warm_model", never)
    recipe = RECIPES[name]
    with pytest.raises(SystemExit) as ended:
        launch(recipe.main, recipe.PRESETS, ["embedded", *flags])
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "runs").iterdir())
    return str(ended.value.code)


ANY = {
    "no model": (["--model", "./none"], r"no model or run in \./none"),
    "no model's folder": (["--model", "{}/not_a_model"], r"--model .* without config\.json"),
    "no weights": (["--model", "{}/no_weights"], r"--model .* without weights"),
    "no run": (["--run.from", "runs/none"], r"--run\.from is runs/none, which is no folder"),
    "a model is no run": (["--run.from", "{}/no_weights"], r"--run\.from .* no checkpoint"),
    "no logger": (["--run.logger", "wandb"], r"--run\.logger is wandb.*pip install"),
    "others' folder": (["--run.output", "{}/others"], r"--run\.output, or move them"),
    "a file": (["--run.output", "{}/empty.jsonl"], r"--run\.output"),
    "no card": (["--load.device", "cuda:9"], r"--load\.device is 'cuda:9'"),
    "no dtype": (["--load.dtype", "half"], r"--load\.dtype is 'half'"),
    "no settings": (["--config", "none.yaml"], r"--config names none\.yaml"),
}


@pytest.mark.parametrize("name", ["papo", "timelens"])  # of each way of asking
@pytest.mark.parametrize("case", ANY)
def test_whatever_the_recipe(name, case, things, tmp_path, monkeypatch):
    flags, said = ANY[case]
    find = importlib.util.find_spec
    # Of this package alone: libraries keep for good what they do not find.
    absent = lambda name, *rest: None if name == "wandb" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    given = [flag.format(things) for flag in flags]
    found = refused(name, given, tmp_path, monkeypatch)
    assert re.search(said, found), found


DATA = {
    "missing": ("none.jsonl", r"none\.jsonl does not exist"),
    "empty": ("empty.jsonl", r"empty"),
    "photos": ("photos", r"holds 4 pictures or clips and asks nothing.*mmrl pretext --dataset"),
    "no answers": ("unanswered.jsonl", r"no column for the answer.*mmrl pretext"),
    "empty answers": ("empty_answers.jsonl", r"no usable row.*mmrl pretext"),
}


# Every recipe looks at its rows first; what is found there is found by the same function.
LOOKED = [*(("missing", name) for name in ROWS), *((case, "sft") for case in DATA)]
LOOKED += [(case, name) for case in DATA for name in ("papo", "mssr") if case != "missing"]


@pytest.mark.parametrize(("case", "name"), dict.fromkeys(LOOKED))
def test_rows_of_every_recipe(name, case, things, tmp_path, monkeypatch):
    file, said = DATA[case]
    found = refused(name, ["--dataset", str(things / file)], tmp_path, monkeypatch)
    assert re.search(said, found), found


@pytest.mark.parametrize("name", ["papo", "sft"])
def test_other_files_of_the_rows(name, things, tmp_path, monkeypatch):
    rows = things / "answered.jsonl"
    text = (things / "unanswered.jsonl").read_text().replace("}", ', "answer": "x"}')
    rows.write_text(text)
    given = ["--dataset", str(rows)]
    gone = refused(name, [*given, "--data.heldout", "gone.jsonl"], tmp_path, monkeypatch)
    assert "gone.jsonl does not exist" in gone
    prompt = refused(name, [*given, "--data.prompt", "gone.jinja"], tmp_path, monkeypatch)
    assert "no file gone.jinja" in prompt


@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize("file", ["outside.jsonl", "outside_told.jsonl", "none.jsonl"])
def test_spans_outside_their_clip(name, file, things, tmp_path, monkeypatch):
    found = refused(name, ["--dataset", str(things / file)], tmp_path, monkeypatch)
    said = "no annotation file" if file == "none.jsonl" else "of a clip of 2"
    assert said in found, found


def test_a_span_outside_among_others_is_left_out_and_counted(things, tmp_path):
    good = {"video": "clip.mp4", "query": "a cat", "span": [0.5, 1.0]}
    file = things / "both.jsonl"
    bad = (things / "outside.jsonl").read_text()
    file.write_text("\n".join([json.dumps(good), bad]))
    rows = clip_data.read_annotations(str(file), None, opening.Data(), clip_data.Clips())
    assert [row.query for row in rows] == ["a cat"] and rows.faults[0].reason == "unusable span"


@pytest.mark.parametrize("name", PRETEXT)
def test_media_of_pretext_tasks(name, things, tmp_path, monkeypatch):
    gone = refused(name, ["--dataset", str(things / "gone")], tmp_path, monkeypatch)
    assert "gone" in gone and "too late" not in gone


def test_a_folder_asked_by_its_own_prompt_is_rows(things):
    shutil.copytree(things / "photos", things / "classes" / "a", dirs_exist_ok=True)
    shutil.copytree(things / "photos", things / "classes" / "b", dirs_exist_ok=True)
    data = opening.Data(prompt="Which letter? {question}", heldout_rows=0)
    prompts, _ = opening.open_data(str(things / "classes"), data, 0)
    assert {prompts[0].answer, prompts[7].answer} == {"a", "b"}


SAMPLING = {
    "alone": (["--sampling.group-size", "1"], "Set --sampling.group-size to 2 or more"),
    "greedy": (["--sampling.temperature", "0"], "Set --sampling.temperature above 0"),
    "long": (["--sampling.max-tokens", "99999"], "this model reads at most"),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [*(("papo", case) for case in SAMPLING), ("timelens", "alone"), ("puzzlecraft", "greedy")],
)
def test_groups_that_teach_nothing(name, case, tmp_path, monkeypatch):
    flags, said = SAMPLING[case]

    def never(*_, **__):
        raise AssertionError("too late")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening.Policy, "load", never)
    monkeypatch.setattr(supervised, "supervised", never)  # who warms models up
    recipe = RECIPES[name]
    with pytest.raises(SystemExit) as ended:
        launch(recipe.main, recipe.PRESETS, ["embedded", *flags])
    assert said in str(ended.value.code)
    assert not (tmp_path / "runs").exists()


def test_groups_that_others_complete_may_be_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mssr = RECIPES["mssr"]
    given = ["embedded", "--sampling.group-size", "1", "--sampling.max-tokens", "9"]
    asked = resolved(mssr.main, mssr.PRESETS, given)
    # One answer per prompt is what this method has by itself, so no flag changed it.
    assert asked.given == ("sampling.max_tokens",) and not is_doubtful(asked)
    rehearse(mssr.main, asked)
    assert not list(tmp_path.iterdir())
