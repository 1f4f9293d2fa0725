"""A run that is built and not run: whoever wants to look at its parts gets them in place of training.

    with dry():
        recipe(...)          raises `Built` where training would begin, with everything that it would have used

Inside, models are built without weights (`mmrl.model.weightless`) and no tiny model is warmed up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from mmrl.model.policy import Policy
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.left_out import LeftOut
from mmrl.types import Now, VisualBranch

_DRY: ContextVar[bool] = ContextVar("mmrl_dry", default=False)


@dataclass(frozen=True)
class Parts:
    """What a run would have used."""

    policy: Policy
    supply: Supply
    """Prompts in the order of training."""
    rewards: Rewards
    branches: Mapping[str, VisualBranch]
    left_out: LeftOut
    now: Now
    """The first step."""


class Built(BaseException):
    """The run is built. No `Exception`, for nobody on the way shall handle it."""

    def __init__(self, parts: Parts) -> None:
        super().__init__("built")
        self.parts = parts


@contextmanager
def dry() -> Iterator[None]:
    """Build runs instead of running them."""
    token = _DRY.set(True)
    try:
        yield
    finally:
        _DRY.reset(token)


def is_dry() -> bool:
    """Are runs only built?"""
    return _DRY.get()


def hand_over(parts: Parts) -> None:
    """Called where training would begin. Raises `Built` inside `dry`."""
    if is_dry():
        raise Built(parts)
