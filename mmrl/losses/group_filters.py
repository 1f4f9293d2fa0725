"""Which answers and groups are kept, and what length costs: DAPO's extras (arXiv 2503.14476) as pure functions.

    overlong_penalty   min(-(length - (L_max - buffer)) / buffer · factor, 0), added to the reward
    without_truncated  overlong filtering: answers that were cut off are not trained
    keeps_by_mean      dynamic sampling, EasyR1 and PAPO: low < mean of the group < high, strictly
    keeps_by_spread    dynamic sampling, verl's DAPO recipe: the rewards of the group are not all equal

Give `keeps_by_mean` the accuracy part rather than the total: with a format reward, a group that is all wrong but well
formed has a mean inside the bounds and no signal.

Departures
1. The penalty goes on falling beyond L_max, as verl codes it; the paper holds it at -factor there: `floored=True`.
2. `keeps_by_spread` compares the extremes; verl compares a computed standard deviation with 0, which rounding can
   lift above 0 for equal rewards.
3. Scores that are not available (None) are left out; a group without any is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def overlong_penalty(
    length: int,
    max_length: int,
    *,
    buffer: int,
    factor: float = 1.0,
    floored: bool = False,
) -> float:
    """The soft penalty (≤ 0) for an answer of `length` tokens; 0 outside the last `buffer` tokens or if buffer is 0."""
    if buffer < 0 or buffer > max_length:
        raise ValueError(
            f"overlong_penalty got buffer {buffer} for answers of at most {max_length} tokens; "
            "it must lie in [0, max_length], 0 turns it off."
        )
    excess = length - (max_length - buffer)
    if buffer == 0 or excess <= 0:
        return 0.0
    penalty = (
        -excess / buffer * factor
    )  # in verl's order of operations: golden values are exact
    return max(penalty, -factor) if floored else penalty


def without_truncated(mask: Tensor, truncated: Tensor) -> Tensor:
    """The mask [B, T] without the answers that ran into the length limit, bool [B]."""
    if truncated.shape != mask.shape[:1]:
        raise ValueError(
            f"truncated has shape {tuple(truncated.shape)} for {mask.shape[0]} answers; give one bool per answer."
        )
    complete = ~truncated.bool()
    return mask.bool() & complete.unsqueeze(-1)


def keeps_by_mean(
    scores: Sequence[float | None], low: float = 0.01, high: float = 0.99
) -> bool:
    """Does the mean score of a group lie strictly between the bounds?"""
    known = [score for score in scores if score is not None]
    if not known:
        return False
    mean = sum(known) / len(known)
    return low < mean < high


def keeps_by_spread(scores: Sequence[float | None]) -> bool:
    """Do the scores of a group differ? A group of one is kept."""
    known = [score for score in scores if score is not None]
    if len(known) < 2:
        return len(known) == 1  # nothing to compare with: verl keeps it too
    return max(known) > min(known)
