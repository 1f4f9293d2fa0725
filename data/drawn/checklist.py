"""The checklist of a drawn picture, asked as the tiny model is trained to answer: "Describe.", one name per cell.

Sub-question j is "what is in cell j, in reading order"; R_p is the share of cells named rightly at their place. It
stands in for `mmrl.perception.checklist` (numbered questions in words), which a model of this size cannot read; a
dense list like this one is what PEARL's authors found worse than questions about what the task needs.
"""

from __future__ import annotations

from dataclasses import replace

from mmrl.ground.answers import tagged
from mmrl.objectives.pearl import MARKER
from mmrl.types import Prompt, Rollout


def cells_prompt(prompt: Prompt) -> Prompt | None:
    """The prompt that asks for all cells of the same picture; None for a row without cells or with several pictures."""
    cells = prompt.extra.get("cells")
    if not cells or len(prompt.media) != 1:
        return None
    content = [{"type": "image"}, {"type": "text", "text": "Describe."}]
    return replace(
        prompt,
        id=f"{prompt.id}#checklist",
        messages=({"role": "user", "content": content},),
        answer=list(cells),
        # MARKER ties the checklist to its question; all else of the row belongs to the question alone.
        extra={"cells": cells, MARKER: prompt.id},
    )


def cells_seen(rollout: Rollout) -> float:
    """Share of cells that an answer to `cells_prompt` names rightly, in [0, 1]."""
    cells = rollout.prompt.extra["cells"]
    listed = (tagged(rollout.text) or "").split(",")
    named = [" ".join(name.split()) for name in listed]
    right = sum(said == true for said, true in zip(named, cells, strict=False))
    # Longer lists are divided by their own length: naming everything must not pay.
    return right / max(len(cells), len(named))
