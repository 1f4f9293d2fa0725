"""A small run of `benchmarks/fuzz_rows.py`: other files and rows than the large one, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_file_and_no_row_raises_what_is_not_ours() -> None:
    options = ["--pictures", "410", "--clips", "7", "--rows", "200", "--seed", "7"]
    command = [sys.executable, str(ROOT / "benchmarks" / "fuzz_rows.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["ok"] and outcome["value"] == 0, done.stdout
    # 410 files, of which each fourth is read in two ways, and at least the hostile rows.
    assert outcome["tried"] >= 410 + 102 + 7 + 200
    assert 0 < outcome["peak_share"] < 1
