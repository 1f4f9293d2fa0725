"""Marking answers of exported rows, in any trainer.

    score_row(completion, row)                      one answer, one row of an exported data set
    trl_reward(completions, **columns)          a TRL reward function: columns as lists, completions as text or chat

Both need only the columns `task`, `truth` and `surface`; nothing is decoded, nothing raises on any text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from mmrl.data.pretext.catalogue import find
from mmrl.data.pretext.contract import Score, Truth
from mmrl.data.pretext.surface import Surface


def score_row(completion: str, row: Mapping[str, Any]) -> Score:
    """What a completion earns for a row with `task`, `truth` (JSON) and `surface` (JSON)."""
    return find(row["task"]).score(completion, _truth(row["truth"]), _surface(row["surface"]))


def trl_reward(
    completions: Sequence[Any],
    task: Sequence[str],
    truth: Sequence[str],
    surface: Sequence[str],
    **_: Any,
) -> list[float]:
    """Rewards in [0, 1], one per completion; a chat completion is read from its last message."""
    rewards = []
    for done, name, right, form in zip(completions, task, truth, surface, strict=True):
        row = {"task": name, "truth": right, "surface": form}
        rewards.append(score_row(_text(done), row).reward)
    return rewards


def _text(completion: Any) -> str:
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


# Kept: a group of answers shares one truth.
@lru_cache(maxsize=4096)
def _truth(text: str) -> Truth:
    return json.loads(text)


@lru_cache(maxsize=64)
def _surface(text: str) -> Surface:
    return Surface(**json.loads(text))
