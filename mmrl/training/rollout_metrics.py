"""Numbers of a step's answers: rewards, lengths, and how many groups carry signal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import pstdev

from mmrl.training.domain_metrics import domain_metrics
from mmrl.training.tool_metrics import tool_metrics
from mmrl.types import Batch, Now, Rollout, VisualBranch


def rollout_metrics(rollouts: Sequence[Rollout], batch: Batch) -> dict[str, float]:
    """Rewards, lengths and how many groups carry signal, of the policy's own answers; others under their origin.

    If no answer is the policy's own (supervised training), all count.
    """
    others = {**_metrics_of_others(rollouts), **domain_metrics(rollouts)}
    own = [row for row, rollout in enumerate(rollouts) if rollout.origin == "policy"]
    reward = batch.reward[own] if own else batch.reward
    # A reward that is not available is in no mean.
    reward = reward[~reward.isnan()]
    rollouts = [rollouts[row] for row in own] or rollouts
    others |= tool_metrics(rollouts)
    parts: dict[str, list[float]] = {}
    groups: dict[int, list[float]] = {}
    for rollout in rollouts:
        earned = float(rollout.reward or 0.0)
        if not math.isnan(earned):
            groups.setdefault(rollout.group, []).append(earned)
        for name, value in rollout.parts.items():
            if value is not None:  # a reward may abstain; its mean is over those that were paid
                parts.setdefault(f"reward/{name}", []).append(float(value))
    count, judged = len(rollouts), max(len(groups), 1)
    even = sum(max(rewards) == min(rewards) for rewards in groups.values())
    deviations = [pstdev(rewards) for rewards in groups.values()]
    return {
        "reward/total": reward.mean().item() if len(reward) else 0.0,
        "reward/std": reward.std(unbiased=False).item() if len(reward) else 0.0,
        "reward/group_std": sum(deviations) / judged,
        "reward/even_groups": even / judged,
        "answer/length": sum(len(r.tokens) for r in rollouts) / count,
        "answer/truncated": sum(r.stop == "length" for r in rollouts) / count,
        "answer/count": float(count),
        **{name: sum(values) / len(values) for name, values in parts.items()},
        **others,
    }


def _metrics_of_others(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Metrics of labels and experts, by their origin."""
    found: dict[str, float] = {}
    for origin in sorted({r.origin for r in rollouts} - {"policy"}):
        given = [r for r in rollouts if r.origin == origin]
        for name, value in _given_metrics(given).items():
            found[f"{origin}/{name}"] = value
    return found


def _given_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Count, mean reward and mean length of labels or experts."""
    count = len(rollouts)
    reward = sum(float(r.reward or 0.0) for r in rollouts) / count
    return {
        "count": float(count),
        "reward": reward,
        "length": sum(len(r.tokens) for r in rollouts) / count,
    }


def counted(sources: Sequence[Counter[str]]) -> dict[str, float]:
    """What several counters hold together; they start again."""
    counts: Counter[str] = Counter()
    for source in sources:
        counts.update(source)
        source.clear()
    return {name: float(count) for name, count in counts.items()}


def strength(branch: VisualBranch, now: Now) -> float | None:
    """How strong a branch's view is now, if it says so (noise)."""
    known = branch.view.strength(now)
    return None if known is None else float(known)
