r"""BRPO, bootstrapped relative policy optimisation (Writing-Zero, arXiv 2506.00103): advantages without a baseline.

One answer of the group, drawn at random, is the reference for this step. Of the others each is compared with it:

    Â_i = R_i = +1 if it is better, else -1      Â_reference = 0      no mean, no deviation
    skew      = |Σ_i R_i| / G                    groups above a bound are dropped: the reference is an outlier

The mean over draws of the reference is 0 where one answer of each pair is better, since each pair is then compared both
ways with opposite signs. Ties that pay -1 both ways make it negative. A group of one is its own reference: 0.

`mmrl.rewards.pairwise` draws the reference and asks who is better; the estimator is `advantages.uncentred`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def brpo_advantages(better: Tensor, reference: int) -> Tensor:
    """Â of the answers of one group: bool [G] (is it better than the reference?) and the reference's place -> [G].

    Raises ValueError for a place outside the group. What `better` says of the reference itself does not count.
    """
    if not 0 <= reference < len(better):
        raise ValueError(
            f"The reference is answer {reference} of a group of {len(better)}; it must be one of them."
        )
    advantage = better.double() * 2 - 1
    advantage[reference] = 0.0
    return advantage


def skew(rewards: Sequence[float]) -> float:
    """|Σ R| / G of a group, in [0, 1] for rewards of -1, 0 and 1; 0 of none."""
    return abs(sum(rewards)) / len(rewards) if rewards else 0.0


def keeps_by_skew(rewards: Sequence[float | None], most: float) -> bool:
    """Is the skew of the rewards that are known at most `most`? A group without any is not kept."""
    known = [reward for reward in rewards if reward is not None]
    return bool(known) and skew(known) <= most
