"""Teachers for drawn look-ups: worked answers of three kinds, so that recipes with teachers run without rows of yours.

brief      the answer alone
thorough   what each cell holds, then the answer
careless   the words of the answer in the other order, which is wrong for a shape with a colour
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from mmrl.recipes.shared.solution_data import OBSERVED, Observed
from mmrl.types import Prompt, Prompts

WORKED = "worked"
"""The column that these teachers write."""


class Worked(Prompts):
    """Drawn look-ups with `extra["worked"]`: teacher -> what it wrote."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts, self.size = Observed(prompts), prompts.size

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.prompts[index]
        seen = prompt.extra[OBSERVED]
        extra = {**prompt.extra, WORKED: worked(str(prompt.answer), seen)}
        return replace(prompt, extra=extra)

    def drain(self) -> Mapping[str, int]:
        """What the rows counted."""
        return self.prompts.drain()


def worked(answer: str, seen: str) -> dict[str, str]:
    """What each teacher writes about a look-up."""
    turned = " ".join(reversed(answer.split()))
    return {
        "brief": _tagged(answer),
        "thorough": f"{seen}\n{_tagged(answer)}",
        "careless": _tagged(turned),
    }


def _tagged(answer: str) -> str:
    """As the look-ups have it."""
    return f"<answer> {answer} </answer>"
