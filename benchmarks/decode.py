"""Sampling with rows that are given on and prompts in blocks, against calls of a few prompts and padded prompts.

    python benchmarks/decode.py [--small]

Part 1, time: 24 prompts with 4 answers each, 16 rows; every twentieth token ends an answer, so that lengths differ.
Once in one call, where an answer that ends gives its row on, and once prompts by fours, where a call ends with its
longest answer. Part 2, memory: 31 short prompts and one of a thousand words, in blocks and padded to the longest.
`value` is the worse of the two shares, CPU time and growth of resident memory; the goal is 0.9.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import (
    cpu_seconds,
    forget_peak,
    interleaved,
    median,
    model_folder,
    peak,
    resident,
    result,
    say,
    versions,
)

from mmrl.model.policy import Policy
from mmrl.rollouts import sampler
from mmrl.rollouts.engine import HFEngine
from mmrl.types import Now, Prompt, Sampling

ROUNDS = 5
GROUP, ROWS = 4, 16


def question(number: int, words: int) -> Prompt:
    """A prompt of text alone, a token or two per word."""
    text = [{"type": "text", "text": f"What is at row {number}?" + " red" * words}]
    return Prompt(f"q{number}", [{"role": "user", "content": text}])


def often_ending(policy: Policy) -> None:
    """Every twentieth token ends an answer."""
    processing = policy.processing
    ends = set(range(3, len(processing.tokenizer), 20)) - set(processing.banned_ids)
    object.__setattr__(processing, "stop_ids", (*processing.stop_ids, *sorted(ends)))


def time_share(policy: Policy, prompts: int, tokens: int) -> float:
    """CPU time of one call with rows that are given on, over calls of as many prompts as fill the rows."""
    asked = [question(number, number % 7) for number in range(prompts)]
    sampling, now = Sampling(GROUP, 1.0, max_tokens=tokens), Now(1, 0.0, 0)
    engine = HFEngine(policy, rows_at_once=ROWS)
    at_once = ROWS // GROUP

    def in_calls() -> None:
        for start in range(0, len(asked), at_once):
            engine.generate(asked[start : start + at_once], sampling, now)

    sides = {
        "rows given on": lambda: cpu_seconds(lambda: engine.generate(asked, sampling, now)),
        "prompts by fours": lambda: cpu_seconds(in_calls),
    }
    seconds = interleaved(sides, ROUNDS)
    lengths = sorted(len(r.tokens) for r in engine.generate(asked, sampling, now))
    say(f"lengths {lengths[0]} to {lengths[-1]}, median {lengths[len(lengths) // 2]}")
    for name, values in seconds.items():
        say(f"{name}: {[round(x, 3) for x in values]} s")
    return median(seconds["rows given on"]) / median(seconds["prompts by fours"])


def growth(policy: Policy, prompts: list[Prompt], block: int) -> float:
    """MiB by which one call exceeds the memory before it, with blocks of so many tokens."""
    usual, sampler.LARGEST_BLOCK["cpu"] = sampler.LARGEST_BLOCK["cpu"], block
    try:
        base = resident()
        forget_peak()
        HFEngine(policy).generate(prompts, Sampling(1, 0.0, max_tokens=4), Now(1, 0.0, 0))
        return peak() - base
    finally:
        sampler.LARGEST_BLOCK["cpu"] = usual


def memory_share(policy: Policy, words: int) -> float:
    """Peak with blocks over the peak with prompts padded to the longest."""
    prompts = [question(number, 3) for number in range(31)] + [question(99, words)]
    growth(policy, prompts, 64)  # what the allocator keeps belongs to neither
    blocks, padded = growth(policy, prompts, 64), growth(policy, prompts, 10**9)
    say(
        f"one long prompt among short ones: {blocks:.0f} MiB in blocks, {padded:.0f} MiB padded"
    )
    return blocks / padded


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    small = parser.parse_args().small
    torch.set_num_threads(1)
    size = {"hidden": 64, "layers": 2, "vocabulary": 512} if small else {}
    policy = Policy.load(model_folder(**size), device="cpu", dtype="float32")
    often_ending(policy)
    say(versions("torch", "transformers"))
    time_ = time_share(policy, 8 if small else 24, 16 if small else 96)
    memory = memory_share(policy, 200 if small else 1000)
    result("decode", max(time_, memory), 0.9, "share", time=time_, memory=memory)


if __name__ == "__main__":
    main()
