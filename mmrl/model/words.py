"""Which tokens of a prompt are words of its messages, and which belong to the template, to pictures or to time stamps.

The template is rendered a second time with a mark in the place of each text. What stands between the marks is the
template's own; it must be found again in the real rendering, or the template rewrites what it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Span = tuple[int, int]
"""[start, end) in characters."""
MARK = re.compile("\ue000[0-9]+\ue001")
"""From the private use area, which no tokenizer or template gives a meaning."""


def marked(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages of `chat.plain_messages` with a mark for each text that is not empty, and these texts in order."""
    texts: list[str] = []

    def mark(text: str) -> str:
        if not text.strip():
            return text
        texts.append(text)
        return f"\ue000{len(texts)}\ue001"

    out: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            out.append({**message, "content": mark(content)})
            continue
        parts = [
            {**part, "text": mark(part["text"])} if part["type"] == "text" else part
            for part in content
        ]
        out.append({**message, "content": parts})
    return out, texts


def message_spans(text: str, template: str, texts: Sequence[str]) -> list[Span]:
    """Where each of the texts stands in the rendered `text`; `template` is the rendering with marks.

    Templates may strip white space off a text. Raises ValueError if one does more to it.
    """
    pieces = MARK.split(template)
    if len(pieces) != len(texts) + 1 or not text.startswith(pieces[0]):
        raise ValueError(_rewrites(text))
    spans: list[Span] = []
    at = len(pieces[0])
    for words, following in zip(texts, pieces[1:], strict=True):
        forms = (words, words.strip(), words.lstrip(), words.rstrip())
        shown = next((x for x in forms if text.startswith(x + following, at)), None)
        if shown is None:
            raise ValueError(_rewrites(text))
        spans.append((at, at + len(shown)))
        at += len(shown) + len(following)
    return spans


def written_out(
    text: str, places: Sequence[tuple[Span, str]], spans: Sequence[Span]
) -> tuple[str, list[Span]]:
    """The text with other words in some places, which come in order, and where the spans are in it."""
    pieces: list[str] = []
    grown: list[tuple[int, int]] = []
    done = 0
    for (start, end), words in places:
        pieces += [text[done:start], words]
        grown.append((start, len(words) - (end - start)))
        done = end

    def moved(at: int) -> int:
        return at + sum(by for start, by in grown if start < at)

    return "".join([*pieces, text[done:]]), [(moved(a), moved(b)) for a, b in spans]


def starts_within(offsets: Sequence[Span], spans: Sequence[Span]) -> Iterator[bool]:
    """Of each token, by its characters [start, end): does it begin in one of the spans?"""
    for start, end in offsets:
        yield end > start and any(a <= start < b for a, b in spans)


def _rewrites(text: str) -> str:
    return (
        f"The chat template of this checkpoint rewrites the messages ({text[:80]!r} ...), so that the words of a "
        "prompt cannot be told from the template's own; use an objective that does not read the prompt's likelihood."
    )
