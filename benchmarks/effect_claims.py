"""What a method of the effects benchmark is: a recipe with options, and the differences that its paper leads to."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal


@dataclass(frozen=True)
class Claim:
    """One expectation: a number is larger (or smaller) than for the reference."""

    text: str
    number: str
    """A measured number, or "a-b" for the difference of two."""
    task: str = "cells"
    """A name in `effect_tasks.TASKS`: where the claim can show."""
    against: Literal["grpo", "start"] = "grpo"
    larger: bool = True


@dataclass(frozen=True)
class Method:
    """A recipe, and what its paper leads to expect."""

    recipe: str
    claims: tuple[Claim, ...]
    options: tuple[str, ...] = ()
    """Of its own runs, behind those of all."""
    prompts: int | None = None
    """Prompts per step of the reference; None: the method's own."""
    group: int | None = None
    """Answers per prompt of the reference; None: the method's own."""
    off: tuple[str, ...] = ()
    """Options that turn the method off: then its own recipe is the reference."""

    @property
    def exists(self) -> bool:
        """Whether the recipe is there yet."""
        return find_spec(f"mmrl.recipes.{self.recipe}") is not None


ACCURACY = Claim("accuracy rises above GRPO's", "accuracy")
