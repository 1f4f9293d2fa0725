"""Labels with calls of tools in them, for supervised warm-ups: what the tool answers stands in them, untrained.

`prompt.extra["turns"]` is a `Script`: the texts of the model's turns, and the tools that answer all but the last one.
The tools are really called, and their answers stand as they do in the loop (`rollouts/tool_loop.py`), so that a model
learns to read what it will be shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from mmrl.ground.calls import Call
from mmrl.model.observing import Frame, observation
from mmrl.model.processing import Processing
from mmrl.rollouts.groups import LabelRollout
from mmrl.tools.tool import IMAGE, Observation, Trajectory
from mmrl.tools.toolbox import Toolbox
from mmrl.types import Media, Prompt, Role, Rollout

TURNS = "turns"
"""Column of a prompt whose label calls tools."""


@dataclass(frozen=True)
class Script:
    """What the model shall say."""

    turns: tuple[str, ...]
    """Each but the last one calls a tool."""
    toolbox: Callable[[Processing], Toolbox]
    """The tools, for a model's pictures."""


@dataclass(frozen=True)
class ToolLabels(LabelRollout):
    """Labels as `LabelRollout`, and those of prompts with turns."""

    processing: Processing = field(kw_only=True)

    def label(self, number: int, prompt: Prompt) -> Rollout:
        """The label of a prompt as its only answer. Raises `BadRow`, and ValueError for a turn that calls no tool."""
        plain = super().label(number, prompt)
        script = prompt.extra.get(TURNS)
        return plain if script is None else _Said(self.processing, script).answer(plain)


class _Said:
    """A label that grows turn by turn."""

    def __init__(self, processing: Processing, script: Script) -> None:
        self.processing, self.script = processing, script
        self.toolbox = script.toolbox(processing)
        self.frame = Frame.of(processing, self.toolbox.use.turns)
        self.tokens: list[int] = []
        self.roles: list[Role] = []
        self.calls: list[Call] = []

    def answer(self, plain: Rollout) -> Rollout:
        """The label in the place of the plain one."""
        trajectory = Trajectory(plain.prompt, media=list(plain.prompt.media))
        *calls, last = self.script.turns
        for text in calls:
            self._put(self.processing.encoder.encode(text).ids, Role.POLICY)
            self._called(text, trajectory)
        self._put(self.processing.encode_answer(last).tolist(), Role.POLICY)
        return Rollout(
            prompt=plain.prompt,
            group=plain.group,
            prompt_ids=plain.prompt_ids,
            tokens=torch.tensor(self.tokens),
            roles=torch.tensor([int(role) for role in self.roles], dtype=torch.uint8),
            text="".join(self.script.turns),
            stop="eos",
            origin="label",
            reward=1.0,
            media=tuple(trajectory.media[len(plain.prompt.media) :]),
            calls=tuple(self.calls),
        )

    def _put(self, ids: list[int], role: Role) -> None:
        self.tokens += ids
        self.roles += [role] * len(ids)

    def _called(self, text: str, trajectory: Trajectory) -> None:
        """Call the tool and put what it says behind the call."""
        tool, action, why = self.toolbox.read(text)
        if tool is None or action is None:
            raise ValueError(f"The turn {text!r} of a label calls no tool: {why}")
        told = tool.act(action, trajectory)
        assert isinstance(told, Observation), "tools of labels answer at once"
        for medium in told.media:
            trajectory.add(medium)
        words = told.marked().split(IMAGE)
        parts: list[str | Media] = [words[0]]
        for medium, behind in zip(told.media, words[1:], strict=True):
            parts += [medium, behind]
        use = self.toolbox.use
        most, side = use.max_observation, use.truncate
        ids = observation(self.processing, self.frame, parts, most, side)
        self._put(list(ids), Role.OBSERVATION)
        self.calls.append(Call(tool.name, action, "answered", found=dict(told.found)))
