"""Settings of the sampling that a run may refuse are tried on the run itself, built without weights, before it loads.

Only the whole run knows whether they fit: what compares answers, what brings others, how long a context the model has.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

from mmrl.ground.scratch import temporary_folder
from mmrl.recipes.shared.configuration import Configuration
from mmrl.types import Sampling

LONG = 8192
"""Tokens of an answer above which a model's context may be too short."""


def is_doubtful(asked: Configuration) -> bool:
    """Do flags ask for what a run may refuse? Groups of one, greedy answers, very long ones."""
    sampling = asked.arguments.get("sampling")
    if not isinstance(sampling, Sampling) or "run" not in asked.arguments:
        return False
    doubts = {
        "sampling.group_size": sampling.group_size == 1,
        "sampling.temperature": sampling.temperature == 0,
        "sampling.max_tokens": sampling.max_tokens > LONG,
    }
    return any(doubts.get(name, False) for name in asked.given)


def rehearse(main: Callable[..., Any], asked: Configuration) -> None:
    """Build the run without weights and in silence. Raises what it would raise."""
    # Here, because previews import the launch, which imports this module.
    from mmrl.recipes.shared.previewing import built, without_stages

    with temporary_folder("rehearsal") as scratch, contextlib.redirect_stderr(io.StringIO()):
        arguments, _ = without_stages(asked, scratch / "run")
        built(main, arguments, asked.recipe).rewards.close()
