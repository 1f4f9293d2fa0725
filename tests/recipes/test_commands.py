"""The commands around a run: eval, check, export, doctor, both helps, and how they end when something goes wrong."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from mmrl.ground.checksums import damage
from mmrl.ground.progress import Progress
from mmrl.grpo import GRPO
from mmrl.recipes import grpo, grpo_step, papo
from mmrl.recipes.__main__ import COMMANDS, HELPS, PRETEXT_ROWS, main, recipes
from mmrl.recipes.shared import exporting
from mmrl.recipes.shared.launch import Preset, launch
from mmrl.recipes.shared.opening import Load
from mmrl.recipes.shared.short_help import COMMON, field_help
from mmrl.training import trainer
from mmrl.training.door import ERRORS
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from tests.test_metrics_page import on_the_page

REWARD = "def letters(rollout):\n    return len(set(rollout.text)) / 50\n"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A data file of questions about pictures, as a user would have it."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(30):
        Image.new("RGB", (32, 32), (8 * number, 0, 90)).save(folder / f"{number}.png")
        row = {"question": f"Which number? {number}", "answer": f"{number}"}
        lines.append(json.dumps({**row, "image": f"{number}.png"}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    (folder / "pay.py").write_text(REWARD)
    return folder / "mine.jsonl"


@pytest.fixture(scope="module")
def given(rows, tiny_folder):
    """The flags of a user's own job."""
    own = ["--model", str(tiny_folder), "--dataset", str(rows), "--data.style", "answer"]
    paid = ["--reward", f"{rows.parent / 'pay.py'}:letters", "--data.heldout-rows", "3"]
    small = ["--run.steps", "1", "--run.prompts-per-step", "2", "--sampling.group-size", "2"]
    return [*own, *paid, *small, "--sampling.max-tokens", "5", "--lora.rank", "2"]


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    """What such a run leaves behind."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    shown = []

    class Noted(Progress):
        def __init__(self, *args, **named):
            super().__init__(*args, **named)
            shown.extend(self.shown)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Progress", Noted)
        command = ["train", "papo", "embedded", *given, "--monitor.probe-every", "0"]
        main([*command, "--run.output", str(folder), "--run.seed", "7"])
    assert shown[:3] == ["reward/total", "branch/masked/kl", "loss/perception"]
    return folder


def test_a_run_is_measured_as_it_measured_itself(run, tmp_path):
    main(["eval", str(run), "--samples", "0", "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    last = read_metrics(run)[-1]
    assert found["prompts"] == 3, "its held-out rows, not those it trained on"
    assert found["reward"] == pytest.approx(last["eval/reward"]) and found["reward"] > 0
    assert found["length"] == pytest.approx(last["eval/length"]) and found["length"] <= 5


def test_every_metric_of_a_run_is_on_the_page(run):
    names = {name for row in read_metrics(run) for name in row} - {"step"}
    assert len(names) > 30 and not [name for name in names if not on_the_page(name)]


def test_other_rows_are_asked_all_and_in_the_runs_style(run, rows, tmp_path):
    other = tmp_path / "other.jsonl"
    texts = rows.read_text().splitlines()[:4]
    other.write_text("\n".join(texts))
    more = ["--data.image-root", str(rows.parent), "--samples", "0"]
    output = ["--output", str(tmp_path / "found.json")]
    main(["eval", str(run), "--dataset", str(other), *more, *output])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["prompts"] == 4 and found["reward"] > 0 and found["length"] <= 5


@pytest.mark.parametrize("recipe", [None, {"recipe": "pretext", "arguments": {"run": {}}}])
def test_a_run_that_says_too_little_is_told_what_to_add(recipe, tmp_path):
    config = {"run": "1", "settings": {}, **({"recipe": recipe} if recipe else {})}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"--dataset FILE --data\.style STYLE"):
        main(["eval", str(tmp_path)])


def test_an_adapter_loads_with_peft_and_merged_without(run, tiny_folder, tmp_path):
    assert (run / "model" / "adapter_config.json").is_file()
    base = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    PeftModel.from_pretrained(base, str(run / "model"))
    whole = tmp_path / "whole"
    main(["export", str(run), "--merge", "--output", str(whole)])
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    told = card.replace("library_name: peft", "library_name: transformers")
    assert (whole / "README.md").read_text(encoding="utf-8") == told != card
    AutoModelForImageTextToText.from_pretrained(whole)
    with safe_open(whole / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert names and not [name for name in names if "lora" in name]
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        main(["export", str(run), "--output", str(whole)])


def test_a_model_without_adapter_is_exported_as_it_is(tmp_path, monkeypatch, capsys):
    """The same command for every run: there is nothing to merge where all weights were trained."""
    asked = {}
    whole = SimpleNamespace(has_adapter=False, save=lambda folder, **how: asked.update(how))
    monkeypatch.setattr(exporting, "open_policy", lambda *_: whole)
    main(["export", str(tmp_path), "--merge", "--output", str(tmp_path / "whole")])
    assert asked["merge"] is False and "written as they are" in capsys.readouterr().err


def test_the_model_says_how_it_was_made(run, tiny_folder):
    card = (run / "model" / "README.md").read_text()
    last = read_metrics(run)[-1]
    for said in ("`papo`", "LoRA", str(tiny_folder), f"{last['reward/total']:.4f}", "torch"):
        assert said in card
    assert card.startswith("---\nlibrary_name: peft") and "Licence\n\nNot stated" in card
    assert not damage(run / "model")


def test_check_reads_rows_and_writes_nothing(given, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["check", "grpo", "embedded", *given])
    told = capsys.readouterr().out
    for line in ("settings", "output", "memory", "model", "data", "rewards"):
        assert any(text.startswith(f"{line} ") for text in told.splitlines()), line
    assert "longest prompt" in told and told.endswith("would start.\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["check", "grpo"], ["grpo"], ["check", "papo"]])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run.logger", "wandb"], r"pip install 'mmrl\[wandb\]'"),
        (["--model", "./not/there"], r"no model or run in \./not/there"),
        (["--data.prompt", "gone.jinja"], r"no file gone\.jinja"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_opened(
    command, flags, said, given, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for module in (grpo, papo):
        monkeypatch.setattr(module, "open_data", None)
    with pytest.raises(SystemExit, match=said):
        main([*command, "embedded", *given, *flags])
    assert not (tmp_path / "runs").exists()


UNREAD = [(group, name) for group, names in grpo_step.UNREAD.items() for name in names]
OTHER = {
    "engine": "vllm",
    "kl_kind": "exact",
    "kl_in": "reward",
    "mismatch": "mask",
    "mismatch_level": "sequence",
}


@pytest.mark.parametrize(("group", "name"), UNREAD)
def test_the_written_out_step_refuses_what_it_does_not_read(group, name):
    plain = {"run": Run(), "grpo": GRPO(), "optim": Optim(), "load": Load()}
    grpo_step.refuse_unread(**plain)
    value = getattr(plain[group], name)
    other = OTHER.get(name, "stop" if isinstance(value, str) else not value)
    if type(value) in (int, float):
        other = value + 1
    record = replace(plain[group], **{name: other})
    flag = f"--{group}.{name.replace('_', '-')} is "
    with pytest.raises(ValueError, match=flag):
        grpo_step.refuse_unread(**{**plain, group: record})
    main = inspect.getsource(grpo_step.main) + inspect.getsource(grpo_step.train_step)
    assert f"{group}.{name}" not in main, "what it reads it need not refuse"


def test_what_nobody_foresaw_is_a_paragraph_and_its_traceback_is_kept(tmp_path):
    def broken(model: str = "embedded", run: Run = Run()) -> None:
        """Do it."""
        raise KeyError("deep inside")

    output = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        launch(broken, {"embedded": Preset("tiny")}, ["--run.output", str(output)])
    said = str(ended.value.code)
    assert "KeyError: 'deep inside'" in said and str(output / ERRORS) in said
    assert "Traceback" not in said and "in broken" in (output / ERRORS).read_text()


def test_the_reader_of_a_pipe_may_leave():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "mmrl.recipes", "list"],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    os.close(writing)
    assert done.returncode == 141 and not done.stderr


def test_pretext_is_a_recipe_and_a_command_about_its_rows(tmp_path, capsys, monkeypatch):
    main(["pretext", "list"])
    assert "mmrl-mix-v1: " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    made = ["--preset", "rotation", "--count", "2", "--output"]
    main(["pretext", "preview", *made, "sheet.html"])
    main(["pretext", "export", *made, "rows"])
    assert (tmp_path / "sheet.html").is_file() and list((tmp_path / "rows").rglob("*.parquet"))
    with pytest.raises(SystemExit) as ended:
        main(["pretext", "export", "--preset", "none", "--output", "x"])
    assert ended.value.code == 2
    with pytest.raises(SystemExit) as ended:
        main(["pretext", "export", "--help"])
    assert "usage: mmrl pretext export" in capsys.readouterr().out and ended.value.code == 0
    with pytest.raises(SystemExit):
        main(["pretext", "--help"])
    assert "usage: mmrl pretext [preset]" in capsys.readouterr().out
    assert set(PRETEXT_ROWS).isdisjoint(importlib.import_module("mmrl.recipes.pretext").PRESETS)


def test_the_help_names_every_command(capsys):
    main([])
    told = capsys.readouterr().out
    for name in (*COMMANDS, *HELPS, "train", "pretext"):
        assert f"  {name} " in told, name


@pytest.mark.parametrize("name", recipes())
def test_the_short_help_fits_a_screen_and_leaves_no_flag_out(name, capsys):
    module = importlib.import_module(f"mmrl.recipes.{name}")
    with pytest.raises(SystemExit) as ended:
        launch(module.main, module.PRESETS, ["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0 and len(told.splitlines()) <= 90
    assert all(len(line) <= 112 for line in told.splitlines()), "presets' notes aside"
    assert "--model" in told and "--help-all" in told


def test_flags_that_most_runs_set_are_explained():
    values = papo.main.__defaults__ or ()
    names = papo.main.__code__.co_varnames
    records = dict(zip(names, values, strict=False))
    for flag in COMMON:
        group, _, field = flag.partition(".")
        if field:
            assert field_help(type(records[group])).get(field), flag
