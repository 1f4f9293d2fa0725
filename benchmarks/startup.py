"""Start-up of a recipe with warm caches: `--help`, and from the command to the end of the first training step.

    python benchmarks/startup.py [--rounds 3]

Times are CPU seconds on one thread of a process started anew, the smallest of the rounds: with warm caches and nothing
else on the machine that is the time one waits. Wall time is printed beside them. The embedded PAPO run is started once
before, so that the tiny model is in the cache. `value` is the larger of the two times over its goal.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_runs import ROOT, result, say, versions

HELP_GOAL, STEP_GOAL = 4.0, 15.0
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
RECIPE = (sys.executable, "-m", "recipes.papo")


def child_cpu() -> float:
    """CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def help_seconds() -> tuple[float, float]:
    """Wall and CPU seconds of `--help`."""
    began, cpu = time.monotonic(), child_cpu()
    subprocess.run(
        [*RECIPE, "--help"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env=ONE_THREAD
    )
    return time.monotonic() - began, child_cpu() - cpu


def first_step_seconds() -> tuple[float, float]:
    """Wall and CPU seconds until the metrics of step 1 are written; evaluations are small, the run is then ended."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        command = [
            *RECIPE,
            "--run.output",
            str(output),
            "--run.eval-prompts",
            "1",
            "--run.steps",
            "100",
        ]
        began, cpu = time.monotonic(), child_cpu()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ONE_THREAD,
        )
        while not _stepped(output / "metrics.jsonl"):
            if process.poll() is not None:
                raise RuntimeError(
                    f"the recipe ended with code {process.returncode} before its first step"
                )
            time.sleep(0.02)
        wall = time.monotonic() - began
        process.kill()
        process.wait()
        return wall, child_cpu() - cpu


def _stepped(metrics: Path) -> bool:
    if not metrics.is_file():
        return False
    lines = [
        line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]
    return any(json.loads(line)["step"] >= 1 for line in lines)


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    first_step_seconds()
    helps, steps = [], []
    for _ in range(rounds):
        helps.append(help_seconds())
        steps.append(first_step_seconds())
        for name, (wall, cpu) in (("help", helps[-1]), ("first step", steps[-1])):
            say(f"{name} {wall:.2f} s, CPU {cpu:.2f} s")
    quickest, first = min(cpu for _, cpu in helps), min(cpu for _, cpu in steps)
    say(versions("torch", "transformers"))
    result(
        "startup",
        max(quickest / HELP_GOAL, first / STEP_GOAL),
        1.0,
        "worst of help and first step / its goal",
        help_s=round(quickest, 2),
        first_step_s=round(first, 2),
        help_wall_s=round(min(wall for wall, _ in helps), 2),
        first_step_wall_s=round(min(wall for wall, _ in steps), 2),
    )


if __name__ == "__main__":
    main()
