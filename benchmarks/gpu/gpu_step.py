"""Part 3 on a GPU: whole PAPO steps with KL at released shapes, random weights in bf16.

    python benchmarks/gpu/gpu_step.py --shape Qwen2.5-VL-3B --visual 1000 [--full] [--small] [--repeated]

One line per cell: seconds per phase (median of the steps after the first), tokens per second of sampling, TFLOP/s of
the update against a product of the same run, peak memory. `--repeated` also measures scoring and update of one group
against our own repeated path. `value` is the update's share of the measured product rate; the goal is 0.4.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from shapes import SHAPES, Built, build, matmul_rate, questions, wait
from tiny_runs import result, say, variety

from mmrl import GRPO, LoRA, Optim, Run, Sampling, Trainer, VisualBranch
from mmrl.model.packing import Group
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.rewards.pay import Rewards
from mmrl.types import Now


def steps(built: Built, cell: argparse.Namespace, scratch: str) -> dict[str, float]:
    """A few whole steps; medians of those after the first."""
    device = built.policy.device
    trainer = Trainer(
        built.policy,
        prompts=questions(built.shape, cell.visual, 64),
        rewards=Rewards(variety=variety, workers=1),
        grpo=GRPO(kl=0.01),
        branches={"masked": VisualBranch(PatchMask(ratio=0.6, size=14))},
        objectives=[PAPO(gamma=0.02)],
        sampling=Sampling(group_size=cell.group, max_tokens=cell.answer),
        optim=Optim(lr=1e-6),
        run=Run(
            output=Path(scratch) / "run",
            steps=1000,
            prompts_per_step=cell.prompts,
            save_every=0,
        ),
    )
    trainer.rewards.start()
    found: list[dict[str, float]] = []
    for number in range(1, cell.steps + 1):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        metrics = trainer.step(Now(number, number / 1000, 0))
        if device.type == "cuda":
            metrics["memory/peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        found.append(metrics)
        say(
            f"  step {number}: "
            + ", ".join(
                f"{k} {v:.3g}" for k, v in metrics.items() if k.startswith(("time/", "memory/"))
            )
        )
    trainer.rewards.close()
    kept = found[1:] or found
    names = kept[0].keys()
    return {name: statistics.median(row[name] for row in kept if name in row) for name in names}


def against_repeated(built: Built, cell: argparse.Namespace) -> dict[str, float]:
    """Scoring and update of one group in both forms: how many times faster the packed one is."""
    policy = built.policy
    device = policy.device
    encoded = policy.encode(questions(built.shape, cell.visual, 1)[0])
    rng = torch.Generator().manual_seed(0)
    answers = tuple(
        torch.randint(0, 256, (cell.answer,), generator=rng) for _ in range(cell.group)
    )
    group = Group(
        encoded, encoded.visual, answers, tuple(range(cell.group)), (1.0,) * cell.group
    )
    shape = (cell.group, cell.answer)

    def seconds(score: Any, grad: bool) -> float:
        found = []
        for _ in range(3):
            policy.vision.clear()
            wait(device)
            began = time.perf_counter()
            with torch.set_grad_enabled(grad):
                logp = score(policy, {"raw": [group]}, {"raw": ScoreOutputs(grad=grad)}, shape)[
                    "raw"
                ].logp
            if grad:
                logp.sum().backward()
                policy.vision.backward()
            wait(device)
            found.append(time.perf_counter() - began)
            policy.model.zero_grad(set_to_none=True)
        return min(found[1:])

    out: dict[str, float] = {}
    for name, grad in (("scoring", False), ("update", True)):
        try:
            slow = seconds(score_repeated, grad)
        except (
            torch.OutOfMemoryError
        ):  # whole logits: the repeated form may not fit where ours does
            torch.cuda.empty_cache()
            continue
        out[f"{name}, times faster than repeated"] = slow / seconds(score_packed, grad)
    return out


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="Qwen2.5-VL-3B")
    parser.add_argument("--visual", type=int, default=1000, help="visual tokens per picture")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8, help="prompts per step")
    parser.add_argument("--answer", type=int, default=512, help="tokens per answer")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="all weights instead of LoRA")
    parser.add_argument(
        "--repeated", action="store_true", help="also against the repeated form"
    )
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    cell = parser.parse_args()
    if cell.small:
        cell.visual, cell.group, cell.prompts, cell.answer, cell.steps = 16, 2, 2, 6, 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    rate = matmul_rate(device, dtype, 256 if cell.small else 8192)
    built = build(
        cell.shape, device, dtype, small=cell.small, lora=None if cell.full else LoRA(rank=16)
    )
    with tempfile.TemporaryDirectory() as scratch:
        found = steps(built, cell, scratch)
    # A pass over a token costs two operations per weight forward; backward two (LoRA) or four more, and checkpointing
    # runs the forward once more. The head's weights are read for answers alone, and twice in its backward.
    answers = cell.prompts * cell.group * cell.answer
    backward = 4 if cell.full else 2
    work = built.language * found["tokens/update"] * (2 + backward)
    work += built.head * answers * (2 + backward)
    share = work / found["time/update"] / 1e12 / rate
    row: dict[str, Any] = {
        "shape": cell.shape,
        "visual": cell.visual,
        "full": cell.full,
        "matmul TFLOP/s": rate,
        "update TFLOP/s": work / found["time/update"] / 1e12,
        "sampled tokens/s": answers / found["time/generate"],
        **{k: v for k, v in found.items() if k.startswith(("time/", "memory/"))},
    }
    if cell.repeated:
        row |= against_repeated(built, cell)
    for name, value in row.items():
        say(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    result(
        "gpu_step",
        share,
        0.4,
        "share of the measured product rate in the update",
        at_least=True,
        **row,
    )


if __name__ == "__main__":
    main()
