"""Ordinary rows beside puzzles in one run: which index is which, and what puzzles are paid (rows: `row_accuracy`)."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mmrl.data.pretext.prompts import pretext_correct, pretext_reward
from mmrl.ground.seeds import philox
from mmrl.recipes.shared.row_accuracy import is_puzzle
from mmrl.rewards.pay import in_process
from mmrl.types import Prompt, Prompts, Rollout


class RowsBeside(Prompts):
    """Puzzles without end, with rows in the place of a share of them.

    The rows come in an order that is shuffled for each pass over as many indices as there are rows. The same index
    always gives the same prompt.
    """

    def __init__(self, puzzles: Prompts, rows: Prompts, share: float, seed: int = 0) -> None:
        if not 0.0 < share < 1.0:
            raise ValueError(
                f"--rows-share is {share}; it must lie between 0 and 1. Leave --rows out for puzzles alone."
            )
        self.puzzles, self.rows = puzzles, rows
        self.share, self.seed, self.size = share, seed, None
        self._order = (-1, np.zeros(0, dtype=np.int64))

    def __getitem__(self, index: int) -> Prompt:
        if philox(self.seed, "rows beside", index).random() >= self.share:
            return self.puzzles[index]
        return self.rows[self._row(index)]

    def drain(self) -> dict[str, int]:
        """What both count."""
        total: Counter[str] = Counter(self.puzzles.drain())
        total.update(self.rows.drain())
        return dict(total)

    def _row(self, index: int) -> int:
        if self.rows.size is None:  # drawn rows are endless, and in random order by themselves
            return index
        epoch, place = divmod(index, self.rows.size)
        # The order of one pass is kept, any other is made again from the seed.
        if self._order[0] != epoch:
            draws = philox(self.seed, "order of rows", epoch)
            self._order = (epoch, draws.permutation(self.rows.size))
        return int(self._order[1][place])


@in_process
def puzzle_pay(rollout: Rollout) -> float | None:
    """The task's own reward; not available for rows."""
    return pretext_reward(rollout) if is_puzzle(rollout.prompt.extra) else None


@in_process
def puzzle_correct(rollout: Rollout) -> float | None:
    """1 if a puzzle is solved exactly; not available for rows."""
    return pretext_correct(rollout) if is_puzzle(rollout.prompt.extra) else None
