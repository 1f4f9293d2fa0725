"""Soak: a long embedded run among bad media, rewards that fail and kill -9, beside the same run left in peace.

    python benchmarks/soak.py [--steps 2000] [--kills 3] [--bad 0.05] [--faults 0.01] [--output DIR]

Both runs are `recipes.papo embedded` on the same rows, of whose pictures a share is damaged. The disturbed one is
killed at random moments and started again by the same command, and a second reward fails at random: it raises, gives
what is no finite number, ends its process, takes too much memory or hangs. That reward weighs 0, and a killed run goes
on where it was, so none of this changes what is learned: the weights must be those of the run in peace, to the bit.
Damaged rows are in both runs, since leaving a row out is another order of rows.

Each start is a fork of this process, which has done the imports. `value` counts what broke: a run that did not finish,
a kill that came too late, other weights, damaged rows that were not all reported, faults that were not all counted,
memory that grew by more than `MEMORY` MiB from the middle of a lifetime to its end.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_runs import result, say, versions

MEMORY = 48.0
"""MiB by which resident memory may differ between the middle and the end of a lifetime."""
LIFETIME = 40
"""Steps below which a lifetime says nothing about memory."""
KINDS = ("raise", "nan", "text", "exit", "memory", "hang")
REWARDS = '''"""A reward that fails at random; the answer alone decides, so that a step done again fails again."""

import os
import time
import zlib

SHARE, KINDS = {share}, {kinds}


def watches(rollout):
    """0, or a fault of one kind."""
    number = zlib.crc32((rollout.prompt.id + rollout.text).encode())
    if number % 10_000 >= 10_000 * SHARE:
        return 0.0
    kind = KINDS[number // 10_000 % len(KINDS)]
    if kind == "raise":
        raise RuntimeError("a fault of the soak")
    if kind == "exit":
        os._exit(3)
    if kind == "memory":
        return float(len(bytearray(8 << 30)))
    if kind == "hang":
        time.sleep(3600)
    return float("nan") if kind == "nan" else "good"
'''


@dataclass
class Lifetime:
    """One start of a run: how it ended, and resident MiB whenever a line of metrics was there."""

    code: int = 0
    memory: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """MiB between the middle and the end; 0 for a lifetime that is too short to tell."""
        if len(self.memory) < LIFETIME:
            return 0.0
        part = len(self.memory) // 8
        middle = self.memory[len(self.memory) // 2 - part : len(self.memory) // 2 + part]
        return statistics.median(self.memory[-part:]) - statistics.median(middle)


def write_rows(folder: Path, count: int, bad: float, rng: random.Random) -> Path:
    """Look-ups of the embedded task with PNG files, of which a share is damaged in one of five ways."""
    from PIL import Image

    from mmrl.data.drawn.drawn import Drawn

    folder.mkdir(parents=True, exist_ok=True)
    damaged = set(rng.sample(range(count), round(bad * count)))
    lines = []
    for index, prompt in enumerate(Drawn("lookup", size=count, cells=2, size_px=32)):
        file = folder / f"{index}.png"
        pixels = prompt.media[0].frames[0].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(file)
        if index in damaged:
            damage(file, index)
        text = next(p["text"] for p in prompt.messages[0]["content"] if p["type"] == "text")
        lines.append({"question": text, "images": [file.name], "answer": prompt.answer})
    table = folder / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return table


def damage(file: Path, number: int) -> None:
    """Missing, empty, cut off, a text, or with bytes turned over."""
    content = file.read_bytes()
    half = len(content) // 2
    ways = (
        b"",
        content[:half],
        b"this is no picture",
        content[:half] + bytes(255 - byte for byte in content[half:]),
    )
    file.unlink()
    if number % 5 < len(ways):
        file.write_bytes(ways[number % 5])


def command(rows: Path, rewards: Path, output: Path, args: argparse.Namespace) -> list[str]:
    """What one would type behind `python -m recipes.papo`."""
    flags: dict[str, object] = {
        "dataset": rows,
        "data.prompt": "{question}",
        "data.heldout-rows": 16,
        "run.output": output,
        "run.steps": args.steps,
        "run.prompts-per-step": args.prompts,
        "run.save-every": max(2, min(50, args.steps // 4)),
        "run.eval-prompts": 16,
        "sampling.group-size": args.group,
        "reward": f"{rewards}:watches=0",
    }
    named = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return ["embedded", "--reward", "accuracy", *named]


def started(words: Sequence[str], log: Path, name: str = "papo") -> int:
    """A fork that runs the recipe with these words; its process."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
        from mmrl.recipes.shared.launch import launch

        recipe = importlib.import_module(f"mmrl.recipes.{name}")
        launch(recipe.main, recipe.PRESETS, words)
        code = 0
    except SystemExit as end:
        code = int(end.code is not None and end.code != 0)
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def lived(
    words: Sequence[str], output: Path, log: Path, kill_at: float | None, name: str = "papo"
) -> Lifetime:
    """Start the run and wait for its end, or kill it when its metrics have so many lines.

    The fraction of `kill_at` is the share of a step's usual time to wait after that line: a kill may come anywhere.
    """
    seen = lines_of(output)
    life, pid, meter = Lifetime(), started(words, log, name), Meter(output)
    began = last = time.monotonic()
    first = seen
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            life.code = os.waitstatus_to_exitcode(status)
            return life
        count = meter.lines()
        if count > seen:
            last = time.monotonic()
            if not life.memory:  # the start is no step, and of a short run the longest part
                began, first = last, count
            seen = count
            life.memory.append(resident(pid))
        if kill_at is not None and seen >= int(kill_at):
            time.sleep(kill_at % 1 * (last - began) / max(1, seen - first))
            os.kill(pid, signal.SIGKILL)
            kill_at = None
        time.sleep(0.01)


