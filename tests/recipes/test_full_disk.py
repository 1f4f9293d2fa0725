"""A disk that takes no more in the middle of a real command: one paragraph, and the same command goes on."""

from __future__ import annotations

import pytest

from mmrl.training.checkpoint import newest_whole
from mmrl.training.tracking import read_metrics

COMMAND = """
import resource, sys

from mmrl.recipes import papo
from mmrl.recipes.shared.launch import launch

limit = int(sys.argv.pop(1))
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
launch(papo.main, papo.PRESETS, sys.argv[1:])
"""
LIMITS = {"metrics": 5_000, "weights": 1_000_000, "optimizer": 3_000_000}
"""Bytes of the largest file, and what does not fit: a row of metrics has two thousand, a checkpoint 2 + 4.5 million."""


@pytest.mark.parametrize("what", LIMITS)
def test_a_full_disk_costs_nothing_but_time(commands, tiny_folder, tmp_path, what):
    script, output = tmp_path / "command.py", tmp_path / "run"
    script.write_text(COMMAND)
    flags = "--run.prompts-per-step 2 --run.eval-prompts 2"
    flags += f" --run.save-every {100 if what == 'metrics' else 1}"
    flags += " --sampling.group-size 2 --sampling.max-tokens 3 --load.device cpu"
    model = ["--model", str(tiny_folder), "--run.output", str(output), "--run.steps", "4"]

    def run(limit):
        argv = [str(script), str(limit), "embedded", *model, *flags.split()]
        return commands(argv, cwd=tmp_path)

    done = run(LIMITS[what])
    said = done.stderr + done.stdout
    assert done.returncode == 1 and "Traceback" not in said, said[-2000:]
    # Behind the message stands where its traceback is kept.
    last, kept = done.stderr.strip().splitlines()[-2:]
    assert kept.startswith("The traceback is in") and "errors.log" in kept
    assert "Free space there" in last and "the same command then goes on from" in last
    told = "cannot go on: File too large" if what == "metrics" else "could not be written"
    assert told in last and str(output) in last
    before = len(read_metrics(output))
    assert newest_whole(output / "checkpoints") == (None, [])
    assert not [*output.rglob(".writing*")]

    done = run(0)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["step"] for row in read_metrics(output)] == [*range(5)] and before < 5
