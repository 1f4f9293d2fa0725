"""Other people's graders as rewards, for runs that shall be compared with published numbers. Our own is in `answers`.

`Graded(boxed, "mathruler")` reads the answer out of a text and compares it with the references by one grader alone:
mathruler (EasyR1, PAPO and descendants, see `mathruler` for its oddities) or math-verify (TRL, Perception-R1).

No torch, so that a reward worker stays small.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mmrl.rewards.answers import references
from mmrl.rewards.mathruler import grade_answer

if TYPE_CHECKING:
    from mmrl.types import Rollout

GraderName = Literal["ours", "math-verify", "mathruler"]


@dataclass(frozen=True)
class Graded:
    """1 if the answer that `read` finds in the text equals a reference by this grader, else 0."""

    read: Callable[[str], str | None]
    """Text -> answer, or None if there is none: `answers.boxed`, `answers.tagged`, …"""
    grader: Literal["math-verify", "mathruler"]

    @property
    def preload(self) -> tuple[str, ...]:
        """What a worker imports before the first answer."""
        return ("math_verify",) if self.grader == "math-verify" else ("sympy",)

    def __call__(self, rollout: Rollout) -> float:
        answer = self.read(rollout.text)
        if answer is None:
            return 0.0
        same = verified if self.grader == "math-verify" else grade_answer
        return float(any(same(answer, one) for one in references(rollout.prompt.answer)))


def verified(answer: str, reference: str) -> bool:
    """Does math-verify call both equal? Nothing of ours is asked. Run it where it can be killed."""
    from math_verify import parse, verify

    for module in ("parser", "grader"):  # it warns at each start that its own time-out is off
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    expected = parse(reference, parsing_timeout=None)  # type: ignore[arg-type]
    given = parse(answer, parsing_timeout=None)  # type: ignore[arg-type]
    return bool(verify(expected, given, timeout_seconds=None))
