"""What a converted set of choices gives away: leaks, position, the guess rate, duplicates. No torch.

Cheap policies answer every choice without understanding it; `Cue.share` is how often they are right, to be compared
with the share of a guess (1 / options). A cue counts as a leak if the 95 % interval of its share lies above the guess
by more than `MARGIN`.

    always A, always B, …    the place of the chosen answer
    longest, shortest        in characters
    most lines, most marks   of Markdown: lists, headings, bold, code
    repeats the request      the most words in common with the request
    names the verdict        words such as "chosen" or "better answer" in one option only
    telling words            a naive Bayes of single words, learned on the other half of the rows

A policy that a cue does not decide for (two options of equal length) guesses there: it earns the share of a guess.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmrl.data.rows.choices import LETTERS, Choice
from mmrl.ground.intervals import wilson
from mmrl.ground.seeds import digest

MARGIN = 0.05
"""How far above a guess a cue may be right."""
_MARKUP = re.compile(r"^\s*(?:[-*+]|\d+\.|#+)\s|\*\*|```", re.MULTILINE)
_VERDICT = re.compile(
    r"\b(?:chosen|rejected|preferred|dispreferred|(?:better|worse|best|worst) (?:answer|response|option))\b",
    re.IGNORECASE,
)
Score = Callable[[str, str], float]
"""(request, option) -> a number; the policy takes the option with the largest."""


@dataclass(frozen=True)
class Row:
    """A choice with what it was made of."""

    question: str
    choice: Choice


@dataclass(frozen=True)
class Cue:
    """A cheap policy."""

    name: str
    share: float
    """How often it is right, in [0, 1]."""
    low: float
    high: float
    """The 95 % interval of the share (Wilson)."""
    leaks: bool
    """Is it right clearly more often than a guess?"""


@dataclass(frozen=True)
class Audit:
    """What is found in a set of choices."""

    rows: int
    guess: float
    """Mean share of a guess, 1 / options."""
    places: Mapping[str, float]
    """Letter -> share of rows whose chosen answer stands there."""
    cues: Sequence[Cue]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows that were not converted."""

    @property
    def leaks(self) -> list[Cue]:
        """The cues that give the answer away."""
        return [cue for cue in self.cues if cue.leaks]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)

    def told(self) -> str:
        """For a person."""
        lines = [f"{self.rows} choices; a guess is right in {self.guess:.3f} of them"]
        lines += [
            f"  left out: {reason}: {count}" for reason, count in sorted(self.skipped.items())
        ]
        for cue in self.cues:
            mark = "  LEAK" if cue.leaks else ""
            lines.append(
                f"  {cue.name:<22} {cue.share:.3f} ({cue.low:.3f} to {cue.high:.3f}){mark}"
            )
        return "\n".join(lines)


def audited(rows: Sequence[Row], skipped: Mapping[str, int] | None = None) -> Audit:
    """Audit converted rows. Raises ValueError without any."""
    if not rows:
        raise ValueError(
            f"There is no choice to audit; rows were left out: {dict(skipped or {})}."
        )
    count = len(rows)
    guess = sum(1 / len(row.choice.options) for row in rows) / count
    places = Counter(row.choice.answer for row in rows)
    most = max(len(row.choice.options) for row in rows)
    letters = LETTERS[:most]
    cues = [_cue(f"always {letter}", float(places[letter]), count, guess) for letter in letters]
    for name, score in SCORES.items():
        right = sum(credit(row, score) for row in rows)
        cues.append(_cue(name, right, count, guess))
    cues.append(_cue("telling words", _telling(rows), count, guess))
    shares = {letter: places[letter] / count for letter in letters}
    return Audit(count, guess, shares, cues, dict(skipped or {}))


def credit(row: Row, score: Score) -> float:
    """1 if the option with the largest score is the chosen one, 1 / n if it is one of n, else 0."""
    scores = [score(row.question, option) for option in row.choice.options]
    best = [
        letter for letter, value in zip(LETTERS, scores, strict=False) if value == max(scores)
    ]
    return 1 / len(best) if row.choice.answer in best else 0.0


def key_of(row: Row) -> tuple[str, frozenset[str]]:
    """What two duplicates have in common, whichever answer is chosen and in whatever order."""
    return plain(row.question), frozenset(map(plain, row.choice.options))


def plain(text: str) -> str:
    """A text without case and differences of white space."""
    return " ".join(text.casefold().split())


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def _common(question: str, option: str) -> float:
    words = _words(option)
    return len(words & _words(question)) / len(words) if words else 0.0


SCORES: Mapping[str, Score] = {
    "longest": lambda question, option: len(option),
    "shortest": lambda question, option: -len(option),
    "most lines": lambda question, option: option.count("\n"),
    "most marks": lambda question, option: len(_MARKUP.findall(option)),
    "repeats the request": _common,
    "names the verdict": lambda question, option: bool(_VERDICT.search(option)),
}


def _cue(name: str, right: float, count: int, guess: float) -> Cue:
    share = right / count
    low, high = wilson(share, count)
    return Cue(name, share, low, high, low > guess + MARGIN)


def _telling(rows: Sequence[Row]) -> float:
    """Choices that single words decide rightly, each half of the rows judged by what the other half says."""
    # By content: rows that are alike in some period would all fall into one half.
    sides = [digest("half", row.question, *row.choice.options, size=1)[0] % 2 for row in rows]
    halves = [
        [row for row, here in zip(rows, sides, strict=True) if here == side] for side in (0, 1)
    ]
    right = 0.0
    for learned, judged in (halves, reversed(halves)):
        weights = _word_weights(learned)

        def score(question: str, option: str, weights: Mapping[str, float] = weights) -> float:
            return round(math.fsum(weights.get(word, 0.0) for word in _words(option)), 9)

        right += sum(credit(row, score) for row in judged)
    return right


def _word_weights(rows: Sequence[Row]) -> dict[str, float]:
    """Word -> log odds of standing in the chosen answer rather than in another one."""
    chosen: Counter[str] = Counter()
    others: Counter[str] = Counter()
    lost = 0
    for row in rows:
        for letter, option in zip(LETTERS, row.choice.options, strict=False):
            here = letter == row.choice.answer
            lost += not here
            (chosen if here else others).update(_words(option))
    total = len(rows)
    weights: dict[str, float] = {}
    for word in chosen | others:
        seen = (chosen[word] + 1) / (total + 2)
        else_seen = (others[word] + 1) / (lost + 2)
        weights[word] = math.log(seen / else_seen)
    return weights
