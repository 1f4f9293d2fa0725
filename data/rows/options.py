"""Choices that a row keeps in a column of their own: the model must read them to choose among them."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Mapping
from typing import Any

from mmrl.data.rows.templates import Template

HEAD = "Options:"
LONGEST = 10_000
"""Characters of a list that is read as Python; more is text."""


def with_options(question: str, options: Any, template: Template) -> str:
    """The question with its choices below; as it is if it has them already, or if the template writes them."""
    choices = _texts(options)
    if not choices or (template.is_jinja and "row" in template.prompt):
        return question
    # Asked of the bare choices: a question may letter them in another way.
    if all(_bare(choice) in question for choice in choices):
        return question
    return "\n".join([question, HEAD, *_lettered(choices)])


def choices_in(options: Any) -> list[str]:
    """The choices of a column, each without its letter."""
    return [_bare(choice) for choice in _texts(options)]


def _texts(options: Any) -> list[str]:
    """Choices as texts: of a list, of letters with their texts, of either as JSON, or of lines; none for a number."""
    if isinstance(options, str):
        options = _literal(options)
    if isinstance(options, Mapping):
        texts, letters = options.get("text"), options.get("label")
        pairs = options.items()
        if isinstance(texts, list) and isinstance(letters, list):
            pairs = zip(letters, texts, strict=False)
        options = [f"{letter}. {text}" for letter, text in pairs if text is not None]
    if not isinstance(options, list | tuple):
        return []
    return [str(option).strip() for option in options if option is not None]


def _literal(text: str) -> Any:
    """What a text says as JSON, or as Python writes lists (MMMU); else its lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(text) > LONGEST:
        return lines
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list | tuple | dict):
            return found
    return lines


def _lettered(choices: list[str]) -> list[str]:
    """The choices with a letter each, which published sets mostly have."""
    if all(_bare(choice) != choice for choice in choices):
        return choices
    letters = string.ascii_uppercase
    if len(choices) > len(letters):
        return choices
    return [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False)]


def _bare(choice: str) -> str:
    """A choice without its letter: "A. a cat", "(A) a cat", "A) a cat" and "A: a cat" are "a cat"."""
    head, _, rest = choice.lstrip("(").partition(" ")
    is_letter = len(head) == 2 and head[0].isupper() and head[1] in ".):"
    return rest.strip() if is_letter and rest.strip() else choice
