"""Intervals of shares, for whoever says how sure a number is. Imports no torch."""

from __future__ import annotations

import math

NORMAL_95 = 1.959964
"""Standard deviations of a normal distribution on either side that hold 95 % of it."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` trials, at least one."""
    z2 = NORMAL_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    spread = share * (1 - share) / count + z2 / (4 * count**2)
    half = NORMAL_95 * math.sqrt(spread) / (1 + z2 / count)
    # Rounding must not move an end past the share itself: at 0 and 1 they are the same.
    low = min(share, middle - half)
    high = max(share, middle + half)
    return max(0.0, low), min(1.0, high)
