"""Previews: rows as the run would see them, for every recipe, with nothing trained, loaded or left behind."""

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.recipes.__main__ import main, recipes
from mmrl.recipes.shared import previewing
from mmrl.recipes.shared.launch import resolved
from mmrl.recipes.shared.previewing import built, preview
from mmrl.report.page import is_page

ROOT = Path(__file__).parents[2]
RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
IDLE = ("difficulty", "evaluate", "next_extrapolation", "update_geometry")
"""Recipes that train nothing."""

sys.path.insert(0, str(ROOT / "tests" / "report"))
from test_page import refuse_danger  # noqa: E402


@pytest.fixture
def photographs(tmp_path):
    """Rows about pictures: one is torn, one is hostile, one has no answer to compare with."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (40, 64, 3), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    rows = [
        {"question": "What is it?", "answer": "red circle", "image": "a.png"},
        {"question": "<b onclick=alert(1)>And this?", "answer": "<i>x</i>", "image": "b.png"},
        {"question": "How many?", "answer": "7", "image": "c.png"},
        {"question": "Torn?", "answer": "yes", "image": "torn.png"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def previewed(recipe, *argv):
    """The page that a command line makes, and what it shows of each row."""
    module, found = RECIPES[recipe], {}
    with pytest.MonkeyPatch.context() as patch:
        render = previewing.render

        def kept(template, **values):
            found.update(values)
            return render(template, **values)

        patch.setattr(previewing, "render", kept)
        preview(module.main, module.PRESETS, argv)
    return found


def test_rows_are_shown_as_the_model_reads_them(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    flags = ("--dataset", str(photographs), "--data.heldout-rows", "1", "--run.output", "out")
    found = previewed("papo", "embedded", *flags, "--data.style", "answer")
    assert set(tmp_path.iterdir()) - before == {tmp_path / "preview.html"}
    page = (tmp_path / "preview.html").read_text()
    assert is_page(page, "preview")
    refuse_danger(page)
    # Names and numbers for readers, and no object as Python writes it.
    assert "(Qwen2.5-VL)" in str(found["facts"])
    assert not re.search(r"\b[A-Z]\w+\(\w+=", str(found["facts"]))
    rows = {row["truth"]: row for row in found["rows"]}
    assert len(rows) >= 2
    for truth, row in rows.items():
        (medium,) = row["media"]
        assert (
            medium["original"] == (64, 40)
            and medium["last"] - medium["first"] + 1 == medium["tokens"]
        )
        assert f"<|image_pad|>×{medium['tokens']}" in row["text"] and "<answer>" in row["text"]
        assert [strip["branch"] for strip in row["strips"]] == ["raw", "masked"]
        raw, masked = (strip["media"][0][0]["uri"] for strip in row["strips"])
        assert raw != masked
        pay = [answer["reward"] for answer in row["paid"]]
        assert row["form"] == "thoughts, then in <answer>" and truth in row["paid"][0]["text"]
        assert pay == pytest.approx([1.0, 0.1, 0.0, 0.0])
    assert any("torn.png" in reason for reason in found["skipped"])


# These build their run from the same calls as papo, which stands for them.
LIKE_PAPO = (
    *("ace", "brorl", "canon", "dars", "dcpo", "deepsearch", "dsdr", "dvrp", "ead", "laser", "mssr", "ngrpo", "nsr"),
    *("noisy_verifier", "pacs", "progrpo", "rose", "rover", "self_boundary", "vppo"),
)  # fmt: skip


@pytest.mark.parametrize("recipe", sorted(set(RECIPES) - set(IDLE) - set(LIKE_PAPO)))
def test_every_recipe_has_a_preview(recipe, tmp_path):
    """Of its embedded preset: right answers earn more than wrong ones, and branches differ from the pictures."""
    found = previewed(recipe, "--rows", "2", "--output", str(tmp_path / "page.html"))
    # Of a mixture, also the first of each data set that was not among the two.
    assert len(found["rows"]) == (2 if recipe not in ("modomodo", "recap") else 4)
    for row in found["rows"]:
        right, wrong, *_ = row["paid"]
        # VRAG-RL pays nothing without a search, which a canned answer does not make.
        assert right["reward"] > 0 or recipe == "vrag_rl"
        assert right["reward"] >= (wrong["reward"] or 0.0)
        raw, *others = row["strips"] or [None]
        for strip in others:
            assert strip["media"] != raw["media"], strip["branch"]


def test_no_weights_are_loaded_and_no_model_is_warmed_up(tmp_path, monkeypatch):
    from mmrl.recipes.shared import supervised

    def refuse(*_):
        raise AssertionError("a model was trained")

    monkeypatch.setattr(supervised, "supervised", refuse)
    module = RECIPES["timelens"]
    arguments = dict(resolved(module.main, module.PRESETS, ()).arguments)
    arguments["run"] = replace(arguments["run"], output=tmp_path / "run", eval_prompts=2)
    parts = built(module.main, arguments, "timelens")
    assert {p.device.type for p in parts.policy.model.parameters()} == {"meta"}


def test_stages_that_need_a_model_are_left_out_and_named():
    module = RECIPES["timelens"]
    asked = resolved(module.main, module.PRESETS, ("timelens-8b",))
    arguments, notes = previewing.without_stages(asked, Path("out"))
    assert arguments["tuning"].rows == 0 and arguments["select"].target == 0
    assert len(notes) == 2 and "--tuning.rows 30000" in notes[1]


@pytest.mark.parametrize("recipe", IDLE)
def test_a_recipe_that_trains_nothing_is_refused(recipe):
    with pytest.raises(SystemExit, match="trains nothing"):
        main(["preview", recipe])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["papo", "--rows", "0"], "--rows is '0'; it must be a number from 1 to 200"),
        (["papo", "--rows", "many"], "it must be a number"),
        (["papo", "--output", "taken.txt"], "is no preview of mmrl"),
        (["papo", "nopreset"], "There is no preset 'nopreset'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(args, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["preview", *args])
    assert said in str(stop.value) and (tmp_path / "taken.txt").read_text() == "mine"
