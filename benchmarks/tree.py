"""A tree of answers in one row against its paths one by one, as a share of what the counts allow.

    python benchmarks/tree.py [--rounds 2] [--depth 5]

A model of 54 M parameters, a prompt with 1,024 visual tokens, and below it a binary tree of depth 5 whose segments have
32 tokens: 62 segments, 32 answers of 160 tokens. `Rollout.path` says what the answers have in common, so that a row
holds each segment once. The other side is a row for each answer with the prompt in it. Forward and backward of language
model, head and tower.

What a tree can save differs from part to part, so the bound is put together from parts that are measured alone, on one
path: the dense layers go by tokens, attention by pairs of a query and what it looks at, the head by predicted tokens,
and the tower is there once on either side:

    bound = tower + 32 · (head · heads ratio + attention · pairs ratio + rest · tokens ratio)

each ratio that of the tree to its 32 paths. `value` is the tree's CPU time over that bound.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
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
from mmrl.model.attention import packed
from mmrl.model.logprobs import head_scores
from mmrl.model.packing import Group, PackedRow, pack
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed

SEGMENT, VISUAL, GOAL = 32, 1024, 1.15


def tree_of(policy: Policy, depth: int) -> Group:
    """A prompt and the answers of a binary tree: node n goes on from (n - 2) // 2, the first two from the prompt."""
    encoded = policy.encode(Drawn("lookup", seed=1, size_px=visual_side(VISUAL), cells=4)[0])
    rng = torch.Generator().manual_seed(0)
    nodes = 2 ** (depth + 1) - 2
    said = [torch.randint(0, 256, (SEGMENT,), generator=rng) for _ in range(nodes)]
    ways: list[list[int]] = []
    for leaf in range(nodes - 2**depth, nodes):
        way = [leaf]
        while way[0] > 1:
            way.insert(0, (way[0] - 2) // 2)
        ways.append(way)
    answers = tuple(torch.cat([said[node] for node in way]) for way in ways)
    paths = tuple(tuple((node, SEGMENT) for node in way) for way in ways)
    rows = tuple(range(len(answers)))
    return Group(encoded, encoded.visual, answers, rows, (1.0,) * len(rows), paths=paths)


def alone(group: Group, answer: int = 0) -> Group:
    """One path of the tree as a group of its own."""
    return replace(
        group, answers=(group.answers[answer],), rows=(0,), temperatures=(1.0,), paths=()
    )


def update(policy: Policy, group: Group) -> float:
    """CPU seconds of forward and backward, the tower's backward included."""
    width = max(map(len, group.answers))

    def run() -> None:
        wanted = {"raw": ScoreOutputs(grad=True)}
        scores = score_packed(policy, {"raw": [group]}, wanted, (len(group.answers), width))
        scores["raw"].logp.sum().backward()
        policy.vision.backward()

    policy.vision.clear()
    seconds = cpu_seconds(run)
    policy.model.zero_grad(set_to_none=True)
    return seconds


def tower(policy: Policy, group: Group) -> float:
    """CPU seconds of the vision tower alone."""

    def run() -> None:
        features = policy.vision.features(group.visual, True)
        sum(f.merged.sum() for f in features).backward()  # type: ignore[union-attr]
        policy.vision.backward()

    policy.vision.clear()
    seconds = cpu_seconds(run)
    policy.model.zero_grad(set_to_none=True)
    return seconds


def head(policy: Policy, tokens: int) -> float:
    """CPU seconds of the head on so many predicted tokens."""
    states = torch.randn(tokens, policy.base.lm_head.weight.shape[1], requires_grad=True)
    ids = torch.zeros(tokens, dtype=torch.long)

    def run() -> None:
        logp, _ = policy.head(_head, states, ids)
        logp.sum().backward()

    seconds = cpu_seconds(run)
    policy.model.zero_grad(set_to_none=True)
    return seconds


def _head(
    weight: torch.Tensor, states: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return head_scores(states, weight, ids)


def attention(policy: Policy, row: PackedRow) -> float:
    """CPU seconds of the attention of all layers on a row."""
    config = policy.base.config.get_text_config()
    width = config.hidden_size // config.num_attention_heads
    sizes = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    drawn = [torch.randn(1, heads, row.layout.length, width) for heads in sizes]
    inputs = [x.requires_grad_() for x in drawn]

    def run() -> None:
        for _ in range(config.num_hidden_layers):
            packed(*inputs, row.layout, width**-0.5).sum().backward()

    return cpu_seconds(run)


def pairs(row: PackedRow) -> int:
    """Pairs of a token and what it looks at, itself included."""
    layout, found = row.layout, 0
    before: list[int] = []
    for length, parent in zip(layout.lengths, layout.parents, strict=True):
        above = before[parent] if parent >= 0 else 0
        before.append(above + length)
        found += length * above + length * (length + 1) // 2
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--depth", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = model_folder(hidden=512, layers=8, heads=8, vision_hidden=256, vocabulary=49_152)
    policy = Policy.load(folder, device="cpu", dtype="float32")
    tree = tree_of(policy, arguments.depth)
    one, leaves = alone(tree), len(tree.answers)
    rows = {"tree": pack([tree], policy.device), "path": pack([one], policy.device)}
    update(policy, one)  # once unmeasured: kernels are looked for, buffers made
    seconds = interleaved(
        {
            "tree": lambda: update(policy, tree),
            "path": lambda: update(policy, one),
            "tower": lambda: tower(policy, tree),
            "head": lambda: head(policy, len(rows["path"].tokens)),
            "attention": lambda: attention(policy, rows["path"]),
        },
        arguments.rounds,
        warmup=0,
    )
    took = {name: median(values) for name, values in seconds.items()}
    ratios = {
        "tokens": len(rows["tree"].ids) / (leaves * len(rows["path"].ids)),
        "pairs": pairs(rows["tree"]) / (leaves * pairs(rows["path"])),
        "heads": len(rows["tree"].tokens) / (leaves * len(rows["path"].tokens)),
    }
    rest = took["path"] - took["tower"] - took["head"] - took["attention"]
    language = (
        took["head"] * ratios["heads"]
        + took["attention"] * ratios["pairs"]
        + rest * ratios["tokens"]
    )
    bound = took["tower"] + leaves * language
    repeated = took["tower"] + leaves * (took["path"] - took["tower"])
    say(
        f"{versions('torch', 'transformers')}; {leaves} answers of {len(tree.answers[0])} tokens"
    )
    for name, row in rows.items():
        say(f"{name}: {len(row.ids)} tokens, {pairs(row):,} pairs, {len(row.tokens)} predicted")
    for name, value in took.items():
        say(f"{name}: {value:.2f} s")
    for name, value in ratios.items():
        say(f"{name}: the paths have {1 / value:.2f} times as many")
    say(f"all paths {repeated:.1f} s, tree {took['tree']:.1f} s, bound {bound:.1f} s")
    speed = round(repeated / took["tree"], 2)
    result(
        "tree", took["tree"] / bound, GOAL, "CPU time of the tree over its bound", speedup=speed
    )


if __name__ == "__main__":
    main()
