"""Does a run grow? Resident memory of the trainer over 600 steps of PAPO's embedded preset, after every one of them.

    python benchmarks/memory_growth.py [--steps 600] [--prompts 2]

Growth is the slope of a line through the values of the second half, for a run takes a few MiB more for some 300 steps
until its caches are full and the largest step has come. It is fitted so that single peaks do not count (the median of
the slopes between all pairs of steps, Theil and Sen). The goal is 16 KiB a step: a run of 20,000 steps
then takes 0.3 GiB more at its end than at its beginning, and one picture of 80 KiB or one set of a step's tensors that
nobody forgets is far above it. Memory that glibc keeps of freed blocks goes up and down by more than what is looked
for, so the process has a fixed threshold (`MALLOC_MMAP_THRESHOLD_`), as in plan.py.

Steps are short and take everything that a step can leave behind: the masked branch with its gradient, the KL to a
frozen reference, dynamic sampling with groups that are dropped, evaluation and checkpoints each 50 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from plan import GIVEN_BACK
from tiny_runs import median, resident, result, say

LEAST, GOAL = 40, 16.0
"""Fewest steps that tell anything; KiB a step."""


def watched(steps: int, prompts: int, output: str) -> list[float]:
    """MiB after each step of a run in this process."""
    import torch

    from mmrl.recipes import papo
    from mmrl.recipes.shared.launch import launch
    from mmrl.training.trainer import Trainer

    torch.set_num_threads(1)
    found: list[float] = []
    step = Trainer.step

    def seen(self: Trainer, *given: object) -> dict[str, float]:
        metrics = step(self, *given)  # type: ignore[arg-type]
        found.append(resident())
        return metrics

    Trainer.step = seen  # type: ignore[method-assign]
    flags = f"--run.steps {steps} --run.prompts-per-step {prompts} --run.output {output}"
    flags += " --run.eval-every 50 --run.eval-prompts 8 --run.save-every 50"
    flags += " --dynamic --groups.at-once 4 --groups.rounds 20 --grpo.kl 0.01"
    launch(papo.main, papo.PRESETS, ["embedded", *flags.split()])
    return found


def slope(values: Sequence[float]) -> float:
    """Growth per place: the median of the slopes between all pairs."""
    places = range(len(values))
    return median([(values[j] - values[i]) / (j - i) for j in places for i in range(j)])


def main() -> None:
    """Run, fit, print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--prompts", type=int, default=2, help="of each step")
    parser.add_argument("--inside", help="where the run writes; in this process")
    asked = parser.parse_args()
    if asked.steps < LEAST:
        parser.error(f"--steps is {asked.steps}; at least {LEAST} are needed.")
    if asked.inside:
        rows = watched(asked.steps, asked.prompts, asked.inside)
        Path(asked.inside, "resident.json").write_text(json.dumps(rows))
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--inside", f"{scratch}/run"]
        command += ["--steps", str(asked.steps), "--prompts", str(asked.prompts)]
        subprocess.run(
            command, check=True, env=os.environ | GIVEN_BACK, stdout=sys.stderr.fileno()
        )
        rows = json.loads(Path(scratch, "run", "resident.json").read_text())
    rows = rows[len(rows) // 2 :]
    tenth = max(1, len(rows) // 10)
    ends = sum(rows[:tenth]) / tenth, sum(rows[-tenth:]) / tenth
    say(f"means of the first and last {tenth} steps: {ends[0]:.1f} and {ends[1]:.1f} MiB")
    more = {"first": round(ends[0], 1), "last": round(ends[1], 1), "steps": len(rows)}
    growth = 1024 * slope(rows)
    result("memory_growth", growth, GOAL, "KiB of resident memory a step", **more)


if __name__ == "__main__":
    main()
