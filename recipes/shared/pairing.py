"""Pairs of a hard and an easy question, chosen by how often the policy answers them before the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mmrl.ground.printable import tell
from mmrl.ground.require import require
from mmrl.model.ranks import Ranks
from mmrl.objectives.beyond_variance import PAIR, SIDE, hard_and_easy
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine
from mmrl.training.evaluate import answers_to, heldout_prompts
from mmrl.training.whole_batch import everybodys
from mmrl.types import Now, Prompt, Prompts, Sampling

Check = Callable[[Prompt], object]
AT_ONCE = 64
"""Questions whose pictures are in memory together."""


@dataclass(frozen=True)
class Pairs:
    """Which questions are measured, and how many are paired."""

    candidates: int = 1209
    """Questions that are measured: the first usable ones."""
    answers: int = 16
    """Answers to each."""
    band: int = 2
    """Rare means 1 to so many answers of these."""
    count: int = 1
    """Pairs to choose: the hardest and the easiest."""

    def __post_init__(self) -> None:
        require(
            self,
            candidates=(2 <= self.candidates <= 10**6, "2 to 1,000,000"),
            answers=(2 <= self.answers <= 4096, "2 to 4,096"),
            band=(1 <= self.band < self.answers, "at least 1, and fewer than `answers`"),
            count=(1 <= self.count <= self.candidates // 2, "at least 1 and at most candidates / 2"),
        )  # fmt: skip


class PairedPrompts(Prompts):
    """Hard and easy questions in turn, without end, in this order: whole pairs in every even number of prompts."""

    def __init__(self, prompts: Prompts, pairs: Sequence[tuple[int, int]]) -> None:
        self.prompts, self.pairs, self.size = prompts, tuple(pairs), None

    def __getitem__(self, index: int) -> Prompt:
        turn, side = divmod(index, 2)
        number = turn % len(self.pairs)
        row = self.prompts[self.pairs[number][side]]
        return replace(row, extra={**row.extra, PAIR: number, SIDE: "easy" if side else "hard"})

    def drain(self) -> Mapping[str, int]:
        """What the rows count."""
        return self.prompts.drain()


def paired(
    prompts: Prompts, pairs: Pairs, engine: Engine, rewards: Rewards, sampling: Sampling, seed: int,
    check: Check | None = None,
) -> PairedPrompts:  # fmt: skip
    """The pairs that the policy finds hard and easy now. Collective. Raises ValueError if there are too few.

    Rows that cannot be read, or for which `check` raises `BadRow`, are passed over.
    """
    places, right, answers = _measured(prompts, pairs, engine, rewards, sampling, seed, check)
    hard, easy = hard_and_easy(right, answers, pairs.band)
    tell(
        f"Of {len(places)} questions {len(hard)} are hard and {len(easy)} easy: 1 to {pairs.band} of {pairs.answers} "
        "answers are of the rare kind."
    )
    if min(len(hard), len(easy)) < pairs.count:
        raise ValueError(
            f"--pairs.count is {pairs.count}, but of {len(places)} questions {len(hard)} are hard and {len(easy)} "
            "easy; measure more (--pairs.candidates), with more answers (--pairs.answers) or a wider --pairs.band."
        )
    chosen = zip(hard[: pairs.count], easy[: pairs.count], strict=True)
    return PairedPrompts(prompts, [(places[one], places[other]) for one, other in chosen])


def _measured(
    prompts: Prompts, pairs: Pairs, engine: Engine, rewards: Rewards, sampling: Sampling, seed: int,
    check: Check | None,
) -> tuple[list[int], list[int], list[int]]:  # fmt: skip
    """Rows that could be read, how many answers to each were right, and how many were judged."""
    ranks, several = Ranks.here(), replace(sampling, group_size=pairs.answers)
    most = pairs.candidates if prompts.size is None else min(pairs.candidates, prompts.size)
    places: list[int] = []
    right: list[int] = []
    judged: list[int] = []
    for first in range(0, most, AT_ONCE):
        block, bad = _Block(prompts, range(first, min(first + AT_ONCE, most))), set[int]()
        rows = heldout_prompts(block, AT_ONCE, check, lambda index, _: bad.add(index))
        with ranks.together():
            mine = rows[ranks.rank :: ranks.world]
            # Each block has draws of its own.
            now = Now(first, 0.0, seed)
            paid = answers_to(engine, mine, rewards, several, now) if mine else []
        by_row: dict[str, list[bool]] = {}
        for answer in everybodys(ranks, paid):
            if answer.correct is not None:
                by_row.setdefault(answer.prompt.id, []).append(answer.correct)
        usable = [block.rows[index] for index in range(block.size) if index not in bad]
        for row, place in zip(rows, usable, strict=True):
            told = by_row.get(row.id, [])
            places.append(place)
            right.append(sum(told))
            judged.append(len(told))
    return places, right, judged


class _Block(Prompts):
    """A stretch of a collection."""

    def __init__(self, prompts: Prompts, rows: range) -> None:
        self.prompts, self.rows = prompts, rows
        self.size: int = len(rows)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[self.rows[index]]
