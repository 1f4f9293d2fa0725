"""Part 4 on a GPU: sampling speed of the in-process engine against the time to read the weights once per token.

    python benchmarks/gpu/decode.py [--shape Qwen2.5-VL-7B] [--rows 64] [--small]

`value` is tokens per second over (rows / seconds to read all weights of the language model and the head at the
measured bandwidth of a copy); the goal at 64 rows of 7B is 0.5. Beside it: the same with steps that are called plainly
instead of replayed, and with a third of the rows, which are given on as answers end.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from shapes import SHAPES, build, questions, wait
from tiny_runs import result, say

from mmrl.rollouts.advance import BUCKETS, Pace
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.graphs import recorded_on_cuda
from mmrl.types import Now, Sampling


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second that a copy reads."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    wait(device)
    began, rounds = time.perf_counter(), 5
    for _ in range(rounds):
        target.copy_(source)
    wait(device)
    # A copy reads and writes every byte.
    return 2 * size * rounds / (time.perf_counter() - began)


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="Qwen2.5-VL-7B")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--answer", type=int, default=256)
    parser.add_argument("--visual", type=int, default=1000)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    cell = parser.parse_args()
    if cell.small:
        cell.rows, cell.answer, cell.visual = 8, 6, 16
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = bandwidth(device, 2**24 if cell.small else 2**31)
    built = build(cell.shape, device, torch.bfloat16, small=cell.small)
    for weight in built.policy.model.parameters():
        weight.requires_grad_(False)
    prompts = list(questions(built.shape, cell.visual, cell.rows // 8))
    sampling = Sampling(group_size=8, max_tokens=cell.answer)
    # A CPU takes the same way as a GPU, with a recorder that only calls again.
    recorder = recorded_on_cuda if device.type == "cuda" else lambda run: run
    pace = Pace(8, BUCKETS, recorder)

    def seconds_of(engine: HFEngine, rounds: int) -> float:
        found = []
        for step in range(1 + rounds):
            wait(device)
            began = time.perf_counter()
            rollouts = engine.generate(prompts, sampling, Now(step, 0.0, 0))
            wait(device)
            found.append(time.perf_counter() - began)
            assert all(len(answer.tokens) == cell.answer for answer in rollouts)
        return min(found[1:])

    seconds = seconds_of(HFEngine(built.policy, pace=pace), 2)
    plain = seconds_of(HFEngine(built.policy, pace=replace(pace, recorder=None)), 1)
    third = HFEngine(built.policy, pace=pace, rows_at_once=max(1, cell.rows // 3))
    in_turns = seconds_of(third, 1)
    tokens = cell.rows * cell.answer
    bound = cell.rows * speed / (2 * (built.language + built.head))
    row = {
        "shape": cell.shape,
        "rows": cell.rows,
        "tokens/s, prefill included": tokens / seconds,
        "bound tokens/s": bound,
        "bandwidth GB/s": speed / 1e9,
        "ms per token": 1e3 * seconds / cell.answer,
        "ms per token, called plainly": 1e3 * plain / cell.answer,
        "seconds with a third of the rows, over those with all": in_turns / seconds,
    }
    for name, value in row.items():
        say(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    share = tokens / seconds / bound
    result("gpu_decode", share, 0.5, "share of the weight-read bound", at_least=True, **row)


if __name__ == "__main__":
    main()
