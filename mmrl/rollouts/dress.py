"""DRESS (arXiv 2311.10081): answers are learned together with the feedback that they got, and refined by advice.

Per question x the policy answers, gets a score s in {1, 2, 3, 4}, a critique c and advice f, and answers again with its
last answer and the advice in view, up to R rounds or the best score. With h the rounds before, learned are, by
likelihood on the tokens of y alone and without any policy gradient,

    L = - Σ_k log π(y_k | x, h, s_k, c_k)  -  λ_ref Σ_{k ≥ 2} log π(y_k | x, h, s_k)        token mean

so that the model learns which answer goes with which feedback. When it is used, it is given the best score and a fixed
critique in place of feedback (`Conditioned`). A share of the questions is learned as plain instructions: the row's own
answer behind the question alone.

Degenerate cases: an answer without feedback (a score that cannot be read) is not learned and ends its rounds; counted.
A row without a usable answer of its own is answered where an instruction would have been learned. Without feedback on
anything the step is a plain likelihood of instructions; a step without any row is an error.

Departures
1. Reconstructed: abstract and project page say that feedback is a number and text, learned with a conditional cross
   entropy. The formula, the rounds, the shares and all words are ours.
2. A critique that quotes the answer would give it away: one that shares `quote` words in a row with it (or all of a
   shorter one) is left out of the condition, the score stays. Counted.
3. With the chance `plain` a condition is empty, so that the model is not lost without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from mmrl.ground.faults import BadRow
from mmrl.ground.require import require
from mmrl.ground.seeds import derive_seed, uniform_draw
from mmrl.objectives.base import AnswerKind
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import LabelRollout, Pay, RolloutFunction
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.rewording import MADE_FROM, with_text
from mmrl.rollouts.stages import Stages, numbered
from mmrl.types import Now, Prompt, Prompts, Rollout, Sampling

__all__ = [
    "CONDITIONED",
    "DRESS",
    "Conditioned",
    "DRESSRollout",
    "Said",
    "conditioned",
    "quotes",
]

CONDITIONED = AnswerKind(
    "conditioned",
    sampled=False,
    remedy="it needs answers behind their feedback; use rollout=DRESSRollout(feedback, policy.encode)",
)
"""Answers behind another prompt than the one they were sampled from."""
TOP = 4


class Said(Protocol):
    """Feedback on one answer."""

    @property
    def score(self) -> int: ...
    @property
    def critique(self) -> str: ...
    @property
    def advice(self) -> str: ...


GiveFeedback = Callable[[Sequence[Rollout]], Sequence[Any]]
"""Paid answers -> what is said of each (`Said`); None where nothing can be."""


@dataclass(frozen=True)
class DRESS:
    """Conditions, refinements, and what is mixed in."""

    rounds: int = 3
    """Answers in a row to one question, each after advice on the last (R); 1: no refinement."""
    refine: float = 1.0
    """Weight of the likelihood of refined answers given the advice and their score (λ_ref); 0 turns it off."""
    instruct: float = 0.5
    """Share of questions that are learned as plain instructions, with the row's own answer."""
    plain: float = 0.1
    """Chance that a condition is left empty."""
    quote: int = 8
    """So many words in a row that a critique shares with its answer make a quotation."""
    sentence: str = "\n\nFeedback: score {score}. {critique}"
    """How feedback is put behind the question."""
    praise: str = "The answer is helpful, honest and harmless, and nothing is to be improved."
    """Critique of the best score when the model is used."""

    def __post_init__(self) -> None:
        has_score = "{score}" in self.sentence
        require(
            self,
            rounds=(1 <= self.rounds <= 16, "1 to 16"),
            refine=(0 <= self.refine <= 1000, "0 (off) or positive, at most 1000"),
            instruct=(0 <= self.instruct < 1, "a share below 1"),
            plain=(0 <= self.plain <= 1, "in [0, 1]"),
            quote=(self.quote >= 1, "at least 1"),
            sentence=(has_score, "a text with {score} in it, and {critique}"),
        )

    def put(self, score: int, critique: str) -> str:
        """The condition as text."""
        # By parts: what looks like a field in a critique stays.
        before, _, after = self.sentence.partition("{critique}")
        whole = f"{before.replace('{score}', str(score))}{critique}{after.replace('{score}', str(score))}"
        return whole.rstrip()

    @property
    def best(self) -> str:
        """The condition when the model is used."""
        return self.put(TOP, self.praise)


class Conditioned(Prompts):
    """The same prompts with the condition of the best feedback behind each, for evaluation."""

    def __init__(self, prompts: Prompts, dress: DRESS) -> None:
        self.prompts, self.dress, self.size = prompts, dress, prompts.size

    def __getitem__(self, index: int) -> Prompt:
        return with_text(self.prompts[index], self.dress.best)

    def drain(self) -> Mapping[str, int]:
        """What the rows counted."""
        return self.prompts.drain()


@dataclass(frozen=True)
class _Turn:
    """An answer with the rounds before it and what was said of it."""

    asked: Prompt
    """The question with the rounds before."""
    answer: Rollout
    said: Said
    round: int


