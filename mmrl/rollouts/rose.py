"""ROSE's rollout: the answers to a prompt grow one after the other, and most branch off an earlier one.

The first answer begins at the prompt. Each further one does so with probability `restart`; else it leaves the tree at
the place with the largest branching metric among all tokens drawn so far, the token of that place being drawn again
(`objectives.rose`). Nothing before that place is sampled, scored or trained twice.

All prompts of a step grow together: with G answers to a prompt the engine is called G times, whatever their number.

Departures
1. A place may be chosen again, as in the official code (github.com/ZiqiZhao1/ROSE-rl, commit 2142dc79); the first token
   of a branch is no place of its own here, since its distribution is that of the place where it left the tree.
2. Log-probs and the metric are those at the run's temperature, over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mmrl.ground.seeds import uniform_draw
from mmrl.ground.traits import Slot
from mmrl.model.policy import Policy
from mmrl.objectives.rose import ROSE, Metric, branch_metric
from mmrl.rollouts.forking import Forest, Piece, Start
from mmrl.rollouts.request import Ability
from mmrl.rollouts.stages import Stages
from mmrl.rollouts.tree_groups import GrowingRollout, Growth
from mmrl.types import Prompt, Rollout

__all__ = ["ROSERollout", "grow_trees", "place_metrics"]

NUMBERS_AT_ONCE = 1 << 22
"""Numbers of gathered embeddings in memory at a time."""
PlaceMetrics = Callable[[Sequence[Piece]], list[Tensor]]
"""Pieces -> the branching metric of each of their tokens, [n] each."""


@dataclass(frozen=True)
class Place:
    """Where a tree may branch."""

    metric: float
    piece: int | None
    """Number of the piece; None: the prompt."""
    cut: int | None
    """Tokens of it before the place."""


@dataclass(frozen=True)
class ROSERollout(GrowingRollout):
    """Groups that are trees, which branch where meanings part."""

    policy: Policy | None = None
    """Whose embedding tells which tokens mean alike; needed unless nothing branches."""
    rose: ROSE = field(default_factory=ROSE)

    needs: ClassVar[Collection[Ability]] = ("forks", "likely tokens")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy is None and self.rose.restart < 1:
            raise ValueError(
                "ROSERollout branches where tokens mean different things, and has no policy whose embedding says so; "
                "give ROSERollout(policy=policy), or ROSE(restart=1)."
            )

    def owns(self) -> tuple[Slot, ...]:
        """Where answers branch."""
        return ("tree",) if self.rose.restart < 1 else ()

    def traits(self) -> tuple[str, ...]:
        """Answers of a group share beginnings."""
        return ("samples trees",) if self.rose.restart < 1 else ()

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Trees, or independent answers if nothing branches."""
        return super().groups(stages, prompts) if self.rose.restart < 1 else stages(prompts)

    def grow(self, growth: Growth, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The paid tree of each prompt."""
        seed = (growth.now.seed, growth.now.step)
        leaves, branched = grow_trees(
            growth.trees, prompts, self.rose, growth.sampling.group_size, self._metrics, seed
        )
        growth.counters["rose/branches"] += branched
        growth.counters["rose/answers"] += sum(map(len, leaves))
        return growth.paid(leaves)

    def _metrics(self, pieces: Sequence[Piece]) -> list[Tensor]:
        assert self.policy is not None, "nothing branches without a policy"
        return place_metrics(self.policy, pieces, self.rose.branch_by)


def grow_trees(
    trees: Forest,
    prompts: Sequence[Prompt],
    rose: ROSE,
    answers: int,
    metrics: PlaceMetrics,
    seed: tuple[int, int],
) -> tuple[list[list[int]], int]:
    """The pieces with which the answers to each prompt end, and how many of all answers branched off another one.

    `seed`: of the run, and the step; they decide with the prompt's id who begins at the prompt.
    """
    leaves: list[list[int]] = [[] for _ in prompts]
    best: list[Place | None] = [None] * len(prompts)
    branched = 0
    for number in range(answers):
        starts = [_start(i, p, best[i], rose, number, seed) for i, p in enumerate(prompts)]
        branched += sum(start.piece is not None for start in starts)
        # The last answers are not branched off, so nobody asks for their candidates.
        looks = rose.restart < 1 and number + 1 < answers
        pieces = trees.grow(starts, top=rose.candidates if looks else 0)
        for index, piece in enumerate(pieces):
            leaves[index].append(piece.number)
        if looks:
            found = metrics(pieces)
            best = [_better(*each) for each in zip(best, pieces, found, strict=True)]
    return leaves, branched


def _start(
    index: int,
    prompt: Prompt,
    best: Place | None,
    rose: ROSE,
    number: int,
    seed: tuple[int, int],
) -> Start:
    """Where the answer with this number begins."""
    if best is None or uniform_draw(*seed, prompt.id, "rose", number) < rose.restart:
        return Start(index)
    return Start(index, best.piece, best.cut)


def _better(best: Place | None, piece: Piece, metric: Tensor) -> Place | None:
    """The better of a place and the best one of a new piece; of equal ones the earlier."""
    if not len(piece.tokens):
        return best
    at = int(metric.argmax())
    value = float(metric[at])
    if best is not None and value <= best.metric:
        return best
    if at == 0:  # the place where the piece itself left the tree
        return Place(value, piece.start.piece, piece.start.cut)
    return Place(value, piece.number, at)


def place_metrics(policy: Policy, pieces: Sequence[Piece], metric: Metric) -> list[Tensor]:
    """The branching metric of each token of each piece, float64 [n] on the CPU; pieces have their top tokens."""
    told = [(piece.top_logp, piece.top_ids) for piece in pieces]
    logps = [logp for logp, _ in told if logp is not None]
    ids = [number for _, number in told if number is not None]
    assert len(logps) == len(ids) == len(pieces), "pieces were grown without their top tokens"

    def looked_up(table: Tensor, logp: Tensor, chosen: Tensor) -> Tensor:
        numbers = chosen.shape[1] * table.shape[1]
        places = max(1, NUMBERS_AT_ONCE // numbers)
        some = zip(logp.split(places), chosen.split(places), strict=True)
        return torch.cat([branch_metric(x, table[i], metric) for x, i in some])

    with torch.no_grad():
        device = policy.device
        asked = (torch.cat(logps).to(device), torch.cat(ids).to(device))
        found = policy.table(looked_up, *asked).cpu()
    lengths = [len(logp) for logp in logps]
    return list(found.split(lengths))
