"""Anybody's worked solution as steps, for MR-RLVR's two tasks (arXiv 2511.17473): hide spans in it, or shuffle it.

A solution is split at numbered items ("1.", "Step 2:"), else at empty lines, else at lines, else at sentences: at the
first of these that gives `LEAST` steps. Steps shorter than `SHORT` characters join the one before. Numbers of items and
words that tell an order ("then", "finally") are taken away, so that only the content says what comes first.

Departures: the paper's rules for all of this are not public; these are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from numpy.random import Generator

from mmrl.data.pretext.craft.answer_forms import lettered, shuffled_order
from mmrl.data.pretext.craft.draws import some_of
from mmrl.data.pretext.craft.worked_steps import closure, dependencies

LEAST, MOST = 4, 12
"""Steps of a solution; a longer one can be filled in, but not put in order."""
SHORT = 12
LONGEST = 20_000
"""Characters of a solution that is looked at."""
_ITEM = re.compile(r"^[ \t]*(?:step[ \t]*)?\d{1,2}[.):][ \t]+", re.IGNORECASE | re.MULTILINE)
_ORDER_WORDS = re.compile(
    r"^(?:(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|next|then|now|after that|finally|lastly)\b,?\s*)+",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z$\\(])")
_NUMBER = re.compile(r"(?<![\w.,^_{])-?\d+(?:\.\d+)?(?![\w.,]*\d)(?![A-Za-z_^])")
_RIGHT_SIDE = re.compile(r"=[ \t]*([^=<>,;\n$]{1,40}?)[ \t]*(?=[,;\n$=]|\.(?:\s|$)|$)")
Span = tuple[int, int]
"""Start and end of a part of a step."""
Pairs = list[list[str]]


def split_steps(solution: str) -> list[str] | None:
    """The steps, stripped; None if there are fewer than `LEAST` or the text is longer than `LONGEST`."""
    if len(solution) > LONGEST:
        return None
    text = solution.strip()
    ways = (_items(text), re.split(r"\n\s*\n", text), text.split("\n"), _SENTENCE.split(text))
    for pieces in ways:
        steps = _joined([piece.strip() for piece in pieces if piece.strip()])
        if len(steps) >= LEAST:
            return steps
    return None


def hide(
    steps: Sequence[str], most: int, question: str, rng: Generator
) -> tuple[list[str], list[str]] | None:
    """The steps with [MASK_1], [MASK_2], … and what these hide; None where nothing can be hidden.

    One to `most` numbers or right-hand sides, never in the last step, and none that can be read elsewhere in the
    question or the steps.
    """
    everywhere = "\n".join((question, *steps))
    found: list[tuple[int, Span]] = []
    for place, step in enumerate(steps[:-1]):
        for span in candidate_spans(step):
            if _times(step[slice(*span)], everywhere) == 1:
                found.append((place, span))
    wanted = int(rng.integers(1, most + 1))
    chosen: list[tuple[int, Span]] = []
    for place, span in some_of(found, len(found), rng):
        overlaps = any(at == place and _overlap(span, other) for at, other in chosen)
        if not overlaps and len(chosen) < wanted:
            chosen.append((place, span))
    if not chosen:
        return None
    return _masked(steps, sorted(chosen))


def shuffle(
    steps: Sequence[str], by_needs: bool, rng: Generator
) -> tuple[list[str], list[str], Pairs] | None:
    """Labelled lines in another order, the labels in the true order, and the pairs (earlier, later) that are asked.

    All pairs, or with `by_needs` those that the letters of the steps ask for. None for more than `MOST` steps, equal
    steps, and steps of which no letter says what comes first.
    """
    count = len(steps)
    bare = [_ORDER_WORDS.sub("", step) for step in steps]
    if count > MOST or len(set(bare)) < count or not all(bare):
        return None
    asked = (
        closure(dependencies(bare), count) if by_needs else set(combinations(range(count), 2))
    )
    if not asked:
        return None
    order = shuffled_order(count, rng)
    label_of = dict(zip(order, lettered(count), strict=True))
    lines = [f"{label}. {bare[index]}" for index, label in label_of.items()]
    answer = [label_of[index] for index in range(count)]
    return lines, answer, sorted([label_of[a], label_of[b]] for a, b in asked)


def candidate_spans(step: str) -> list[Span]:
    """Whole numbers and decimals, and right-hand sides of equations."""
    spans = [match.span() for match in _NUMBER.finditer(step)]
    for match in _RIGHT_SIDE.finditer(step):
        # Entries of an answer are separated by semicolons, and masks are told by brackets.
        if match[1].strip() and not set(match[1]) & set(";[]"):
            spans.append(match.span(1))
    return sorted(set(spans))


def _items(text: str) -> list[str]:
    """Numbered items without their numbers; what stands before the first is a step of its own."""
    return _ITEM.split(text) if _ITEM.search(text) else []


def _joined(pieces: Sequence[str]) -> list[str]:
    """Short pieces as the end of the one before."""
    steps: list[str] = []
    for piece in pieces:
        if steps and len(piece) < SHORT:
            steps[-1] = f"{steps[-1]} {piece}"
        else:
            steps.append(piece)
    return steps


def _masked(
    steps: Sequence[str], chosen: Sequence[tuple[int, Span]]
) -> tuple[list[str], list[str]]:
    """Steps with masks in place of the spans, which are in reading order, and the texts of the spans."""
    lines = list(steps)
    answer = [steps[place][slice(*span)] for place, span in chosen]
    # From the end: a mask is longer or shorter than its span, and would shift those behind it.
    for number, (place, (start, end)) in reversed(list(enumerate(chosen, 1))):
        lines[place] = f"{lines[place][:start]}[MASK_{number}]{lines[place][end:]}"
    return lines, answer


def _times(span: str, text: str) -> int:
    """How often the span stands in the text as a whole."""
    return len(re.findall(rf"(?<!\w){re.escape(span)}(?!\w)", text))


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]
