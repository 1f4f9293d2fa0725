"""ARPO, agentic reinforced policy optimisation: answers branch where the policy has become unsure (ARPO).

A group of N answers begins with `roots` whole ones. Wherever one of `strings` ends inside an answer, the policy's
uncertainty about what comes next is compared with that at the answer's beginning:

    H = - Σ p log p / log V      over the `candidates` likeliest ids of each of the first `look` tokens from there on
    score = clip(u - weight · (H_there - H_beginning), 0, 1)         u uniform in [0, 1)
    the answer branches there if score <= threshold: branches - 1 others go on from that token

Others branch in the same way behind the place where they began, until N answers are there or no place is left; what is
missing then begins at the prompt. So there are always N. A token that answers share is generated, scored and trained
once, and weighs as many times as answers have it.

With a `toolbox` the strings are not read: places lie behind what tools answer, and whatever happened up to there
(calls, pictures, what tools remember) belongs to all who branch there. An answer whose tool fails is left out.

Departures from the official code (github.com/dongguanting/ARPO, commit e257337d)
1. Without tools places lie behind any string of the policy's own words. There they lie behind the results of tools.
2. Answers are drawn to their ends and branch afterwards, at the earliest places first; there they wait for each other
   at each call of a tool. What is drawn behind a place does not depend on it.
3. H is a sum over tokens, as there (the paper's is a mean); fewer than `look` tokens give a smaller one.
4. u is drawn by (seed, step, prompt, answer, place), so that a run which is resumed branches alike.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.seeds import uniform_draw
from mmrl.ground.traits import Slot
from mmrl.model.policy import Policy
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.forking import Piece, Start
from mmrl.rollouts.request import Ability
from mmrl.rollouts.stages import Stages
from mmrl.rollouts.tool_loop import Opening, Spoken, ToolLoop
from mmrl.rollouts.tool_use import ToolEngine
from mmrl.rollouts.tree_groups import GrowingRollout, Growth
from mmrl.tools.tool import Trajectory
from mmrl.tools.toolbox import Toolbox
from mmrl.types import LARGEST_GROUP, Prompt, Rollout

__all__ = ["ARPO", "ARPORollout", "branch_score", "top_entropy"]


def top_entropy(logp: Tensor) -> float:
    """- Σ p log p over log-probs of any shape, in nats: a sum over places, too. 0 for none."""
    wide = logp.double()
    return float(-(wide.exp() * wide).sum())


def branch_score(uniform: float, before: float, now: float, weight: float) -> float:
    """In [0, 1], falling with what the uncertainty has grown by; `before` and `now` in units of log V."""
    return min(max(uniform - weight * (now - before), 0.0), 1.0)


@dataclass(frozen=True)
class ARPO:
    """The numbers of the branching."""

    strings: tuple[str, ...] = ("</think>",)
    """Strings behind which an answer may branch."""
    roots: int = 8
    """Answers that begin at the prompt; with a whole group of them nothing branches."""
    branches: int = 2
    """Answers that go on from a place where one branches, that one included."""
    weight: float = 0.2
    """Of what the uncertainty has grown by."""
    threshold: float = 0.5
    """An answer branches where its score is at most this."""
    look: int = 20
    """Tokens that tell how unsure the policy is."""
    candidates: int = 10
    """Likeliest ids of each."""

    def __post_init__(self) -> None:
        full = bool(self.strings) and all(self.strings)
        require(
            self,
            strings=(full, "one string or more, none of them empty"),
            roots=(1 <= self.roots <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
            branches=(2 <= self.branches <= LARGEST_GROUP, f"2 to {LARGEST_GROUP:,}"),
            weight=(0 <= self.weight < math.inf, "0 or more"),
            threshold=(0 <= self.threshold <= 1, "0 to 1"),
            look=(self.look >= 1, "1 or more"),
            candidates=(1 <= self.candidates <= 1000, "1 to 1,000"),
        )


@dataclass(frozen=True)
class _Place:
    """Where an answer may branch."""

    order: int
    """Places before it on the way to it."""
    piece: int
    cut: int
    score: float


@dataclass(frozen=True)
class _Grown:
    """A piece and what holds where it begins."""

    piece: Piece
    before: tuple[int, ...]
    """The answer's tokens that lie before it."""
    first: Piece
    """The piece with which the answer begins."""


@dataclass(frozen=True)
class _Opened:
    """An answer with tools that shall begin."""

    opening: Opening
    first: Piece | None = None
    """As `_Grown.first`; None: it begins with its own."""


