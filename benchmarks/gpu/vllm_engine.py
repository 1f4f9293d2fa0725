"""Part 6 on a GPU whose environment has vLLM: same log-probs, sleep and wake, new weights, and speed.

    python benchmarks/gpu/vllm_engine.py [--shape Qwen2.5-VL-3B] [--tensor-parallel 2] [--invariant] [--small]

`value` is the larger mean difference of vLLM's log-probs to training's, nats per token, of two rounds: with the weights
that it was started with, and, after it slept, with others; the goal is 0.1, at which a run would raise an alarm. Beside
it: GiB that sleeping gives back, seconds to bring the weights, tokens per second of vLLM and of the engine in this
process.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from shapes import SHAPES, build, questions, wait
from tiny_runs import result, say

from mmrl.model.packing import Group
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.rollouts.engine import HFEngine
from mmrl.types import Now, Prompt, Sampling


def used(device: torch.device) -> float:
    """GiB that are taken on the device by whomever."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def rate(engine: Any, asked: list[Prompt], sampling: Sampling, device: torch.device) -> float:
    """Tokens per second of the second of two calls."""
    found, seconds = [], 0.0
    for step in (1, 2):
        wait(device)
        began = time.perf_counter()
        found = engine.generate(asked, sampling, Now(step, 0.5, 0))
        wait(device)
        seconds = time.perf_counter() - began
    return sum(len(rollout.tokens) for rollout in found) / seconds


def mismatch(engine: Any, asked: list[Prompt], sampling: Sampling, step: int) -> float:
    """Mean |log p(vLLM) - log p(training)| of the drawn tokens, nats."""
    policy, apart = engine.policy, []
    for rollout in engine.generate(asked, sampling, Now(step, 0.5, 0)):
        encoded = policy.encode(rollout.prompt)
        group = Group(encoded, encoded.visual, (rollout.tokens,), (0,), (1.0,))
        with torch.no_grad():
            scores = score_packed(
                policy, {"raw": [group]}, {"raw": ScoreOutputs()}, (1, len(rollout.tokens))
            )
        apart.append((scores["raw"].logp[0].cpu() - rollout.logp).abs())
    return torch.cat(apart).mean().item()


def moved(policy: Any) -> None:
    """Other weights, as after an update."""
    rng = torch.Generator(device=policy.device).manual_seed(1)
    with torch.no_grad():
        for _, weight in policy.named_parameters():
            noise = torch.randn(
                weight.shape, generator=rng, device=weight.device, dtype=weight.dtype
            )
            weight.add_(noise, alpha=0.2 * weight.float().std().item())
    policy.stepped()
    policy.vision.clear()


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="Qwen2.5-VL-3B")
    parser.add_argument("--visual", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--memory", type=float, default=0.4)
    parser.add_argument("--tensor-parallel", type=int, default=1, help="devices of vLLM")
    parser.add_argument("--invariant", action="store_true", help="kernels apart from the batch")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    cell = parser.parse_args()
    if cell.small:
        cell.visual, cell.prompts, cell.answer = 16, 2, 8
    from mmrl.rollouts.vllm_engine import VLLMEngine
    from mmrl.rollouts.vllm_local import LocalVLLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    built = build(cell.shape, device, dtype, small=cell.small, checkpointing=False)
    policy = built.policy
    asked = [questions(built.shape, cell.visual, cell.prompts)[n] for n in range(cell.prompts)]
    sampling = Sampling(8, 1.0, max_tokens=cell.answer)
    ours = rate(HFEngine(policy), asked, sampling, device)
    folder = Path(built.scratch.name) / "whole"
    policy.save(folder)
    name = str(dtype).removeprefix("torch.")
    local = LocalVLLM(
        str(folder),
        mode="raw",
        dtype=name,
        length=2048,
        media=1,
        memory=cell.memory,
        tensor_parallel=cell.tensor_parallel,
        invariant=cell.invariant,
    )
    engine = VLLMEngine(policy, local)
    first = mismatch(engine, asked, sampling, 3)
    theirs = rate(engine, asked, sampling, device)
    local.wake()
    awake = used(device)
    local.sleep()
    freed = awake - used(device)
    moved(policy)
    began = time.perf_counter()
    engine.bring()
    wait(device)
    bringing = time.perf_counter() - began
    second = mismatch(engine, asked, sampling, 4)
    say(f"mismatch {first:.2g} and {second:.2g} nats, {freed:.1f} GiB given back")
    more: dict[str, Any] = {"freed": freed, "bring": bringing, "vllm": theirs, "here": ours}
    more |= {"first": first, "after_update": second}
    more |= {"devices": cell.tensor_parallel, "invariant": cell.invariant}
    result("gpu_vllm", max(first, second), 0.1, "nats", shape=cell.shape, **more)


if __name__ == "__main__":
    main()
