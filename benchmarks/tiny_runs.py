"""What the benchmarks share: a model folder, a data file, trainers in processes of their own, and the printed result.

A benchmark process starts one worker per side and lets them take steps in turn (A B A B). A worker reads commands and
writes answers as JSON lines; whatever libraries print goes to standard error. Times are CPU seconds of the worker on
one thread, so other work on the machine disturbs them little. The module imports nothing heavy: rewards are loaded by
name in small processes, and the other side's environment has no mmrl.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrl.training.trainer import Trainer
    from mmrl.types import Prompts

ROOT = Path(__file__).resolve().parents[1]
TOKEN_SIDE = 16
"""Pixels per side of one visual token of the tiny models."""


@dataclass(frozen=True)
class Cell:
    """One setting of a trainer that takes steps."""

    folder: str
    """Model folder."""
    rows: str
    """JSON lines with `problem`, `images`, `answer`."""
    answer: int
    """Tokens of every answer."""
    kl: float = 0.0
    """Weight of the KL to the reference."""
    group: int = 8
    """Answers per prompt."""
    lr: float = 1e-6
    prompts: int = 1
    """Prompts per step (ours only)."""

    def text(self) -> str:
        """For the command line of a worker."""
        return json.dumps(asdict(self))


class Worker:
    """A process that takes steps when asked."""

    def __init__(self, command: Sequence[str]) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        environment |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait for the answer. Raises RuntimeError if the worker has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the worker ended with code {self._process.wait()}; see its messages above"
            )
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


class Channel:
    """The worker's end: commands from standard input, answers to the original standard output."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> str | None:
        """The next command; None when the benchmark has closed the pipe."""
        line = sys.stdin.readline()
        return line.strip() if line else None

    def send(self, answer: dict[str, Any]) -> None:
        """Answer a command."""
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


class Meter:
    """CPU seconds and peak resident memory of one step of this process."""

    def __init__(self) -> None:
        self.base = resident()
        """MiB before the first step."""
        forget_peak()
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._began = time.process_time()

    def read(self) -> dict[str, float]:
        """Seconds since `start`, peak MiB, and by how many MiB that lies above the memory before the first step."""
        most = peak()
        return {
            "seconds": time.process_time() - self._began,
            "peak": most,
            "growth": most - self.base,
        }


def resident() -> float:
    """Resident memory in MiB; where the system does not tell, the peak so far."""
    return _status("VmRSS") or peak()


def peak() -> float:
    """Peak resident memory in MiB since `forget_peak`."""
    known = _status("VmHWM")
    if known is not None:
        return known
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def forget_peak() -> None:
    """Start a new peak at the present memory (Linux; elsewhere the peak is that of the whole process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(name: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def model_folder(
    *,
    hidden: int = 256,
    layers: int = 4,
    heads: int = 4,
    vision_hidden: int = 128,
    vision_depth: int = 4,
    vision_heads: int = 4,
    vocabulary: int = 8192,
    family: str = "qwen2_5_vl",
) -> Path:
    """A tiny model in the user's cache; by default language 4 x 256, vision 4 x 128, vocabulary 8,192."""
    from mmrl.data.drawn.drawn import tokenizer_texts
    from mmrl.model import tiny

    size = tiny.TinySize(
        hidden=hidden,
        layers=layers,
        heads=heads,
        vision_hidden=vision_hidden,
        vision_depth=vision_depth,
        vision_heads=vision_heads,
        vocab_size=vocabulary,
    )
    return tiny.cached(family, size=size, corpus=tokenizer_texts())


def visual_side(tokens: int) -> int:
    """Pixels per side of a square picture with so many visual tokens."""
    side = round(tokens**0.5)
    assert side * side == tokens, f"{tokens} visual tokens are no square"
    return side * TOKEN_SIDE


def write_rows(folder: Path, visual_tokens: int, count: int) -> Path:
    """Drawn pictures as PNG files and a JSONL that asks about them."""
    from PIL import Image

    from mmrl.data.drawn.drawn import Drawn

    side = visual_side(visual_tokens)
    file = folder / f"rows-{visual_tokens}.jsonl"
    lines = []
    for index, prompt in enumerate(Drawn("lookup", size=count, size_px=side, cells=4)):
        name = f"picture-{visual_tokens}-{index}.png"
        pixels = prompt.media[0].frames[0].permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(folder / name)
        text = next(
            part["text"] for part in prompt.messages[0]["content"] if part["type"] == "text"
        )
        lines.append(json.dumps({"problem": text, "images": [name], "answer": prompt.answer}))
    file.write_text("\n".join(lines) + "\n")
    return file


