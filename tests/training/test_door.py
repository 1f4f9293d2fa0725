"""The door to a run's folder: nobody writes into another run's, whatever is started and however files are damaged."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
from dataclasses import replace

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.outputs import MARKER, OutputError, alone, marker_of
from mmrl.model.policy import Policy
from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.launch import launch
from mmrl.rewards.pay import Rewards, in_process
from mmrl.training.checkpoint import steps_in
from mmrl.training.door import RUN, entered
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Sampling

RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
WRITERS = [name for name, module in RECIPES.items() if "run" in module.main.__annotations__]


class Unplugged(BaseException):
    """The process is gone."""


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def trainer(folder, output, *, cut=None, lr=1e-3, seed=0, **run):
    """Three steps with a checkpoint each; `cut`: the process dies in that step."""
    made = Trainer(
        Policy.load(folder, device="cpu", dtype="float32"),
        prompts=Drawn("lookup", size=9),
        rewards=Rewards(accuracy=pay),
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=lr),
        run=Run(output=output, steps=3, prompts_per_step=2, save_every=1, seed=seed, **run),
    )
    whole = made.step

    def step(now):
        metrics = whole(now)
        if now.step == cut:
            raise Unplugged
        return metrics

    made.step = step
    return made


def cut_off(folder, output):
    with pytest.raises(Unplugged):
        trainer(folder, output, cut=3).fit()
    assert steps_in(output / "checkpoints") == [1, 2]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def steps(folder):
    return [row["step"] for row in read_metrics(folder)]


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """A finished run; copy it before writing into it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    trainer(tiny_folder, output).fit()
    return output


def started(name, *flags):
    """The recipe's command line up to its first word of its own; what it ends with."""
    with pytest.raises(SystemExit) as ended:
        launch(RECIPES[name].main, RECIPES[name].PRESETS, ["embedded", *flags])
    return str(ended.value.code)


