"""What tools lead to expect, on drawn tasks that cannot be solved as they are shown.

zoom      a picture of four cells at half its size, at which the shapes in them vanish (`data/drawn/closer.py`)
pages     the same, on one of four pages that must be found first

The warm start is taught to call tools in three of four answers, to look in the right place in about six of ten of
these, and to read what it is shown (`recipes/shared/closer_data.py`). The reference is GRPO on the same rows from the
same start, whose answers call nothing.

`closer` is the accuracy of greedy answers with the tools at hand, `accuracy` that without: by chance one in twelve.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from effect_claims import Claim, Method

from mmrl.data.drawn.closer import Closer, CloserTask
from mmrl.training.evaluate import heldout_prompts
from mmrl.types import Prompt

SEED, LONGEST = 99, 64
STEPS, QUESTIONS = 50, 192
TOOL_OPTIONS = ("--monitor.probe-every", "0")
EXPLAINED = "Tasks and numbers are explained in `benchmarks/effect_claims_tools.py`. A verdict needs five seeds."


def _claims(task: str) -> tuple[Claim, ...]:
    return (
        Claim("with the tools accuracy rises", "closer", task, against="start"),
        Claim("above that of GRPO without tools", "closer", task),
        Claim("which it owes to the tools", "closer-accuracy", task, against="start"),
    )


TOOLS: Mapping[str, Method] = {
    "verltool": Method("verltool", _claims("zoom")),
    "vrag_rl": Method("vrag_rl", _claims("pages")),
}


def closer_questions(task: CloserTask, count: int) -> tuple[Prompt, ...]:
    """So many held-out questions of a task."""
    return tuple(heldout_prompts(Closer(task, "heldout", SEED), count))


zoom_questions = partial(closer_questions, "zoom")
page_questions = partial(closer_questions, "pages")
