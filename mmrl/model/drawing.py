"""How a view sees the media of one prompt, without the policy: what can be done in a worker process.

Draws come from (run seed, step, prompt id, branch, medium) and, for per-answer views, the answer; see `branches.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mmrl.ground.seeds import generator
from mmrl.model.encoded import Encoded
from mmrl.model.patches import Patches
from mmrl.model.processing import Processing
from mmrl.types import Now, Prompt, View, ViewContext, VisualBranch

Transform = Callable[[Tensor, int], Tensor]
"""(frames uint8 [F, 3, H, W], number of the medium) -> the same as a view shows them."""


def draw(
    processing: Processing,
    prompt: Prompt,
    encoded: Encoded,
    name: str,
    branch: VisualBranch,
    now: Now,
    answer: int = -1,
    saliency: Callable[[int], Tensor | None] = lambda medium: None,
) -> tuple[Patches, ...]:
    """The media of one prompt as a branch's view shows them now; `saliency` is asked for each medium's."""
    transform = drawing(prompt, name, branch, now, answer, saliency)
    return processing.rerender(prompt, encoded, transform, branch.stage)


def drawing(
    prompt: Prompt,
    name: str,
    branch: VisualBranch,
    now: Now,
    answer: int = -1,
    saliency: Callable[[int], Tensor | None] = lambda medium: None,
) -> Transform:
    """What a branch does to the frames of a prompt's n-th medium, with the draws of this step."""

    def transform(frames: Tensor, medium: int) -> Tensor:
        # A stream of its own for each medium: what one draws must not depend on the size of the one before.
        rng = generator(now.seed, now.step, prompt.id, name, medium, answer)
        context = ViewContext(prompt, medium, saliency(medium))
        return branch.view(frames, context, rng, now)

    return transform


def draws_ahead(branch: VisualBranch) -> bool:
    """Can its pictures be drawn before the step: once per prompt, without the policy?"""
    view = branch.view
    return view.runs_ahead and not view.reads_saliency and branch.share_in_group


def spoils(view: View, prompt: Prompt) -> str:
    """Why a view changes the answer of this question; "" if it does not, or if row or view do not say.

    A row says in its column `depends_on` what its answer depends on: "geometry" (places, sides, angles) and "order"
    (what happens when). A view says it in `changes_geometry` and `changes_order`.
    """
    depends_on = prompt.extra.get("depends_on") or ()
    changes = {"geometry": view.changes_geometry, "order": view.changes_order}
    for what, changed in changes.items():
        if changed and what in depends_on:
            return (
                f"the view {type(view).__name__} changes the {what} of what is seen, and the answer depends on it "
                "(column depends_on). Use a view that leaves it alone, such as noise or a mask, and says so "
                f"(changes_{what} = False)."
            )
    return ""
