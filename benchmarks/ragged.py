"""Several ragged groups in one packed pass against the same groups one by one: CPU time of forward and backward.

    python benchmarks/ragged.py

Four prompts with pictures of 64 to 400 visual tokens and answers of 3 to 96 tokens; language model and head, with the
features of the pictures made once outside the clock. One by one is as good as packing can be on a CPU without waste, so
the packed pass must only not cost more.
"""

from __future__ import annotations

import sys
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

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed

GROUPS = (
    (64, (3, 17, 40, 96, 8, 30, 61, 12)),
    (400, (24,) * 8),
    (144, (90, 5, 33)),
    (256, (64, 48, 32, 16, 8, 4)),
)
"""Visual tokens, and the answers of each group."""
ROUNDS = 7


def ragged_groups(policy: Policy) -> list[Group]:
    """The groups with random answers."""
    rng = torch.Generator().manual_seed(0)
    made, row = [], 0
    for number, (visual, lengths) in enumerate(GROUPS):
        encoded = policy.encode(
            Drawn("lookup", seed=number, size_px=visual_side(visual), cells=4)[0]
        )
        answers = tuple(torch.randint(0, 256, (length,), generator=rng) for length in lengths)
        rows = tuple(range(row, row + len(answers)))
        made.append(Group(encoded, encoded.visual, answers, rows, (1.0,) * len(answers)))
        row += len(answers)
    return made


def run(policy: Policy, parts: list[list[Group]]) -> None:
    """Score and backward, part by part."""
    rows, width = (
        sum(len(lengths) for _, lengths in GROUPS),
        max(max(lengths) for _, lengths in GROUPS),
    )
    for part in parts:
        scores = score_packed(
            policy, {"raw": part}, {"raw": ScoreOutputs(grad=True)}, (rows, width)
        )
        scores["raw"].logp.sum().backward()


def main() -> None:
    """Measure and print; the last line is JSON."""
    torch.set_num_threads(1)
    policy = Policy.load(
        model_folder(), device="cpu", dtype="float32", freeze=("vision", "merger")
    )
    groups = ragged_groups(policy)
    tokens = sum(group.size for group in groups)
    sides = {
        "packed": lambda: cpu_seconds(lambda: run(policy, [groups])),
        "one by one": lambda: cpu_seconds(lambda: run(policy, [[group] for group in groups])),
    }
    seconds = interleaved(sides, ROUNDS)
    say(f"{versions('torch', 'transformers')}; {tokens} tokens in {len(groups)} groups")
    for name, values in seconds.items():
        say(f"{name}: {[round(x, 3) for x in values]} s")
    value = median(seconds["packed"]) / median(seconds["one by one"])
    result("ragged", value, 1.1, "CPU time / groups one by one")


if __name__ == "__main__":
    main()
