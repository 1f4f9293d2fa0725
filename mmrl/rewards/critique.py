r"""Which steps of an answer are wrong: CAPO's critique (arXiv 2508.02298) as a reward part of weight 0.

    critique = Critique(judge, critiques=4, vote=voted_by_majority)
    Rewards(accuracy=(1.0, ...), critique=(0.0, critique))

A text model is given question, reference and numbered steps, and names the wrong ones, several times. The value of the
part is the share of steps that the vote calls wrong; which steps these are is told by `critique.wrong(rollout)` until
`KEPT` further answers were read. What cannot be asked or read makes the part unavailable, for the whole group, as with
any judge. Numbers of steps that there are not are left out and counted as `critique/strange_steps`.

`RuleCritique` is a stand-in without a judge: a step is wrong that states an equation of numbers which does not hold, or
names a word of `words` that the reference does not hold. Name its part so that it shows (`critique_rule`). No torch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from mmrl.ground.steps import BLANK_LINES, step_spans
from mmrl.rewards.answers import references
from mmrl.rewards.contract import Reward
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.judged import Judged
from mmrl.rewards.judged_answer import asked

if TYPE_CHECKING:
    from mmrl.types import Rollout

Readings = Sequence[Sequence[int]]
VoteOf = Callable[[Readings, int], Sequence[float]]
"""(numbers of wrong steps of each reading, number of steps) -> how wrong each step is, in [0, 1]."""
KEPT = 1 << 16
"""Answers whose wrong steps are remembered."""
LONGEST = 4000
"""Characters of a question, a reference or a step that are shown."""
_WRONG = re.compile(r"<wrong>\s*([^<>]*?)\s*</wrong>", re.IGNORECASE)
_LISTED = re.compile(r"(?:step\s*)?(\d{1,4})", re.IGNORECASE)
_LIST = re.compile(
    r"(?:step\s*)?\d{1,4}(?:\s*(?:,|;|and|\s)\s*(?:step\s*)?\d{1,4})*", re.IGNORECASE
)
_HEADING = re.compile(r"\[(\s*step\s*\d+\s*)\]", re.IGNORECASE)
_NUMBER = r"-?\d{1,12}(?:\.\d{1,12})?"
# Not a part of a longer chain or of a word: "3 + 4 + 5 = 12" holds, though 4 + 5 is not 12.
_EQUATION = re.compile(
    rf"(?<![\w.+*/×÷^)(-])(?<![-+*/×÷^(] )({_NUMBER})\s*([-+*/×÷−])\s*({_NUMBER})\s*=\s*({_NUMBER})"
    r"(?![\w.]*[\w])(?!\s*[-+*/×÷^(%])"
)


Shares = Sequence[float]
_Key = tuple[str, str]
"""Prompt and text of an answer: equal ones have equal steps."""


def _key(rollout: Rollout) -> _Key:
    return rollout.prompt.id, rollout.text


@dataclass
class _Wrong:
    """What the latest answers were told."""

    of: dict[_Key, tuple[float, ...]] = field(default_factory=dict)

    def keep(self, rollout: Rollout, shares: Shares) -> float:
        """Remember an answer's steps; returns the share of them that is wrong."""
        self.of[_key(rollout)] = tuple(shares)
        while len(self.of) > KEPT:
            # In the order in which they came.
            del self.of[next(iter(self.of))]
        return sum(shares) / len(shares) if shares else 0.0

    def find(self, rollout: Rollout) -> tuple[float, ...] | None:
        """How wrong each step of an answer is; None if nobody read it."""
        return self.of.get(_key(rollout))


