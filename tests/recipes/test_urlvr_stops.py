"""A run on intrinsic rewards ends where they collapse, and refuses what works against them."""

from __future__ import annotations

import pytest

from mmrl.recipes.__main__ import main
from mmrl.training.tracking import read_metrics

SMALL = ["--run.steps", "4", "--run.prompts-per-step", "2", "--sampling.group-size", "2"]


@pytest.fixture
def command(tiny_folder, tmp_path):
    few = ["--sampling.max-tokens", "3", "--run.eval-prompts", "0", "--run.save-every", "0"]
    at = ["--run.output", str(tmp_path / "run"), "--model", str(tiny_folder)]
    return ["urlvr", "embedded", *SMALL, *few, *at]


def test_a_collapsed_run_ends_with_its_model(command, tmp_path, capsys):
    main([*command, "--urlvr.signal", "certainty", "--collapse.patience", "2"])
    last = read_metrics(tmp_path / "run")[-1]
    assert last["step"] == 2 and last["collapse/step"] == 1.0
    assert "model collapse" in capsys.readouterr().err
    assert (tmp_path / "run" / "model").is_dir()


def test_an_entropy_bonus_is_refused(command):
    with pytest.raises(SystemExit, match=r"URLVR pays for being sure.*--grpo\.entropy 0"):
        main([*command, "--grpo.entropy", "0.01"])
