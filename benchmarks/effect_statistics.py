"""Intervals and verdicts of the effects benchmarks. Pure functions on arrays of differences, [seeds, questions].

Two things make a difference uncertain: another training seed would have trained another model, and another exam would
have asked other questions. Both are drawn again, with replacement and independently of each other, because all seeds
answer the same questions (crossed factors; resampling questions anew within each seed would treat them as different
exams, and claim too much). The interval is the mean ± Student's quantile × the bootstrap's standard error.

With a handful of seeds a plain percentile interval is too short twice: it knows no tails beyond the seeds at hand, and
resampling n values shrinks their variance by (n - 1) / n. Hence the factor sqrt(n / (n - 1)) and Student's quantile,
with Satterthwaite's degrees of freedom: n - 1 where the seeds decide, more where they agree and the questions decide.
The crossed bootstrap counts the interaction of both more than once (Owen, "The pigeonhole bootstrap", 2007), which errs
on the safe side. `tests/test_effects.py` simulates how often the interval holds the truth.

Many claims are corrected together: `holm` bounds the chance of even one false "shown" by 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as students_t

Array = NDArray[np.float64]
DRAWS = 4000
LEVEL = 0.05
"""Chance of a false verdict: of each interval, and after correction of the whole table."""
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean difference and how sure it is."""

    mean: float
    error: float
    """Standard error over seeds and questions; NaN with one seed."""
    seeds: int
    freedom: float
    """Degrees of freedom of the error."""

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval; NaN with one seed."""
        if self.seeds < 2:
            return float("nan")
        return float(students_t.ppf(1 - LEVEL / 2, self.freedom)) * self.error

    @property
    def p(self) -> float:
        """Two-sided probability of a difference this large if there were none; 1 with one seed."""
        if self.seeds < 2:
            return 1.0
        if self.error == 0.0:
            return 0.0 if self.mean else 1.0
        return float(2 * students_t.sf(abs(self.mean) / self.error, self.freedom))

    def needed(self, level: float = LEVEL) -> float:
        """The true difference that would come out significant at this level in four of five experiments like this."""
        if self.seeds < 2:
            return float("nan")
        certain, likely = students_t.ppf([1 - level / 2, POWER], self.freedom)
        return float(certain + likely) * self.error


def estimate(gaps: Array, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean of the differences [seeds, questions] and its standard error over both. Raises ValueError if empty."""
    gaps = np.asarray(gaps, dtype=np.float64)
    if gaps.ndim != 2 or not gaps.size:
        raise ValueError(
            f"estimate got differences of shape {gaps.shape}; it needs [seeds, questions], at least one of each."
        )
    if not np.isfinite(gaps).all():
        raise ValueError(
            "estimate got differences that are not finite; leave such questions out."
        )
    seeds = gaps.shape[0]
    if seeds < 2:
        return Estimate(float(gaps.mean()), float("nan"), seeds, 0.0)
    means = crossed_bootstrap(gaps, draws, np.random.default_rng(seed))
    shrunk = np.sqrt(seeds / (seeds - 1))
    # Rounding leaves 1e-17 where all differences are equal, which would make any mean significant.
    spread = float(means.std())
    error = 0.0 if spread < 1e-12 else spread * shrunk
    return Estimate(float(gaps.mean()), float(error), seeds, freedom_of(gaps))


def crossed_bootstrap(gaps: Array, draws: int, rng: np.random.Generator) -> Array:
    """Means [draws] of the differences [S, Q], with seeds and questions drawn again independently of each other."""
    seeds, questions = gaps.shape
    # How often each seed and each question was drawn; a mean needs no more than that.
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)  # [draws, S]
    of_questions = rng.multinomial(questions, np.full(questions, 1 / questions), size=draws)
    sums = ((of_seeds @ gaps) * of_questions).sum(axis=1)  # [draws]
    return sums / (seeds * questions)


def freedom_of(gaps: Array) -> float:
    """Satterthwaite's degrees of freedom of the mean of differences [S, Q]: between S - 1 and Q + S - 2."""
    seeds, questions = gaps.shape
    of_seeds = float(gaps.mean(axis=1).var(ddof=1)) / seeds
    of_questions = float(gaps.mean(axis=0).var(ddof=1)) / questions if questions > 1 else 0.0
    if of_seeds + of_questions == 0.0:
        return float(seeds - 1)
    uncertain = of_seeds**2 / (seeds - 1) + of_questions**2 / max(1, questions - 1)
    return (of_seeds + of_questions) ** 2 / uncertain


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for all claims together (Holm 1979), in the given order, at most 1."""
    count = len(probabilities)
    order = sorted(range(count), key=lambda place: probabilities[place])
    corrected, highest = [0.0] * count, 0.0
    for rank, place in enumerate(order):
        # Never below that of a claim with a smaller probability: the step-down stops at the first that fails.
        highest = max(highest, (count - rank) * probabilities[place])
        corrected[place] = min(1.0, highest)
    return corrected


def verdict(found: Estimate, corrected: float, larger: bool = True) -> str:
    """shown, opposite, not shown, or what one seed or the correction left of it."""
    if found.seeds < 2:
        return "not shown (one seed)"
    claimed = found.mean > 0 if larger else found.mean < 0
    if corrected < LEVEL:
        return "shown" if claimed else "opposite"
    if found.p < LEVEL:
        return "only before correction" if claimed else "opposite before correction"
    return "not shown"
