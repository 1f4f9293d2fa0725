"""NExt (arXiv 2604.11446): where the weights of a run are heading, by the largest directions of their changes.

Of a matrix W at checkpoints 0 … k, each change is taken for its largest singular direction σ·u·vᵀ:

    global   W_k - W_0          local   W_k - W_{k-1}          target   W_{k+h} - W_k

One predictor for each length d of vectors learns the target's vectors from those of global and local; σ is a vector of
length 1, a parameter with one dimension is a vector as it is. It is fitted on all k of the run that have a target:

    each of global, local: d → 256 → d;   both, one behind the other: 2d → 256 → 2d → 256 → d;   ReLU, L1 loss, AdamW

At the last checkpoint, û and v̂ again of length 1,   W = W_last + α·σ̂·û·v̂ᵀ   (or W_last + α·ŵ with one dimension).
α = 0 is W_last bit for bit.

Degenerate: a parameter that never moved stays, and is not learned from; a change of 0 has u = v = 0, σ = 0, and a
predicted vector of 0 adds nothing. All is finite.

Departures from the official code (github.com/RUCAIBox/NExt, commit 84f79de51465)
1. The signs of u and v, which a decomposition leaves open, are fixed: the largest entry of u is positive.
2. Parameters with more than two dimensions (patch embeddings) are matrices of their first dimension against the others.
3. Above `EXACT` rows and columns the largest direction is found by subspace iteration from a fixed seed.
4. Checkpoints need not be equally far apart: h is in steps, and a target is the checkpoint exactly h steps on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from mmrl.ground.require import require

__all__ = ["NExt", "Trajectories", "Vectors", "add_rank_one", "rank_one"]

EXACT = 512
"""Matrices whose smaller side is at most this are decomposed exactly."""


@dataclass(frozen=True)
class NExt:
    """How far, and how the predictors are fitted."""

    alpha: float = 1.0
    """Multiple of the predicted change; the paper tries 0.5 to 4 on validation rows."""
    horizon: int = 50
    """Steps between a checkpoint and its target (h)."""
    hidden: int = 256
    """Width of the hidden layers."""
    lr: float = 2e-5
    """AdamW's first learning rate; it falls along a cosine to `least` of it."""
    least: float = 0.1
    """Share of the learning rate that is left at the end."""
    epochs: int = 1000
    """Passes over all examples, each one step of AdamW."""
    seed: int = 0
    """Draws the first weights of the predictors."""

    def __post_init__(self) -> None:
        require(
            self,
            alpha=(0 <= self.alpha <= 100, "0 (no change) to 100"),
            horizon=(self.horizon >= 1, "at least 1"),
            hidden=(1 <= self.hidden <= 1 << 16, "1 to 65,536"),
            lr=(0 < self.lr <= 1, "in (0, 1]"),
            least=(0 <= self.least <= 1, "in [0, 1]"),
            epochs=(1 <= self.epochs <= 1_000_000, "1 to 1,000,000"),
            seed=(self.seed >= 0, "0 or positive"),
        )


@dataclass(frozen=True)
class Vectors:
    """A change of one parameter: σ, u, v of a matrix, or the change itself."""

    parts: tuple[Tensor, ...]
    """float32 vectors: u [m], σ [1], v [n], or one [d]."""

    @staticmethod
    def of(change: Tensor) -> Vectors:
        """Those of a change of any shape with a dimension."""
        flat = change.float()
        if flat.ndim < 2:
            return Vectors((flat.reshape(-1),))
        return Vectors(rank_one(flat.flatten(1)))

    def change(self, like: Tensor) -> Tensor:
        """The change that they stand for, float32 of the shape of `like`."""
        if len(self.parts) == 1:
            return self.parts[0].reshape(like.shape)
        return add_rank_one(*self.parts).reshape(like.shape)


