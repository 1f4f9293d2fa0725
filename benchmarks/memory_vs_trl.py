"""Memory that a run adds: ours as a share of TRL's at 1,024 visual tokens and 64-token answers, 8 answers, no KL.

    python benchmarks/memory_vs_trl.py [--steps 3]

Growth = peak resident memory of the process over the steps minus its resident memory before the first step (weights
and libraries loaded). Same model, pictures and settings as `step_vs_trl.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_runs import Cell, Worker, model_folder, our_worker, result, say, versions, write_rows
from trl_setup import trl_versions, trl_worker


def growth(worker: Worker, steps: int) -> float:
    """MiB over the memory before the first step."""
    answers = [worker.ask("step") for _ in range(steps)]
    worker.close()
    return max(answer["growth"] for answer in answers)


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3)
    steps = parser.parse_args().steps
    say(f"ours: {versions('torch', 'transformers')}; theirs: {trl_versions()}")
    with tempfile.TemporaryDirectory() as scratch:
        cell = Cell(str(model_folder()), str(write_rows(Path(scratch), 1024, 8)), 64)
        ours, theirs = growth(our_worker(cell), steps), growth(trl_worker(cell), steps)
    say(f"growth of resident memory: ours {ours:.0f} MiB, TRL {theirs:.0f} MiB")
    result(
        "memory_vs_trl",
        ours / theirs,
        0.30,
        "share of TRL's growth",
        ours_mib=round(ours),
        trl_mib=round(theirs),
    )


if __name__ == "__main__":
    main()