@dataclass(frozen=True)
class _Spoken:
    """An answer with tools, and the piece with which it begins."""

    answer: Spoken
    first: Piece


@dataclass(frozen=True, eq=False)
class _Behind:
    """A place behind an observation."""

    place: _Place
    before: int
    """Tokens before it."""
    trajectory: Trajectory
    """What had happened up to there."""
    one: _Spoken

    def opened(self, number: int) -> _Opened:
        """An answer that branches here; `number` tells it from others."""
        place, prompt = self.place, self.one.answer.opening.prompt
        fork = self.trajectory.fork(place.piece, number)
        opening = Opening(prompt, place.piece, place.cut, self.before, (), fork)
        return _Opened(opening, self.one.first)


@dataclass(frozen=True)
class ARPORollout(GrowingRollout):
    """Groups that branch behind strings where the policy has become unsure."""

    policy: Policy | None = None
    """Whose words the strings are looked for in; needed to grow trees."""
    arpo: ARPO = ARPO()
    toolbox: Toolbox | None = None
    """Tools that answers call, behind whose results they branch; None: answers branch behind strings."""

    needs: ClassVar[Collection[Ability]] = ("forks", "likely tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy is None:
            raise ValueError(
                "ARPORollout looks for strings in answers, and has no policy whose words they are; give "
                "ARPORollout(policy=policy)."
            )

    def owns(self) -> tuple[Slot, ...]:
        """Where answers branch."""
        return ("tree",)

    def traits(self) -> tuple[str, ...]:
        """Answers of a group share beginnings."""
        return ("samples trees",)

    def answering(self, engine: Engine) -> Engine:
        """The engine, with the tools if there are any."""
        if self.toolbox is None or self.policy is None:
            return engine
        return ToolEngine(engine, self.policy, self.toolbox)

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Trees, or independent answers if nothing can branch."""
        if self.arpo.roots >= stages.sampling.group_size and self.toolbox is None:
            return stages(prompts)
        return super().groups(stages, prompts)

    def grow(self, growth: Growth, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The paid tree of each prompt."""
        assert self.policy is not None, "asked for where the function is made"
        if self.toolbox is not None:
            return self._grow_with_tools(growth, prompts, self.policy, self.toolbox)
        arpo, size, trees = self.arpo, growth.sampling.group_size, growth.trees
        grown: list[list[_Grown]] = [[] for _ in prompts]
        starts = [Start(n) for n in range(len(prompts)) for _ in range(arpo.roots)]
        while starts:
            waiting: list[list[_Place]] = [[] for _ in prompts]
            for piece in trees.grow(starts, top=arpo.candidates):
                number = piece.start.prompt
                one = _grown(piece, grown[number])
                key = (growth.now.seed, growth.now.step, prompts[number].id, len(grown[number]))
                waiting[number] += self._places(one, self.policy, key)
                grown[number].append(one)
            starts = [
                Start(number, place.piece, place.cut)
                for number, places in enumerate(waiting)
                for place in self._branching(places, size - len(grown[number]))
            ]
            growth.counters["arpo/branches"] += len(starts)
        leaves = [[one.piece.number for one in own] for own in grown]
        missing = [Start(n) for n, own in enumerate(leaves) for _ in range(size - len(own))]
        growth.counters["arpo/further_roots"] += len(missing)
        for piece in trees.grow(missing) if missing else ():
            leaves[piece.start.prompt].append(piece.number)
        return growth.paid(leaves)

    def _grow_with_tools(
        self, growth: Growth, prompts: Sequence[Prompt], policy: Policy, toolbox: Toolbox
    ) -> list[list[Rollout]]:
        """As `grow`; answers are drawn by the tool loop, and branch behind what tools have answered."""
        loop = ToolLoop(policy, toolbox, prompts, growth.sampling, growth.now, growth.counters)
        size, roots = growth.sampling.group_size, self.arpo.roots
        grown: list[list[_Spoken]] = [[] for _ in prompts]
        opened = [
            _Opened(Opening(n)) for n in range(len(prompts)) for _ in range(min(roots, size))
        ]
        while opened:
            waiting: list[list[_Behind]] = [[] for _ in prompts]
            for one in self._spoken(loop, growth, opened):
                number = one.answer.opening.prompt
                key = (growth.now.seed, growth.now.step, prompts[number].id, len(grown[number]))
                waiting[number] += self._behind(one, policy, key)
                grown[number].append(one)
            opened = []
            for own, places in zip(grown, waiting, strict=True):
                chosen = self._branching([each.place for each in places], size - len(own))
                by_place = {id(each.place): each for each in places}
                opened += [by_place[id(place)].opened(n) for n, place in enumerate(chosen)]
            growth.counters["arpo/branches"] += len(opened)
        further = [
            _Opened(Opening(n)) for n, own in enumerate(grown) for _ in range(size - len(own))
        ]
        growth.counters["arpo/further_roots"] += len(further)
        for one in self._spoken(loop, growth, further):
            grown[one.answer.opening.prompt].append(one)
        loop.refuse_many_lost()
        return loop.paid(growth, [[one.answer for one in own] for own in grown])

    def _spoken(
        self, loop: ToolLoop, growth: Growth, opened: Sequence[_Opened]
    ) -> list[_Spoken]:
        """The answers that begin there."""
        openings = [one.opening for one in opened]
        answers = loop.run(growth.trees, openings, top=self.arpo.candidates, keeps=True)
        return [
            _Spoken(answer, one.first or answer.pieces[0])
            for one, answer in zip(opened, answers, strict=True)
        ]

    def _behind(self, one: _Spoken, policy: Policy, key: Sequence[int | str]) -> list[_Behind]:
        """Where an answer may branch: behind each observation, if words follow."""
        beginning = self._uncertainty(one.first, 0, policy)
        answer, found = one.answer, []
        before = answer.opening.before
        for piece, kept in zip(answer.pieces, answer.kept, strict=True):
            cut = len(piece.start.given)
            if 0 < cut < len(piece.tokens) and not answer.lost:
                now = self._uncertainty(piece, cut, policy)
                uniform = uniform_draw(*key, before + cut, "arpo")
                score = branch_score(uniform, beginning, now, self.arpo.weight)
                place = _Place(len(kept.calls), piece.number, cut, score)
                found.append(_Behind(place, before + cut, kept, one))
            before += len(piece.tokens)
        return found

    def _branching(self, places: Sequence[_Place], left: int) -> list[_Place]:
        """Where new answers begin, each place once per answer; the earliest places first, `left` answers at most."""
        unsure = [place for place in places if place.score <= self.arpo.threshold]
        ordered = sorted(
            unsure, key=lambda place: place.order
        )  # of equal ones as they were drawn
        more = [place for place in ordered for _ in range(self.arpo.branches - 1)]
        return more[:left]

    def _places(self, grown: _Grown, policy: Policy, key: Sequence[int | str]) -> list[_Place]:
        """Where a piece may branch: behind its beginning, and where something comes."""
        piece, before = grown.piece, len(grown.before)
        beginning = self._uncertainty(grown.first, 0, policy)
        found: list[_Place] = []
        ends = string_ends(
            policy.processing.spell, [*grown.before, *piece.tokens], self.arpo.strings
        )
        for order, end in enumerate(ends):
            cut = end - before
            if 0 < cut < len(piece.tokens):
                now = self._uncertainty(piece, cut, policy)
                uniform = uniform_draw(*key, cut, "arpo")
                score = branch_score(uniform, beginning, now, self.arpo.weight)
                found.append(_Place(order, piece.number, cut, score))
        return found

    def _uncertainty(self, piece: Piece, cut: int, policy: Policy) -> float:
        assert piece.top_logp is not None, "pieces were grown without their likeliest tokens"
        some = piece.top_logp[cut : cut + self.arpo.look]
        return top_entropy(some) / math.log(len(policy.base.lm_head.weight))


def string_ends(
    spell: Callable[[Sequence[int]], str], tokens: Sequence[int], strings: Sequence[str]
) -> list[int]:
    """How many tokens there are when one of the strings has ended, rising, each number once."""
    text = spell(tokens)
    marks = {found.end() for one in strings for found in re.finditer(re.escape(one), text)}

    def characters(count: int) -> int:
        # A token may hold a part of a character, which shows as U+FFFD until the next one has come.
        return len(spell(tokens[:count]).rstrip("\ufffd"))

    counts = range(len(tokens) + 1)
    return sorted({bisect_left(counts, mark, key=characters) for mark in marks})


def _grown(piece: Piece, earlier: Sequence[_Grown]) -> _Grown:
    """A piece among the earlier ones of its prompt."""
    above = piece.start.piece
    if above is None:
        return _Grown(piece, (), piece)
    parent = next(one for one in earlier if one.piece.number == above)
    before = (*parent.before, *parent.piece.tokens[: piece.start.cut])
    return _Grown(piece, before, parent.first)
