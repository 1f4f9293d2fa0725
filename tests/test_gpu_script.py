"""The script for a GPU runs through at tiny sizes on a CPU, so that it is not broken on the day it is needed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_all_parts_run_and_report(tmp_path):
    script = ["bash", str(ROOT / "benchmarks/gpu/run_all.sh"), str(tmp_path), "--small"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == [
        "gpu_kernels",
        *["gpu_step"] * 2,
        "gpu_decode",
        "gpu_step",
        "gpu_learning",
    ]
    right = {row["name"]: row for row in rows}
    # Speed means nothing here; what is compared with the plain form and between two runs does.
    assert right["gpu_kernels"]["ok"] and right["gpu_learning"]["value"] == 0
    assert all(
        {"time/update", "time/generate"} <= set(r) for r in rows if r["name"] == "gpu_step"
    )