def variety(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """A reward that differs within a group, in the convention of both trainers: the share of distinct letters."""
    texts = [completion[0]["content"] for completion in completions]
    return [len(set(text)) / (len(text) + 1) for text in texts]


def our_prompts(rows: str | Path) -> Prompts:
    """The data file through the project's own loader."""
    from mmrl.data.rows.sources import load_prompts

    return load_prompts(str(rows))


def our_trainer(cell: Cell, output: Path, **changes: Any) -> Trainer:
    """The project's trainer with the other side's loss: no dual clip, k3 times the ratio, advantage eps 1e-4.

    Answers have a fixed length: the ids that end one are banned.
    """
    from dataclasses import replace
    from functools import partial

    from mmrl.grpo import GRPO
    from mmrl.losses.advantages import group_normalized
    from mmrl.model.policy import Policy
    from mmrl.rewards.pay import Rewards
    from mmrl.training.optim import Optim
    from mmrl.training.run import Run
    from mmrl.training.trainer import Trainer
    from mmrl.types import Sampling

    policy = Policy.load(cell.folder, device="cpu", dtype="float32")
    processing = policy.processing
    policy.processing = replace(
        processing, banned_ids=tuple({*processing.banned_ids, *processing.stop_ids})
    )
    arguments: dict[str, Any] = {
        "prompts": our_prompts(cell.rows),
        "rewards": Rewards(variety=variety, workers=1),
        "estimator": partial(group_normalized, eps=1e-4),
        "grpo": GRPO(dual_clip=None, kl=cell.kl, kl_importance=cell.kl > 0),
        "sampling": Sampling(group_size=cell.group, max_tokens=cell.answer),
        "optim": Optim(lr=cell.lr),
        "run": Run(
            output=output,
            steps=10_000,
            prompts_per_step=cell.prompts,
            save_every=0,
            sample_every=0,
        ),
    }
    return Trainer(policy, **(arguments | changes))


def serve_ours(cell: Cell) -> None:
    """Worker: one step of our trainer, its log line included, per command."""
    import tempfile

    import torch

    from mmrl.training.tracking import Tracker
    from mmrl.types import Now

    channel = Channel()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = our_trainer(cell, Path(scratch))
        trainer.rewards.start()
        tracker = Tracker(Path(scratch))
        meter, number = None, 0
        while channel.receive() is not None:
            meter = meter or Meter()
            number += 1
            meter.start()
            metrics = trainer.step(Now(number, number / 10_000, 0))
            tracker.log(number, metrics)
            answer = meter.read()
            visual = round(metrics["patches/tower"] / 4 / (2 if cell.kl else 1))
            prompt = round(metrics["tokens/prefill"])
            channel.send(
                answer
                | {"visual": visual, "prompt": prompt, "length": metrics["answer/length"]}
            )
        trainer.rewards.close()


def our_worker(cell: Cell) -> Worker:
    """A process that runs our trainer."""
    return Worker([sys.executable, str(Path(__file__).resolve()), cell.text()])


def interleaved(
    sides: dict[str, Callable[[], float]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Call the sides in turn; the first `warmup` rounds are not counted."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + warmup):
        for name, run in sides.items():
            value = run()
            if round_ >= warmup:
                found[name].append(value)
    return found


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call in this process."""
    began = time.process_time()
    run()
    return time.process_time() - began


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def say(text: str) -> None:
    """Progress, to standard error."""
    print(text, file=sys.stderr, flush=True)


def versions(*names: str) -> str:
    """Installed versions, for the report."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in names)


def result(
    name: str, value: float, goal: float, unit: str, *, at_least: bool = False, **more: Any
) -> dict[str, Any]:
    """Print the outcome as one JSON object."""
    ok = value >= goal if at_least else value <= goal
    outcome = {
        "name": name,
        "value": float(f"{value:.4g}"),
        "goal": goal,
        "unit": unit,
        "ok": bool(ok),
        **more,
    }
    print(json.dumps(outcome), flush=True)
    return outcome


if __name__ == "__main__":
    serve_ours(Cell(**json.loads(sys.argv[1])))
