"""PuzzleCraft's group weight (arXiv 2512.14944v2, section 3.2): w = λ·d·(1 − d)·d_π^γ with λ = 4, γ = 1/2.

    d    mean reward of the G answers to one prompt
    d_π  dispersion of their solution keys: normalised entropy −Σ p̂ ln p̂ / ln K for K options; (M − 1)/(G − 1) with M
         distinct keys for orders

Choices where the paper is silent: unreadable answers share one extra key in the order count, and are left out of p̂ but
still count in G, so that d_π ≤ 1; d_π = 0 if K or G is 1; tiny negatives are clipped. The weight is a constant of the
group (no gradient) and is not renormalised over the batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

LAMBDA = 4.0
GAMMA = 0.5


def dispersion(
    keys: Sequence[Hashable], num_options: int | None = None, invalid: Hashable = "invalid"
) -> float:
    """d_π in [0, 1]; `num_options` is None for orders and other large answer spaces."""
    group = len(keys)
    if group < 2 or (num_options is not None and num_options < 2):
        return 0.0
    counts = Counter(keys)
    if num_options is None:
        return (len(counts) - 1) / (group - 1)
    shares = [count / group for key, count in counts.items() if key != invalid]
    return max(0.0, -sum(share * math.log(share) for share in shares) / math.log(num_options))


def group_weight(
    rewards: Sequence[float], keys: Sequence[Hashable], num_options: int | None = None
) -> float:
    """w in [0, 1]: 0 if all answers succeed, all fail, or all are the same."""
    if len(rewards) != len(keys):
        raise ValueError(
            f"group_weight got {len(rewards)} rewards and {len(keys)} keys; one key per answer is needed."
        )
    if not rewards:
        return 0.0
    difficulty = sum(rewards) / len(rewards)
    return max(
        0.0, LAMBDA * difficulty * (1.0 - difficulty) * dispersion(keys, num_options) ** GAMMA
    )
