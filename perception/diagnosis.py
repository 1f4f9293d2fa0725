"""Did seeing change between two models? McNemar's test on paired right/wrong judgements (Perception-R1).

b counts the items that only the first model gets right, c those that only the second does. Under the null hypothesis
each of the b + c discordant items falls to either side like a fair coin:

    p_exact        = min(1, 2 * sum over k <= min(b, c) of C(b + c, k) / 2^(b + c))
    chi2           = (b - c)^2 / (b + c)
    chi2_corrected = (|b - c| - 1)^2 / (b + c)

The p values that Perception-R1 prints (0.22, 0.69, 0.04) are those of the exact form. Without discordant items p is 1
and both chi-squares are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def mcnemar(b: int, c: int) -> dict[str, float]:
    """The exact two-sided p value and both chi-square statistics of the discordant counts."""
    if b < 0 or c < 0:
        raise ValueError(
            f"discordant counts are ({b}, {c}); they count items and cannot be negative."
        )
    total = b + c
    if total == 0:
        return {"p_exact": 1.0, "chi2": 0.0, "chi2_corrected": 0.0}
    # Whole numbers up to the last division: binomials of many items overflow floats.
    tail = sum(comb(total, k) for k in range(min(b, c) + 1))
    return {
        # Both tails hold the middle term where b equals c, which would give more than 1.
        "p_exact": min(1.0, 2 * tail / 2**total),
        "chi2": (b - c) ** 2 / total,
        "chi2_corrected": (abs(b - c) - 1) ** 2 / total,
    }


def discordant(before: Sequence[bool], after: Sequence[bool]) -> tuple[int, int]:
    """Count the items that only the first, and only the second model gets right."""
    if len(before) != len(after):
        raise ValueError(
            f"{len(before)} judgements before and {len(after)} after; McNemar's test needs pairs."
        )
    lost = gained = 0
    for first, second in zip(before, after, strict=True):
        lost += first and not second
        gained += second and not first
    return lost, gained