@dataclass(frozen=True)
class Critique(Judged):
    """Share of the wrong steps of an answer, as a judge reads it. An async reward."""

    critiques: int = 4
    """Readings of each answer."""
    vote: VoteOf = field(kw_only=True)
    """What several readings come to."""
    between: str = BLANK_LINES
    """Regular expression that separates steps."""
    _found: _Wrong = field(default_factory=_Wrong, init=False, repr=False, compare=False)
    judge_prompts: ClassVar[tuple[str, ...]] = ("wrong_steps",)

    async def __call__(self, rollout: Rollout) -> float:
        steps = steps_of(rollout.text, self.between)
        if not steps:
            return self._found.keep(rollout, ())
        request = critique_request(rollout, steps)
        where = f"prompt {rollout.prompt.id!r}"
        asking = [
            self.ask(request.voted(number), wrong_steps, where)
            for number in range(self.critiques)
        ]
        readings = await asyncio.gather(*asking)
        known = range(1, len(steps) + 1)
        named = [number for reading in readings for number in reading]
        strange = [number for number in named if number not in known]
        self.counts["critique/strange_steps"] += len(strange)
        shares = self.vote(readings, len(steps))
        return self._found.keep(rollout, shares)

    def wrong(self, rollout: Rollout) -> tuple[float, ...] | None:
        """How wrong each step of an answer is, in [0, 1]; None if it was not read."""
        return self._found.find(rollout)


@dataclass(frozen=True)
class RuleCritique(Reward):
    """Share of the steps that state what is false by rule. A stand-in, no reproduction."""

    words: tuple[str, ...] = ()
    """Words that are wrong where the reference does not hold them."""
    between: str = BLANK_LINES
    """Regular expression that separates steps."""
    _found: _Wrong = field(default_factory=_Wrong, init=False, repr=False, compare=False)
    in_process: ClassVar[bool] = True

    def __call__(self, rollout: Rollout) -> float:
        steps = steps_of(rollout.text, self.between)
        told = " ".join(references(rollout.prompt.answer))
        strange = {*self.words} - words_of(told)
        marks: list[float] = []
        for step in steps:
            named = strange & words_of(step)
            marks.append(float(bool(named or false_equations(step))))
        return self._found.keep(rollout, marks)

    def wrong(self, rollout: Rollout) -> tuple[float, ...] | None:
        """1 for each wrong step of an answer, else 0; None if it was not read."""
        return self._found.find(rollout)


def steps_of(text: str, between: str) -> list[str]:
    """The steps of an answer."""
    return [text[start:end] for start, end in step_spans(text, between)]


def critique_request(rollout: Rollout, steps: Sequence[str]) -> Asked:
    """The chat messages that ask which steps are wrong."""
    # An answer may not begin steps of its own making.
    own = [_HEADING.sub(r"(\1)", step)[:LONGEST] for step in steps]
    shown = [f"[Step {number}]\n{step}" for number, step in enumerate(own, start=1)]
    wanted = "\n".join(f"- {one}" for one in references(rollout.prompt.answer))
    return judge_prompt("wrong_steps").filled(
        question=asked(rollout.prompt.messages)[:LONGEST],
        reference=wanted[:LONGEST],
        count=len(steps),
        steps="\n\n".join(shown),
    )


def wrong_steps(reply: str) -> list[int] | None:
    """The numbers in the last `<wrong>` of a reply, none for "none"; None if there is no such list."""
    found = _WRONG.findall(reply)
    if not found:
        return None
    said = found[-1].strip().strip(".[]").strip()
    if said.lower() in ("none", ""):
        return [] if said else None
    # A sentence with numbers in it is no list.
    if _LIST.fullmatch(said) is None:
        return None
    return [int(number) for number in _LISTED.findall(said)]


def words_of(text: str) -> set[str]:
    """The words of a text in small letters."""
    return set(re.findall(r"\w+", text.lower()))


def false_equations(step: str) -> list[str]:
    """Equations of two numbers in a step that do not hold, as they stand there."""
    found: list[str] = []
    for match in _EQUATION.finditer(step):
        first, sign, second, result = match.groups()
        value = _OPERATIONS[sign](Fraction(first), Fraction(second))
        if value is not None and not _rounds_to(value, result):
            found.append(match[0])
    return found


def _rounds_to(value: Fraction, written: str) -> bool:
    """Is a number what a value is when it is rounded to as many places?"""
    places = len(written.partition(".")[2])
    # A whole number is meant as it stands.
    slack = Fraction(1, 2 * 10**places) if places else 0
    return abs(value - Fraction(written)) <= slack


_OPERATIONS: Mapping[str, Callable[[Fraction, Fraction], Fraction | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "−": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "×": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else None,
    "÷": lambda a, b: a / b if b else None,
}
