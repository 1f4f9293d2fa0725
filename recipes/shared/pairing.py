"""Pairs of a hard and an easy question, chosen by how often the policy answers them before the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mmrl.ground.faults import BadRow
from mmrl.ground.printable import tell
from mmrl.ground.progress import busy
from mmrl.ground.require import require
from mmrl.model.ranks import Ranks
from mmrl.objectives.beyond_variance import PAIR, SIDE, hard_and_easy
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import Engine
from mmrl.training.dry import is_dry
from mmrl.training.evaluate import answers_to
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

    Rows that cannot be read, or for which `check` raises `BadRow`, are passed over. Where a run is only built (a
    preview, a check), there are no weights to measure with: the first questions stand for the pairs.
    """
    if is_dry():
        return PairedPrompts(prompts, _in_order(prompts, pairs))
    with busy("Measuring questions"):
        places, right, answers = _measured(
            prompts, pairs, engine, rewards, sampling, seed, check
        )
    hard, easy = hard_and_easy(right, answers, pairs.band)
    tell(
        f"Of {len(places)} questions {len(hard)} are hard and {len(easy)} easy: 1 to {pairs.band} of {pairs.answers} "
        "answers are of the rare kind."
    )
    first = hard[: pairs.count]
    # With a wide band a question may be both; it is hard then.
    second = [place for place in easy if place not in first][: pairs.count]
    if min(len(first), len(second)) < pairs.count:
        raise ValueError(
            f"--pairs.count is {pairs.count}, but of {len(places)} questions {len(hard)} are hard and {len(easy)} "
            "easy; measure more (--pairs.candidates), with more answers (--pairs.answers) or a wider --pairs.band."
        )
    chosen = zip(first, second, strict=True)
    return PairedPrompts(prompts, [(places[one], places[other]) for one, other in chosen])


def _in_order(prompts: Prompts, pairs: Pairs) -> list[tuple[int, int]]:
    """The first questions as pairs, as many as were asked for and as there are rows for."""
    count = pairs.count if prompts.size is None else min(pairs.count, prompts.size // 2)
    if not count:
        raise ValueError(f"There are {prompts.size} training rows; a pair is two questions.")
    return [(2 * number, 2 * number + 1) for number in range(count)]


def _measured(
    prompts: Prompts, pairs: Pairs, engine: Engine, rewards: Rewards, sampling: Sampling, seed: int,
    check: Check | None,
) -> tuple[list[int], list[int], list[int]]:  # fmt: skip
    """Rows that could be read, how many answers to each were right, and how many were judged."""
    several = replace(sampling, group_size=pairs.answers)
    most = pairs.candidates if prompts.size is None else min(pairs.candidates, prompts.size)
    places: list[int] = []
    right: list[int] = []
    judged: list[int] = []
    for first in range(0, most, AT_ONCE):
        usable, rows = _block(prompts, range(first, min(first + AT_ONCE, most)), check)
        # Each block has draws of its own.
        told = _told(rows, engine, rewards, several, Now(first, 0.0, seed))
        places += usable
        right += [sum(told[row.id]) for row in rows]
        judged += [len(told[row.id]) for row in rows]
    return places, right, judged


def _block(
    prompts: Prompts, stretch: range, check: Check | None
) -> tuple[list[int], list[Prompt]]:
    """Indices and prompts of a stretch of a collection, without those that cannot be used."""
    found: dict[int, Prompt] = {}
    for index in stretch:
        try:
            prompt = prompts[index]
            if check is not None:
                check(prompt)
        except BadRow:  # the collection counts what it could not read
            continue
        found[index] = prompt
    return list(found), list(found.values())


def _told(
    rows: Sequence[Prompt], engine: Engine, rewards: Rewards, sampling: Sampling, now: Now
) -> Mapping[str, list[bool]]:
    """Prompt id -> which of its answers are right. Each rank answers its share, all get all. Collective."""
    ranks = Ranks.here()
    with ranks.together():
        mine = rows[ranks.rank :: ranks.world]
        paid = answers_to(engine, mine, rewards, sampling, now) if mine else []
    found: dict[str, list[bool]] = {row.id: [] for row in rows}
    for answer in everybodys(ranks, paid):
        if answer.correct is not None:
            found[answer.prompt.id].append(answer.correct)
    return found
