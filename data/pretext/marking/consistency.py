"""RAC, reasoning–answer consistency (PuzzleCraft, arXiv 2512.14944, 3.3): does the reasoning support the answer?

A diagnostic, never a reward. A judge sees the reasoning and the final answer, not the picture nor the truth, and says 1
or 0; the mean over answers is reported. The paper's judge is Qwen2.5-VL-72B; any callable (reasoning, answer) → 0, 1 or
None (not available) fits.

`RuleJudge` is a free stand-in, not the paper's judge, and says so in `name`: the last thing in the reasoning that reads
as an answer of the task (an order, an option, an angle, an interval) must have the same solution key as the answer. It
cannot follow an argument, and is silent (None) where the reasoning names no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mmrl.data.pretext.contract import Task, Truth
from mmrl.data.pretext.marking.parsing import ParseError, extract
from mmrl.data.pretext.surface import Surface
from mmrl.ground.answers import normalise

Judge = Callable[[str, str], int | None]
LONGEST = 20_000
"""Characters of reasoning that are read, from the end."""

_PIECES = re.compile(r"[.!?\n:]+\s|\n")


@dataclass(frozen=True)
class RuleJudge:
    """The stand-in for one sample."""

    task: Task
    truth: Truth
    """Only sizes and options are read, to know what an answer looks like."""
    name: str = "rule stand-in (not the paper's judge)"

    def __call__(self, reasoning: str, answer: str) -> int | None:
        final = self._key(answer)
        if final is None:
            return 0
        # From the last sentence backwards, and in it from its end: the longest run of words that reads as an answer.
        for sentence in reversed(_PIECES.split(reasoning[-LONGEST:])):
            words = normalise(sentence).strip(" .,;").split()
            for length in range(min(len(words), 24), 0, -1):
                key = self._key(" ".join(words[-length:]))
                if key is not None:
                    return int(key == final)
        return None

    def _key(self, body: str) -> object | None:
        """The solution key of a text; None if it reads as no answer."""
        text = body.strip(" .,;")
        value = self.task.read(text, self.truth) if body else ParseError("empty")
        if isinstance(value, ParseError):
            return None
        score = self.task.verify(value, self.truth)
        return None if score.key == "invalid" else score.key


def split_reply(reply: str, surface: Surface) -> tuple[str, str | None]:
    """The reasoning and the answer body (None if unreadable) of a reply."""
    head, mark, _ = reply.rpartition("</think>")
    body = extract(reply, surface)
    if mark:
        reasoning = head.replace("<think>", "")
    else:
        # Without a block of thoughts, what stands before the answer.
        reasoning = reply.partition("<answer>")[0].partition("\\boxed{")[0]
    return reasoning.strip(), None if isinstance(body, ParseError) else body
