"""Settings as a file: what is printed is read back, files by hand are checked, and the folder of a run follows them."""

from __future__ import annotations

import importlib
import inspect
import json

import pytest
import yaml

from mmrl.recipes import papo, timelens
from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.configuration import Configuration, arguments_of, read_file
from mmrl.recipes.shared.launch import launch, placed, resolved, with_defaults

RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
ALL = [(name, preset) for name, recipe in RECIPES.items() for preset in recipe.PRESETS]


def arguments(main):
    return {name: p.default for name, p in inspect.signature(main).parameters.items()}


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_every_preset_of_every_recipe_is_read_back_from_what_is_printed(name, preset, tmp_path):
    recipe, file = RECIPES[name], tmp_path / "config.yaml"
    given = arguments(with_defaults(recipe.main, recipe.PRESETS[preset].values))
    first = Configuration(name, preset, given)
    file.write_text(first.yaml(), encoding="utf-8")
    # Over the recipe's own defaults, and over other numbers than those of the preset.
    again = arguments_of(read_file(str(file)), recipe.main, name)
    assert again == given and [type(v) for v in again.values()] == [
        type(v) for v in given.values()
    ]
    file.write_text(json.dumps(first.plain()))
    assert arguments_of(read_file(str(file)), recipe.main, name) == given


def test_the_command_line_prints_and_takes_it(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    given = ["7b", "--optim.lr", "1e-6", "--data.system", "off", "--load.freeze", "vision"]
    launch(papo.main, papo.PRESETS, [*given, "--print-config"])
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    again = resolved(papo.main, papo.PRESETS, ["--config", str(file)])
    assert again == resolved(papo.main, papo.PRESETS, given)
    assert again.arguments["optim"].lr == 1e-6 and again.arguments["data"].system == "off"
    changed = resolved(papo.main, papo.PRESETS, [f"--config={file}", "--optim.lr", "2e-6"])
    assert changed.arguments["optim"].lr == 2e-6


def read(text, tmp_path, *flags, recipe=papo):
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return resolved(recipe.main, recipe.PRESETS, ["--config", str(file), *flags])


def test_a_file_by_hand_names_only_what_it_changes(tmp_path):
    found = read("arguments:\n  optim: {lr: 1e-5}\n  papo: {gamma: 0}\n", tmp_path)
    usual = resolved(papo.main, papo.PRESETS, ["embedded"]).arguments
    assert found.preset == "embedded" and found.arguments["optim"].lr == 1e-5
    assert found.arguments["run"] == usual["run"]
    named = read("preset: 3b\narguments:\n  run: {steps: 7}\n", tmp_path).arguments
    assert named["papo"].eta_orig == 0.0 and named["run"].steps == 7
    by_size = read("arguments: {model: my/Some-7B}\n", tmp_path)
    assert by_size.preset == "7b"


def test_the_config_of_a_run_is_one(tmp_path):
    plain = resolved(papo.main, papo.PRESETS, ["7b", "--run.seed", "3"]).plain()
    text = json.dumps({"run": "1", "settings": {}, "recipe": plain})
    assert read(text, tmp_path).plain() == plain


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arguments: {optim: {lr: fast}}", r"'fast' for optim\.lr \(--optim\.lr\).*a number"),
        ("arguments: {run: {steps: 1.5}}", r"1\.5 for run\.steps .*whole number"),
        ("arguments: {run: {steps: true}}", r"True for run\.steps .*whole number"),
        ("arguments: {load: {thinking: off}}", r"False for load\.thinking .*'on', 'off'"),
        ("arguments: {dynamic: 1}", r"1 for dynamic .*true or false"),
        ("arguments: {model: 7}", r"7 for model .*a text"),
        ("arguments: {load: {freeze: vision}}", r"'vision' for load\.freeze .*a list"),
        ("arguments: {load: {freeze: [tower]}}", r"'tower' for load\.freeze .*one of 'vision'"),
        ("arguments: {optim: {rate: 1}}", r"for optim; it must be a mapping of \['beta1'"),
        ("arguments: {optimizer: {lr: 1}}", r"sets \['optimizer'\], which recipe 'papo'"),
        ("optim: {lr: 1}", r"it holds optim\): it may hold recipe, preset, arguments"),
        ("preset: 8b", r"no preset '8b'"),
        ("recipe: vppo", r"belongs to recipe 'vppo', this is 'papo'"),
        ("- 1", "holds no mapping"),
        ("a: [", "is not what --print-config prints"),
        ("arguments: {run: {seed: -1, grace: -5}}", r"grace"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_in_words_of_flags(text, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read(text, tmp_path)


def test_a_pair_has_two_numbers(tmp_path):
    with pytest.raises(ValueError, match=r"clips\.seconds .*a list of 2"):
        read("arguments: {clips: {seconds: [1.0]}}", tmp_path, recipe=timelens)


# The folder of a run.


def folder(*flags, recipe=papo):
    asked = resolved(recipe.main, recipe.PRESETS, ["embedded", *flags])
    return str(placed(asked).arguments["run"].folder)


SAME = (
    ("--run.steps", "7"),
    ("--run.save-every", "3"),
    ("--load.workers", "2"),
    ("--monitor.probe-every", "3"),
)
OTHER = (
    ("--run.seed", "1"),
    ("--optim.lr", "1e-3"),
    ("--papo.gamma", "0.5"),
    ("--dataset", "mine.jsonl"),
    ("--model", "mine"),
    ("--reward", "math"),
    ("--data.style", "box"),
    ("--load.max-pixels", "100000"),
    ("--no-masked-grad",),
    ("--run.from", "runs/latest"),
)


def test_runs_with_other_settings_have_folders_of_their_own():
    plain = folder()
    assert plain.startswith("runs/papo-") and len(plain) == len("runs/papo-") + 6
    assert all(folder(*flags) == plain for flags in SAME)
    others = [folder(*flags) for flags in OTHER]
    assert len({plain, *others}) == len(OTHER) + 1
    assert folder("--run.output", "my/place") == "my/place"
    assert folder("--run.name", "mine").startswith("runs/mine-")


def test_the_config_file_of_a_command_line_leads_to_its_folder(tmp_path):
    file = tmp_path / "mine.yaml"
    asked = resolved(papo.main, papo.PRESETS, ["embedded", "--papo.gamma", "0.5"])
    file.write_text(asked.yaml())
    again = placed(resolved(papo.main, papo.PRESETS, ["--config", str(file)]))
    assert str(again.arguments["run"].folder) == folder("--papo.gamma", "0.5")
    assert yaml.safe_load(asked.yaml())["arguments"]["run"]["output"] is None