@dataclass
class Meter:
    """Lines of the metrics of a run, asked for often: the file is read only when its size is another."""

    output: Path
    size: int = -1
    count: int = 0

    def lines(self) -> int:
        """One for the evaluation at the start and one per step."""
        file = self.output / "metrics.jsonl"
        size = file.stat().st_size if file.is_file() else 0
        if size != self.size:
            self.size, self.count = size, lines_of(self.output)
        return self.count


def lines_of(output: Path) -> int:
    """Lines of metrics; one for the evaluation at the start and one per step."""
    file = output / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def resident(pid: int) -> float:
    """Resident memory of a process in MiB (Linux; elsewhere 0, and memory is not judged)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS")), 0.0)


def soak(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Both runs and what is to be said of them."""
    rng = random.Random(args.seed)
    rows = write_rows(folder / "rows", args.rows, args.bad, rng)
    moments = kill_moments(args.steps, args.kills, rng)
    lives: dict[str, list[Lifetime]] = {}
    for name, share in (("peace", 0.0), ("disturbed", args.faults)):
        rewards = folder / f"rewards_{name}.py"
        rewards.write_text(REWARDS.format(share=share, kinds=tuple(args.kinds)))
        output, log = folder / name, folder / f"{name}.log"
        words = command(rows, rewards, output, args)
        lives[name] = []
        for moment in [*(moments if name == "disturbed" else ()), None]:
            lives[name].append(lived(words, output, log, moment))
            say(f"{name}: code {lives[name][-1].code} at line {lines_of(output)}")
    return judged(folder, args, lives)


def kill_moments(steps: int, kills: int, rng: random.Random) -> list[float]:
    """Lines of the metrics, and the share of a step behind them, at which to kill: one in each of equal stretches."""
    stretch = (steps - 2) / max(1, kills)
    return [1 + stretch * (number + rng.random()) for number in range(kills)]


def judged(
    folder: Path, args: argparse.Namespace, lives: dict[str, list[Lifetime]]
) -> dict[str, Any]:
    """Each thing that must hold, by name, and the numbers behind it."""
    from mmrl.training.tracking import read_metrics

    codes = [life.code for life in lives["disturbed"]]
    metrics = {name: read_metrics(folder / name) for name in lives}
    faults = Counter[str]()
    for row in metrics["disturbed"]:
        for name, value in row.items():
            if name.startswith("reward_failures/watches_"):
                faults[name.removeprefix("reward_failures/watches_")] += round(value)
    growth = {name: round(max(x.growth for x in of), 1) for name, of in lives.items()}
    most = max(
        (value for of in lives.values() for life in of for value in life.memory), default=0
    )
    reported = {name: reported_rows(folder / name) for name in lives}
    expected = round(args.bad * args.rows)
    # A run that is shorter than a pass over the rows has not met them all.
    few = range(1, expected) if args.steps * args.prompts < args.rows else ()
    holds = {
        "finished": all(len(rows) == args.steps + 1 for rows in metrics.values()),
        "killed": codes == [-signal.SIGKILL] * args.kills + [0],
        "same_weights": digest(folder / "peace") == digest(folder / "disturbed"),
        "bad_rows_reported": reported["peace"] == reported["disturbed"]
        and len(reported["peace"]) in (expected, *few),
        "faults_counted": bool(faults) or not args.faults,
        "flat_memory": max(growth.values()) <= MEMORY,
    }
    return {
        "holds": holds,
        "faults": dict(faults),
        "bad_rows": len(reported["disturbed"]),
        "growth_mib": growth,
        "peak_mib": round(most),
    }


def reported_rows(output: Path) -> set[str]:
    """Rows in skipped.jsonl, by what is said of each: a row stands there again in each pass that meets it."""
    file = output / "skipped.jsonl"
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {json.loads(line)["reason"] for line in lines}


def digest(output: Path) -> str:
    """Of the trained weights."""
    return hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Soak and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--bad", type=float, default=0.05, help="share of damaged pictures")
    parser.add_argument("--faults", type=float, default=0.01, help="share of failing rewards")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--prompts", type=int, default=2, help="prompts per step")
    parser.add_argument("--group", type=int, default=2, help="answers per prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep the files of both runs here")
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from mmrl.recipes import papo  # noqa: F401  # forks need not import it
    from mmrl.recipes.shared.embedded import warm_model

    torch.set_num_threads(1)
    warm_model()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        found = soak(args.output or Path(scratch), args)
    say(versions("torch", "transformers"))
    broken = [name for name, right in found["holds"].items() if not right]
    return result(
        "soak",
        len(broken),
        0,
        "promises broken",
        broken=broken,
        steps=args.steps,
        kills=args.kills,
        seconds=round(time.monotonic() - began),
        **{name: value for name, value in found.items() if name != "holds"},
    )


if __name__ == "__main__":
    sys.exit(0 if main()["ok"] else 1)
