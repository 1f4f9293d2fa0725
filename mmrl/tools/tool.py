"""A tool is one small class: it reads what the model asked for, and answers with words, pictures and clips.

    class Calculator(Tool):
        name = "calculator"
        usage = "Write <calc>2 + 3</calc> to have it computed."
        stop = ("</calc>",)

        def parse(self, text):                    the words of this turn, up to and including the stop string
            inside = between(text, "<calc>", "</calc>")
            return None if inside is None else Action(self.name, {"expression": inside})

        def act(self, action, trajectory):        in a thread of its own; may be `async`
            return Observation(str(compute(action.arguments["expression"])))

What belongs to one answer is kept in `trajectory.state[tool.name]`, never in the tool: answers are told apart by their
trajectory, and many of them call one tool at the same time.

    parse raises BadAction   it is mine, and wrong: the model is told why, and the answer goes on
    act raises BadAction     so is what it asks for, for example a picture that is not there
    act raises anything else, or is too slow          the tool failed, which no answer may learn from (`Toolbox`)
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmrl.ground.calls import Action, Call
from mmrl.ground.declared import refuse_misspelt
from mmrl.ground.seeds import generator

if TYPE_CHECKING:
    import torch

    from mmrl.types import Media, Prompt

__all__ = ["IMAGE", "Action", "BadAction", "Call", "Observation", "Tool", "Trajectory"]

IMAGE = "<image>"
"""Where a picture or clip stands in the text of an observation."""


class BadAction(ValueError):
    """What the model asked for cannot be done; the text is what it is told."""


@dataclass(frozen=True)
class Observation:
    """What a tool answers."""

    text: str = ""
    """With one `IMAGE` for each of the media, in their order; missing ones are added at the end, each on a line of its
    own. Without media it is a word like any other. Nothing in the text is read as a sign of the chat template."""
    media: tuple[Media, ...] = ()
    """Pictures and clips that the model shall see. They become pictures of the trajectory, behind all earlier ones."""
    done: bool = False
    """Does the answer end here? Then the model writes nothing after it."""
    valid: bool = True
    """False: the tool refused, and says why in `text`."""
    note: str = ""
    """For the log and the report; the model does not see it."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """For rewards (`Call.found`); small, of plain values."""

    def marked(self) -> str:
        """The text with one marker per medium. Raises ValueError for more markers than media."""
        if not self.media:
            return self.text  # a program may print the marker, or a model ask for it
        missing = len(self.media) - self.text.count(IMAGE)
        if missing < 0:
            raise ValueError(
                f"An observation has {self.text.count(IMAGE)} markers {IMAGE} and {len(self.media)} media; give each "
                "marker its medium, or write another word into the text."
            )
        return self.text + f"\n{IMAGE}" * missing

    def parts(self) -> list[str | Media]:
        """Words and media in their order. Raises ValueError for more markers than media."""
        if not self.media:
            return [self.text]
        words = self.marked().split(IMAGE)
        found: list[str | Media] = [words[0]]
        for medium, behind in zip(self.media, words[1:], strict=True):
            found += [medium, behind]
        return found


@dataclass(eq=False)
class Trajectory:
    """One answer while it grows: its pictures, its calls and what its tools remember of it."""

    prompt: Prompt
    key: tuple[int | str, ...] = ()
    """What keys its draws: run seed, step, prompt, view and the number of the answer."""
    media: list[Media] = field(default_factory=list)
    """All pictures and clips so far, those of the prompt first."""
    calls: list[Call] = field(default_factory=list)
    """All calls so far."""
    state: dict[str, Any] = field(default_factory=dict)
    """Name of a tool -> what it remembers."""

    def picture(self, number: int) -> Media:
        """The picture or clip of this number, counted from 1. Raises BadAction."""
        if isinstance(number, bool) or not isinstance(number, int):
            raise BadAction(f"{number!r} is not the number of a picture; give 1, 2, 3, …")
        if not self.media:
            raise BadAction("There is no picture yet.")
        if not 1 <= number <= len(self.media):
            raise BadAction(
                f"There is no picture {number}; they have the numbers 1 to {len(self.media)}."
            )
        return self.media[number - 1]

    def add(self, medium: Media) -> int:
        """A further picture or clip; its number. The loop does so for what an observation shows."""
        self.media.append(medium)
        return len(self.media)

    def fork(self, *name: int) -> Trajectory:
        """A copy that goes its own way from here, with draws of its own."""
        state = copy.deepcopy(self.state)
        return Trajectory(
            self.prompt, (*self.key, "fork", *name), [*self.media], [*self.calls], state
        )

    @property
    def turn(self) -> int:
        """Calls so far."""
        return len(self.calls)

    def rng(self, purpose: str = "tool") -> torch.Generator:
        """Draws of this turn of this answer, the same in every run and order."""
        return generator(*self.key, self.turn, purpose)


class Tool:
    """Derive from it. One object serves all answers, several at the same time."""

    name: str = ""
    """Under which it is counted, and keeps its state."""
    usage: str = ""
    """What a prompt says about it."""
    stop: tuple[str, ...] = ()
    """Strings that end what the model asks for; they stay in the answer."""
    quick: bool = False
    """True: it is done in a moment, and called where it is asked for, without a thread and a time limit. Then the run
    is the same bit by bit each time; otherwise which answers advance together depends on the clock, and with it the
    last digits of their log-probs (`ToolUse.together`)."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_misspelt(cls, Tool)

    def begin(self, trajectory: Trajectory) -> None:
        """An answer begins. For what shall be ready before the first call; nothing by default."""

    def parse(self, text: str) -> Action | None:
        """What is asked for in the words of one turn; None: nothing of mine. Raises BadAction."""
        raise NotImplementedError(f"{type(self).__name__} has no parse.")

    def act(
        self, action: Action, trajectory: Trajectory
    ) -> Observation | Awaitable[Observation]:
        """Do it. Raises BadAction for what cannot be done; whatever else it raises is a failure of the tool."""
        raise NotImplementedError(f"{type(self).__name__} has no act.")

    def end(self, trajectory: Trajectory) -> None:
        """The answer is over, however it ended; nothing by default."""
