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
