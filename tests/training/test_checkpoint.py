"""Checkpoints: exact, atomic, retained, and clear about damage."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from torch import nn

from mmrl.training import checkpoint
from mmrl.training.checkpoint import CheckpointError


def named(seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=rng).to(dtype)
    return [
        ("a.weight", nn.Parameter(weight.t())),
        ("b", nn.Parameter(torch.randn(4, generator=rng).to(dtype))),
    ]


def write(folder, step, seed=0, keep=0, **state):
    return checkpoint.save(
        folder, step, named(seed), {"steps": step}, {"step": step, **state}, keep
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_optimizer_and_numbers_come_back_exactly(tmp_path, dtype):
    parameters = named(1, dtype)
    moments = {"exp_avg": torch.randn(3), "step": torch.tensor(4.0)}
    state = {
        "step": 4,
        "objectives": {"0:X": {"mean": 0.1 + 0.2, "table": torch.tensor([[0.1, 3.0]])}},
        "none": None,
    }
    place = checkpoint.save(
        tmp_path, 4, parameters, {"adam": {"state": {0: moments}}, "masters": []}, state, 0
    )
    assert place == tmp_path / "step-4" and checkpoint.steps_in(tmp_path) == [4]

    fresh = named(2, dtype)
    checkpoint.restore_weights(place, fresh)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(parameters, fresh, strict=True))
    found = checkpoint.read_optimizer(place)
    assert torch.equal(found["adam"]["state"][0]["exp_avg"], moments["exp_avg"])
    numbers = checkpoint.read_state(place)
    assert numbers["objectives"]["0:X"]["mean"] == 0.1 + 0.2 and numbers["none"] is None
    assert torch.equal(
        torch.tensor(numbers["objectives"]["0:X"]["table"]), torch.tensor([[0.1, 3.0]])
    )


def test_only_the_newest_are_kept(tmp_path):
    for step in (2, 10, 4, 12):
        write(tmp_path, step, keep=2)
    assert checkpoint.steps_in(tmp_path) == [10, 12] and sorted(os.listdir(tmp_path)) == [
        "step-10",
        "step-12",
    ]
    for step in (14, 16):
        write(tmp_path, step, keep=0)
    assert checkpoint.steps_in(tmp_path) == [10, 12, 14, 16]


def test_folders_without_a_complete_checkpoint_do_not_count(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "step-7").mkdir()
    (tmp_path / "step-x").mkdir()
    (tmp_path / ".writing-step-9-1").mkdir()
    assert checkpoint.steps_in(tmp_path) == [2]
    checkpoint.clean(tmp_path)
    assert not (tmp_path / ".writing-step-9-1").exists() and (tmp_path / "step-2").is_dir()
    assert checkpoint.steps_in(tmp_path / "absent") == []
    checkpoint.clean(tmp_path / "absent")


OPERATIONS = 8
"""File operations of a save that replaces a checkpoint and retires another."""


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.mark.parametrize("moment", range(OPERATIONS))
def test_a_kill_between_any_two_file_operations_leaves_a_whole_checkpoint(
    tmp_path, monkeypatch, moment
):
    """Step 2 is written again with other weights, and step 1 is retired; whatever was whole before is found after."""
    write(tmp_path, 1)
    write(tmp_path, 2, seed=1)
    count = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal count
            if count == moment:
                raise Killed
            count += 1
            return function(*args, **kwargs)

        return call

    for module, name in (
        (checkpoint, "save_file"),
        (torch, "save"),
        (os, "replace"),
        (shutil, "rmtree"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    with pytest.raises(Killed):
        write(tmp_path, 2, seed=2, keep=1)
    monkeypatch.undo()
    checkpoint.clean(tmp_path)
    assert checkpoint.steps_in(tmp_path)[-1] == 2
    assert all(name.startswith("step-") for name in os.listdir(tmp_path))
    for step in checkpoint.steps_in(tmp_path):
        place, fresh = tmp_path / f"step-{step}", named(9)
        checkpoint.restore_weights(place, fresh)
        assert (
            checkpoint.read_state(place)["step"]
            == checkpoint.read_optimizer(place)["steps"]
            == step
        )
        seeds = (1, 2) if step == 2 else (0,)
        assert any(torch.equal(fresh[0][1], named(seed)[0][1]) for seed in seeds)


def test_all_file_operations_were_tried(tmp_path, monkeypatch):
    """The moments above cover every operation of a save."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    calls = []
    for module, name in (
        (checkpoint, "save_file"),
        (torch, "save"),
        (os, "replace"),
        (shutil, "rmtree"),
    ):
        real = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *a, _real=real, _name=name, **k: (calls.append(_name), _real(*a, **k))[1],
        )
    write(tmp_path, 2, keep=1)
    assert len(calls) == OPERATIONS and calls.count("replace") == 3


