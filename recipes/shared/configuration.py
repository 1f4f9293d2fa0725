"""The resolved configuration of a recipe: every argument as preset, configuration file and flags together set it.

    python -m recipes.papo 7b --papo.gamma 0.01 --print-config > mine.json
    python -m recipes.papo --config mine.json --run.seed 1

`--print-config` prints it as JSON and ends; `--config FILE` starts from such a file in place of a preset, and flags
override it again. What is printed is what the recipe would be called with, read by the same command line.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """What a command line asks for."""

    recipe: str
    """Name of the recipe's module, without its package."""
    preset: str
    arguments: Mapping[str, Any]
    """Arguments of the recipe's `main` by name: records, numbers and texts."""

    def json(self) -> str:
        """The configuration as a JSON text, for `--config`."""
        plain = {name: as_json(value) for name, value in self.arguments.items()}
        whole = {"recipe": self.recipe, "preset": self.preset, "arguments": plain}
        return json.dumps(whole, indent=1, ensure_ascii=False)


def as_json(value: Any) -> Any:
    """A value as JSON would keep it; records become mappings of their settings, tuples lists, paths texts.

    Functions in a record are left out: they are chosen in the recipe's Python, not on the command line.
    """
    if is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        kept = {name: part for name, part in parts.items() if not inspect.isroutine(part)}
        return {name: as_json(part) for name, part in kept.items()}
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def read_configuration(file: str, main: Callable[..., Any], recipe: str) -> Configuration:
    """The configuration in a file. Raises ValueError for a file of another recipe or with other arguments."""
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        name, preset, given = found["recipe"], found["preset"], found["arguments"]
    except FileNotFoundError:
        raise ValueError(f"--config names {file}, which does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"--config {file} is not what --print-config prints ({error!r}); write it anew with --print-config."
        ) from None
    if name != recipe:
        raise ValueError(
            f"--config {file} belongs to recipe {name!r}, this is {recipe!r}; run python -m recipes.{name} instead."
        )
    hints = typing.get_type_hints(main)
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise ValueError(
            f"--config {file} sets {unknown}, which recipe {recipe!r} does not have; it has {sorted(hints)}."
        )
    arguments = {key: rebuilt(hints[key], value, key) for key, value in given.items()}
    defaults = inspect.signature(main).parameters
    for key, value in arguments.items():
        default = defaults[key].default
        if is_dataclass(default) and not isinstance(default, type):
            # Functions of the record stay those of the recipe.
            arguments[key] = replace(default, **_settings(value, given[key]))
    return Configuration(recipe, preset, arguments)


def rebuilt(hint: Any, value: Any, where: str) -> Any:
    """What `as_json` was given, from its result and the annotation. Raises ValueError with the place."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _rebuilt_union(typing.get_args(hint), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return _rebuilt_record(hint, value, where)
    if origin is tuple and isinstance(value, list):
        kinds = typing.get_args(hint)
        # tuple[X, ...] has one kind for all, tuple[X, Y] one for each.
        each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
        parts = zip(each, value, strict=False)
        return tuple(rebuilt(kind, part, where) for kind, part in parts)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value


def _settings(record: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record that were given, as they were rebuilt."""
    return {name: getattr(record, name) for name in given}


def _rebuilt_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """The value as the one kind of a union that fits it."""
    if value is None:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    records = [kind for kind in others if is_dataclass(kind)]
    if isinstance(value, Mapping) and records:
        return rebuilt(records[0], value, where)
    return rebuilt(others[0], value, where)


def _rebuilt_record(kind: type, value: Any, where: str) -> Any:
    """A frozen record from a mapping of its settings."""
    known = {f.name for f in fields(kind) if f.init}
    if not isinstance(value, Mapping) or not set(value) <= known:
        raise ValueError(
            f"The configuration has {value!r} for {where}; it must be a mapping of {sorted(known)}."
        )
    hints = typing.get_type_hints(kind)
    parts = {
        name: rebuilt(hints[name], part, f"{where}.{name}") for name, part in value.items()
    }
    return kind(**parts)


def giving_back(main: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A function with the signature of `main` that returns its arguments instead of running."""
    signature = inspect.signature(main)

    def arguments(*args: Any, **named: Any) -> dict[str, Any]:
        return dict(signature.bind(*args, **named).arguments)

    # The command line reads signature, annotations and docstring, and nothing else, of a function.
    arguments.__signature__ = signature  # type: ignore[attr-defined]
    arguments.__annotations__ = typing.get_type_hints(main)
    arguments.__doc__, arguments.__name__ = main.__doc__, main.__name__
    return arguments
