"""SPAE's probes: behind each step of an answer the policy is asked what its result is.

Answers are sampled and paid by `inner`. Then each is read once more, step by step, in a forest (`forking.py`), and
behind each step

    Acc    the row's own answer is put behind the words `probe`, and its tokens' probabilities are averaged
    Conf   `SPAE.probes` results of at most `SPAE.tokens` tokens are drawn behind the words, and their entropies read

so what steps have in common is read once. A step ends behind a token with which the text ends in one of `ends`; where
the answer has a `</think>`, only before it. Formulas: `objectives/spae.py`. Nothing of a probe is trained or paid.

Needs rows whose answer is a text of at most `SPAE.tokens` tokens: of others, like boxes, spans and captions, nobody
can say how probable they are, since they have many forms. Such rows keep the plain advantage.

Counts: `spae/answers` asked, `spae/steps` of them, `spae/unasked` answers without a usable row or with media inside.

Departures: probabilities are those at the temperature at which results are drawn, as the engine has no others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import ClassVar, Protocol

from torch import Tensor

from mmrl.ground.faults import BadRow
from mmrl.objectives.base import PROBED, AnswerKind
from mmrl.objectives.spae import SPAE, confidence, potential, top_entropy
from mmrl.rollouts import forking
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.forking import Forest, Piece, Start
from mmrl.rollouts.groups import Pay, RolloutCall, RolloutFunction, by_group, group_rollout
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.stages import numbered
from mmrl.rollouts.tree_groups import together
from mmrl.types import Now, Prompt, Rollout, Sampling

__all__ = ["SPAERollout", "step_ends"]

PROBE = "**Final Answer**\n\\boxed{"
STEPS_END = (".\n\n",)
THOUGHT_END = "</think>"
LOOK_BACK = 16
"""Tokens whose text shows how an answer ends at a place."""


class Words(Protocol):
    """Text to ids and back, `Policy.processing`."""

    def encode_answer(self, text: str) -> Tensor:
        """Ids long [T] with the end token. Raises `BadRow`."""
        ...

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of ids."""
        ...


def step_ends(tokens: Sequence[int], ends: Sequence[str], words: Words) -> list[int]:
    """So many tokens of an answer there are at the end of each of its steps, rising; none behind its thoughts."""
    found: list[int] = []
    for count in range(1, len(tokens) + 1):
        text = words.decode(tokens[max(0, count - LOOK_BACK) : count])
        if THOUGHT_END in text:
            break
        if text.endswith(tuple(ends)):
            found.append(count)
    return found


@dataclass(frozen=True)
class _Asked:
    """An answer whose steps are asked about."""

    row: int
    """Its place among the rollouts."""
    prompt: int
    """Its prompt's place in the forest."""
    steps: tuple[tuple[int, ...], ...]
    """Ids of each step."""
    truth: tuple[int, ...]
    """Ids of the row's own answer."""


