"""A quadratic surrogate of the score of a mixture, fitted on finished runs (MoDoMoDo, arXiv 2505.24871). Pure numbers.

    score(w) = mean + Σ_(i<=j) c_ij w_i w_j        w on the simplex: not negative, summing to 1

Constant and linear terms are in the quadratic one, since the weights sum to 1: m data sets have m (m + 1) / 2 numbers.
With fewer runs than that nothing but ridge decides between them; it draws predictions towards the mean of the runs.

Ours: how much ridge is chosen by the error on runs that were left out; the reported error leaves each run out of
that choice, too. The best mixture is sought by projected gradients from many starts, in place of an evolution strategy.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrl.ground.seeds import philox

Numbers = NDArray[np.floating[Any]]
RIDGES = tuple(10.0**power for power in range(-8, 2))
"""Strengths that are tried, the smallest first."""
LEAST = 3
"""Fewest different mixtures that anything can be fitted on."""
STARTS, STEPS = 512, 200
"""Random starts of the search for the best mixture, and steps of each."""
SAME = 1e-6
"""Mixtures whose weights differ by no more are one."""


@dataclass(frozen=True)
class Surrogate:
    """A fitted quadratic."""

    mean: float
    matrix: Numbers
    """[m, m], symmetric: score(w) = mean + w' matrix w."""
    ridge: float

    def __call__(self, weights: Numbers) -> Numbers:
        """Predicted score of each mixture; [..., m] -> [...]."""
        return self.mean + np.einsum("...i,ij,...j->...", weights, self.matrix, weights)

    def slope(self, weights: Numbers) -> Numbers:
        """Gradient at each mixture; [..., m] -> [..., m]."""
        return 2.0 * weights @ self.matrix


@dataclass(frozen=True)
class Proposal:
    """The mixture with the largest predicted score."""

    weights: Numbers
    predicted: float
    distance: float
    """To the nearest mixture that was run: half the sum of the differences, 0 (the same) to 1."""


def terms(sets: int) -> int:
    """Free numbers of the surrogate of so many data sets."""
    return sets * (sets + 1) // 2


def fit(weights: Numbers, scores: Numbers, ridge: float | None = None) -> Surrogate:
    """The surrogate of runs: weights [k, m], scores [k]. Without `ridge`, the one with the least error is taken."""
    chosen = _best_ridge(weights, scores) if ridge is None else ridge
    mean = float(scores.mean())
    found = _coefficients(_products(weights), scores - mean, chosen)
    matrix = np.zeros((weights.shape[1],) * 2)
    matrix[np.triu_indices(weights.shape[1])] = found
    return Surrogate(mean, (matrix + matrix.T) / 2, chosen)


def left_out_predictions(weights: Numbers, scores: Numbers) -> Numbers:
    """For each run the prediction of a surrogate that never saw its mixture; [k]. Needs `LEAST` + 1 mixtures."""
    groups = same_mixtures(weights)
    found = np.empty(len(scores))
    for number in range(groups.max() + 1):
        # All runs of a mixture together: a repeated one would tell what it is asked.
        held = groups == number
        found[held] = fit(weights[~held], scores[~held])(weights[held])
    return found


def left_out_means(weights: Numbers, scores: Numbers) -> Numbers:
    """The same, if the mean of the other mixtures' runs were all that one knew; [k]."""
    groups = same_mixtures(weights)
    return np.array([scores[groups != groups[run]].mean() for run in range(len(scores))])


def same_mixtures(weights: Numbers) -> NDArray[np.int64]:
    """A number for each run, the same for runs of one mixture; weights [k, m] -> [k]."""
    numbers: list[int] = []
    firsts: list[Numbers] = []
    for row in weights:
        known = [n for n, first in enumerate(firsts) if np.abs(first - row).max() <= SAME]
        if not known:
            firsts.append(row)
        numbers.append(known[0] if known else len(firsts) - 1)
    return np.array(numbers, dtype=np.int64)


