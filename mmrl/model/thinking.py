"""Thoughts that a chat template begins by itself: Qwen3.5 and the thinking models open `<think>` in the prompt.

Then the policy writes the end of the thought and not its beginning. Rewards, parsers and people read the whole turn:
`Processing.answer_text` puts what the template began before what was sampled, so that a format is paid, and a thought
that was never closed counts as cut off, whoever wrote the first tag. A given answer (a label, an expert's) is told what
the prompt has begun already: `behind`.

`--load.thinking on` and `off` set the template's own switch, `enable_thinking`; off, Qwen3.5 is shown an empty thought.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from mmrl.model.tags import THOUGHT

ThinkingMode = Literal["auto", "on", "off"]
SWITCH = "enable_thinking"
OPENED = re.compile(rf"<({'|'.join(sorted(THOUGHT - {'answer'}))})>\s*\Z")


def template_switch(processor: Any, mode: ThinkingMode) -> Mapping[str, bool]:
    """Keywords for the chat template. Raises ValueError for a mode that is unknown, or that it has no switch for."""
    if mode not in get_args(ThinkingMode):
        raise ValueError(
            f"thinking is {mode!r}; it must be 'auto' (as the chat template does), 'on' or 'off'."
        )
    if mode == "auto":
        return {}
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    if SWITCH not in str(template):
        raise ValueError(
            f"thinking is {mode!r}, but the chat template of this checkpoint has no switch {SWITCH}; leave it at "
            "'auto' (--load.thinking auto)."
        )
    return {SWITCH: mode == "on"}


def opened_thought(chat: str) -> str:
    """What a rendered chat begins of the answer: a thought that it opens at its very end (`<think>` and a line break),
    else nothing."""
    found = OPENED.search(chat)
    return "" if found is None else found.group()


def behind(opened: str, answer: str) -> str:
    """What is left to write of a given answer whose thought the prompt has opened; without one, its end first.

    `opened` is what `opened_thought` found.
    """
    tag = opened.strip()
    closed = tag.replace("<", "</")
    bare = answer.lstrip()
    if not tag:
        return answer
    if bare.startswith(tag):
        # The line break behind the tag stands in the prompt, too.
        return bare.removeprefix(tag).removeprefix(opened.removeprefix(tag))
    return answer if closed in answer else f"\n{closed}\n\n{answer}"