@dataclass(frozen=True)
class SPAERollout(RolloutFunction):
    """Answers with the potentials of their steps."""

    processing: Words
    """`Policy.processing`."""
    spae: SPAE = field(default_factory=SPAE)
    probe: str = PROBE
    """Words that ask for the result."""
    ends: tuple[str, ...] = STEPS_END
    """What a step ends with."""
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    needs: ClassVar[Collection[Ability]] = ("forks", "likely tokens")
    if_missing: ClassVar[str] = (
        "the probability of boxes, spans and captions cannot be told: give rows with a short answer in text, or allow "
        "longer ones with --spae.tokens"
    )

    def __post_init__(self) -> None:
        if not self.probe or not all(self.ends) or not self.ends:
            raise ValueError(
                f"SPAERollout has the probe {self.probe!r} and steps that end with {self.ends!r}; both are texts that "
                "are not empty."
            )

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers with potentials, unless it is off."""
        return (PROBED,) if self.spae.on else ()

    def traits(self) -> tuple[str, ...]:
        """Each step of each answer is asked about."""
        return ("samples beside answers",) if self.spae.on else ()

    def missing(self, prompt: Prompt) -> str:
        """The answer, where it is none whose probability can be told."""
        usable = not self.spae.on or self._truth(prompt)
        return "" if usable else f"answer (a text of at most {self.spae.tokens} tokens)"

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = self.inner(engine, pay, supply, sampling, now)
        if not self.spae.on:
            return found
        groups = {group[0].group: group for group in by_group(found)}
        prompts = {number: group[0].prompt for number, group in groups.items()}
        rows = self._rows(found)
        supply.counters["spae/unasked"] += len(found) - len(rows)
        supply.counters["spae/answers"] += len(rows)
        room = self._sampling(sampling)
        order = sorted({found[row].group for row in rows})
        out, at = list(found), 0
        for some in together(engine, [prompts[number] for number in order], room):
            places = {number: n for n, number in enumerate(order[at : at + len(some)])}
            at += len(some)
            asked = [
                self._asked(row, places[found[row].group], found[row])
                for row in rows
                if found[row].group in places
            ]
            with forking.forest(numbered(engine), some, room, now) as trees:
                for one, values in zip(asked, self._potentials(trees, asked), strict=True):
                    steps = zip(map(len, one.steps), values, strict=True)
                    out[one.row] = replace(found[one.row], valued=tuple(steps))
            supply.counters["spae/steps"] += sum(len(one.steps) for one in asked)
        return out

    def _rows(self, found: Sequence[Rollout]) -> list[int]:
        """Answers that can be asked: a forest reads no pictures inside answers, and knows the real pixels only."""
        return [
            row
            for row, one in enumerate(found)
            if not one.media and one.branch == "raw" and self._truth(one.prompt)
        ]

    def _sampling(self, sampling: Sampling) -> Sampling:
        """How results are drawn, with room for them behind the longest answer."""
        room = len(self._ids(self.probe)) + self.spae.tokens
        return replace(
            sampling,
            temperature=self.spae.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            stop=(),
            max_tokens=sampling.max_tokens + room,
        )

    def _asked(self, row: int, prompt: int, answer: Rollout) -> _Asked:
        ids = answer.tokens.tolist()
        # Nothing goes on behind an end token.
        ended = ids[:-1] if answer.stop == "eos" else ids
        ends = [0, *step_ends(ended, self.ends, self.processing)]
        steps = tuple(tuple(ids[a:b]) for a, b in pairwise(ends))
        return _Asked(row, prompt, steps, self._truth(answer.prompt))

    def _potentials(self, trees: Forest, asked: Sequence[_Asked]) -> Iterator[list[float]]:
        """The potentials of each answer's steps."""
        found: list[list[float]] = [[] for _ in asked]
        last: list[int | None] = [None] * len(asked)
        probe = self._ids(self.probe)
        # Step by step, so that each is read behind those before it.
        for number in range(max((len(one.steps) for one in asked), default=0)):
            going = [n for n, one in enumerate(asked) if number < len(one.steps)]
            read = trees.grow(
                [
                    Start(asked[n].prompt, last[n], given=asked[n].steps[number], max_tokens=0)
                    for n in going
                ]
            )
            for n, piece in zip(going, read, strict=True):
                last[n] = piece.number
            values = self._values(trees, [(asked[n], last[n]) for n in going], probe)
            for n, value in zip(going, values, strict=True):
                found[n].append(value)
        return iter(found)

    def _values(
        self,
        trees: Forest,
        places: Sequence[tuple[_Asked, int | None]],
        probe: tuple[int, ...],
    ) -> list[float]:
        """The potential at each place, which is an answer and the piece with which its step ends."""
        told = trees.grow(
            [
                Start(one.prompt, piece, given=probe + one.truth, max_tokens=0)
                for one, piece in places
            ]
        )
        most, count = len(probe) + self.spae.tokens, self.spae.probes
        results = trees.grow(
            [
                Start(one.prompt, piece, given=probe, max_tokens=most)
                for one, piece in places
                for _ in range(count)
            ],
            top=self.spae.candidates,
        )
        accuracies = [float(piece.logp[len(probe) :].double().exp().mean()) for piece in told]
        sure = [
            confidence([drawn_entropy(piece, len(probe)) for piece in results[n : n + count]])
            for n in range(0, len(results), count)
        ]
        return [potential(*pair) for pair in zip(accuracies, sure, strict=True)]

    def _truth(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of the row's own answer; none if it is no short text."""
        answer = prompt.answer
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            return ()
        try:
            ids = self._ids(str(answer).strip())
        except BadRow:  # special tokens inside would be read as structure
            return ()
        return ids if len(ids) <= self.spae.tokens else ()

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.processing.encode_answer(text)[:-1].tolist()) if text else ()


def drawn_entropy(piece: Piece, given: int) -> Tensor:
    """Entropy of each place of a piece behind its given tokens, float64 [n]."""
    assert piece.top_logp is not None, "pieces were grown without their top tokens"
    return top_entropy(piece.top_logp[given:])
