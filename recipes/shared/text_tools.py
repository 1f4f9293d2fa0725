"""Tools that answer with words alone: which a recipe gives its answers."""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.model.processing import Processing
from mmrl.tools.calculator import Calculator
from mmrl.tools.python import Python
from mmrl.tools.tool import Tool
from mmrl.tools.toolbox import Toolbox, ToolUse


@dataclass(frozen=True)
class TextTools:
    """Which tools there are; none unless asked for."""

    calculator: bool = False
    """Compute an expression in <calc> tags."""
    python: bool = False
    """Run a program in <python> tags, in the sandbox."""
    told: bool = True
    """Say below each question which tools there are; off for a model that knows."""

    def toolbox(self, processing: Processing, use: ToolUse) -> Toolbox | None:
        """The tools; None if there are none."""
        tools: list[Tool] = []
        if self.calculator:
            tools.append(Calculator())
        if self.python:
            tools.append(Python())
        return Toolbox(tuple(tools), use) if tools else None
