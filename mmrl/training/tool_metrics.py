"""Numbers of a step's calls of tools; nothing where nobody called one.

tool/calling_share     share of answers that called a tool (with one group: ρ)
tool/answer_calls      calls per answer
tool/refused_share     share of calls that were refused
tool/crop_area         mean area of crops, as a share of their picture
tool/right_calling     share of right answers among those that called a tool
tool/right_silent      the same among the others
tool/curiosity_wrong   mean bonus of wrong answers, where there is such a part of the reward
"""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.types import Rollout

BONUS = "curiosity"
"""Part of the reward for calling a tool."""


def tool_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """The metrics above; those of which there is nothing are left out."""
    calls = [call for rollout in rollouts for call in rollout.calls]
    if not calls:
        return {}
    judged = [rollout for rollout in rollouts if rollout.correct is not None]
    areas = [call.found.get("area") for call in calls if call.valid]
    wrong = [rollout.parts.get(BONUS) for rollout in judged if not rollout.correct]
    values: dict[str, list[float | None]] = {
        "calling_share": [float(bool(rollout.calls)) for rollout in rollouts],
        "answer_calls": [float(len(rollout.calls)) for rollout in rollouts],
        "refused_share": [float(not call.valid) for call in calls],
        "crop_area": areas,
        "right_calling": [float(bool(one.correct)) for one in judged if one.calls],
        "right_silent": [float(bool(one.correct)) for one in judged if not one.calls],
        "curiosity_wrong": wrong,
    }
    means = {f"tool/{name}": _mean(some) for name, some in values.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
