"""Calls of tools, as rewards, the log and the report read them: what was asked for, and what became of it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["answered", "refused", "failed", "timeout"]
"""The tool answered; it refused what was asked for, and said why; it could not answer, or not in time."""


@dataclass(frozen=True)
class Action:
    """What a model asked for."""

    name: str
    """Of the tool."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One call of a tool within an answer."""

    tool: str
    """Name of the tool; "" where no tool could read what was asked for."""
    action: Action | None
    """None: it could not be read."""
    outcome: Outcome
    note: str = ""
    """Why it was refused, or why the tool failed."""
    seconds: float = 0.0
    """From the call to its end, retries and pauses included."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """What the tool tells rewards about it (`Observation.found`), for example the names of pictures that it found."""
    said: str = ""
    """What the model was told, with a marker for each picture; nothing where the answer ended with the call."""
    shown: int = 0
    """Pictures and clips among it."""

    @property
    def valid(self) -> bool:
        """Did a tool do what it was asked for?"""
        return self.outcome == "answered"