def rank_one(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u [m], σ [1], v [n] of the largest singular direction of a matrix [m, n]; the largest |entry| of u is positive.

    All three are 0 for a matrix of zeros.
    """
    rows, columns = matrix.shape
    if not matrix.any():
        return matrix.new_zeros(rows), matrix.new_zeros(1), matrix.new_zeros(columns)
    if min(rows, columns) <= EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        right = right.mT
    else:
        # It draws its first directions from the global generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(matrix, q=8, niter=8)
    u, v = left[:, 0], right[:, 0]
    sign = torch.where(u[u.abs().argmax()] < 0, -1.0, 1.0).to(u)
    return sign * u, values[:1], sign * v


def add_rank_one(u: Tensor, size: Tensor, v: Tensor) -> Tensor:
    """size·û·v̂ᵀ [m, n] with û, v̂ of length 1; `size` is taken as it is, and a vector of 0 gives 0."""
    return size * torch.outer(_unit(u), _unit(v))


def _unit(vector: Tensor) -> Tensor:
    length = vector.norm()
    return torch.where(length > 0, vector / length, 0)


@dataclass
class Trajectories:
    """What is learned from the parameters of a run, and then said of each."""

    settings: NExt = NExt()
    examples: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)
    """Length d -> (global, local, target), each [d]."""
    ahead: dict[str, tuple[Vectors, Vectors]] = field(default_factory=dict)
    """Parameter -> global and local change at the last checkpoint."""

    def learn(self, name: str, steps: Sequence[int], weights: Sequence[Tensor]) -> bool:
        """Take in one parameter at all checkpoints, in order; did it move at all?

        `weights`: tensors of one shape, the first before any training; only vectors of them are kept.
        """
        precise = [weight.float() for weight in weights]
        if all(torch.equal(weight, precise[0]) for weight in precise[1:]):
            return False
        place = {step: number for number, step in enumerate(steps)}
        for now in range(1, len(steps)):
            seen = self._changes(precise, now)
            target = place.get(steps[now] + self.settings.horizon)
            if target is not None:
                after = Vectors.of(precise[target] - precise[now])
                for example in zip(seen[0].parts, seen[1].parts, after.parts, strict=True):
                    self.examples.setdefault(len(example[0]), []).append(example)
            if now == len(steps) - 1:
                self.ahead[name] = seen
        return True

    def predicted(self) -> Iterator[tuple[str, Vectors]]:
        """Each parameter that moved, with the change that is expected of it in the next `horizon` steps."""
        found: dict[str, dict[int, Tensor]] = {name: {} for name in self.ahead}
        # By length, so that one predictor is in memory at a time.
        for length in sorted(self.examples):
            predictor = fitted(self.examples[length], self.settings)
            for name, (since_start, last) in self.ahead.items():
                for number, (one, other) in enumerate(
                    zip(since_start.parts, last.parts, strict=True)
                ):
                    if len(one) == length:
                        with torch.no_grad():
                            found[name][number] = predictor(one, other)
        for name, parts in found.items():
            yield name, Vectors(tuple(parts[number] for number in sorted(parts)))

    @staticmethod
    def _changes(weights: Sequence[Tensor], now: int) -> tuple[Vectors, Vectors]:
        return (
            Vectors.of(weights[now] - weights[0]),
            Vectors.of(weights[now] - weights[now - 1]),
        )


class Predictor(nn.Module):
    """The next change of a vector [..., d] from its changes since the start and since the last checkpoint."""

    def __init__(self, length: int, hidden: int) -> None:
        super().__init__()
        self.since_start = _layers(length, hidden, length)
        self.last = _layers(length, hidden, length)
        self.both = _layers(2 * length, hidden, 2 * length, hidden, length)

    def forward(self, since_start: Tensor, last: Tensor) -> Tensor:
        return self.both(torch.cat([self.since_start(since_start), self.last(last)], dim=-1))


def fitted(examples: Sequence[tuple[Tensor, Tensor, Tensor]], settings: NExt) -> Predictor:
    """The predictor of all examples of one length; the global generator stays as it was."""
    since_start, last, target = (
        torch.stack(list(column)) for column in zip(*examples, strict=True)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        predictor = Predictor(target.shape[-1], settings.hidden)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=settings.lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.epochs, eta_min=settings.least * settings.lr
    )
    for _ in range(settings.epochs):
        optimizer.zero_grad()
        l1_loss(predictor(since_start, last), target).backward()
        optimizer.step()
        falling.step()
    return predictor


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU between them."""
    found: list[nn.Module] = []
    for one, other in pairwise(widths):
        found += [nn.Linear(one, other), nn.ReLU()]
    return nn.Sequential(*found[:-1])


def moved(weight: Tensor, vectors: Vectors, alpha: float) -> Tensor:
    """W + α·change, in the weight's own format; with α = 0 the weight itself."""
    if alpha == 0:
        return weight
    return (weight.float() + alpha * vectors.change(weight)).to(weight.dtype)


def targets_within(steps: Sequence[int], horizon: int) -> Mapping[int, int]:
    """Step of a checkpoint behind the first -> step of its target, for all that have one."""
    there = set(steps)
    return {step: step + horizon for step in steps[1:] if step + horizon in there}
