"""No recipe takes a flag and ignores it: every argument and every field is read, or refused where nothing reads it."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
from PIL import Image

from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.launch import launch, resolved
from mmrl.recipes.shared.opening import Data
from mmrl.recipes.shared.previewing import built, without_stages
from mmrl.recipes.shared.unread import RULES, changed, refuse_unread

ROOT = Path(__file__).parents[2]
RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
ARGUMENTS = {
    name: {key: p.default for key, p in inspect.signature(recipe.main).parameters.items()}
    for name, recipe in RECIPES.items()
}
RECORDS = {
    type(value)
    for arguments in ARGUMENTS.values()
    for value in arguments.values()
    if is_dataclass(value)
}
COPIES = {"replace", "_replace", "describe", "as_json", "_chosen", "changed", "require"}
"""Functions that read every field of a record, whatever it means."""


def read_names(tree):
    """Names of attributes that are read, outside of the checks of a record's own values."""
    found, left = set(), [tree]
    while left:
        for node in ast.iter_child_nodes(left.pop()):
            if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
                continue
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            left.append(node)
    return found


@pytest.mark.parametrize("name", RECIPES)
def test_every_argument_is_read_by_its_recipe(name):
    (main,) = ast.parse(inspect.getsource(RECIPES[name].main)).body
    read = {
        node.id for node in ast.walk(ast.Module(main.body, [])) if isinstance(node, ast.Name)
    }
    assert set(ARGUMENTS[name]) <= read