# Whatever is started.


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("flags", [(), ("--run.overwrite",)], ids=["plain", "overwrite"])
def test_no_recipe_touches_a_model_folder(name, flags, tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    before = contents(tmp_path / "model")
    said = started(name, "--run.output", str(tmp_path / "model"), *flags)
    assert "no folder of a run of mmrl" in said and "--run.output" in said
    assert contents(tmp_path / "model") == before


PLACES = ("", ".", "/", "~", "..")
# One recipe at every place, every recipe at one of them: they have their door in common.
VISITS = {(WRITERS[0], place) for place in PLACES} | {
    (name, PLACES[n % len(PLACES)]) for n, name in enumerate(WRITERS)
}


@pytest.mark.parametrize(("name", "place"), sorted(VISITS))
def test_no_recipe_writes_into_home_root_or_the_working_folder(
    name, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for flags in ((), ("--run.overwrite",)):
        said = started(name, f"--run.output={place}", *flags)
        assert "the working folder" in said or "the home folder" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", WRITERS)
def test_no_recipe_writes_where_another_process_does(name, finished):
    before = contents(finished)
    with alone(finished):
        said = started(name, "--run.output", str(finished), "--run.overwrite")
    assert "Another process is writing to" in said and contents(finished) == before


@pytest.mark.parametrize("name", ["..", "/", "", "a/../..", "/home"])
def test_a_name_stays_below_runs(name):
    with pytest.raises(ValueError, match=r"Run\.name is .*below runs/"):
        Run(name=name)


def test_the_written_out_recipe_leaves_another_run_alone(
    tiny_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    small = ["--model", str(tiny_folder), "--run.steps", "2", "--run.prompts-per-step", "2"]
    small += ["--run.eval-prompts", "2", "--sampling.max-tokens", "4", "--run.output"]
    grpo = RECIPES["grpo_step"]
    trainer(tiny_folder, tmp_path / "other").fit()
    cut_off(tiny_folder, tmp_path / "cut")
    for place, state in (("other", "a finished"), ("cut", "an unfinished")):
        before = contents(tmp_path / place)
        said = started("grpo_step", *small, place)
        assert f"{place} holds {state} run with other settings:\n" in said
        assert "optim.weight_decay: was" in said and contents(tmp_path / place) == before

    launch(grpo.main, grpo.PRESETS, ["embedded", *small, "mine"])
    mine = tmp_path / "mine"
    assert steps(mine) == [0, 1, 2, 2] and (mine / "finished.json").is_file()
    assert json.loads((mine / "config.json").read_text())["run"] == marker_of(mine).id
    before = contents(mine)
    launch(grpo.main, grpo.PRESETS, ["embedded", *small, "mine"])
    assert "holds a finished run; nothing to do" in capsys.readouterr().err
    assert contents(mine) == before

    (mine / "finished.json").unlink()
    said = started("grpo_step", *small, "mine")
    assert "keeps no checkpoints to go on from" in said and "--run.overwrite" in said
    launch(grpo.main, grpo.PRESETS, ["embedded", *small, "mine", "--run.overwrite"])
    assert steps(mine) == [0, 1, 2, 2] and (mine / "finished.json").is_file()


# Overwriting.


def test_every_file_of_a_run_is_known_as_ours_and_goes(tiny_folder, tmp_path, capsys):
    for adapter in (False, True):
        output = tmp_path / f"run{adapter}"
        made = trainer(tiny_folder, output, sample_every=1)
        if adapter:
            from mmrl.model.load import LoRA

            policy = Policy.load(tiny_folder, device="cpu", dtype="float32", lora=LoRA(rank=4))
            rest = {"prompts": Drawn("lookup", size=9), "rewards": made.rewards}
            rest |= {"sampling": Sampling(3, max_tokens=4), "run": made.run}
            made = Trainer(policy, **rest)
        made.fit()
        (output / "checkpoints" / ".writing-step-9-1").mkdir()
        (output / "checkpoints" / ".writing-step-9-1" / "weights.safetensors").touch()
        (output / "mine.txt").write_text("keep")
        with entered(Run(output=output, overwrite=True)) as door:
            door.start_anew(Run(output=output, overwrite=True))
            left = sorted(path.name for path in output.iterdir())
        assert left == [MARKER, "mine.txt"], "a file that a run writes is missing in `FILES`"
        assert "which stay: mine.txt." in capsys.readouterr().err


def test_overwriting_keeps_what_is_not_ours_and_takes_another_id(
    finished, tiny_folder, tmp_path, capsys
):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    first = marker_of(output).id
    aliens = ["notes.md", "model/notes.md", "checkpoints/notes.md", "plots/a.png"]
    for alien in aliens:
        (output / alien).parent.mkdir(exist_ok=True)
        (output / alien).write_text("keep")
    made = trainer(tiny_folder, output, lr=2e-3, overwrite=True)
    made.fit()
    assert all((output / alien).read_text() == "keep" for alien in aliens)
    assert "model/notes.md" in capsys.readouterr().err and marker_of(output).id != first
    assert steps(output) == [1, 2, 3] and read_metrics(output)[0]["optim/lr"] == 2e-3


def test_what_a_killed_process_was_writing_goes_at_the_next_start(tmp_path):
    run = Run(output=tmp_path)
    with entered(run):
        (tmp_path / "metrics.jsonl").touch()
    half = tmp_path / ".writing-model-1" / "model.safetensors"
    half.parent.mkdir()
    for draft in (half, tmp_path / ".config.json.draft", tmp_path / ".mine.draft"):
        draft.touch()
    with entered(run):
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".mine.draft", MARKER, "metrics.jsonl"]


# A folder is one run's.


def test_other_settings_are_refused_also_of_a_finished_run(finished, tiny_folder, tmp_path):
    before = contents(finished)
    with pytest.raises(
        OutputError, match=r"holds a finished run with other settings:\s+optim\.lr: was"
    ):
        trainer(tiny_folder, finished, lr=2e-3).fit()
    assert contents(finished) == before


def test_other_settings_are_refused_before_the_first_checkpoint(tiny_folder, tmp_path):
    with pytest.raises(Unplugged):
        trainer(tiny_folder, tmp_path / "run", cut=2).fit()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = contents(tmp_path / "run")
    with pytest.raises(OutputError, match=r"an unfinished run with other settings"):
        trainer(tiny_folder, tmp_path / "run", seed=1).fit()
    assert contents(tmp_path / "run") == before


def test_a_run_that_came_to_nothing_leaves_no_settings_behind(tiny_folder, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(Unplugged):
        trainer(tiny_folder, output, cut=1).fit()
    assert (output / "config.json").is_file() and not (output / "metrics.jsonl").exists()
    trainer(tiny_folder, output, lr=2e-3).fit()
    config = json.loads((output / "config.json").read_text())
    assert config["settings"]["optim"]["lr"] == 2e-3


GONE = {
    "config": ["config.json"],
    "marker": [MARKER],
    "both": ["config.json", MARKER],
    "metrics": ["metrics.jsonl"],
}


@pytest.mark.parametrize("lost", GONE)
def test_two_runs_are_never_mixed_whatever_was_deleted(tiny_folder, tmp_path, lost):
    """The settings and the id of a run are in its checkpoints too."""
    output = tmp_path / "run"
    cut_off(tiny_folder, output)
    first = marker_of(output).id
    for name in GONE[lost]:
        (output / name).unlink()
    before = contents(output)
    with pytest.raises(OutputError):
        trainer(tiny_folder, output, lr=2e-3).fit()
    assert {k: v for k, v in contents(output).items() if k != MARKER} == {
        k: v for k, v in before.items() if k != MARKER
    }
    if lost == "both":
        return  # nothing says whose folder it is, so the same settings are refused too
    trainer(tiny_folder, output).fit()
    assert marker_of(output).id == first and (output / "finished.json").is_file()
    config = json.loads((output / "config.json").read_text())
    assert config["settings"]["optim"]["lr"] == 1e-3


def test_a_checkpoint_of_another_run_is_refused(finished, tiny_folder, tmp_path):
    output = tmp_path / "run"
    cut_off(tiny_folder, output)
    shutil.copytree(finished / "checkpoints" / "step-3", output / "checkpoints" / "step-3")
    with pytest.raises(
        OutputError, match=r"belong to another run \(\w+\) than the files beside"
    ):
        trainer(tiny_folder, output).fit()
    shutil.rmtree(output / "checkpoints" / "step-3")
    trainer(tiny_folder, output).fit()


# Damage costs only itself.


DAMAGED = ["", "{", '{"reward/total": 0.', "[]", "null", "\0\0\0", "[" * 100_000]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
@pytest.mark.parametrize("name", ["finished.json", "config.json"])
def test_a_damaged_file_is_named_and_the_run_goes_on(
    finished, tiny_folder, tmp_path, capsys, name, text
):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / "finished.json").unlink()
    (output / name).write_text(text)
    before = contents(output)
    made = trainer(tiny_folder, output)
    made.fit()
    assert f"{name} is damaged" in capsys.readouterr().err and made.step_done == 3
    after = contents(output)
    ends = [json.loads((place / "finished.json").read_text()) for place in (output, finished)]
    assert ends[0] == ends[1]
    assert after["metrics.jsonl"] == before["metrics.jsonl"]
    if name == "config.json":
        assert json.loads(after["config.json"])["settings"]["optim"]["lr"] == 1e-3


def test_a_torn_line_costs_one_step_of_the_metrics(tiny_folder, tmp_path, capsys):
    output = tmp_path / "run"
    cut_off(tiny_folder, output)
    rows = (output / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    (output / "metrics.jsonl").write_text(f"{rows[0][:40]}\n{rows[1]}\n")
    trainer(tiny_folder, output).fit()
    assert steps(output) == [2, 3]
    assert "metrics.jsonl: line 1 cannot be read" in capsys.readouterr().err


# The door itself.


def test_inside_an_open_door_it_is_the_same_door_and_in_another_thread_it_is_shut(tmp_path):
    run = Run(output=tmp_path / "run", overwrite=True)
    with entered(run) as door:
        (run.folder / "metrics.jsonl").touch()
        door.start_anew(run)
        (run.folder / "metrics.jsonl").write_text("of the first stage")
        with entered(replace(run, seed=3)) as inner:
            inner.start_anew(run)
            assert inner is door and (run.folder / "metrics.jsonl").read_text()
        found = []

        def other():
            with pytest.raises(OutputError, match="Another process") as refused, entered(run):
                pass
            found.append(refused)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert found


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path):
    run = Run(output=tmp_path / "run")
    with pytest.raises(RuntimeError), entered(run):
        assert marker_of(run.folder).kind == RUN.name
        raise RuntimeError
    assert not run.folder.exists()
