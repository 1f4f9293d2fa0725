"""Code in an answer: where it stands, and whether the answer has the form that was asked for. No torch."""

from __future__ import annotations

import re

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_TAG = re.compile(r"</?(?:think|answer)>")


def code_of(text: str) -> str | None:
    """The last fenced block inside the last <answer> </answer>, or all of its text without one; None if empty."""
    answers = _ANSWER.findall(text)
    if not answers:
        return None
    blocks = _FENCED.findall(answers[-1])
    code = (blocks[-1] if blocks else answers[-1]).strip()
    return code or None


def tags_once(text: str, *, think: bool = True) -> bool:
    """Does each tag of <think> </think> <answer> </answer> stand there once, in order? Not `think`: the last two."""
    wanted = ["<think>", "</think>"] if think else []
    return _TAG.findall(text) == [*wanted, "<answer>", "</answer>"]
