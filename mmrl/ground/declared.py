"""Bases that declare their attributes: a subclass that almost names one of them is refused.

What the core reads of a part stands in its base with a default. A default is also what a misspelt attribute would
fall back to, without a word; therefore names that come close to a declared one are an error when the class is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, TypeVar

CLOSE = 0.85
"""Similarity in [0, 1] (`difflib`) from which a name counts as a misspelling."""


Value = TypeVar("Value")


def added(default: Value) -> Value:
    """The default of a field that a settings record gained after runs were written with it.

    It is left out of the description of a run as long as it has its default, so that older runs can be continued.
    """
    # Typed as what it stands for, like `dataclasses.field` itself.
    return field(default=default, metadata={"added": True})


FREE: Mapping[str, bool] = MappingProxyType({"free": True})
"""`field(metadata=FREE)`: where something is and how fast it works, not what it does; no digest of code covers it."""


def is_free(one: Field[Any]) -> bool:
    """May a run go on with another value of this field?"""
    return bool(one.metadata.get("free"))


def is_silent(one: Field[Any], value: object) -> bool:
    """Is this a later field that says nothing new?"""
    return bool(one.metadata.get("added")) and value == one.default


def refuse_misspelt(cls: type, base: type) -> None:
    """Compare the public names of `cls` with those that `base` declares; call it from `base.__init_subclass__`.

    Raises TypeError for a name that is close to a declared one, and for a field that takes over a declared name
    without a default: a dataclass would silently give it the default of the base.
    """
    declared = sorted(_public(vars(base)))
    own = vars(cls)
    for name in sorted(_public(own.get("__annotations__", {}))):
        # `dataclass` looks a default up with `getattr`, which finds that of the base.
        if name in declared and name not in own:
            raise TypeError(
                f"{cls.__name__}.{name} has no default, and {base.__name__}.{name} would become it; give one."
            )
    for name in sorted(_public({**own, **own.get("__annotations__", {})})):
        if name in declared:
            continue
        # Only names that are close: a class may have as many attributes of its own as it likes.
        if meant := get_close_matches(name, declared, 1, CLOSE):
            raise TypeError(
                f"{cls.__name__}.{name} looks like {base.__name__}.{meant[0]}, which the core reads. Name it so, or "
                f"give another thing another name ({base.__name__} declares {', '.join(declared)})."
            )


def _public(names: Iterable[str]) -> set[str]:
    """The names without a leading underscore."""
    return {name for name in names if not name.startswith("_")}