def test_every_field_of_every_record_is_read_somewhere():
    folders = [ROOT / name for name in ("mmrl", "data", "perception", "recipes")]
    files = {file.resolve() for folder in folders for file in folder.rglob("*.py")}
    read = set()
    for file in files:  # one tree at a time: all at once they are millions of objects
        read |= read_names(ast.parse(file.read_text(encoding="utf-8")))
    unread = [
        f"{record.__name__}.{field.name}"
        for record in RECORDS
        for field in fields(record)
        # A record whose fields are all handed on is read as a whole.
        if field.init and field.name not in read
    ]
    assert not unread


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(4):
        Image.new("RGB", (32, 32), (8 * number, 0, 90)).save(folder / f"{number}.png")
        row = {"question": f"Which number? {number}", "answer": f"{number}"}
        row |= {"expert": f"{number}", "solution": f"{number}", "checklist": ["a"]}
        lines.append(json.dumps({**row, "image": f"{number}.png"}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    return folder / "mine.jsonl"


ASK_ROWS = [
    name
    for name, arguments in ARGUMENTS.items()
    if {"data", "run"} <= arguments.keys() and "asking" not in arguments
]


@pytest.mark.parametrize("name", ASK_ROWS)
def test_every_flag_of_the_rows_is_read(name, rows, tiny_folder, tmp_path, monkeypatch):
    recipe, read = RECIPES[name], set()
    given = ["embedded", "--model", str(tiny_folder), "--data.limit", "4"]
    given += ["--rows" if name == "hopchain" else "--dataset", str(rows)]
    asked = resolved(recipe.main, recipe.PRESETS, [*given, "--data.heldout-rows", "1"])
    plain = object.__getattribute__

    def traced(record, field):
        caller = sys._getframe(1).f_code.co_name
        if caller not in COPIES and caller != "__post_init__":
            read.add(field)
        return plain(record, field)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Data, "__getattribute__", traced, raising=False)
    arguments, _ = without_stages(asked, tmp_path / "run")
    try:
        built(recipe.main, arguments, name).rewards.close()
    except (ValueError, LookupError) as error:
        # Rows that this method cannot use; they were read all the same.
        assert "column" in str(error) or "row" in str(error)
    assert {field.name for field in fields(Data)} <= read


SPANS, VIDEO_R1 = "spans.jsonl", "video_r1.json"


@pytest.fixture
def annotations(tmp_path, monkeypatch):
    """A working folder with rows about spans, and with Video-R1's."""
    span = {"video": "a.mp4", "query": "a dog jumps", "span": [2.0, 4.5]}
    (tmp_path / SPANS).write_text(json.dumps(span))
    row = {"problem": "Which?", "problem_type": "free-form", "path": "a.mp4"}
    (tmp_path / VIDEO_R1).write_text(json.dumps([row | {"data_type": "video"}]))
    monkeypatch.chdir(tmp_path)


SEVERAL = ["--dataset", "a=drawn:lookup", "--dataset", "b=drawn:counting"]
EXAMPLES = [
    ("evaluate", ["--mix.weights", "a=1", "b=2", *SEVERAL], None),
    ("evaluate", ["--mix.no-form-first"], SEVERAL),
    ("arpo", ["--use.max-turns", "3"], ["--tools.calculator"]),
    ("arpo", ["--arpo.strings", ". ", "--tools.calculator"], None),
    ("evaluate", ["--no-tools", "--dataset", SPANS], None),
    ("recap", ["--recap.window", "0", "--recap.temperature", "2"], None),
    ("papo", ["--groups.rounds", "3"], ["--dynamic"]),
    ("dvrp", ["--groups.low", "0.1"], ["--dynamic"]),
    ("perception_r1", ["--judge.concurrency", "3"], ["--judge.url", "http://localhost:1/v1"]),
    ("rrvf", ["--shown.each", "0.2"], ["--rounds"]),
    (
        "rrvf",
        ["--likeness.side", "64", "--judge.url", "http://localhost:1/v1"],
        ["--judge.url", ""],
    ),
    ("puzzlecraft", ["--judge.model", "x"], ["--judge.url", "http://localhost:1/v1"]),
    ("timelens", ["--data.style", "box-inline"], None),
    ("timelens", ["--data.prompt", "Say: {question}"], None),
    ("timelens", ["--data.columns", "question=q"], None),
    ("timelens", ["--clips.fps", "1"], ["--dataset", "spans.jsonl"]),
    ("timelens", ["--video-root", "x"], ["--dataset", "spans.jsonl"]),
    ("timelens", ["--tuning.lr", "0.1"], ["--tuning.rows", "8"]),
    ("timelens", ["--select.std", "0.3"], ["--select.target", "8"]),
    ("video_r1", ["--data.system", "x"], None),
    ("tempsamp_r1", ["--data.split", "x"], None),
    ("difficulty", ["--sampling.temperature", "0.5"], None),
    ("hopchain", ["--data.style", "answer"], ["--rows", "rows.jsonl"]),
    ("hopchain", ["--rows-share", "0.2"], ["--rows", "rows.jsonl"]),
    ("papo", ["--reward", "math", "--reward.format", "0.5"], None),
    ("ampo", ["--ampo.floor", "0.2", "--ampo.shaping", "root"], None),
    ("evaluate", ["--asking.time", "prefix_times"], ["--dataset", "drawn:clips?frames=12"]),
    ("evaluate", ["--clips.fps", "1"], ["--dataset", SPANS]),
    ("evaluate", ["--video-root", "x"], ["--dataset", VIDEO_R1, "--asking.style", "video-r1"]),
    (
        "evaluate",
        ["--clips.format", "video_r1"],
        ["--dataset", VIDEO_R1, "--asking.style", "video-r1"],
    ),
    ("evaluate", ["--data.columns", "question=q", "--dataset", SPANS], None),
    ("evaluate", ["--reward.format", "0.5", "--dataset", SPANS], None),
    ("evaluate", ["--data.heldout-rows", "3"], ["--heldout-of", "1"]),
    ("evaluate", ["--samples", "3", "--dataset", "drawn:clips?frames=12"], None),
]


@pytest.mark.parametrize(("name", "flags", "lifted"), EXAMPLES)
@pytest.mark.usefixtures("annotations")
def test_what_would_be_ignored_is_refused_with_its_remedy(name, flags, lifted):
    recipe = RECIPES[name]
    with pytest.raises(SystemExit) as ended:
        launch(recipe.main, recipe.PRESETS, ["embedded", *flags])
    said = str(ended.value.code)
    assert any(f"{flag} would be ignored: " in said for flag in flags)
    if lifted is not None:
        resolved(recipe.main, recipe.PRESETS, ["embedded", *flags, *lifted])


@pytest.mark.usefixtures("annotations")
def test_every_rule_has_an_example():
    shown = set()
    for name, flags, _ in EXAMPLES:
        recipe = RECIPES[name]
        with pytest.raises(ValueError, match="would be ignored") as refused:
            resolved(recipe.main, recipe.PRESETS, ["embedded", *flags])
        shown |= {rule.remedy for rule in RULES if rule.remedy in str(refused.value)}
    assert shown == {rule.remedy for rule in RULES}


def test_what_preset_or_file_bring_is_no_flag():
    arguments = ARGUMENTS["papo"]
    refuse_unread("papo", arguments, arguments)
    assert list(changed(arguments, {**arguments, "dynamic": True})) == ["dynamic"]