@dataclass(frozen=True)
class DRESSRollout(RolloutFunction):
    """Answers with their feedback as rows of likelihood: the reward is a row's weight (estimator `uncentred`)."""

    feedback: GiveFeedback
    encode: Callable[[Prompt], Any]
    """Prompt -> what has its `ids`; raises `BadRow` for one that cannot be shown, `Policy.encode`."""
    label: LabelRollout
    """Makes a row's own answer an answer."""
    dress: DRESS = DRESS()
    part: str = "score"
    """Name of the score in the log."""

    needs: ClassVar[Collection[Ability]] = ("counts per prompt",)

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers behind their feedback."""
        return (CONDITIONED,)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        stages = Stages(numbered(engine), pay, sampling, now, supply.counters)
        learned: list[Rollout] = []
        asked: list[Prompt] = []
        for prompt in supply.take():
            own = self._instruction(prompt, stages)
            if own is None:
                asked.append(prompt)
            else:
                learned.append(own)
        for number in range(1, self.dress.rounds + 1):
            turns = self._round(asked, number, stages) if asked else []
            learned += [row for turn in turns for row in self._rows(turn, stages)]
            asked = [
                again for turn in turns if (again := self._again(turn, stages)) is not None
            ]
        if not supply.ranks.total([len(learned)])[0]:
            raise ValueError(
                "DRESS has no row to learn in this step: no answer got feedback that can be used, and no row has an "
                "answer of its own."
            )
        return [replace(row, group=group) for group, row in enumerate(learned)]

    def _instruction(self, prompt: Prompt, stages: Stages) -> Rollout | None:
        """The row's own answer, for the share of questions that are instructions; None for the others."""
        now = stages.now
        draw = uniform_draw(now.seed, now.step, prompt.id, "dress instruction")
        if draw >= self.dress.instruct:
            return None
        try:
            if prompt.answer is None and self.label.field not in prompt.extra:
                raise BadRow(f"{prompt.id!r} has no answer")
            own = self.label.label(0, prompt)
        except BadRow:
            stages.counters["dress/no_instruction"] += 1
            return None
        stages.counters["dress/instructions"] += 1
        return own

    def _round(self, asked: Sequence[Prompt], number: int, stages: Stages) -> list[_Turn]:
        """Answers to the questions and what is said of them. Only the first round answers several times."""
        counts = None if number == 1 else [1] * len(asked)
        groups = stages(asked, counts=counts)
        answers = [answer for group in groups for answer in group]
        found: list[_Turn] = []
        for answer, said in zip(answers, self.feedback(answers), strict=True):
            if said is None:
                stages.counters["dress/without_feedback"] += 1
                continue
            stages.counters[f"dress/score_{said.score}"] += 1
            found.append(_Turn(answer.prompt, answer, said, number))
        stages.counters["dress/refined"] += len(found) if number > 1 else 0
        return found

    def _rows(self, turn: _Turn, stages: Stages) -> list[Rollout]:
        """What is learned of a turn: the answer given its feedback and, if it was refined, given its score."""
        dress, said = self.dress, turn.said
        critique = said.critique
        if quotes(critique, turn.answer.text, dress.quote):
            stages.counters["dress/quotations"] += 1
            critique = ""
        now = stages.now
        draw = uniform_draw(
            now.seed, now.step, turn.answer.prompt.id, turn.answer.text, "dress plain"
        )
        text = "" if draw < dress.plain else dress.put(said.score, critique)
        wanted = [(text, 1.0)]
        if turn.round > 1 and dress.refine > 0:
            wanted.append((dress.put(said.score, ""), dress.refine))
        rows: list[Rollout] = []
        for condition, weight in wanted:
            try:
                row = conditioned(turn.answer, turn.asked, condition, self.encode)
            except BadRow:
                stages.counters["dress/too_long"] += 1
                continue
            rows.append(
                replace(row, reward=weight, parts={**row.parts, self.part: float(said.score)})
            )
        return rows

    def _again(self, turn: _Turn, stages: Stages) -> Prompt | None:
        """The question with this answer and the advice on it; None where nothing is left to say."""
        if turn.round == self.dress.rounds or turn.said.score == TOP or not turn.said.advice:
            return None
        question = turn.asked
        messages: Any = question.messages
        if isinstance(messages, str):  # a text to be continued has no turns
            return None
        turns = [
            {"role": "assistant", "content": turn.answer.text},
            {"role": "user", "content": turn.said.advice},
        ]
        extra = {**question.extra, MADE_FROM: question.extra.get(MADE_FROM, question.id)}
        # Several answers to one question lead to as many conversations.
        name = f"{question.id}~{derive_seed(turn.answer.text, turn.said.advice):x}"
        stages.counters["dress/again"] += 1
        again = replace(question, id=name, messages=[*messages, *turns], extra=extra)
        try:
            self.encode(again)
        except BadRow:
            stages.counters["dress/too_long"] += 1
            return None
        return again


def conditioned(
    answer: Rollout, asked: Prompt, condition: str, encode: Callable[[Prompt], Any]
) -> Rollout:
    """The answer behind the question with a condition, as a row of likelihood. Raises `BadRow`."""
    prompt = with_text(asked, condition) if condition else asked
    # Another prompt of its own: its ids differ from those of the question.
    name = f"{asked.id}|{condition}" if condition else asked.id
    source = asked.extra.get(MADE_FROM, asked.id)
    prompt = replace(prompt, id=name, extra={**prompt.extra, MADE_FROM: source})
    return replace(
        answer,
        prompt=prompt,
        prompt_ids=encode(prompt).ids,
        # Nobody sampled it behind this prompt, so the sampler has no probabilities of it.
        logp=None,
        path=(),
        valued=(),
    )


def quotes(critique: str, answer: str, words: int) -> bool:
    """Do critique and answer share so many words in a row, or all of a shorter answer?"""
    said, given = (
        re.findall(r"\w+", re.sub(r"<[^<>]*>", " ", text.casefold()))
        for text in (critique, answer)
    )
    length = min(words, len(given))
    if not length:
        return False
    runs = {tuple(given[at : at + length]) for at in range(len(given) - length + 1)}
    return any(tuple(said[at : at + length]) in runs for at in range(len(said) - length + 1))
