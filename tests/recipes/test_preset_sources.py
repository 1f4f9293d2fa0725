"""Every constant of every published preset: its value and where it comes from, against what a command line builds.

`preset_sources.json` holds, for each recipe, rows of constant -> [value, source] that hold for `every` preset, and for
each preset those that differ. `common` has what no paper speaks of and all recipes share. A source is a table of the
paper, a file of its code, or "ours". Files are named as in the paper's repository.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.configuration import as_json
from mmrl.recipes.shared.launch import EMBEDDED, Preset, resolved, with_defaults

TABLE = json.loads(Path(__file__).with_name("preset_sources.json").read_text(encoding="utf-8"))
RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
PUBLISHED = [
    (name, preset)
    for name, recipe in RECIPES.items()
    for preset in getattr(recipe, "PRESETS", {})
    if preset != EMBEDDED
]


def flat(value, at=""):
    """Nested settings as constant -> value, with dots."""
    found = {}
    for name, part in value.items():
        place = f"{at}.{name}" if at else name
        found.update(flat(part, place) if isinstance(part, dict) else {place: part})
    return found


def built(main, presets, argv):
    """What a command line would call the recipe with: the function behind --print-config."""
    return flat(as_json(resolved(main, presets, argv).arguments))


def rows(recipe, preset, constants):
    """Constant -> [value, source] as the table has them for a preset; of the common ones those that it has."""
    own = {**TABLE[recipe]["every"], **TABLE[recipe]["presets"][preset]}
    common = {name: row for name, row in TABLE["common"].items() if name in constants}
    return {**common, **own}


def differences(table, found):
    """Names of constants whose values differ, or that only one of the two has."""
    values = {name: row[0] for name, row in table.items()}
    return sorted(
        name
        for name in values.keys() | found.keys()
        if values.get(name, ...) != found.get(name, ...)
    )


def another(value):
    """A value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}!"


@pytest.mark.parametrize(("recipe", "preset"), PUBLISHED)
def test_a_preset_builds_what_its_sources_say(recipe, preset):
    module = RECIPES[recipe]
    found = built(module.main, module.PRESETS, [preset])
    assert differences(rows(recipe, preset, found), found) == []


def test_every_row_has_a_source_and_every_recipe_its_rows():
    assert set(TABLE) - {"common"} == {recipe for recipe, _ in PUBLISHED}
    for recipe in set(TABLE) - {"common"}:
        presets = TABLE[recipe]["presets"]
        assert set(presets) == {preset for name, preset in PUBLISHED if name == recipe}
        for part in (TABLE[recipe]["every"], TABLE["common"], *presets.values()):
            assert all(len(row) == 2 and row[1].strip() for row in part.values())


@pytest.mark.parametrize("recipe", sorted(set(TABLE) - {"common"}))
def test_any_changed_constant_of_the_table_is_seen(recipe):
    """Each value is changed in turn: the comparison names it and nothing else."""
    module = RECIPES[recipe]
    preset = next(preset for name, preset in PUBLISHED if name == recipe)
    found = built(module.main, module.PRESETS, [preset])
    table = rows(recipe, preset, found)
    for name, value in found.items():
        assert differences(table, {**found, name: another(value)}) == [name]
        left_out = {other: row for other, row in table.items() if other != name}
        assert differences(left_out, found) == [name]


