"""Published perception rewards with the oddities of their official code, one file per family.

For comparison runs and golden tests; the rewards to train with are in `mmrl.perception.rewards` and
`mmrl.perception.consistency`. Functions take texts and numbers; `Official` makes a reward of one of them. No torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmrl.types import Rollout

Score = float | Mapping[str, float]


@dataclass(frozen=True)
class Official:
    """An official score (response, ground truth) as a reward function of this framework."""

    score: Callable[[str, str], Score]
    """A number, or named numbers of which `part` is paid."""
    part: str = ""
    """Name of the number that is paid; empty if the score is a single number."""
    preload: tuple[str, ...] = ()
    """Modules that a reward worker imports while it starts."""

    def __call__(self, rollout: Rollout) -> float:
        # Official functions know texts only: a reference that is a list goes in as Python writes it.
        score = self.score(rollout.text, str(rollout.prompt.answer))
        if isinstance(score, Mapping):
            return float(score[self.part])
        return float(score)


def math_verified(truth: str, answer: str) -> bool:
    """Whether math-verify finds the two equal; what it cannot parse is not, as in the official code.

    It runs without its signal time-outs, which work in the main thread only; call it where it can be killed.
    """
    from math_verify import parse, verify

    for module in ("parser", "grader"):  # it warns at each start that its own time-out is off
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    try:
        expected = parse(truth, parsing_timeout=None)  # type: ignore[arg-type]
        given = parse(answer, parsing_timeout=None)  # type: ignore[arg-type]
        return bool(verify(expected, given, timeout_seconds=None))
    except Exception:  # the official code catches all as well
        return False
