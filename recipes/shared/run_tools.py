"""The tools of a run, for whoever measures it: made of its settings, as its recipe made them.

A recipe whose answers call tools takes a record that has a method `toolbox` (`processing`, `use`, and `rows` where it
reads them) and, if questions say what tools there are, a field `told`; and a `ToolUse`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.ground.contents import digest
from mmrl.model.policy import Policy
from mmrl.recipes.shared.configuration import rebuilt
from mmrl.recipes.shared.run_settings import stored_settings
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.rewording import with_text
from mmrl.rollouts.tool_use import ToolEngine
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.types import Prompt, Prompts


@dataclass(frozen=True)
class RunTools:
    """The tools of a run."""

    toolbox: Toolbox
    told: bool
    """Do questions say what tools there are?"""
    mark: str
    """Changes with their settings."""

    def answering(self, engine: Engine, policy: Policy) -> Engine:
        """The engine, with these tools."""
        return ToolEngine(engine, policy, self.toolbox)

    def asked(self, rows: Sequence[Prompt]) -> list[Prompt]:
        """The questions as the run asked them."""
        if not self.told:
            return list(rows)
        return [with_text(row, f"\n\n{self.toolbox.usage}") for row in rows]


def with_tools(
    run: RunTools | None, engine: Engine, policy: Policy, rows: Sequence[Prompt]
) -> tuple[Engine, list[Prompt]]:
    """The engine and the questions with the tools of a run, if it has any."""
    if run is None:
        return engine, list(rows)
    return run.answering(engine, policy), run.asked(rows)


def tools_of_run(folder: Path, policy: Policy, rows: Prompts) -> RunTools | None:
    """The tools of the run in a folder; None for a run without tools, and for what is no run.

    Raises ValueError for settings that the recipe of today does not take.
    """
    stored = stored_settings(folder)
    recipe = None if stored is None else stored.get("recipe")
    if not recipe or not str(recipe["recipe"]).isidentifier():
        return None
    return tools_of(str(recipe["recipe"]), recipe["arguments"], policy, rows)


def tools_of(
    recipe: str, known: Mapping[str, Any], policy: Policy, rows: Prompts
) -> RunTools | None:
    """As `tools_of_run`, of a recipe's name and the arguments that it was called with."""
    if importlib.util.find_spec(f"mmrl.recipes.{recipe}") is None:
        return None
    main = getattr(importlib.import_module(f"mmrl.recipes.{recipe}"), "main", None)
    hints = typing.get_type_hints(main) if main is not None else {}
    kinds = {name: hints[name] for name in known if isinstance(hints.get(name), type)}
    wanted = {n: kind for n, kind in kinds.items() if _makes_tools(kind) or kind is ToolUse}
    records = {name: rebuilt(kind, known[name], name) for name, kind in wanted.items()}
    uses = [one for one in records.values() if isinstance(one, ToolUse)]
    makers = [one for one in records.values() if _makes_tools(type(one))]
    if not makers:
        return None
    (maker,), use = makers, (uses or [ToolUse()])[0]
    more = {"rows": rows} if "rows" in inspect.signature(maker.toolbox).parameters else {}
    mark = digest({name: known[name] for name in sorted(records)}).hex()
    toolbox: Toolbox | None = maker.toolbox(policy.processing, use, **more)
    if toolbox is None:
        return None
    return RunTools(toolbox, bool(getattr(maker, "told", False)), mark)


def _makes_tools(kind: type) -> bool:
    return callable(getattr(kind, "toolbox", None))
