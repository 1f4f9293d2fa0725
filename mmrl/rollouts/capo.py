"""CAPO's steps on tokens: what a critique says of each step of an answer, on the tokens that were sampled.

Groups are sampled and paid by `inner`, with a critique among the rewards. How wrong each step is (`wrong`) then goes
onto the tokens that were decoded to it (`ground.steps`), as `Rollout.valued`: (tokens, -w) from the prompt on, 0
between steps. Formulas: `objectives/capo.py`.

An answer without a critique (the judge was away, or could not be read) stays as it is. So does one whose text is not
that of its tokens, one with media inside; the objective then leaves its whole group as GRPO has it.

Counts: `capo/answers` with a critique, `capo/steps` of them, `capo/wrong_steps` of these with w > 0, `capo/unread`
answers without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol

from torch import Tensor

from mmrl.ground.steps import BLANK_LINES, Span, step_spans, steps_of_tokens, token_spans
from mmrl.objectives.base import CRITIQUED, AnswerKind
from mmrl.objectives.capo import CAPO
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Rollout, Sampling

__all__ = ["CAPORollout", "valued_steps"]


class Words(Protocol):
    """Ids as text, `Policy.processing`."""

    def spell(self, ids: Sequence[int]) -> str:
        """The text of ids, of all of them."""
        ...

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids without end tokens."""
        ...


def valued_steps(
    rollout: Rollout, wrong: Sequence[float], words: Words, between: str = BLANK_LINES
) -> tuple[tuple[int, float], ...] | None:
    """(tokens, -w) from the prompt on, of w for each step; None where text and tokens, or steps and w, do not fit."""
    steps = step_spans(rollout.text, between)
    ids = rollout.tokens.tolist()
    spans = _in_text(rollout, ids, words)
    if spans is None or len(steps) != len(wrong):
        return None
    owners = steps_of_tokens(spans, steps)
    values = [0.0 if owner is None else -wrong[owner] for owner in owners]
    runs = [(value, len([*run])) for value, run in groupby(values)]
    return tuple((tokens, value) for value, tokens in runs)


def _in_text(rollout: Rollout, ids: Sequence[int], words: Words) -> list[Span] | None:
    """Where each token stands in the text of its answer, which may begin before the first one."""
    written, whole = words.decode(ids), words.spell(ids)
    spans = token_spans(ids, words.spell)
    ends = spans[-1][1] if spans else 0
    if ends != len(whole) or written not in whole:
        return None
    if not rollout.text.endswith(written):
        return None
    # The template may have begun the answer, and an end token is spelled but not part of it.
    ahead = len(rollout.text) - len(written) - whole.index(written)
    return [(start + ahead, end + ahead) for start, end in spans]


@dataclass(frozen=True)
class CAPORollout(RolloutFunction):
    """Groups whose answers carry what a critique says of their steps."""

    words: Words
    """`Policy.processing`."""
    wrong: Callable[[Rollout], Sequence[float] | None]
    """How wrong each step of a paid answer is, in [0, 1]; None if it was not read. A critique's `wrong`."""
    part: str = "critique"
    """The part of the reward that is the critique: where a group lacks it, none of its answers counts as read."""
    capo: CAPO = field(default_factory=CAPO)
    between: str = BLANK_LINES
    """Regular expression that separates steps, the critique's own."""
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers with a critique, unless it is off."""
        return (CRITIQUED,) if self.capo.process > 0 else ()

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = self.inner(engine, pay, supply, sampling, now)
        if not self.brings():
            return found
        out: list[Rollout] = []
        for one in found:
            wrong = None if one.parts.get(self.part) is None else self.wrong(one)
            valued = None
            if wrong is not None and not one.media:
                valued = valued_steps(one, wrong, self.words, self.between)
            if not valued:
                supply.counters["capo/unread"] += 1
                out.append(one)
                continue
            supply.counters["capo/answers"] += 1
            supply.counters["capo/steps"] += len(wrong or ())
            supply.counters["capo/wrong_steps"] += sum(w > 0 for w in wrong or ())
            out.append(replace(one, valued=valued))
        return out