def noise(weights: Numbers, scores: Numbers) -> float | None:
    """Deviation between runs of one mixture, pooled and unbiased; None if none was run twice."""
    groups = same_mixtures(weights)
    spare, squares = 0, 0.0
    for number in range(groups.max() + 1):
        own = scores[groups == number]
        spare += len(own) - 1
        squares += float(((own - own.mean()) ** 2).sum())
    return (squares / spare) ** 0.5 if spare else None


def propose(surrogate: Surrogate, observed: Numbers, seed: int = 0) -> Proposal:
    """The best mixture by the surrogate; observed [k, m] are starts as well."""
    sets = observed.shape[1]
    drawn = philox(seed, "mixtures").dirichlet(np.ones(sets), STARTS)
    here = np.concatenate([np.eye(sets), np.full((1, sets), 1 / sets), observed, drawn])
    # The curvature bounds the step with which a projected gradient never overshoots.
    bend = 2.0 * float(np.abs(np.linalg.eigvalsh(surrogate.matrix)).max()) or 1.0
    for _ in range(STEPS):
        here = on_simplex(here + surrogate.slope(here) / bend)
    predicted = surrogate(here)
    best = here[int(np.argmax(predicted))]
    distance = 0.5 * float(np.abs(observed - best).sum(-1).min())
    return Proposal(best, float(predicted.max()), distance)


def on_simplex(points: Numbers) -> Numbers:
    """The nearest points of the simplex; [n, m] -> [n, m]."""
    falling = -np.sort(-points, axis=-1)
    over = np.cumsum(falling, axis=-1) - 1.0
    counts = np.arange(1, points.shape[-1] + 1)
    # As many coordinates stay positive as exceed what all of them have to give up.
    stays = (falling - over / counts > 0).sum(-1)
    shift = np.take_along_axis(over, stays[:, None] - 1, -1) / stays[:, None]
    return np.maximum(points - shift, 0.0)


def seed_mixtures(sets: int) -> Numbers:
    """The mixtures to begin with: each data set alone, all but one, all; without repeats -> [n, sets]."""
    alone = np.eye(sets)
    without = (1.0 - alone) / max(sets - 1, 1)
    every = np.concatenate([alone, without, np.full((1, sets), 1 / sets)])
    kept: list[Numbers] = []
    for row in every:
        if row.sum() > 0 and all(np.abs(row - one).max() > SAME for one in kept):
            kept.append(row)
    return np.stack(kept)


def missing_seeds(observed: Numbers) -> Sequence[Numbers]:
    """Mixtures to begin with that no run has; observed [k, m]."""
    return [
        row
        for row in seed_mixtures(observed.shape[1])
        if np.abs(observed - row).max(-1).min() > SAME
    ]


def _products(weights: Numbers) -> Numbers:
    """w_i w_j for i <= j; [k, m] -> [k, m (m + 1) / 2]."""
    rows, columns = np.triu_indices(weights.shape[1])
    return weights[:, rows] * weights[:, columns]


def _coefficients(products: Numbers, centred: Numbers, ridge: float) -> Numbers:
    """The ridge solution [p], which is the shortest of all for a ridge that vanishes."""
    gram = products.T @ products + ridge * np.eye(products.shape[1])
    return np.linalg.solve(gram, products.T @ centred)


def _best_ridge(weights: Numbers, scores: Numbers) -> float:
    """The strength with the least error on mixtures that were left out; the middle one if that cannot be known."""
    groups = same_mixtures(weights)
    if groups.max() + 1 < LEAST:
        return RIDGES[len(RIDGES) // 2]
    errors = []
    for ridge in RIDGES:
        squares = 0.0
        for number in range(groups.max() + 1):
            held = groups == number
            guess = fit(weights[~held], scores[~held], ridge)(weights[held])
            squares += float(((guess - scores[held]) ** 2).sum())
        errors.append(squares)
    return RIDGES[int(np.argmin(errors))]
