"""A run is its settings: whatever changes it is compared when its folder is met again, finished or not."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from mmrl.recipes import grpo, papo
from mmrl.recipes.__main__ import main
from mmrl.recipes.shared.configuration import Configuration
from mmrl.recipes.shared.launch import launch, resolved
from mmrl.training.door import point_to_latest
from mmrl.training.identity import FREE_ARGUMENTS, changed_arguments, changes, flat
from mmrl.training.run import described_steps
from mmrl.training.tracking import read_metrics

REWARD = "def letters(rollout):\n    return len(set(rollout.text)) / {}\n"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for number in range(6):
        Image.new("RGB", (32, 32), (8 * number, 0, 90)).save(folder / f"{number}.png")
        row = {"question": f"Which number? {number}", "answer": f"{number}"}
        lines.append(json.dumps({**row, "image": f"{number}.png"}))
    (folder / "mine.jsonl").write_text("\n".join(lines))
    (folder / "pay.py").write_text(REWARD.format(50))
    return folder


def given(rows, model):
    small = ["--run.steps", "1", "--run.prompts-per-step", "2", "--sampling.group-size", "2"]
    small += [
        "--sampling.max-tokens",
        "3",
        "--run.eval-prompts",
        "0",
        "--monitor.probe-every",
        "0",
    ]
    own = ["--model", str(model), "--dataset", str(rows / "mine.jsonl")]
    return ["embedded", *own, "--reward", f"{rows / 'pay.py'}:letters", *small]


@pytest.fixture(scope="module")
def place(rows, tiny_folder, tmp_path_factory):
    """A working folder in which the run was made."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        launch(grpo.main, grpo.PRESETS, given(rows, tiny_folder))
    return place


def folder_of(place):
    (found,) = (one for one in (place / "runs").iterdir() if not one.is_symlink())
    return found


