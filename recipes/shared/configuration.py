"""The resolved configuration of a recipe: every argument as preset, configuration file and flags together set it.

    python -m recipes.papo 7b --papo.gamma 0.01 --print-config > mine.yaml
    python -m recipes.papo --config mine.yaml --run.seed 1

`--print-config` prints it as YAML and ends; `--config FILE` starts from such a file in place of a preset, and flags
override it again. What is printed is what the recipe would be called with, read by the same command line.

A file by hand needs to name nothing but what it changes: `recipe`, `preset` and every argument may be left out, and are
then what the command line without file would have. JSON is read as well, and so is the config.json of a run.
"""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mmrl.ground.faults import first_line

PARTS = ("recipe", "preset", "arguments")
"""What a configuration file may hold."""


@dataclass(frozen=True)
class Configuration:
    """What a command line asks for."""

    recipe: str
    """Name of the recipe's module, without its package."""
    preset: str
    arguments: Mapping[str, Any]
    """Arguments of the recipe's `main` by name: records, numbers and texts."""
    given: tuple[str, ...] = field(default=(), compare=False)
    """Names of the settings that flags changed, with dots."""

    def plain(self) -> dict[str, Any]:
        """The configuration as JSON would keep it."""
        arguments = {name: as_json(value) for name, value in self.arguments.items()}
        return {"recipe": self.recipe, "preset": self.preset, "arguments": arguments}

    def yaml(self) -> str:
        """The configuration as a text for `--config`."""
        text = yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True, width=112)
        return text.removesuffix("\n")

    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults of the records' own classes, as JSON would keep it.

        A setting that a later version adds is not among it, so that a command line keeps its name.
        """
        arguments = {name: _chosen(value) for name, value in self.arguments.items()}
        return {"recipe": self.recipe, "arguments": arguments}


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


@dataclass(frozen=True)
class Stored:
    """What a configuration file says."""

    file: str
    recipe: str | None
    preset: str | None
    given: Mapping[str, Any]
    """Arguments as they stand in the file."""


def read_file(file: str) -> Stored:
    """A configuration file. Raises ValueError for one that is none."""
    try:
        found = _parsed(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--config names {file}, which does not exist.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _no_configuration(file, first_line(error)) from None
    if isinstance(found, Mapping) and isinstance(found.get("recipe"), Mapping):
        found = found["recipe"]  # the config.json of a run
    if not isinstance(found, Mapping):
        raise _no_configuration(file, "it holds no mapping")
    unknown = [str(name) for name in found if name not in PARTS]
    given = found.get("arguments") or {}
    if unknown or not isinstance(given, Mapping):
        reason = f"it holds {', '.join(unknown)}" if unknown else "arguments is no mapping"
        raise _no_configuration(file, reason)
    return Stored(file, found.get("recipe"), found.get("preset"), given)


def arguments_of(stored: Stored, main: Callable[..., Any], recipe: str) -> dict[str, Any]:
    """The arguments that a file sets, over the defaults of `main`. Raises ValueError for those of another recipe."""
    if stored.recipe not in (None, recipe):
        raise ValueError(
            f"--config {stored.file} belongs to recipe {stored.recipe!r}, this is {recipe!r}; run "
            f"python -m recipes.{stored.recipe} instead."
        )
    hints = typing.get_type_hints(main)
    unknown = sorted(set(stored.given) - set(hints))
    if unknown:
        raise ValueError(
            f"--config {stored.file} sets {unknown}, which recipe {recipe!r} does not have; it has {sorted(hints)}."
        )
    defaults = inspect.signature(main).parameters
    arguments: dict[str, Any] = {}
    for key, given in stored.given.items():
        default = defaults[key].default
        if isinstance(default, str) and _are_lines(given):
            given = "\n".join(given)  # several data sets, one to an entry
        if is_dataclass(default) and not isinstance(default, type):
            # What the file does not name, and functions of the record, stay those of the recipe.
            arguments[key] = replace(default, **_rebuilt_settings(type(default), given, key))
        else:
            arguments[key] = rebuilt(hints[key], given, key)
    return arguments


def _are_lines(given: Any) -> bool:
    return (
        isinstance(given, list) and all(isinstance(one, str) for one in given) and bool(given)
    )


def _parsed(text: str) -> Any:
    """JSON, whose numbers YAML would read as texts (1e-06), or YAML."""
    try:
        return json.loads(text)
    except ValueError:
        return yaml.safe_load(text)


def _no_configuration(file: str, reason: str) -> ValueError:
    return ValueError(
        f"--config {file} is not what --print-config prints ({reason}): it may hold {', '.join(PARTS)}. Write it anew "
        "with --print-config, and leave out what you do not need."
    )


def _chosen(value: Any) -> Any:
    """A value as JSON, records without the settings that their class has by itself."""
    if not is_dataclass(value) or isinstance(value, type):
        return as_json(value)
    found: dict[str, Any] = {}
    for one in fields(value):
        part = getattr(value, one.name)
        usual = one.default
        if one.default_factory is not MISSING:
            usual = one.default_factory()
        if one.init and part != usual and not inspect.isroutine(part):
            found[one.name] = _chosen(part)
    return found


def rebuilt(hint: Any, value: Any, where: str) -> Any:
    """What `as_json` was given, from its result and the annotation. Raises ValueError with the place."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _rebuilt_union(typing.get_args(hint), value, where)
    if is_dataclass(hint) and isinstance(hint, type):
        return _rebuilt_record(hint, value, where)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list) or (
            kinds[-1] is not Ellipsis and len(value) != len(kinds)
        ):
            raise _unfit(
                where, value, "a list" if kinds[-1] is Ellipsis else f"a list of {len(kinds)}"
            )
        # tuple[X, ...] has one kind for all, tuple[X, Y] one for each.
        each = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
        parts = zip(each, value, strict=True)
        return tuple(rebuilt(kind, part, where) for kind, part in parts)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise _unfit(where, value, f"one of {', '.join(map(repr, typing.get_args(hint)))}")
        return value
    return _rebuilt_scalar(hint, value, where)


