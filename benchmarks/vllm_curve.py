"""Does PAPO learn the same with vLLM as with the engine in this process? Curves of both, seed by seed.

    .venv-vllm/bin/python benchmarks/vllm_curve.py [--seeds 3] [--steps 20] [--small]      (`make vllm-env`)

The embedded preset of `recipes/papo.py` on a model like the embedded one, warmed up in the same way, but with three
heads of 32 numbers instead of four of 24, for which vLLM's CPU build has no kernel. Each run is a process on one
thread; both sides see the same prompts, and draw their answers from other random numbers.

A run's number is the mean reward of its steps, which every answer of the curve has a part in. `value` is how far vLLM's
mean over seeds lies from that of the engine here, over half the width of the 95 % interval (t) of the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_runs import ROOT, result, say, versions

ENGINES = ("here", "vllm")
T95 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
}
"""Degrees of freedom -> 97.5 % point of Student's t."""
SMALL = ["--run.prompts-per-step", "2", "--run.eval-prompts", "0", "--sampling.group-size", "2"]


def model(scratch: Path, small: bool) -> Path:
    """The folder of the warmed-up model with heads that vLLM reads."""
    from mmrl.data.drawn import drawn
    from mmrl.model import tiny
    from mmrl.recipes.shared import embedded
    from mmrl.recipes.shared.supervised import supervised

    size = tiny.TinySize(heads=3, kv_heads=1)
    start = tiny.cached(size=size, corpus=drawn.tokenizer_texts())
    if small:
        return start
    numbers = embedded.WarmUp()
    supervised(start, partial(embedded._lessons, numbers), scratch / "warm", numbers)
    return scratch / "warm"


def curve(
    engine: str, seed: int, folder: Path, scratch: Path, cell: argparse.Namespace
) -> list[float]:
    """The mean reward of each step of one run."""
    output = scratch / f"{engine}-{seed}"
    command = [sys.executable, "-m", "mmrl.recipes.papo", "embedded", "--model", str(folder)]
    command += [
        "--load.engine",
        engine,
        "--run.steps",
        str(cell.steps),
        "--run.seed",
        str(seed),
    ]
    command += [
        "--run.output",
        str(output),
        "--monitor.probe-every",
        "0",
        *(SMALL if cell.small else ()),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(
            f"the run of {engine}, seed {seed} ended with {done.returncode}; see above"
        )
    (file,) = output.rglob("metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    found = [row["reward/total"] for row in rows if "reward/total" in row]
    say(f"{engine}, seed {seed}: {[round(value, 3) for value in found]}")
    return found


def main() -> None:
    """Train and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, choices=range(2, 11), default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--small", action="store_true", help="two steps of an untrained model: does it run?"
    )
    cell = parser.parse_args()
    if cell.small:
        cell.steps, cell.seeds = 2, 2
    say(versions("torch", "transformers"))
    curves: dict[str, list[list[float]]] = {engine: [] for engine in ENGINES}
    with TemporaryDirectory() as place:
        scratch = Path(place)
        folder = model(scratch, cell.small)
        for seed in range(cell.seeds):
            for engine in ENGINES:
                curves[engine].append(curve(engine, seed, folder, scratch, cell))
    each = {engine: [mean(rewards) for rewards in its] for engine, its in curves.items()}
    half = T95[cell.seeds - 1] * stdev(each["here"]) / cell.seeds**0.5
    apart = abs(mean(each["vllm"]) - mean(each["here"]))
    last = {engine: [rewards[-1] for rewards in its] for engine, its in curves.items()}
    result("vllm_curve", apart / half, 1.0, "half widths", runs=each, last=last, curves=curves)


if __name__ == "__main__":
    main()
