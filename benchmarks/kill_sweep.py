"""Kill -9 at random moments, for recipes whose runs remember something: the run that goes on is the run in peace.

    python benchmarks/kill_sweep.py [RECIPE ...] [--steps 8] [--kills 3] [--output DIR]

Each recipe trains its embedded preset twice: undisturbed, and killed at random moments and started again by the same
command. Weights and optimizer must be equal to the bit, as must all that the last checkpoint remembers and every metric
that is not measured. Where a memory is of questions there are few of them, so that they come again. `value` counts the
recipes that break this; a kill that came too late counts as well. `tests/recipes/test_experience.py` holds the same
without processes, `benchmarks/soak.py` for one recipe over thousands of steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soak import kill_moments, lines_of, lived
from tiny_runs import result, say, versions

FLAGS: dict[str, dict[str, object]] = {
    "rorecomp": {"recomp.compensate": 1.0},
    "seele": {"data.limit": 6, "sampling.group-size": 8},
    "ssb": {"data.limit": 24, "sampling.group-size": 8},
    "deepsearch": {"data.limit": 6, "sampling.group-size": None},
    "knowrl": {"data.limit": 6},
    "recap": {"recap.window": 2},
    "urlvr": {},
    "mel": {},
    "svs": {},
    "modomodo": {},
}
"""Recipe -> its flags beside those of all."""


def words_of(name: str, output: Path, steps: int) -> list[str]:
    """What one would type behind `python -m recipes.NAME`."""
    shared: dict[str, object] = {
        "run.output": output,
        "run.steps": steps,
        "run.save-every": 2,
        "run.prompts-per-step": 3,
        "run.eval-prompts": 4,
        "monitor.probe-every": 0,
        "sampling.group-size": 4,
    }
    given = {**shared, **FLAGS[name]}
    named = [(flag, value) for flag, value in given.items() if value is not None]
    return ["embedded", *(word for flag, value in named for word in (f"--{flag}", str(value)))]


def swept(name: str, folder: Path, steps: int, kills: int, rng: random.Random) -> list[str]:
    """What is not as in peace, in words."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {kind: folder / kind for kind in ("peace", "killed")}
    moments = kill_moments(steps, kills, rng)
    codes: dict[str, list[int]] = {}
    for kind, output in outputs.items():
        words, log = words_of(name, output, steps), folder / f"{kind}.log"
        at = [*(moments if kind == "killed" else ()), None]
        codes[kind] = [lived(words, output, log, moment, name).code for moment in at]
    if codes["peace"] != [0]:
        return [f"in peace it ended with {codes['peace'][0]}; see {folder / 'peace.log'}"]
    found = []
    if codes["killed"] != [-signal.SIGKILL] * kills + [0]:
        found.append(
            f"the killed run ended with {codes['killed']}, {lines_of(outputs['killed'])} lines"
        )
    return found + differing(outputs["peace"], outputs["killed"], steps)


def differing(peace: Path, killed: Path, steps: int) -> list[str]:
    """What two runs of so many steps do not have in common, to the bit."""
    found = []
    for file in ("weights.safetensors", "optimizer.pt"):
        one, other = (bytes_of(at, steps, file) for at in (peace, killed))
        if one != other:
            found.append(f"{file} differs")
    one, other = (
        json.loads(bytes_of(at, steps, "state.json") or b"{}") for at in (peace, killed)
    )
    found += [
        f"the state differs in {name}"
        for name in sorted(one.keys() | other.keys())
        # Each run has an id of its own, and is told its own folder.
        if name not in ("run", "settings") and one.get(name) != other.get(name)
    ]
    if timeless(peace) != timeless(killed):
        found.append("metrics differ")
    return found


def bytes_of(output: Path, step: int, file: str) -> bytes | None:
    """A file of a checkpoint; None if it is not there."""
    at = output / "checkpoints" / f"step-{step}" / file
    return at.read_bytes() if at.is_file() else None


def timeless(output: Path) -> list[dict[str, Any]]:
    """Metrics without what is measured."""
    from mmrl.training.tracking import read_metrics

    away = ("time/", "memory/")
    return [
        {name: value for name, value in row.items() if not name.startswith(away)}
        for row in read_metrics(output)
    ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Sweep and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "recipes", nargs="*", help=f"all of {', '.join(FLAGS)} if none is named"
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep the files of the runs here")
    args = parser.parse_args(argv)
    names = args.recipes or list(FLAGS)
    if strange := sorted(set(names) - FLAGS.keys()):
        parser.error(f"{strange[0]} remembers nothing; there are {', '.join(FLAGS)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from mmrl.recipes.shared.embedded import warm_model

    torch.set_num_threads(1)
    warm_model()
    wrong: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            rng = random.Random(f"{args.seed} {name}")
            found = swept(
                name, (args.output or Path(scratch)) / name, args.steps, args.kills, rng
            )
            say(f"{name}: " + ("as in peace" if not found else "\n  ".join(found)))
            if found:
                wrong[name] = found
    say(versions("torch", "transformers"))
    more = {"recipes": len(names), "steps": args.steps, "kills": args.kills, "wrong": wrong}
    return result(
        "kill_sweep", len(wrong), 0, "recipes that do not go on to the same bits", **more
    )


if __name__ == "__main__":
    sys.exit(0 if main()["ok"] else 1)