CHANGES = [
    ("papo", "7b", {"papo": {"gamma": 0.04}}, "papo.gamma"),
    ("papo", "d-7b", {"groups": {"at_once": 0}}, "groups.at_once"),
    ("vogue", "7b", {"reward": {"format": 0.1}}, "reward.format"),
    ("vppo", "qwen3-8b", {"vppo": {"eta": 0.06}}, "vppo.eta"),
    ("noisy_rollout", "7b-k12", {"grpo": {"entropy": 0.0}}, "grpo.entropy"),
    ("noisy_rollout", "32b", {"run": {"steps": 60}}, "run.steps"),
    ("video_r1", "video-r1", {"sampling": {"top_p": 1.0}}, "sampling.top_p"),
    ("visurf", "7b", {"data": {"style": "answer"}}, "data.style"),
    ("mssr", "3b", {"load": {"max_prompt_tokens": 8192}}, "load.max_prompt_tokens"),
    ("visual_jigsaw", "7b", {"puzzles": {"mix": "visual-jigsaw-image"}}, "puzzles.mix"),
    ("perception_r1", "7b", {"optim": {"warmup_share": 0.0}}, "optim.warmup_share"),
    ("calibrl", "7b", {"optim": {"decay_all": False}}, "optim.decay_all"),
]


@pytest.mark.parametrize(("recipe", "preset", "change", "name"), CHANGES)
def test_a_constant_that_is_changed_in_a_recipe_is_seen(recipe, preset, change, name):
    module = RECIPES[recipe]
    main = with_defaults(module.main, module.PRESETS[preset].values)
    mutated = {preset: Preset("mutated", **change)}
    found = built(main, mutated, [preset])
    assert differences(rows(recipe, preset, found), found) == [name]


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [("papo", "7b"), ("noisy_rollout", "32b-k12"), ("video_r1", "video-r1"), ("dvrp", "d-7b")],
)
def test_what_is_printed_can_be_given_back(recipe, preset, tmp_path):
    module, file = RECIPES[recipe], tmp_path / "config.yaml"
    first = resolved(module.main, module.PRESETS, [preset, "--run.seed", "7", "--print-config"])
    file.write_text(first.yaml(), encoding="utf-8")
    again = resolved(module.main, module.PRESETS, ["--config", str(file)])
    assert again == first and again.arguments["run"].seed == 7
    changed = resolved(module.main, module.PRESETS, [f"--config={file}", "--run.seed", "8"])
    assert changed.arguments["run"].seed == 8


def test_a_configuration_that_does_not_fit_is_refused(tmp_path):
    papo, vppo = RECIPES["papo"], RECIPES["vppo"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(resolved(papo.main, papo.PRESETS, ["7b"]).plain()))
    cases = [
        (["--config", str(file)], r"belongs to recipe 'papo', this is 'vppo'"),
        (["7b", "--config", str(file)], r"Both the preset '7b' and --config"),
        (["--config", str(tmp_path / "none.json")], r"which does not exist"),
    ]
    for argv, said in cases:
        with pytest.raises(ValueError, match=said):
            resolved(vppo.main, vppo.PRESETS, argv)
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["arguments"]["papo"]["gama"] = 1
    file.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match=r"for papo; it must be a mapping of \['anneal'"):
        resolved(papo.main, papo.PRESETS, ["--config", str(file)])
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is not what --print-config prints"):
        resolved(papo.main, papo.PRESETS, ["--config", str(file)])


@pytest.mark.parametrize(
    ("recipe", "preset", "stages"),
    [
        ("papo", "7b", {"masked": "original"}),
        ("vppo", "7b", {"masked": "resized"}),
        ("dvrp", "7b", {"masked": "resized", "noisy": "resized"}),
        ("vogue", "7b", {"noisy": "resized"}),
    ],
)
def test_views_act_on_the_picture_on_which_the_papers_code_has_them(
    recipe, preset, stages, monkeypatch
):
    """PAPO masks the picture of the file, the others what is left of it after the resize to the pixel limits."""
    module, seen = RECIPES[recipe], {}
    monkeypatch.setattr(module, "open_policy", lambda *_: None)
    monkeypatch.setattr(module, "open_data", lambda *_: (None, None))
    monkeypatch.setattr(module, "Trainer", lambda policy, **settings: seen.update(settings))
    monkeypatch.setattr(module, "fit", lambda *_, **__: None)
    module.main(**resolved(module.main, module.PRESETS, [preset]).arguments)
    seen["rewards"].close()
    assert {name: branch.stage for name, branch in seen["branches"].items()} == stages
