"""What the head is asked about the whole distribution of a token, read tile by tile (`logprobs.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Which numbers of a token's whole distribution are wanted, besides the log-prob of the token itself."""

    weights: Tensor | None = None
    """float [V], sum 1: the mean of all log-probs under these weights; None: no mean."""
    top: int = 0
    """So many of the most likely tokens with their log-probs; 0: none."""
    picked: Tensor | None = None
    """long [N, k]: tokens whose log-probs are wanted, of each place its own; None: none."""


NOTHING = Spread()


@dataclass(frozen=True)
class HeadNumbers:
    """What the head says of N tokens; None where nobody asked."""

    logp: Tensor
    """[N]."""
    entropy: Tensor | None
    """[N], nats."""
    mean: Tensor | None
    """[N]: mean log-prob over the vocabulary."""
    top_logp: Tensor | None
    """[N, k], falling; without gradient."""
    top_ids: Tensor | None
    """long [N, k]."""
    picked: Tensor | None = None
    """[N, k]: log-probs of the picked tokens, with gradient."""


def picked_grid(answers: Iterable[tuple[int, Tensor]], shape: tuple[int, int]) -> Tensor | None:
    """Which tokens are picked where, long [B, T, k] with 0 where there are none; None if nothing is picked.

    `answers`: row of the batch and picked tokens, long [T_i, k], of each answer.
    """
    each = dict(answers)
    if not each:
        return None
    widest = max(ids.shape[1] for ids in each.values())
    grid = torch.zeros(*shape, widest, dtype=torch.long)
    for row, ids in each.items():
        grid[row, : ids.shape[0], : ids.shape[1]] = ids
    return grid


@dataclass
class SpreadRead:
    """What is read of the logits of one head before they are used up."""

    weights: Tensor | None
    """[V], in the format of the logits."""
    mean: Tensor | None
    """[N]."""
    top: Tensor | None
    """[N, k]."""
    ids: Tensor | None
    """long [N, k]."""
    wanted: Tensor | None = None
    """long [N, k]: which tokens are picked."""
    picked: Tensor | None = None
    """[N, k]."""

    @classmethod
    def empty(cls, asked: Spread, like: Tensor) -> SpreadRead:
        """Numbers that are still to be read; `like` is [N]."""
        weights = None if asked.weights is None else asked.weights.to(like)
        mean = None if weights is None else torch.zeros_like(like)
        wanted = asked.picked
        picked = None if wanted is None else like.new_zeros(wanted.shape)
        if not asked.top:
            return cls(weights, mean, None, None, wanted, picked)
        shape = (len(like), asked.top)
        ids = torch.zeros(shape, dtype=torch.long, device=like.device)
        return cls(weights, mean, like.new_zeros(shape), ids, wanted, picked)

    def read(self, rows: slice, tile: Tensor) -> None:
        """Of some tokens, from their logits [n, V]."""
        if self.mean is not None and self.weights is not None:
            self.mean[rows] = tile @ self.weights
        if self.top is not None and self.ids is not None:
            self.top[rows], self.ids[rows] = tile.topk(self.top.shape[1])
        if self.picked is not None and self.wanted is not None:
            self.picked[rows] = tile.gather(1, self.wanted[rows])

    def normalise(self, lse: Tensor) -> None:
        """From logits to log-probs; lse [N]."""
        if self.mean is not None:
            self.mean -= lse
        if self.top is not None:
            self.top -= lse[:, None]
        if self.picked is not None:
            self.picked -= lse[:, None]
