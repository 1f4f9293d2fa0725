"""What a model wrote, read as a call: a JSON object in `<tool_call>` tags, or the content of a tag of one's own.

    <tool_call>{"name": "crop_image", "arguments": {"bbox_2d": [8, 8, 40, 40], "target_image": 1}}</tool_call>
    <search>revenue of 2021</search>

The words are those of one turn up to and including a stop string, so what is asked for stands at their end. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.ground.answers import finite_numbers, strict_json
from mmrl.ground.calls import Action
from mmrl.tools.tool import BadAction

OPENED, CLOSED = "<tool_call>", "</tool_call>"
LONGEST = 10_000
"""Characters of a call that are read."""


@dataclass(frozen=True)
class Form:
    """How a tool is called: by a JSON object with its name, or within a tag, where there is one argument."""

    argument: str
    """The argument that a tag holds."""
    tag: str = ""
    """Empty: by a JSON object."""
    rivals: tuple[str, ...] = ()
    """Tags of other actions: of all that are there the first one counts."""

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends a call."""
        return (f"</{self.tag}>" if self.tag else CLOSED,)

    def read(self, text: str, name: str) -> Action | None:
        """The call of the tool of this name; None if it is not called. Raises BadAction."""
        if not self.tag:
            found = json_call(text)
            return None if found is None or found.name != name else found
        inside = first_tag(text, (self.tag, *self.rivals))
        if inside is None or inside[0] != self.tag:
            return None
        return Action(name, {self.argument: inside[1]})

    def example(self, name: str, value: str) -> str:
        """How a call looks, for usage texts; `value` is the argument as JSON or as text."""
        if self.tag:
            return f"<{self.tag}>{value}</{self.tag}>"
        return (
            f'{OPENED}{{"name": "{name}", "arguments": {{"{self.argument}": {value}}}}}{CLOSED}'
        )


def json_call(text: str) -> Action | None:
    """The last call in `<tool_call>` tags; None without one. Raises BadAction for one that cannot be read."""
    _, opened, rest = text.rpartition(OPENED)
    inside, closed, _ = rest.partition(CLOSED)
    if not opened or not closed:
        return None
    if len(inside) > LONGEST:
        raise BadAction(f"The call has {len(inside)} characters, at most {LONGEST} are read.")
    value = strict_json(inside)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise BadAction(
            f"The call is not a JSON object with a name and arguments: {inside.strip()[:200]}"
        )
    arguments = value.get("arguments", {})
    # Some models write the arguments as a text that holds JSON.
    if isinstance(arguments, str):
        arguments = strict_json(arguments)
    if not isinstance(arguments, dict):
        raise BadAction('The "arguments" of the call are not a JSON object.')
    return Action(value["name"], arguments)


def first_tag(text: str, tags: Sequence[str]) -> tuple[str, str] | None:
    """(tag, content) of the first of these tags that is opened and closed; None without any."""
    names = "|".join(map(re.escape, tags))
    found = re.search(rf"<({names})>(.*?)</\1>", text, re.DOTALL)
    return None if found is None else (found[1], found[2].strip())


def numbers(arguments: Mapping[str, Any], name: str, count: int, example: str) -> list[float]:
    """An argument that is a list of so many numbers, or a text that holds one. Raises BadAction."""
    given = arguments.get(name)
    value = strict_json(given) if isinstance(given, str) else given
    found = finite_numbers(value, count)
    if found is None:
        shown = json.dumps(given, ensure_ascii=False)[:100]
        raise BadAction(f'"{name}" is {shown}; give {count} numbers, for example {example}.')
    return found


def whole_number(arguments: Mapping[str, Any], name: str, default: int) -> int:
    """An argument that is a whole number. Raises BadAction."""
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadAction(f'"{name}" is {value!r:.100}; give a whole number.')
    return value


def words(arguments: Mapping[str, Any], name: str) -> str:
    """An argument that is a text with something in it. Raises BadAction."""
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadAction(f'"{name}" is {value!r:.100}; give a text that is not empty.')
    if len(value) > LONGEST:
        raise BadAction(
            f'"{name}" has {len(value)} characters, at most {LONGEST} are read; write less.'
        )
    return value.strip()
