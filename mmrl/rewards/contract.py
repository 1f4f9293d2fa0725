"""What the core reads of a reward besides calling it: markers, and counts of its own. No torch.

A reward is a function, marked by the decorators of `parts.py`, or an object with the same markers as attributes. An
object may derive from `Reward`, which has every one of them with its default. Markers that are nearly spelt like one of
these are refused, since the default would hold without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from mmrl.ground.declared import CLOSE, refuse_misspelt

MARKERS = (
    *("batched", "grouped", "in_process", "lacks_alone", "needs", "needs_tags"),
    *("preload", "metrics", "judge_prompts"),
)
"""The attributes of a reward that the core reads."""


class Reward:
    """A reward that is an object, for example one that holds a judge."""

    batched: bool = False
    """Takes all rollouts at once and returns one value for each (`@batch`)."""
    grouped: bool = False
    """Takes the rollouts of one group at once and returns one value for each (`@grouped`)."""
    lacks_alone: bool = False
    """A None leaves out its answer, and no other: what it pays others is not compared with it. Else the part is dropped
    for the whole group, whose answers are then paid by their other parts."""
    in_process: bool = False
    """Runs in the trainer's process, without time or memory limit (`@in_process`)."""
    needs: tuple[str, ...] = ()
    """What it reads of a rollout that does not travel by itself: "media", "prompt_ids", "logp" (`@needs`)."""
    needs_tags: tuple[str, ...] = ()
    """Tags without which it pays nothing (`@needs_tags`)."""
    preload: tuple[str, ...] = ()
    """Modules that a worker imports while it starts (`@preloads`)."""
    judge_prompts: tuple[str, ...] = ()
    """Names of the prompts that its judge is asked with (`judge_prompts`): part of a run's identity and its report."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Reward)

    def __call__(self, rollout: Any) -> Any:
        """Pays one answer (all of them if `batched`). None means not available (a judge that is down), never 0."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__.")

    def metrics(self) -> Mapping[str, float]:
        """What it counted since the last call, for the log."""
        return {}


def own_metrics(reward: Callable[..., Any]) -> Mapping[str, float]:
    """The counts of a reward that has any."""
    count = getattr(reward, "metrics", None)  # a plain function has none
    return {} if count is None else count()


def refuse_misspelt_markers(name: str, reward: Callable[..., Any]) -> None:
    """Raise ValueError if an attribute of the reward part `name` is nearly a marker."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    found = {*getattr(reward, "__dict__", {})}
    if not isinstance(reward, type) and not hasattr(
        reward, "__name__"
    ):  # an object: its class speaks too
        found |= {*vars(type(reward))}
    for attribute in sorted(found):
        if attribute.startswith("_") or attribute in MARKERS:
            continue
        if meant := get_close_matches(attribute, MARKERS, 1, CLOSE):
            raise ValueError(
                f"The reward part {name!r} has an attribute {attribute!r}, which looks like the marker {meant[0]!r}. "
                f"Name it so, or give another thing another name; the markers are {', '.join(MARKERS)}."
            )