CHANGES = {
    "data": ([], "prompts.texts"),
    "reward": ([], "code.rewards.letters"),
    "style": (["--data.style", "box"], "prompts.texts"),
    "prompt": (["--data.system", "Be brief."], "prompts.texts"),
    "pixels": (["--load.max-pixels", "100000"], "policy.pixels.max_pixels"),
    "adapter": (["--lora.rank", "2"], "policy.lora"),
    "frozen": (["--load.freeze", "vision"], "policy.freeze"),
    "precision": (["--load.dtype", "float64"], "policy.dtype"),
    "seed": (["--run.seed", "3"], "run.seed"),
    "number": (["--optim.lr", "1e-5"], "optim.lr"),
    "method": (["--grpo.clip-high", "0.5"], "grpo.clip_high"),
    "weight": (["--reward", "format=0.5"], "rewards.format"),
    "heldout": (["--data.heldout-rows", "2"], "data.heldout_rows"),
    "evaluated on": (["--data.heldout", "OTHER"], "prompts.size"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_folder_with_other_settings_is_refused_and_never_done(
    change, place, rows, tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(place)
    flags, said = CHANGES[change]
    folder = folder_of(place)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    mine = tmp_path / "rows"
    shutil.copytree(rows, mine)
    other = mine / "other.jsonl"
    shutil.copy(mine / "mine.jsonl", other)
    # Rows and rewards stay where they are: what is compared is what stands in them.
    changed = {
        "data": lambda: (rows / "mine.jsonl").write_text(
            (mine / "mine.jsonl").read_text().replace("Which number? 3", "Which one? 3")
        ),
        "reward": lambda: (rows / "pay.py").write_text(REWARD.format(49)),
    }
    changed.get(change, lambda: None)()
    own = [flag.replace("OTHER", str(other)) for flag in flags]
    argv = [*given(rows, tiny_folder), *own, "--run.output", str(folder)]
    try:
        if change == "reward":
            forget_modules()
        with pytest.raises(SystemExit) as ended:
            launch(grpo.main, grpo.PRESETS, argv)
    finally:
        for name in ("mine.jsonl", "pay.py"):
            shutil.copy(mine / name, rows / name)
        forget_modules()
    told = str(ended.value.code)
    assert "holds a finished run with other settings" in told and said in told.replace(
        "-", "_"
    ), told
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def forget_modules():
    """A file of rewards is run once a process."""
    import linecache
    import sys

    linecache.clearcache()
    for name in [name for name in sys.modules if name.startswith("pay_")]:
        del sys.modules[name]


def test_the_same_command_finds_its_folder_and_more_steps_extend_it(
    place, rows, tiny_folder, tmp_path, monkeypatch, capsys
):
    work = tmp_path / "work"
    shutil.copytree(place, work, symlinks=True)
    monkeypatch.chdir(work)
    folder = folder_of(work)
    launch(grpo.main, grpo.PRESETS, given(rows, tiny_folder))
    assert "holds a finished run; nothing to do" in capsys.readouterr().err
    more = [*given(rows, tiny_folder), "--run.steps", "2", "--load.memory", "4"]
    launch(grpo.main, grpo.PRESETS, more)
    assert folder_of(work) == folder and read_metrics(folder)[-1]["step"] == 2
    assert (work / "runs" / "latest").resolve() == folder.resolve()
    branch = [*given(rows, tiny_folder), "--run.steps", "3", "--run.from", "runs/latest"]
    launch(grpo.main, grpo.PRESETS, branch)
    latest = (work / "runs" / "latest").resolve()
    assert latest != folder.resolve() and read_metrics(latest)[-1]["step"] == 3
    config = json.loads((latest / "config.json").read_text())
    assert config["branched"]["step"] == 2
    main(["eval", "runs/latest", "--samples", "0", "--output", "found.json"])
    assert Path("found.json").is_file()


def test_config_holds_everything(place):
    config = json.loads((folder_of(place) / "config.json").read_text())
    assert {"run", "settings", "recipe", "environment"} <= config.keys()
    settings = config["settings"]
    assert settings["policy"]["device"] == "cpu" and "pixels" in settings["policy"]
    assert {"texts", "media", "order", "read"} <= settings["prompts"].keys()
    assert settings["code"]["rewards"].keys() == {"letters"}
    arguments = config["recipe"]["arguments"]
    assert arguments.keys() == inspect.signature(grpo.main).parameters.keys()
    assert arguments["dataset"].endswith("mine.jsonl") and arguments["run"]["output"] is None


def other(value):
    """Another value of the kind, however meaningless."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other"


def test_every_argument_is_compared_but_for_the_free_ones():
    plain = resolved(papo.main, papo.PRESETS, ["7b"]).plain()
    free = set()
    for name, value in flat(plain["arguments"]).items():
        changed = json.loads(json.dumps(plain))
        *path, last = name.split(".")
        record = changed["arguments"]
        for part in path:
            record = record[part]
        record[last] = other(value)
        lines = changed_arguments(plain, changed)
        if not lines:
            free.add(name)
        else:
            (line,) = lines
            assert line.startswith(f"--{name.replace('_', '-')}: was ")
    named = {one for one in FREE_ARGUMENTS if not one.endswith(".")}
    assert free <= named | {name for name in free if name.startswith("monitor.")}
    assert {"run.steps", "load.device", "monitor.probe_every"} <= free
    assert not {"run.seed", "data.style", "load.max_pixels", "papo.gamma"} & free


def test_what_a_version_added_or_took_away_says_nothing():
    plain = resolved(papo.main, papo.PRESETS, ["7b"]).plain()
    older = json.loads(json.dumps(plain))
    del older["arguments"]["load"]["thinking"]
    older["arguments"]["load"]["gone"] = 1
    assert not changed_arguments(older, plain) and not changed_arguments(None, plain)
    assert changed_arguments({**plain, "recipe": "grpo"}, plain) == [
        "recipe: was 'grpo', now 'papo'"
    ]
    old, new = {"policy": {"dtype": "a"}}, {"policy": {"dtype": "a", "device": "cpu"}}
    assert not changes(old, new) and changes(new, old)


def test_the_length_of_a_run_is_one_number():
    run = {"steps": None, "epochs": 2, "prompts_per_step": 4}
    assert described_steps({"run": run, "prompts": {"size": 9}}) == 4
    assert described_steps({"run": {**run, "steps": 3}, "prompts": {"size": 9}}) == 3
    assert described_steps({"run": {"steps": None}}) is None


def test_the_link_is_ours_or_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("runs/one", "runs/two", "elsewhere/run"):
        Path(name).mkdir(parents=True)
    point_to_latest(Path("runs/one"))
    point_to_latest(Path("elsewhere/run"))
    assert Path("runs/latest").resolve().name == "one"
    point_to_latest(Path("runs/two"))
    point_to_latest(Path("runs/latest"))
    assert Path("runs/latest").resolve().name == "two"
    Path("runs/latest").unlink()
    Path("runs/latest").mkdir()
    point_to_latest(Path("runs/one"))
    assert not Path("runs/latest").is_symlink() and not list(Path("runs").glob(".latest*"))


def test_a_name_of_settings_does_not_move_with_defaults_of_records():
    """What a later version adds with a default of its own is not in the name."""
    asked = resolved(papo.main, papo.PRESETS, ["7b"])
    chosen = asked.chosen()["arguments"]
    for name, value in asked.arguments.items():
        if is_dataclass(value):
            usual = {f.name: f.default for f in fields(value)}
            assert all(getattr(value, key) != usual[key] for key in chosen[name])
    run = replace(asked.arguments["run"], keep=9)
    changed = Configuration(asked.recipe, "x", {**asked.arguments, "run": run})
    assert changed.chosen()["arguments"]["run"]["keep"] == 9
