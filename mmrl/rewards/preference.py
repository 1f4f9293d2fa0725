"""Rewards of a model that learns to judge: MSRL's verdict on two responses (arXiv 2603.25108), and what it agrees on.

    accuracy   the text of the first <answer>, or of the whole reply without one, is the letter of the better response
    form       there is a <think> and an <answer>, anywhere
    task       the text of the first <type> is the kind of task; "_" and "-" count as spaces

Tags are found in any case and over several lines; each pays 1 or 0. `best_rationale` is the selection of its stage 2b:
of several replies to one pair the majority's letter, and of the well-formed ones that say it the surest.

Departures
1. The official `task` returns 0.2, which the script weighs by 0.2 again; here it returns 1, and the weight says it all
   (paper: 0.2, script: 0.04).
2. How sure a reply is, is not printed; here it is the mean log-prob of the tokens of its answer.
3. A tie of the majority gives nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mmrl.ground.steps import token_spans
from mmrl.rewards.answers import references

if TYPE_CHECKING:
    from mmrl.types import Prompt, Rollout

TASK = "task_type"
"""Column with the kind of task."""
REJECTED = "rejected"
"""Column with the worse response; the answer of the row is the better one."""
CAPTION = "caption"
"""Column with what the pictures or clips show."""
LETTERS = ("A", "B")


def verdict(text: str) -> str:
    """The verdict of a reply in capitals: its first `<answer>`, or all of it."""
    found = _first(text, "answer")
    return (text if found is None else found).strip().upper()


def is_well_formed(text: str) -> bool:
    """Is there a thought and an answer, in any order?"""
    return _first(text, "think") is not None and _first(text, "answer") is not None


def task_of(text: str) -> str:
    """The kind of task that a reply names, in small letters; empty without any."""
    return spoken(_first(text, "type") or "")


def spoken(name: str) -> str:
    """A name in small letters, with spaces."""
    return re.sub(r"[_-]", " ", name).strip().lower()


def preference_accuracy(rollout: Rollout) -> float:
    """1 for the letter of the better response."""
    said = verdict(rollout.text)
    wanted = references(rollout.prompt.answer)
    right = any(said == one.strip().upper() for one in wanted)
    return float(right and said != "")


def preference_form(rollout: Rollout) -> float:
    """1 for a thought and an answer."""
    return float(is_well_formed(rollout.text))


def preference_task(rollout: Rollout) -> float | None:
    """1 for the kind of task; None for a row that does not say it."""
    told = rollout.prompt.extra.get(TASK)
    wanted = spoken(str(told or ""))
    return float(task_of(rollout.text) == wanted) if wanted else None


def best_rationale(
    replies: Sequence[Rollout], spell: Callable[[Sequence[int]], str]
) -> Rollout | None:
    """The surest well-formed reply with the majority's letter; None for a tie, or where no reply is well-formed.

    `spell` gives the text of ids, of all of them (`Processing.spell`). Replies need log-probs.
    """
    said = [verdict(one.text) for one in replies]
    votes = Counter(said)
    first, second = (votes[letter] for letter in LETTERS)
    if first == second:
        return None
    majority = LETTERS[0] if first > second else LETTERS[1]
    agree = [one for one, letter in zip(replies, said, strict=True) if letter == majority]
    good = [one for one in agree if is_well_formed(one.text)]
    # The first of equals, so that the choice depends on nothing else.
    return max(good, key=lambda one: confidence(one, spell), default=None)


def confidence(rollout: Rollout, spell: Callable[[Sequence[int]], str]) -> float:
    """Mean log-prob of the tokens inside the first `<answer>`; of all tokens where none lies there."""
    ids = rollout.tokens.tolist()
    assert rollout.logp is not None, "replies were sampled without log-probs"
    logp = rollout.logp.double()
    found = _tag("answer").search(spell(ids))
    start, end = found.span(1) if found else (0, 0)
    spans = token_spans(ids, spell)
    # A token that is partly inside counts: tags and letters may share one.
    inside = [place for place, (a, b) in enumerate(spans) if a < end and b > start]
    told = logp[inside] if inside else logp
    return float(told.mean()) if len(told) else 0.0


@dataclass(frozen=True)
class TwoResponses:
    """A pair, in the order in which it is shown."""

    first: str
    second: str
    letter: str
    """Of the better one."""
    swapped: bool = False
    """Is the better one shown second?"""

    def other_way(self) -> TwoResponses:
        """The same pair in the other order; who is right stays."""
        letter = LETTERS[1 - LETTERS.index(self.letter)]
        return replace(
            self,
            first=self.second,
            second=self.first,
            letter=letter,
            swapped=not self.swapped,
        )


def responses_of(prompt: Prompt) -> TwoResponses | None:
    """The better and the worse response of a row; of a row with two media and no `rejected` these are the responses.

    None for a row that is no pair. Of media the first one is the better.
    """
    rejected = prompt.extra.get(REJECTED)
    if isinstance(rejected, str) and rejected.strip():
        better = references(prompt.answer)
        # Of two equal responses neither is better.
        if not better or better[0].strip() == rejected.strip():
            return None
        return TwoResponses(better[0], rejected, "A")
    if rejected is None and len(prompt.media) == 2:
        return TwoResponses("the first picture or clip", "the second picture or clip", "A")
    return None


def _first(text: str, name: str) -> str | None:
    found = _tag(name).search(text)
    return found[1].strip() if found else None


def _tag(name: str) -> re.Pattern[str]:
    return re.compile(rf"<{name}>(.*?)</{name}>", re.DOTALL | re.IGNORECASE)
