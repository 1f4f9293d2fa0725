"""A step's wait for its pictures with one worker process that reads ahead, over the wait without, and what it costs.

    python benchmarks/host.py [--steps 6] [--prompts 4]

Photographs of 2048 x 1536 pixels (JPEG) are decoded, resized to 0.8 megapixels, cut into patches, and masked as PAPO
does. A step takes its prompts and draws their masks; then it "computes" for three times as long as that takes without
help: the main thread starts small operations, as a trainer starts kernels, and sleeps in between. Steps of three ways
are taken in turn: nobody reads ahead, a process, a thread. Wall seconds, for waiting is what is compared.

Also told: operations that the main thread starts per second while others read ahead, over those without. A thread
shares the interpreter's lock with it, which is why workers are processes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from tiny_runs import median, model_folder, result, say

from mmrl.data.rows.sources import load_prompts
from mmrl.model import preparing
from mmrl.model.branches import Views
from mmrl.model.patches import PixelBudget
from mmrl.model.policy import Policy
from mmrl.model.preparing import Ahead
from mmrl.model.preparing_worker import prepared
from mmrl.perception.masking import PatchMask
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Rollout, VisualBranch

BRANCHES = {"masked": VisualBranch(PatchMask(0.6, 14))}
PAUSE = 1e-3
"""Seconds that the main thread sleeps between two bursts of operations."""


class InThread:
    """A worker without a process: the same work in its thread."""

    def __init__(self, load: bytes, limit: float) -> None:
        import pickle

        self.load = pickle.loads(load)

    def start(self) -> None:
        """Nothing to start."""

    def end(self) -> None:
        """Nothing to end."""

    def prepare(self, row: int, now: Now | None) -> object:
        """The reply to a row."""
        return prepared(self.load, row, now)


def photographs(folder: Path, count: int) -> Path:
    """Smooth noise as JPEG files, and rows that ask about them."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 255, (96, 128, 3), dtype=np.uint8))
        small.resize((2048, 1536)).save(folder / f"{number}.jpg", quality=90)
        lines.append(
            f'{{"question": "What is it?", "images": ["{number}.jpg"], "answer": "{number}"}}'
        )
    file = folder / "rows.jsonl"
    file.write_text("\n".join(lines))
    return file


def take(policy: Policy, supply: Supply, now: Now) -> float:
    """Seconds in which a step gets its prompts and their masked pictures."""
    supply.now, began = now, time.monotonic()
    prompts = supply.take()
    none = torch.zeros(0, dtype=torch.long)
    answers = [
        Rollout(p, n, policy.encode(p).ids, none, none, "", "eos")
        for n, p in enumerate(prompts)
    ]
    views = Views(policy, answers, BRANCHES, now)
    for row in range(len(answers)):
        views.pixels("masked", row)
    return time.monotonic() - began


def compute(seconds: float) -> float:
    """Start small operations for so many seconds; how many per second."""
    numbers, count, began = torch.zeros(8), 0, time.monotonic()
    while time.monotonic() - began < seconds:
        for _ in range(50):
            numbers.add_(1.0)
        count += 50
        time.sleep(PAUSE)
    return count / seconds


@contextmanager
def workers_as(kind: type) -> Iterator[None]:
    """Workers of another kind than processes."""
    processes, preparing._Worker = preparing._Worker, kind  # type: ignore[misc]
    try:
        yield
    finally:
        preparing._Worker = processes


def supplies(policy: Policy, file: Path, prompts: int) -> dict[str, Supply]:
    """The three ways to read the same rows."""
    rows = load_prompts(str(file))
    alone = Supply(rows, prompts, 0, check=policy.encode)
    process, thread = (Ahead(rows, policy, 1, BRANCHES) for _ in range(2))
    with workers_as(InThread):
        thread.expect({})
    process.expect({})
    ways = {"process": process, "thread": thread}
    helped = {name: Supply(rows, prompts, 0, ahead=ahead) for name, ahead in ways.items()}
    return {"alone": alone, **helped}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    policy = Policy.load(
        model_folder(),
        device="cpu",
        budget=PixelBudget(max_pixels=800_000, max_prompt_tokens=10_000),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = photographs(Path(folder), given.prompts * (given.steps + 3))
        ways = supplies(policy, file, given.prompts)
        waits: dict[str, list[float]] = {name: [] for name in ways}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        pause = 0.0
        for step in range(1, given.steps + 2):
            for name, supply in ways.items():
                with policy.vision.step():
                    waits[name].append(take(policy, supply, Now(step, 0.0, 0)))
                    # The first step of each way comes before anybody could help, and the process starts meanwhile.
                    pause = 3 * median(waits["alone"])
                    rates[name].append(compute(pause + (20 if step == 1 else 0)))
            say(", ".join(f"{name} {seconds[-1]:.3f} s" for name, seconds in waits.items()))
        for supply in ways.values():
            supply.close()
    wait = {name: median(seconds[1:]) for name, seconds in waits.items()}
    rate = {name: median(found[1:]) for name, found in rates.items()}
    more = {
        "seconds": {name: round(seconds, 3) for name, seconds in wait.items()},
        "thread": round(wait["thread"] / wait["alone"], 3),
        "operations_with_process": round(rate["process"] / rate["alone"], 3),
        "operations_with_thread": round(rate["thread"] / rate["alone"], 3),
    }
    result("host", wait["process"] / wait["alone"], 0.2, "share of the wait", **more)


if __name__ == "__main__":
    main()
