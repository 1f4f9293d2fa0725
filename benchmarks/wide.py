"""A group that is wider than a pass, updated in slices of its answers, against the same group in one row.

    python benchmarks/wide.py

64 answers of 33 tokens behind a prompt with 256 visual tokens: 2,300 tokens in one row, or the prompt once and four
slices of 512. Language model, head and tower, forward and backward: CPU seconds, both sides in turn, medians. Also
told: what the slices cost if each repeats the prompt. That both run every token once is checked, not measured.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import (
    cpu_seconds,
    interleaved,
    median,
    model_folder,
    result,
    say,
    versions,
    visual_side,
)
from torch import Tensor

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.packing import Group, collate, split
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.types import Batch, Role, Rollout

ANSWERS, LENGTH, VISUAL, SLICE, ROUNDS = 64, 33, 256, 512, 5


def wide_group(policy: Policy) -> Batch:
    """One prompt with random answers."""
    prompt = Drawn("lookup", seed=1, size_px=visual_side(VISUAL), cells=4)[0]
    ids = policy.encode(prompt).ids
    rng = torch.Generator().manual_seed(0)
    roles = torch.full((LENGTH,), int(Role.POLICY), dtype=torch.uint8)
    drawn = torch.randint(0, 256, (ANSWERS, LENGTH), generator=rng)
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


def main() -> None:
    """Measure and print; the last line is JSON."""
    torch.set_num_threads(1)
    policy = Policy.load(model_folder(), device="cpu", dtype="float32")
    batch = wide_group(policy)
    prompt = len(batch.rollouts[0].prompt_ids)
    budget = prompt + SLICE
    ways = {
        "one row": lambda: policy.prompts.parts(batch, 10**6),
        "slices": lambda: policy.prompts.parts(batch, budget),
        "prompt repeated": lambda: split(batch, {0: prompt}, budget),
    }
    tokens: dict[str, int] = {}

    def run(name: str) -> float:
        policy.prompts.clear()
        policy.counters.clear()
        seconds = cpu_seconds(lambda: update(policy, batch, ways[name]()))
        tokens[name] = policy.counters["tokens/update"]
        return seconds

    seconds = interleaved({name: partial(run, name) for name in ways}, ROUNDS)
    assert tokens["slices"] == tokens["one row"], tokens
    for name, values in seconds.items():
        say(f"{name}: {median(values):.2f} s, {tokens[name]} tokens")
    say(versions("torch", "transformers"))
    value = median(seconds["slices"]) / median(seconds["one row"])
    result("wide", value, 1.15, "CPU time of slices / one row", tokens=tokens)


if __name__ == "__main__":
    main()
