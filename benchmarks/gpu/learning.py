"""Part 5 on a GPU: the embedded PAPO recipe on CUDA and on the CPU learns along the same curve.

    python benchmarks/gpu/learning.py [--steps 20] [--prompts 16] [--other cuda]

Same weights, data and seeds, fp32 on both. Draws come from the same streams, so the first steps are equal to rounding;
later a token near a boundary may fall to the other side. `value` is the largest difference of the mean reward over five
neighbouring steps; the goal is 0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tiny_runs import ROOT, result, say


def rewards(device: str, steps: int, prompts: int, folder: Path) -> list[float]:
    """Mean reward of each step of the recipe on a device."""
    command = [sys.executable, "-m", "recipes.papo", "--run.output", str(folder)]
    command += ["--run.steps", str(steps), "--run.eval-prompts", "0"]
    command += ["--run.prompts-per-step", str(prompts)]
    command += ["--load.device", device, "--load.dtype", "float32"]
    subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr, env=os.environ.copy())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["reward/total"] for row in rows if "reward/total" in row]


def smooth(values: list[float]) -> list[float]:
    """Means of five neighbours."""
    width = min(5, len(values))
    return [sum(values[i : i + width]) / width for i in range(len(values) - width + 1)]


def main() -> None:
    """Run both and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=16, help="of each step")
    parser.add_argument("--other", default="cuda" if torch.cuda.is_available() else "cpu")
    cell = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ours = rewards(cell.other, cell.steps, cell.prompts, Path(scratch) / "other")
        cpu = rewards("cpu", cell.steps, cell.prompts, Path(scratch) / "cpu")
    for number, (a, b) in enumerate(zip(ours, cpu, strict=True), 1):
        say(f"step {number}: {cell.other} {a:.4f}, cpu {b:.4f}")
    gap = max(abs(a - b) for a, b in zip(smooth(ours), smooth(cpu), strict=True))
    result(
        "gpu_learning",
        gap,
        0.1,
        "largest gap of the smoothed reward",
        first_step=[ours[0], cpu[0]],
    )


if __name__ == "__main__":
    main()
