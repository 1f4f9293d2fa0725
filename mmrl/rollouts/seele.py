"""SEELE's rounds (arXiv 2509.06923): each has some of a question's answers, and a hint fitted to the rounds before.

`SEELERollout` divides the answers of a group among `SEELE.rounds` calls of the engine. In each, answers begin with the
first part of the row's worked solution, cut between tokens and never inside a character; the role of these tokens is
HINT. After a round, what is right of it goes into the curve of the question (`objectives/seele.py`), and the curve says
how long the next hint is. The last one's suggestion is remembered for the next visit: prompt id -> share of the
solution. That memory is the run's, saved with it, and the same on all ranks.

A hint takes at most half of `Sampling.max_tokens`, which counts it as well; where it would take more it is cut, and
`seele/cut_hints` counts that. Rows without a usable solution are plain GRPO and are counted by `seele/missing`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow
from mmrl.ground.traits import Slot
from mmrl.objectives.base import HINTS, AnswerKind
from mmrl.objectives.seele import SEELE, Tried, next_rate
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.types import Now, Prompt, Rollout, Sampling

__all__ = ["SEELERollout", "Words", "hint_of"]

NOTHING = torch.zeros(0, dtype=torch.long)


class Words(Protocol):
    """Text to ids and back, `Policy.processing`."""

    def encode_answer(self, text: str) -> Tensor:
        """Ids long [T] with the end token. Raises `BadRow`."""
        ...

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids."""
        ...


@dataclass
class Rates:
    """Which share of its solution suits each question. A rollout function's memory."""

    of_prompts: dict[str, float] = field(default_factory=dict)
    """Prompt id -> share in [0, 1]."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"of_prompts": dict(self.of_prompts)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.of_prompts = {str(name): float(r) for name, r in state["of_prompts"].items()}


def hint_of(solution: Tensor, rate: float, room: int, words: Words) -> Tensor:
    """The first share of a solution's ids long [T], at most `room` of them, that ends with a whole character."""
    length = min(round(rate * len(solution)), room)
    # A character of several tokens is spelled as a replacement sign until its last token is there.
    while length and words.decode(solution[:length]).endswith("\ufffd"):
        length -= 1
    return solution[:length]


@dataclass(frozen=True)
class SEELERollout(StagedRollout):
    """Answers in rounds, each with the hint that suits the question."""

    seele: SEELE = field(default_factory=SEELE)
    processing: Words = field(kw_only=True)
    """`Policy.processing`."""
    column: str = "solution"
    """Column of the row that holds the worked solution."""

    needs: ClassVar[Collection[Ability]] = ("counts per prompt", "forced prefixes")
    needs_correct: ClassVar[bool] = True

    def owns(self) -> tuple[Slot, ...]:
        """How many answers are asked for at a time, and with what."""
        return ("counts",) if self.seele.is_on else ()

    def traits(self) -> tuple[str, ...]:
        """A question's answers depend on each other by the hints."""
        return ("hints questions",) if self.seele.is_on else ()

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers with hints."""
        return (HINTS,) if self.seele.is_on else ()

    def remembers_prompts(self) -> bool:
        """Rates are kept by prompt id."""
        return self.seele.is_on

    def start_memory(self) -> Rates | None:
        """The rates."""
        return Rates() if self.seele.is_on else None

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks, or ""."""
        return "" if _text(prompt, self.column) or not self.seele.is_on else self.column

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        if not self.seele.is_on:
            return self.inner(engine, pay, supply, sampling, now)
        self._refuse_small_groups(sampling)
        rates: Rates = supply.memory(self)
        rounds = _Rounds(self.inner, owner=self, rates=rates)
        found = rounds(engine, pay, supply, sampling, now)
        # Another rank may meet a question when it comes again.
        for theirs in supply.ranks.gathered(rounds.learned):
            rates.of_prompts.update(theirs)
        return found

    def _refuse_small_groups(self, sampling: Sampling) -> None:
        least = 2 * self.seele.rounds
        if sampling.group_size < least:
            raise ValueError(
                f"SEELE.rounds is {self.seele.rounds} and sampling.group_size {sampling.group_size}: a round needs two "
                f"answers at least, which are compared with each other. Raise --sampling.group-size to {least}, or "
                f"lower --seele.rounds to {max(1, sampling.group_size // 2)}."
            )


@dataclass(frozen=True)
class _Rounds(StagedRollout):
    """The rounds of one step, and what they teach about each question."""

    owner: SEELERollout = field(kw_only=True)
    rates: Rates = field(kw_only=True)
    learned: dict[str, float] = field(default_factory=dict)
    """Prompt id -> share of the solution that suits it now."""

    needs: ClassVar[Collection[Ability]] = SEELERollout.needs

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The answers of all rounds to each prompt."""
        questions = [self._question(prompt, stages) for prompt in prompts]
        for count in shared_out(stages.sampling.group_size, self.owner.seele.rounds):
            hints = [self._hint(question, stages) for question in questions]
            found = stages(prompts, [count] * len(prompts), hints)
            for question, hint, group in zip(questions, hints, found, strict=True):
                question.group += group
                self._learn(question, hint, group)
        return [question.group for question in questions]

    def _question(self, prompt: Prompt, stages: Stages) -> _Question:
        ids = self._solution(_text(prompt, self.owner.column))
        stages.counters["seele/missing"] += not len(ids)
        rate = self.rates.of_prompts.get(prompt.id, self.owner.seele.start)
        return _Question(prompt.id, ids, min(rate, self.owner.seele.most))

    def _solution(self, text: str) -> Tensor:
        try:
            return self.owner.processing.encode_answer(text)[:-1] if text else NOTHING
        except BadRow:  # special tokens inside would be read as structure
            return NOTHING

    def _hint(self, question: _Question, stages: Stages) -> Tensor:
        room = stages.sampling.max_tokens // 2
        cut = round(question.rate * len(question.solution)) > room
        stages.counters["seele/cut_hints"] += cut
        return hint_of(question.solution, question.rate, room, self.owner.processing)

    def _learn(self, question: _Question, hint: Tensor, group: Sequence[Rollout]) -> None:
        """How the round went, and what the next one gives."""
        known = [one.correct for one in group if one.correct is not None]
        if not known or not len(question.solution):
            return
        given = len(hint) / len(question.solution)
        question.tried.append(Tried(given, sum(known) / len(known), len(known)))
        seele = self.owner.seele
        question.rate = next_rate(question.tried, seele.target, seele.most)
        self.learned[question.id] = question.rate


@dataclass
class _Question:
    """A prompt on its way through the rounds."""

    id: str
    solution: Tensor
    """long [T]; empty: none."""
    rate: float
    tried: list[Tried] = field(default_factory=list)
    group: list[Rollout] = field(default_factory=list)


def shared_out(answers: int, rounds: int) -> list[int]:
    """How many answers each round asks for: as equal as may be, the first ones more."""
    each, more = divmod(answers, rounds)
    return [each + (number < more) for number in range(rounds)]


def _text(prompt: Prompt, column: str) -> str:
    found = prompt.extra.get(column)
    return found if isinstance(found, str) else ""
