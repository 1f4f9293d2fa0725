"""The Path Not Taken (arXiv 2511.08567): where in its matrices a run has changed a model, and where not.

Of each matrix, W before and W⁺ after:

    unchanged      share of |w⁺ - w| ≤ η·max(|w|, |w⁺|), both as bf16, η = 1e-3: smaller steps are hidden by the format
    angle          largest principal angle between the spans of the first k singular vectors, of U and of V, in degrees
    drift          ‖σ(W⁺) - σ(W)‖ / ‖σ(W)‖ of the singular values
    principal      |P ∩ M| / |M|: share of the changed entries M among the fraction α of largest entries of |W_k|, the
                   matrix of the first k singular directions
    low            the same for the fraction α of smallest entries of |W|
    between runs   |A ∩ B| / |A ∪ B| of what two runs changed, beside pq / (p + q - pq), that of chance

By chance `principal` and `low` are α. What the paper finds of RL: principal below α, low above it, hardly any rotation.

Degenerate: equal matrices are unchanged to 1, with angle and drift 0, and no overlap (NaN, for M is empty); a matrix of
zeros has no directions, and drift NaN if it changed.

Departures
1. Above `EXACT` rows and columns k directions and values are found by subspace iteration from a fixed seed, and the
   drift is that of these k values.
2. Vectors (norms, biases) have `unchanged` alone.
3. k is not printed for every figure: 32, or half of the smaller side if that is less.
4. Masks of a fraction take whole entries: ⌊α·size⌋, at ties the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.ground.require import require

EXACT = 1024
"""Matrices whose smaller side is at most this are decomposed whole."""
SLACK = 1e-12


@dataclass(frozen=True)
class Geometry:
    """How matrices are compared."""

    tolerance: float = 1e-3
    """η: relative change below which an entry counts as unchanged."""
    rank: int = 32
    """k: singular directions that are compared."""
    fraction: float = 0.5
    """α: share of entries in the masks of large and of small ones."""

    def __post_init__(self) -> None:
        require(
            self,
            tolerance=(0 <= self.tolerance < 1, "in [0, 1)"),
            rank=(1 <= self.rank <= 1 << 14, "1 to 16,384"),
            fraction=(0 < self.fraction < 1, "strictly between 0 and 1"),
        )


@dataclass(frozen=True)
class Change:
    """What became of one parameter."""

    name: str
    shape: tuple[int, ...]
    unchanged: float
    """Share of entries, as bf16."""
    angle_left: float = math.nan
    """Degrees; NaN of a vector."""
    angle_right: float = math.nan
    drift: float = math.nan
    principal: float = math.nan
    low: float = math.nan


def compared(name: str, before: Tensor, after: Tensor, how: Geometry) -> Change:
    """One parameter, of any shape, before and after; more than two dimensions are the first against the others.

    Raises ValueError if the shapes differ.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"{name} is {list(before.shape)} in one model and {list(after.shape)} in the other; compare models of one "
            "kind."
        )
    moved = changed(before, after, how.tolerance)
    unchanged = 1.0 - moved.float().mean().item() if moved.numel() else 1.0
    shape = tuple(before.shape)
    if before.ndim < 2 or min(before.flatten(1).shape) < 2:
        return Change(name, shape, unchanged)
    first, second = before.float().flatten(1), after.float().flatten(1)
    rank = min(how.rank, max(1, min(first.shape) // 2))
    u0, s0, v0 = decomposed(first, rank)
    u1, s1, v1 = decomposed(second, rank)
    flat = moved.flatten(1)
    large = largest((u0[:, :rank] * s0[:rank]) @ v0[:, :rank].T, how.fraction)
    small = largest(-first.abs(), how.fraction, signed=True)
    return Change(
        name,
        shape,
        unchanged,
        largest_angle(u0[:, :rank], u1[:, :rank]),
        largest_angle(v0[:, :rank], v1[:, :rank]),
        spectrum_drift(s0, s1),
        overlap(large, flat),
        overlap(small, flat),
    )


def changed(before: Tensor, after: Tensor, tolerance: float) -> Tensor:
    """Which entries differ as bf16 by more than the tolerance, bool."""
    # In float: the difference of two bf16 numbers need not be one.
    old, new = before.bfloat16().float(), after.bfloat16().float()
    return (new - old).abs() > tolerance * torch.maximum(old.abs(), new.abs())


def decomposed(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], σ [r], V [n, r] of a matrix [m, n], falling: all of them, or `rank` if it is large."""
    if min(matrix.shape) <= EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right.mT
    # It draws its first directions from the global generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=min(2 * rank, *matrix.shape), niter=8)
    return left[:, :rank], values[:rank], right[:, :rank]


def largest_angle(first: Tensor, second: Tensor) -> float:
    """Largest principal angle in degrees between the spans of two orthonormal bases [n, k]."""
    cosine = torch.linalg.svdvals(first.double().T @ second.double()).min().clamp(0.0, 1.0)
    # Of a small angle the cosine says little; the sine, of what is left beside the span, does.
    rest = second.double() - first.double() @ (first.double().T @ second.double())
    sine = torch.linalg.svdvals(rest).max().clamp(0.0, 1.0)
    return math.degrees(math.atan2(sine.item(), cosine.item()))


def spectrum_drift(before: Tensor, after: Tensor) -> float:
    """‖σ⁺ - σ‖ / ‖σ‖; 0 of equal ones."""
    gap = (after.double() - before.double()).norm().item()
    size = before.double().norm().item()
    if gap <= SLACK * size:
        return 0.0
    return gap / size if size > 0 else math.nan


def largest(matrix: Tensor, fraction: float, *, signed: bool = False) -> Tensor:
    """The given fraction of entries that are largest, in size unless `signed`; bool."""
    values = (matrix if signed else matrix.abs()).flatten()
    count = int(fraction * values.numel() + SLACK)
    chosen = torch.argsort(values, descending=True, stable=True)[:count]
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[chosen] = True
    return mask.view(matrix.shape)


def overlap(mask: Tensor, moved: Tensor) -> float:
    """Share of what moved that lies in the mask; NaN if nothing did."""
    count = int(moved.sum())
    return int((mask & moved).sum()) / count if count else math.nan


def alike(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Jaccard index of what two runs moved (bool, of one shape), and that of chance; NaN where nothing did."""
    both, either = int((first & second).sum()), int((first | second).sum())
    p, q = first.double().mean().item(), second.double().mean().item()
    chance = p * q / (p + q - p * q) if p + q > 0 else math.nan
    return (both / either if either else math.nan), chance
