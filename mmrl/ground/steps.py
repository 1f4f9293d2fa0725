r"""The steps of a written answer, and which of its tokens they are: by the characters that tokens are decoded to.

A step is what stands between two separators (blank lines unless said otherwise), without white space at its ends. A
token belongs to the step in which its first character of any step lies, so that separators and line ends belong to
none; a character of several tokens belongs to all of them. Nothing is tokenised again: what a text is made of is known
from the ids that were sampled. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Span = tuple[int, int]
"""[start, end) in characters."""
Spell = Callable[[Sequence[int]], str]
"""The text of ids, of all of them (`Processing.spell`)."""
BLANK_LINES = r"\n[^\S\n]*\n\s*"
"""Separator of the steps: one blank line or more."""
BROKEN = "\ufffd"
"""What tokenizers write for bytes that are no whole character yet."""
LONGEST = 8
"""Tokens after which bytes are taken as they are: no character is longer."""
BEHIND = 8
"""Tokens that are decoded before a piece, as some tokenizers write the first one differently."""


def step_spans(text: str, between: str = BLANK_LINES) -> list[Span]:
    """Where each step stands, in order; white space around it is left out, and so are steps of nothing else."""
    found: list[Span] = []
    at = 0
    for separator in [*re.finditer(between, text), None]:
        end = len(text) if separator is None else separator.start()
        inside = text[at:end]
        if words := inside.strip():
            start = at + inside.index(words)
            found.append((start, start + len(words)))
        at = end if separator is None else separator.end()
    return found


def token_spans(tokens: Sequence[int], spell: Spell) -> list[Span]:
    """The characters of each token in `spell(tokens)`; parts of one character all have it.

    `spell` gives the text of ids, of all of them (`Processing.spell`).
    """
    ends: list[int] = []
    done, at = 0, 0  # so many tokens have so many characters
    for count in range(1, len(tokens) + 1):
        ahead = max(0, done - BEHIND)
        before = spell(tokens[ahead:done])
        text = spell(tokens[ahead:count])[len(before) :]
        more = count < len(tokens) and count - done < LONGEST
        # Half a character waits for its other half.
        if not (more and text.endswith(BROKEN)):
            at += len(text)
            done = count
        ends.append(at)
    return _shared(ends)


def steps_of_tokens(spans: Sequence[Span], steps: Sequence[Span]) -> list[int | None]:
    """The step of each token, counted from 0; None: it belongs to none."""
    found: list[int | None] = []
    number = 0
    for start, end in spans:
        # Both rise, so one pass is enough.
        while number < len(steps) and steps[number][1] <= start:
            number += 1
        inside = number < len(steps) and steps[number][0] < end
        found.append(number if inside and start < end else None)
    return found


def _shared(ends: Sequence[int]) -> list[Span]:
    """Spans of tokens that end there; one without text of its own has that of the next one with some."""
    spans: list[Span] = []
    begins = [0, *ends[:-1]]
    reach = ends[-1] if ends else 0
    # From behind, since what a token is a part of stands after it.
    for begin, end in reversed([*zip(begins, ends, strict=True)]):
        reach = end if end > begin else reach
        spans.append((begin, reach))
    return spans[::-1]
