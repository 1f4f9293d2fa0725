"""Other people's graders as rewards, for runs that shall be compared with published numbers. Our own is in `answers`.

`Graded(boxed, "mathruler")` reads the answer out of a text and compares it with the references by one grader alone:
mathruler (EasyR1, PAPO and descendants, see `mathruler` for its oddities) or math-verify (TRL, Perception-R1).

No torch, so that a reward worker stays small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mmrl.rewards.answers import references, verified
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
