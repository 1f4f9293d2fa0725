"""Prompts made of prompts: words behind the last question, another question to the same pictures, no pictures.

A prompt that is made of another keeps its media and its answer, and says whose it is in the column `made_from`, by
which several processes know its place in the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from mmrl.ground.faults import BadRow
from mmrl.types import Prompt

__all__ = ["MADE_FROM", "Check", "behind", "blind", "fits", "instead", "with_pair", "with_text"]

MADE_FROM = "made_from"
"""Column of a prompt that was made of another: that one's id."""
Check = Callable[[Prompt], object]
"""Raises `BadRow` for a prompt that cannot be shown to the model, `Policy.encode`."""
GREY = 127


def with_text(prompt: Prompt, text: str, **extra: Any) -> Prompt:
    """The prompt with a text behind its last user message, and further columns."""
    columns = {**prompt.extra, **extra}
    messages: Any = prompt.messages
    if isinstance(messages, str):  # a text to be continued, no chat
        return replace(prompt, messages=messages + text, extra=columns)
    asking = [n for n, message in enumerate(messages) if message["role"] == "user"]
    last = asking[-1] if asking else len(messages) - 1
    longer = [*messages[:last], _longer(messages[last], text), *messages[last + 1 :]]
    return replace(prompt, messages=longer, extra=columns)


def behind(prompt: Prompt, text: str, name: str) -> Prompt:
    """The prompt with a text behind its question, as one of the id `name` that is made from it."""
    source = prompt.extra.get(MADE_FROM, prompt.id)
    return replace(with_text(prompt, text, **{MADE_FROM: source}), id=name)


def instead(prompt: Prompt, text: str, name: str, *, system: bool = True) -> Prompt:
    """Another text to the same pictures, as a prompt of the id `name`; `system` keeps the system turns."""
    extra = {**prompt.extra, MADE_FROM: prompt.extra.get(MADE_FROM, prompt.id)}
    messages: Any = prompt.messages
    if isinstance(messages, str):
        return replace(prompt, id=name, messages=text, extra=extra)
    parts = [part for message in messages for part in _parts(message)]
    shown = [part for part in parts if part["type"] != "text"]
    content: Any = [*shown, {"type": "text", "text": text}] if shown else text
    rules = [one for one in messages if one["role"] == "system"] if system else []
    # Pictures of a system turn are among those that are shown.
    rules = [one for one in rules if all(part["type"] == "text" for part in _parts(one))]
    return replace(
        prompt, id=name, messages=[*rules, {"role": "user", "content": content}], extra=extra
    )


def blind(prompt: Prompt, name: str) -> Prompt:
    """The same question to grey pictures, as a prompt of the id `name`."""
    grey = tuple(
        replace(medium, frames=torch.full_like(medium.frames, GREY)) for medium in prompt.media
    )
    extra = {**prompt.extra, MADE_FROM: prompt.extra.get(MADE_FROM, prompt.id)}
    return replace(prompt, id=name, media=grey, extra=extra)


def with_pair(text: str, wrong: str, right: str) -> str:
    """A text with both answers in their places; what looks like a place in an answer stays."""
    before, _, rest = text.partition("{wrong}")
    if "{right}" in before:
        first, _, middle = before.partition("{right}")
        return f"{first}{right}{middle}{wrong}{rest}"
    middle, _, last = rest.partition("{right}")
    return f"{before}{wrong}{middle}{right}{last}"


def fits(prompt: Prompt, check: Check | None) -> bool:
    """Can the prompt be shown to the model?"""
    if check is None:
        return True
    try:
        check(prompt)
    except BadRow:
        return False
    return True


def _longer(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": content + text}
    return {**message, "content": [*content, {"type": "text", "text": text}]}


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