def _rebuilt_scalar(hint: Any, value: Any, where: str) -> Any:
    """A number, a text, a truth value or a path. Raises ValueError for another kind than the annotation has."""
    if hint is bool and not isinstance(value, bool):
        raise _unfit(where, value, "true or false")
    if hint is int and type(value) is not int:
        raise _unfit(where, value, "a whole number")
    if hint is float:
        try:
            # YAML takes 1e-6 for a text, since it has no point.
            return (
                float(value)
                if not isinstance(value, bool) and type(value) is not int
                else value
            )
        except (TypeError, ValueError):
            raise _unfit(where, value, "a number") from None
    if hint in (str, Path) and not isinstance(value, str):
        raise _unfit(where, value, "a text; put it in quotes")
    return Path(str(value)) if hint is Path else value


def _unfit(where: str, value: Any, wanted: str) -> ValueError:
    flag = f"--{where.replace('_', '-')}"
    return ValueError(
        f"The configuration has {value!r} for {where} ({flag}); it must be {wanted}."
    )


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
    return kind(**_rebuilt_settings(kind, value, where))


def _rebuilt_settings(kind: type, value: Any, where: str) -> dict[str, Any]:
    """Settings of a record by name, of the kinds that it has. Raises ValueError."""
    known = {f.name for f in fields(kind) if f.init}
    if not isinstance(value, Mapping) or not set(value) <= known:
        raise ValueError(
            f"The configuration has {value!r} for {where}; it must be a mapping of {sorted(known)}."
        )
    hints = typing.get_type_hints(kind)
    return {name: rebuilt(hints[name], part, f"{where}.{name}") for name, part in value.items()}


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
