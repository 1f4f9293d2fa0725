"""Programs in Python, run in the sandbox (`ground/sandbox.py`); what they print comes back.

A program that fails has run: its error is what the model reads. Only a sandbox that does not come up is a failure of
the tool. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mmrl.ground.calls import Action
from mmrl.ground.require import require
from mmrl.ground.sandbox import Limits, Outcome, isolation, run_python
from mmrl.tools.called import FormTool
from mmrl.tools.reading import Form, words
from mmrl.tools.tool import Observation, Trajectory

BY_CODE = Form("code", tag="python")
LIMITS = Limits(seconds=10.0, memory_mb=1024, processes=8, output_kb=16, files_mb=16)
SILENT = "It printed nothing. Print what you want to see."


@dataclass(frozen=True)
class Python(FormTool):
    """Runs a program and tells what it prints."""

    name: str = "python"
    form: Form = BY_CODE
    limits: Limits = LIMITS
    """What a program may use."""
    open: bool = False
    """Run programs where the sandbox cannot shut them in, too (no namespaces): then they reach what this user can."""
    errors: int = 600
    """Last characters of an error that are told."""

    quick: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self, errors=(0 <= self.errors <= 100_000, "0 to 100,000 characters"))
        if not self.open and not isolation().shut:
            raise ValueError(
                f"The Python tool runs programs that a model writes, and {isolation().missing} If that is so, allow "
                "it with Python(open=True)."
            )
        super().__post_init__()

    def instructions(self) -> str:
        """What a prompt says about it."""
        return (
            f"To run a program, write {self.example('print(6 * 7)')} - what it prints is shown; each program "
            f"begins anew, without network, and may take {self.limits.seconds:g} seconds."
        )

    def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Run it. Raises RuntimeError if the sandbox does not come up."""
        code = unfenced_code(words(action.arguments, self.form.argument))
        outcome = run_python(code, limits=self.limits)
        if outcome.ended == "failed":
            raise RuntimeError(f"the sandbox did not come up: {outcome.errors.strip()[-300:]}")
        found = {"ok": outcome.ok, "ended": outcome.ended}
        return Observation(self._told(outcome), note=outcome.ended, found=found)

    def _told(self, outcome: Outcome) -> str:
        """What it printed, and how it ended if not well."""
        parts = [outcome.text.strip()]
        if outcome.errors.strip() and self.errors:
            parts.append(outcome.errors.strip()[-self.errors :])
        if outcome.ended != "exit":
            parts.append(ENDS[outcome.ended])
        return "\n".join(part for part in parts if part) or SILENT


ENDS = {
    "signal": "It was ended: it used more than it may, or crashed.",
    "time": "It was ended: it took too long.",
    "output": "It was ended: it printed too much.",
}


def unfenced_code(text: str) -> str:
    """The program without a fence of three back quotes round it."""
    lines = text.splitlines()
    if len(lines) > 1 and lines[0].startswith("```") and lines[-1].strip() == "```":
        return "\n".join(lines[1:-1])
    return text