def test_other_parameters_are_refused(tmp_path):
    place = write(tmp_path, 3)
    with pytest.raises(
        CheckpointError, match=r"other parameters.*'c'.*same model, adapter and frozen parts"
    ):
        checkpoint.restore_weights(place, [*named(), ("c", nn.Parameter(torch.zeros(1)))])
    with pytest.raises(CheckpointError, match="other parameters"):
        checkpoint.restore_weights(place, named()[:1])
    with pytest.raises(CheckpointError, match=r"b has shape \(4,\), the model \(6,\)"):
        checkpoint.restore_weights(place, [named()[0], ("b", nn.Parameter(torch.zeros(6)))])


@pytest.mark.parametrize("file", ["state.json", "optimizer.pt", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damage_is_named(tmp_path, file, damage):
    place = write(tmp_path, 3)
    if damage == "gone":
        (place / file).unlink()
    else:
        whole = (place / file).read_bytes()
        (place / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CheckpointError, match=r"step-3 cannot be read.*delete it to go on from an older one"
    ):
        checkpoint.read_state(place)
        checkpoint.read_optimizer(place)
        checkpoint.restore_weights(place, named())


def test_a_state_that_cannot_be_written_is_explained_and_leaves_the_old_one(tmp_path):
    write(tmp_path, 3)
    with pytest.raises(TypeError, match="set cannot be kept in a checkpoint"):
        write(tmp_path, 3, odd={1, 2})
    checkpoint.clean(tmp_path)
    assert json.loads((tmp_path / "step-3" / "state.json").read_text()) == {"step": 3}


FILES = ("mmrl-checksums.json", "optimizer.pt", "state.json", "weights.safetensors")
DAMAGES = [(file, how) for file in FILES for how in ("gone", "cut", "first bit", "last bit")]


def spoil(file, how):
    """Damage a file as a disk would."""
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[{"first bit": len(data) // 3, "last bit": -1}[how]] ^= 1
        file.write_bytes(data)


@pytest.mark.parametrize(("file", "how"), DAMAGES)
def test_any_damage_falls_back_to_the_checkpoint_before(tmp_path, file, how):
    whole = write(tmp_path, 2)
    spoil(write(tmp_path, 4) / file, how)
    newest, complaints = checkpoint.newest_whole(tmp_path)
    assert newest == whole and len(complaints) == 1
    assert "step-4 is damaged" in complaints[0] and file.split(".")[0] in complaints[0]
    assert checkpoint.set_aside(tmp_path, newest) == [tmp_path / "damaged-step-4"]
    assert checkpoint.steps_in(tmp_path) == [2]


def test_without_a_whole_checkpoint_nothing_is_started_over_in_silence(tmp_path):
    for step in (2, 4):
        spoil(write(tmp_path, step) / "weights.safetensors", "last bit")
    with pytest.raises(
        CheckpointError,
        match=r"step-4 is dam[\s\S]*step-2 is dam[\s\S]*No whole.*--run\.overwrite",
    ):
        checkpoint.newest_whole(tmp_path)
    assert checkpoint.newest_whole(tmp_path / "none") == (None, [])


INFINITE = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("value", INFINITE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    tmp_path, monkeypatch, value, dtype
):
    good = write(tmp_path, 2)
    spoilt = named(1, dtype)
    with torch.no_grad():
        spoilt[0][1][1, 2] = value
    with pytest.raises(CheckpointError, match=r"step 4 holds.*not finite.*a\.weight"):
        checkpoint.save(tmp_path, 4, spoilt, {}, {"step": 4}, 0)
    assert sorted(os.listdir(tmp_path)) == ["step-2"]
    monkeypatch.setattr(checkpoint, "refuse_nonfinite", lambda *_: None)
    place = checkpoint.save(tmp_path, 4, spoilt, {}, {"step": 4}, 0)
    fresh = named(3, dtype)
    before = [p.detach().clone() for _, p in fresh]
    with pytest.raises(CheckpointError, match=r"step-4 holds weights that are not finite"):
        checkpoint.restore_weights(place, fresh)
    assert all(torch.equal(a, p) for a, (_, p) in zip(before, fresh, strict=True))
    assert checkpoint.steps_in(tmp_path) == [2, 4] and good.is_dir()


@pytest.mark.parametrize("value", INFINITE)
@pytest.mark.parametrize("where", ["moment", "master"])
def test_an_optimizer_that_is_not_finite_is_refused(value, where):
    poisoned, healthy = torch.tensor([0.0, value]), torch.zeros(2)
    state = {
        "adam": {"state": {0: {"exp_avg": poisoned if where == "moment" else healthy}}},
        "masters": [poisoned if where == "master" else healthy],
    }
    with pytest.raises(CheckpointError, match=r"not finite, for example in .*0"):
        checkpoint.refuse_nonfinite(named(), state, "step 1")


def test_moments_in_eight_bits_are_looked_at_too():
    subclass = pytest.importorskip("torchao.optim.subclass_8bit")
    moments = subclass.OptimState8bit.zeros((64, 256))
    state = {"adam": {"state": {0: {"exp_avg": moments}}}}
    checkpoint.refuse_nonfinite(named(), state, "step 1")
    moments.scale[3] = float("nan")
    with pytest.raises(CheckpointError, match=r"not finite, for example in exp_avg of param"):
        checkpoint.refuse_nonfinite(named(), state, "step 1")


def test_a_full_disk_leaves_the_last_checkpoint_and_no_draft(tmp_path):
    """In a process of its own, with a limit on the size of files as a full disk would have."""
    import multiprocessing

    write(tmp_path, 2)
    queue = multiprocessing.get_context("fork").SimpleQueue()
    child = multiprocessing.get_context("fork").Process(
        target=_save_under_a_limit, args=(tmp_path, queue)
    )
    child.start()
    said = queue.get()
    child.join()
    assert "could not be written" in said and "Free space" in said and "from step-2" in said
    assert os.listdir(tmp_path) == ["step-2"]
    assert checkpoint.newest_whole(tmp_path) == (tmp_path / "step-2", [])


def _save_under_a_limit(folder, queue):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        write(folder, 4)
    except CheckpointError as error:
        queue.put(str(error))
    except BaseException as error:
        queue.put(repr(error))


@pytest.mark.parametrize("operation", ["save_file", "torch.save", "seal", "mkdir"])
def test_each_failing_write_is_explained(tmp_path, monkeypatch, operation):
    from pathlib import Path

    write(tmp_path, 2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    place, name = {
        "save_file": (checkpoint, "save_file"),
        "torch.save": (torch, "save"),
        "seal": (checkpoint, "seal"),
        "mkdir": (Path, "mkdir"),
    }[operation]
    monkeypatch.setattr(place, name, full)
    with pytest.raises(
        CheckpointError, match=r"No space left.*Free space.*goes on from step-2"
    ):
        write(tmp_path, 4)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-2"]


def test_a_file_in_the_place_of_the_folder_is_explained(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"could not be written to .*checkpoints"):
        write(tmp_path / "checkpoints", 2)
