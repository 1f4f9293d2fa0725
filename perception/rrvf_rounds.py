"""RRVF's rounds: the model shows itself what its code draws before it answers.

    R_shown = 0.1 · min(n, 3)   if S of the answer >= max S of what was shown - 0.02, and R_vision >= 0.5;   else 0

with n the calls that drew a picture. So looking is paid only where it helps: an answer that falls behind what was shown
earns nothing for it, and neither do calls without a good answer.

Departures from the published loop: there a larger model puts the differences into words, here the drawing itself comes
back as a picture, and the model sees the differences. S and R_vision are those of the likeness (`rrvf.py`), also where
a judge pays for the answer. The condition and its numbers are ours (a reward for successful calls is published).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from mmrl.ground.calls import Action
from mmrl.ground.require import require
from mmrl.perception.rrvf import Pen, Similarity, drawing, given_picture
from mmrl.rewards.contract import Reward
from mmrl.tools.called import FormTool
from mmrl.tools.reading import Form, words
from mmrl.tools.tool import IMAGE, Observation, Trajectory
from mmrl.types import Media

if TYPE_CHECKING:
    from mmrl.types import Rollout

DRAW = "draw"
BY_CODE = Form("code", tag=DRAW)
FAULTS = {
    "error": "It failed: {}",
    "time": "It was ended: it took too long.",
    "output": "It was ended: it printed too much.",
    "signal": "It was ended: it used more than it may, or crashed.",
    "forbidden": "It was not run: {}.",
    "too long": "It was not run: {}.",
    "no picture": "It drew no picture.",
}
"""What is said about code without a picture, by fault."""
LONGEST = 300
"""Characters of an error that are told."""


@dataclass(frozen=True)
class Shown:
    """What showing oneself a drawing is paid."""

    each: float = 0.1
    """For each call that drew a picture."""
    most: int = 3
    """Calls that are paid."""
    slack: float = 0.02
    """By so much S of the answer may fall behind the best that was shown."""
    least: float = 0.5
    """R_vision from which on calls are paid."""

    def __post_init__(self) -> None:
        require(
            self,
            each=(0 <= self.each <= 100, "0 (off) to 100"),
            most=(0 <= self.most <= 1000, "0 to 1,000"),
            slack=(0 <= self.slack <= 1, "in [0, 1]"),
            least=(0 <= self.least <= 1, "in [0, 1]"),
        )

    def paid(self, shown: Sequence[float], likeness: float, vision: float) -> float:
        """R_shown / `each`: `shown` has S of each drawing, `likeness` and `vision` are S and R_vision of the answer."""
        if not shown or vision < self.least or likeness < max(shown) - self.slack:
            return 0.0
        return float(min(len(shown), self.most))


@dataclass(frozen=True)
class Draw(FormTool):
    """Draws code, and shows the model what it draws."""

    name: str = DRAW
    form: Form = BY_CODE
    pen: Pen | None = None
    """Who draws; needed."""

    quick: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self, pen=(self.pen is not None, "who draws the code"))
        super().__post_init__()

    def instructions(self) -> str:
        """What a prompt says about it."""
        return (
            f"To see what your code draws before you answer, write {self.example('the code')}."
        )

    def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Draw it."""
        assert self.pen is not None, "asked for at the start"
        drawn = self.pen.begin(words(action.arguments, self.form.argument).strip()).result()
        if drawn.picture is None:
            said = FAULTS.get(drawn.fault, "It drew no picture.").format(drawn.detail[:LONGEST])
            return Observation(said, note=drawn.fault, found={"drawn": False})
        seen = Media(torch.from_numpy(drawn.picture.copy()).permute(2, 0, 1)[None])
        return Observation(IMAGE, (seen,), note="drawn", found={"drawn": True})


@dataclass(frozen=True)
class Showing(Reward):
    """R_shown / `Shown.each`, in [0, `Shown.most`]. An async reward."""

    seen: Similarity
    shown: Shown = Shown()

    async def __call__(self, rollout: Rollout) -> float | None:
        picture = given_picture(rollout)
        if picture is None:
            return None
        codes = [
            str(call.action.arguments.get("code", "")).strip()
            for call in rollout.calls
            if call.tool == DRAW and call.action is not None and call.found.get("drawn")
        ]
        final = await drawing(self.seen.pen, rollout.text)
        if not codes or final.picture is None:
            return 0.0
        drawings = [await asyncio.wrap_future(self.seen.pen.begin(code)) for code in codes]
        known = self.seen.known(rollout)
        # What drew a picture when it was called may have run out of time since.
        found = [
            await asyncio.to_thread(self.seen.alike, picture, one, known)
            for one in drawings
            if one.picture is not None
        ]
        likeness = await asyncio.to_thread(self.seen.alike, picture, final, known)
        vision = await asyncio.to_thread(self.seen.paid, picture, final, known)
        return self.shown.paid(found, likeness, vision)
