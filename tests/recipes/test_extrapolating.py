"""`mmrl extrapolate RUN`: runs of all weights and of LoRA, of one process and in shards; what it says of others."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmrl.ground.checksums import seal
from mmrl.recipes.__main__ import main

QUICK = ["--extrapolation.horizon", "1", "--extrapolation.epochs", "3"]


def trained(folder, tiny_folder, rank):
    small = ["--run.steps", "3", "--run.prompts-per-step", "2", "--sampling.group-size", "2"]
    kept = ["--run.save-every", "1", "--run.keep", "0", "--run.eval-prompts", "0"]
    moving = ["--sampling.max-tokens", "3", "--lora.rank", str(rank), "--optim.lr", "1e-3"]
    output = ["--run.output", str(folder), "--model", str(tiny_folder)]
    main(["nsr", "embedded", *small, *kept, *moving, *output])
    return folder


@pytest.fixture(scope="module", params=[0, 2], ids=["all weights", "LoRA"])
def run(request, tiny_folder, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("runs") / "mine", tiny_folder, request.param)


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_a_run_goes_on_by_one_direction_of_each_matrix(run, tmp_path, capsys):
    main(["export", str(run), "--merge", "--output", str(tmp_path / "last")])
    main(["extrapolate", str(run), *QUICK, "--output", str(tmp_path / "ahead")])
    assert "parameters were moved" in capsys.readouterr().err
    AutoModelForImageTextToText.from_pretrained(tmp_path / "ahead")
    last, ahead = weights(tmp_path / "last"), weights(tmp_path / "ahead")
    assert last.keys() == ahead.keys()
    moved = {name: ahead[name] - last[name] for name in last if last[name].ndim > 1}
    moved = {name: change for name, change in moved.items() if change.abs().max() > 1e-4}
    assert moved
    for change in moved.values():
        sizes = torch.linalg.svdvals(change.double().flatten(1))
        assert sizes[1] < 1e-2 * sizes[0], "one direction"
    main(
        [
            "extrapolate",
            str(run),
            *QUICK,
            "--extrapolation.alpha",
            "0",
            "--output",
            str(tmp_path / "same"),
        ]
    )
    same = weights(tmp_path / "same")
    assert all(torch.equal(same[name], last[name]) for name in last)
    in_shards = tmp_path / "sharded"
    shutil.copytree(run, in_shards)
    for step in (in_shards / "checkpoints").glob("step-*"):
        stored = load_file(step / "weights.safetensors")
        named = {f"weight/{name}": tensor for name, tensor in stored.items()}
        dcp.save(named, checkpoint_id=step / "shards", no_dist=True)
        (step / "weights.safetensors").unlink()
        (step / "optimizer.pt").unlink()
        seal(step)
    main(["extrapolate", str(in_shards), *QUICK, "--output", str(tmp_path / "again")])
    again = weights(tmp_path / "again")
    assert all(torch.equal(again[name], ahead[name]) for name in ahead)


def test_what_cannot_be_extrapolated_says_why(run, tmp_path):
    with pytest.raises(SystemExit, match=r"There is no model or run"):
        main(["extrapolate", str(tmp_path / "none")])
    with pytest.raises(
        SystemExit, match=r"steps \[1, 2, 3\].*--extrapolation\.horizon.*--run\.keep 0"
    ):
        main(["extrapolate", str(run), "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="nothing is overwritten"):
        main(["extrapolate", str(run), *QUICK, "--output", str(tmp_path)])
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "checkpoints" / "step-2" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(SystemExit, match="step-2 is damaged"):
        main(["extrapolate", str(damaged), *QUICK])
    assert not (tmp_path / "out").exists()
