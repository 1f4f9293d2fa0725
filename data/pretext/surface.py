"""How a question is put: tags around the answer, thinking style, wording variant, layout of the pieces.

The surface never touches the truth: two samples that differ only in their surface have the same solution key.
Departures: a worked example is shown only if guessing it right is unlikely (`EXAMPLE_CHANCE`), because an example
that is never equal to the truth would rule out one of few options; for few options the format is described instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EXAMPLE_CHANCE = 0.05
"""Show an example answer only where a random answer is right at most this often."""

Tags = Literal["answer", "boxed", "plain"]
Thinking = Literal["none", "think"]
Layout = Literal["separate", "canvas"]

_FIRST = "Reason inside <think> </think> first"
INSTRUCTIONS: dict[tuple[str, str], str] = {
    ("answer", "none"): "Reply with the final answer only, inside <answer> </answer>.",
    ("boxed", "none"): "Reply with the final answer only, inside \\boxed{}.",
    ("plain", "none"): "Reply with the answer only, without any other words.",
    ("answer", "think"): f"{_FIRST}, then put the final answer inside <answer> </answer>.",
    ("boxed", "think"): f"{_FIRST}, then put the final answer inside \\boxed{{}}.",
    ("plain", "think"): f"{_FIRST}; after it write the answer only.",
}


@dataclass(frozen=True)
class Surface:
    """The outside of a question."""

    tags: Tags = "answer"
    """Where the answer stands: <answer>…</answer>, \\boxed{…}, or the whole reply."""
    thinking: Thinking = "none"
    """Ask for a <think> block before the answer."""
    variant: int | None = None
    """Index of the prompt wording; None rotates by the sample's own random numbers."""
    layout: Layout = "separate"
    """Pieces as separate images, or numbered on one canvas."""

    def wrap(self, body: str) -> str:
        """A reply in the asked-for form with this answer."""
        forms = {
            "answer": f"<answer>{body}</answer>",
            "boxed": f"\\boxed{{{body}}}",
            "plain": body,
        }
        answer = forms[self.tags]
        if self.thinking == "none":
            return answer
        return f"<think>I compared the pieces.</think>\n{answer}"

    @property
    def instruction(self) -> str:
        """The sentence that asks for this form."""
        return INSTRUCTIONS[self.tags, self.thinking]
