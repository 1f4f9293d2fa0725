"""Numbers of each domain of a mixture, beside those of all answers together; nothing where rows are of no mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmrl.ground.domains import domain_of
from mmrl.types import Rollout


def by_domain(rollouts: Sequence[Rollout]) -> dict[str, list[Rollout]]:
    """Answers by the domain of their prompt, sorted by name; empty if they are of no mixture."""
    found: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        name = domain_of(rollout.prompt.extra)
        if name:
            found.setdefault(name, []).append(rollout)
    return {name: found[name] for name in sorted(found)}


def domain_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`domain/NAME/prompts`, `/reward` and the mean of each part, over one step's answers.

    Labels and experts count for the prompts alone.
    """
    metrics: dict[str, float] = {}
    for name, answers in by_domain(rollouts).items():
        own = [rollout for rollout in answers if rollout.origin == "policy"]
        values: dict[str, list[float]] = {}
        if own:
            values["reward"] = [float(rollout.reward or 0.0) for rollout in own]
        for rollout in own:
            for part, value in rollout.parts.items():
                if value is not None:
                    values.setdefault(part, []).append(float(value))
        metrics[f"domain/{name}/prompts"] = float(len({r.group for r in answers}))
        for part, numbers in values.items():
            metrics[f"domain/{name}/{part}"] = sum(numbers) / len(numbers)
    return metrics


def domain_scores(
    rollouts: Sequence[Rollout], score: Callable[[Rollout], float]
) -> dict[str, float]:
    """`NAME/accuracy` and `NAME/answers` of each domain of an evaluation."""
    found: dict[str, float] = {}
    for name, answers in by_domain(rollouts).items():
        found[f"{name}/accuracy"] = sum(map(score, answers)) / len(answers)
        found[f"{name}/answers"] = float(len(answers))
    return found
