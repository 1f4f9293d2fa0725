"""`--help` of a recipe on one screen: its presets, the flags that most runs need, and the names of all others.

`--help-all` is the whole of it, with every flag explained.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from mmrl.recipes.shared.configuration import Configuration

COMMON = (
    *("model", "dataset", "data.style", "data.prompt", "data.heldout", "data.columns"),
    *("reward.own", "sampling.group_size", "sampling.max_tokens", "optim.lr", "lora.rank"),
    *("run.output", "run.steps", "run.epochs", "run.prompts_per_step", "run.seed"),
    *("run.logger", "load.device", "load.max_pixels"),
)
"""What most runs set, in this order; a recipe without one of them leaves it out."""
SPELLED = {"reward.own": "--reward", "run.from_run": "--run.from"}
"""Flags that are not called by their field."""
NARROW, WIDE = 60, 110
"""Least and most columns of a line."""
LONGEST = 48
"""Characters of a value."""


def short_help(asked: Configuration, intent: str, presets: str, main: Any) -> str:
    """The text for a resolved command line; `presets` are lines, `main` has the recipe's "Args:"."""
    own = _own_words(main)
    common = [_line(name, asked.arguments, own) for name in COMMON]
    plain = [
        _line(name, asked.arguments, own)
        for name, value in asked.arguments.items()
        if name not in COMMON and not is_dataclass(value) and not callable(value)
    ]
    groups = [_group(name, value) for name, value in asked.arguments.items()]
    parts = [
        intent,
        f"Presets (first word; here {asked.preset!r}):\n{presets}",
        "Flags that most runs set, with their values here:\n" + _joined([*common, *plain]),
        "More flags, each explained by --help-all:\n" + _joined(groups),
        "--print-config prints all settings as YAML and ends; --config FILE starts from such a file.",
    ]
    return "\n\n".join(parts)


@functools.cache
def field_help(record: type) -> Mapping[str, str]:
    """Field -> the first sentence of the text under it, also of fields that it inherits."""
    found: dict[str, str] = {}
    for kind in reversed(record.__mro__):
        if not is_dataclass(kind):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        statements = getattr(body, "body", [])
        for field, text in itertools.pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = _text_of(text)
    return found


def _text_of(statement: ast.stmt) -> str:
    """The first sentence of a string that stands alone; empty for anything else."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return _sentence(str(statement.value.value))
    return ""


def _sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def _own_words(main: Any) -> dict[str, str]:
    """Plain argument -> its line in the "Args:" of a docstring."""
    lines = re.findall(r"^ {4}(\w+): (.*)$", inspect.cleandoc(main.__doc__ or ""), re.MULTILINE)
    return {name: _sentence(text) for name, text in lines}


def _line(name: str, arguments: Mapping[str, Any], own: Mapping[str, str]) -> str:
    """Flag, value and first sentence of one setting, on one line; empty where the recipe has none."""
    group, _, field = name.partition(".")
    value, said = arguments.get(group), own.get(group, "")
    if group not in arguments or (field and not hasattr(value, field)):
        return ""
    if field:
        value, said = getattr(value, field), field_help(type(value)).get(field, "")
    flag = SPELLED.get(name, f"--{name.replace('_', '-')}")
    return _fitted(f"  {flag:<26} {said} [{_value(value)}]")


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    if value in (None, ""):
        return "none"
    # Several data sets are lines of one text, and too long for one of a screen.
    text = "; ".join(str(value).splitlines())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _group(name: str, record: Any) -> str:
    """All flags of a record, in as many lines as they need."""
    if not is_dataclass(record):
        return ""
    names = [
        SPELLED.get(f"{name}.{field.name}", f"--{name}.{field.name}".replace("_", "-"))
        for field in fields(record)
        if field.init and not callable(getattr(record, field.name))
    ]
    # The first carries the group, the rest their own name only.
    short = [names[0], *(flag.partition(".")[2] for flag in names[1:])] if names else []
    return textwrap.fill(", ".join(short), _width(), initial_indent="  ", subsequent_indent="    ",
                         break_on_hyphens=False)  # fmt: skip


def _fitted(line: str) -> str:
    """The line, cut in its middle so that the value at its end stays."""
    over = len(line) - _width()
    if over <= 0:
        return line
    head, value = line.rsplit(" [", 1)
    kept = head[: max(30, len(head) - over - 1)].rstrip()
    return f"{kept}… [{value}"


def _joined(lines: list[str]) -> str:
    return "\n".join(line for line in lines if line)


def _width() -> int:
    return min(WIDE, max(NARROW, shutil.get_terminal_size((100, 24)).columns))
