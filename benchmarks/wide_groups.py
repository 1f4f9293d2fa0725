"""What a group costs as it grows: 8, 64 and 512 answers of 33 tokens behind one prompt with 1,024 visual tokens.

    python benchmarks/wide_groups.py

Language model, head and tower of the tiny model, forward and backward, in passes of the prompt and 512 tokens of
answers: a group of 8 is one row, wider ones are slices behind a prompt that stays open. Told of each size, measured in
a process of its own: tokens that are no answer's (the prompt, which must be run once), peak memory above that before
the update, CPU seconds (the median of a few updates), and at 64 answers also those of the same group in one row. Asked
for: prompt tokens that do not change, memory of 512 answers within 10 % of that of 64, and seconds that grow by no more
than 1.15 times as much as tokens do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import (
    Meter,
    cpu_seconds,
    median,
    model_folder,
    result,
    say,
    versions,
    visual_side,
)
from torch import Tensor

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.packing import Group, collate
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.types import Batch, Role, Rollout

SIZES, LENGTH, VISUAL, SLICE = (8, 64, 512), 33, 1024, 512
FED = LENGTH - 1
"""Tokens of an answer that go through the network: the last one predicts nothing."""
ROUNDS = {8: 3, 64: 3, 512: 1}
COMPARED = 64
"""Answers of the group that is also run in one row."""


def wide_group(policy: Policy, answers: int) -> Batch:
    """One prompt with random answers."""
    prompt = Drawn("lookup", seed=1, size_px=visual_side(VISUAL), cells=4)[0]
    ids = policy.encode(prompt).ids
    rng = torch.Generator().manual_seed(0)
    roles = torch.full((LENGTH,), int(Role.POLICY), dtype=torch.uint8)
    drawn = torch.randint(0, 256, (answers, LENGTH), generator=rng)
    return collate(
        [Rollout(prompt, 0, ids, tokens, roles, "", "eos", reward=0.0) for tokens in drawn]
    )


def update(policy: Policy, batch: Batch, parts: list[Tensor]) -> None:
    """Score and backward, part by part."""
    encoded = policy.encode(batch.rollouts[0].prompt)
    for part in parts:
        answers = tuple(batch.rollouts[row].tokens for row in part.tolist())
        rows = tuple(range(len(answers)))
        group = Group(encoded, encoded.visual, answers, rows, (1.0,) * len(answers))
        wanted = {"raw": ScoreOutputs(grad=True)}
        scores = score_packed(policy, {"raw": [group]}, wanted, (len(answers), LENGTH))
        scores["raw"].logp.sum().backward()
        policy.end_part()
    policy.vision.clear()


def measure(answers: int) -> dict[str, dict[str, float]]:
    """Way -> tokens, seconds and MiB of one group, in this process."""
    torch.set_num_threads(1)
    policy = Policy.load(model_folder(), device="cpu", dtype="float32")
    batch = wide_group(policy, answers)
    prompt = len(batch.rollouts[0].prompt_ids)
    budget = prompt + SLICE
    ways: dict[str, Callable[[], list[Tensor]]] = {
        "slices": lambda: policy.prompts.parts(batch, budget)
    }
    if answers == COMPARED:
        ways["one row"] = lambda: policy.prompts.parts(batch, 10**6)
    # One small update first: the gradients' own memory is no group's.
    update(policy, wide_group(policy, 1), [torch.arange(1)])
    meter, found = Meter(), {}
    for name, cut in ways.items():
        run = partial(once, policy, batch, cut)
        seconds = [cpu_seconds(run) for _ in range(ROUNDS[answers])]
        tokens = policy.counters["tokens/update"]
        # The first way alone has the process to itself; the others are compared by time.
        found[name] = {
            "tokens": tokens,
            "seconds": median(seconds),
            "peak": meter.read()["growth"],
        }
    return found


def once(policy: Policy, batch: Batch, cut: Callable[[], list[Tensor]]) -> None:
    """One update from nothing."""
    policy.prompts.clear()
    policy.counters.clear()
    update(policy, batch, cut())


def in_a_process(answers: int) -> dict[str, dict[str, float]]:
    """`measure` where no other size has left its memory, and freed tensors go back to the system at once."""
    command = [sys.executable, str(Path(__file__).resolve()), str(answers)]
    # Else the peak is that of the C library's own store, which grows in jumps of tens of MiB.
    at_once = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **at_once}
    ended = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print; the last line is JSON."""
    found = {}
    for size in SIZES:
        ways = in_a_process(size)
        found[size] = ways["slices"]
        for name, told in ways.items():
            rest = told["tokens"] - size * FED
            text = (
                f"{told['tokens']} tokens, {rest} of them no answer's, {told['seconds']:.2f} s"
            )
            say(f"{size} answers, {name}: {text}, {told['peak']:.0f} MiB")
    rest = {size: told["tokens"] - size * FED for size, told in found.items()}
    assert len(set(rest.values())) == 1, f"the prompt is run more than once: {rest}"
    middle, last = found[SIZES[1]], found[SIZES[2]]
    memory = last["peak"] / middle["peak"]
    growth = (last["seconds"] / middle["seconds"]) / (last["tokens"] / middle["tokens"])
    say(versions("torch", "transformers"))
    result("wide_groups", memory, 1.10, "peak memory of 512 answers / of 64", prompt=rest[8])
    unit = "growth of CPU time / growth of tokens, from 64 answers to 512"
    result("wide_groups_time", growth, 1.15, unit)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
