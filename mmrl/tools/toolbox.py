"""The tools of a run and the rules of their use; the loop itself is `rollouts/tool_use.py`.

Source of the rules and their numbers: VerlTool (arXiv 2509.01055) and its code (github.com/TIGER-AI-Lab/verl-tool).
Departures
1. A tool that fails (an exception, silence) ends its answer there with the error as a normal observation. Here it is
   asked `retries` times again, then its answer is dropped from the batch, and the run stops above a share of them.
2. Too long observations that show pictures are cut as words are, and never within a picture's tokens; there only from
   the left, and with the default (middle) they raise.
3. There is a time limit; there none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmrl.ground.require import require
from mmrl.tools.tool import Action, BadAction, Tool


class ToolsFailed(RuntimeError):
    """Too many answers were lost because tools failed."""


Truncate = Literal["left", "right", "middle"]
"""Which end of a too long observation is kept: "left" cuts the beginning off and keeps the last tokens, "right" keeps
the first ones, "middle" keeps both ends."""
Turns = Literal["raw", "user", "tool"]
"""How an observation stands in the answer: as it is, or as a turn of the chat by this role, behind which the model
speaks again."""


@dataclass(frozen=True)
class ToolUse:
    """The rules."""

    max_turns: int = 10
    """Most calls in one answer; behind the last one the model speaks once more."""
    max_action_length: int = 0
    """Most tokens of one turn of the model; 0: what the answer has room for."""
    max_observation: int = 512
    """Most tokens of an observation; more is cut, but never a picture's. Signs of a turn do not count."""
    truncate: Truncate = "middle"
    """Which end of a longer one is kept."""
    turns: Turns = "user"
    """How observations stand in the answer."""
    mask_overlong: bool = False
    """Train no token of an answer that did not come to its end."""
    mask_void: bool = False
    """Train no token of an answer that neither called a tool in a valid way nor ended."""
    time_limit: float = 60.0
    """Seconds that one attempt may take."""
    retries: int = 1
    """Further attempts after a failure."""
    pause: float = 1.0
    """Seconds before a further attempt."""
    concurrency: int = 1024
    """Most calls under way at once."""
    together: bool = False
    """Wait for all calls before any answer goes on: slower, and the same bit by bit each time."""
    most_failed: float = 0.25
    """Share of a step's answers whose tools may fail; above it the run stops. 1: it never does."""

    def __post_init__(self) -> None:
        require(
            self,
            max_turns=(1 <= self.max_turns <= 1000, "1 to 1,000"),
            max_action_length=(self.max_action_length >= 0, "0 (off) or positive"),
            max_observation=(1 <= self.max_observation <= 1 << 20, "1 to 1,048,576"),
            time_limit=(0 < self.time_limit <= 86400, "positive, at most 86,400 s"),
            retries=(0 <= self.retries <= 100, "0 to 100"),
            pause=(0 <= self.pause <= 3600, "0 to 3,600 s"),
            concurrency=(1 <= self.concurrency <= 1 << 16, "1 to 65,536"),
            most_failed=(0 <= self.most_failed <= 1, "in [0, 1]"),
        )


@dataclass(frozen=True)
class Toolbox:
    """Tools, in the order in which they are asked whether an action is theirs."""

    tools: tuple[Tool, ...]
    use: ToolUse = ToolUse()

    def __post_init__(self) -> None:
        if not self.tools:
            raise ValueError("A Toolbox has no tools; give one or more.")
        names = [tool.name for tool in self.tools]
        if not all(names) or len(set(names)) < len(names):
            raise ValueError(
                f"The tools of a Toolbox have the names {names}; each needs one of its own."
            )
        for tool in self.tools:
            if not tool.stop or not all(tool.stop):
                raise ValueError(
                    f"The tool {tool.name!r} has the stop strings {tool.stop!r}; without one nobody knows where what "
                    "is asked of it ends."
                )

    @property
    def stop(self) -> tuple[str, ...]:
        """The stop strings of all tools, each once."""
        return tuple(dict.fromkeys(one for tool in self.tools for one in tool.stop))

    @property
    def usage(self) -> str:
        """What a prompt says about the tools."""
        return "\n".join(tool.usage for tool in self.tools if tool.usage)

    def read(self, text: str) -> tuple[Tool | None, Action | None, str]:
        """(whose it is, what is asked for, why it is wrong) of a turn's words; no tool: nobody knows it."""
        for tool in self.tools:
            try:
                action = tool.parse(text)
            except BadAction as error:
                return tool, None, str(error) or "It cannot be read."
            if action is not None:
                return tool, action, ""
        return None, None, f"No tool can read this. {known(self.tools)}"


def known(tools: Sequence[Tool]) -> str:
    """Which tools there are, in a sentence for the model."""
    names = ", ".join(tool.name for tool in tools)
    return f"The tools are: {names}."
