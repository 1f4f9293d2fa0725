"""Runs that are built and not run: for previews and checks, and before a load that a run would only refuse.

Only the whole run knows whether its settings fit: what compares answers, what brings others, how much the model reads.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from mmrl.ground.scratch import temporary_folder
from mmrl.recipes.shared.configuration import Configuration
from mmrl.training.dry import Built, Parts, dry
from mmrl.types import Sampling

LONG = 8192
"""Tokens of an answer above which a model's context may be too short."""
NEEDS_MODEL: Mapping[str, tuple[str, Any, str]] = {
    "select": ("target", 0, "the difficulty filter is left out, so rows stand before it"),
    "tuning": ("rows", 0, "the supervised stage before it is left out"),
}
"""Argument of a recipe -> its field that switches a stage off, the value that does, and what the page says then."""


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
    with temporary_folder("rehearsal") as scratch, contextlib.redirect_stderr(io.StringIO()):
        arguments, _ = without_stages(asked, scratch / "run")
        built(main, arguments, asked.recipe).rewards.close()


def built(main: Callable[..., Any], arguments: Mapping[str, Any], recipe: str) -> Parts:
    """The parts of the run that a recipe would start. Raises ValueError for a recipe that starts none."""
    if "run" not in inspect.signature(main).parameters:
        raise ValueError(
            f"The recipe {recipe!r} trains nothing, so there is nothing to preview; `mmrl list` names the others."
        )
    with dry():
        try:
            main(**arguments)
        except Built as ready:
            return ready.parts
    raise AssertionError(f"the recipe {recipe!r} ended without a run")


def without_stages(asked: Configuration, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The arguments with a scratch output and without stages that need a model, and what that leaves out."""
    arguments, notes = dict(asked.arguments), []
    for name, (field, off, note) in NEEDS_MODEL.items():
        record = arguments.get(name)
        if is_dataclass(record) and getattr(record, field) != off:
            arguments[name] = replace(record, **{field: off})  # type: ignore[type-var]
            notes.append(f"--{name}.{field} {getattr(record, field)}: {note}.")
    run = arguments.get("run")
    if run is not None:
        # Two held-out rows are enough to see that there are some.
        arguments["run"] = replace(
            run, output=folder, overwrite=False, eval_prompts=2, logger="none"
        )
    return arguments, notes
