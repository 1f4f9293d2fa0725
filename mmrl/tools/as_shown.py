"""In which size a model saw a picture, for boxes in pixels as shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mmrl.tools.boxes import Size
from mmrl.tools.tool import Trajectory
from mmrl.types import Prompt


class Plans(Protocol):
    """What knows how media are shown: `Policy.processing`."""

    def plans(self, prompt: Prompt) -> Sequence[Any]:
        """One for each of the prompt's media, with `size`: its height and width."""
        ...


def shown_size(plans: Plans | None, trajectory: Trajectory, number: int) -> Size:
    """Height and width in which picture `number`, from 1, was shown; its own without `plans`. Raises BadAction."""
    medium = trajectory.picture(number)
    if plans is None:
        height, width = medium.frames.shape[-2:]
        return height, width
    prompt = trajectory.prompt
    if number <= len(prompt.media):
        # Pictures of a prompt share its budget.
        return plans.plans(prompt)[number - 1].size
    (plan,) = plans.plans(Prompt("a picture of a tool", (), (medium,)))
    return plan.size
