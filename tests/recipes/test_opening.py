"""What a recipe begins with when it is given the folder of a run."""

from __future__ import annotations

import pytest
import torch

from mmrl.ground.checksums import LIST
from mmrl.model.folders import ModelError
from mmrl.model.policy import Policy
from mmrl.recipes.shared.opening import Load, model_source, open_policy
from mmrl.training import checkpoint
from mmrl.training.checkpoint import CheckpointError

LOAD = Load(device="cpu", dtype="float32")


@pytest.fixture
def run(tiny_folder, tmp_path):
    """A run that has ended: two checkpoints and a model, each told apart by one weight."""
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    settings = {"policy": policy.description}
    for step, value in ((2, 0.25), (4, 0.5)):
        mark(policy, value)
        named = policy.named_parameters()
        state = {"step": step, "settings": settings}
        checkpoint.save(tmp_path / "run" / "checkpoints", step, named, {}, state, 0)
    mark(policy, 0.75)
    policy.save(tmp_path / "run" / "model")
    return tmp_path / "run"


def mark(policy, value):
    with torch.no_grad():
        policy.parameters()[0].view(-1)[0] = value


def opened(run):
    return float(open_policy(str(run), LOAD).parameters()[0].view(-1)[0])


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_the_model_of_a_run_is_used_while_it_is_whole(run, tiny_folder, capsys):
    assert opened(run) == 0.75 and model_source(str(run)) == (run / "model", None)
    assert "whole" not in capsys.readouterr().err
    flip(run / "model" / "model.safetensors")
    assert opened(run) == 0.5
    said = capsys.readouterr().err
    assert "model.safetensors does not hold the bytes" in said and "step-4 is used" in said
    (run / "model" / "config.json").unlink()
    assert model_source(str(run)) == (str(tiny_folder), run / "checkpoints" / "step-4")
    flip(run / "checkpoints" / "step-4" / "optimizer.pt")
    capsys.readouterr()
    assert opened(run) == 0.25
    said = capsys.readouterr().err
    assert "step-4 is damaged: optimizer.pt" in said and "step-2 is used" in said
    flip(run / "checkpoints" / "step-2" / "state.json")
    with pytest.raises(CheckpointError, match=r"No whole checkpoint is left"):
        opened(run)


def test_a_damaged_model_without_checkpoints_is_named(run):
    import shutil

    shutil.rmtree(run / "checkpoints")
    flip(run / "model" / "model.safetensors")
    with pytest.raises(ModelError, match=r"is damaged: model\.safetensors"):
        opened(run)


def test_a_run_of_an_earlier_version_has_no_checksums_and_its_model_is_used(run, capsys):
    (run / "model" / LIST).unlink()
    for step in (2, 4):
        (run / "checkpoints" / f"step-{step}" / LIST).unlink()
    assert opened(run) == 0.75
    assert "not known to be whole" in capsys.readouterr().err
