"""CodeV-R1's adaptive over-sampling (arXiv 2505.24183): a round asks for as many prompts as past losses say it takes.

With N groups that a step needs, k kept so far, s the share of prompts that were kept over whole steps, p that of the
rounds of this step, and a floor f, a round asks for

    ⌈(N - k) / max(min(s, p), f)⌉ prompts

After each round p falls to the share that it kept; when the step ends, s falls to kept / asked of the whole step, and p
returns to 1. Both begin at 1 and never rise: after a bad round more is asked for than before.

Departures from the official code (github.com/IPRC-DIP/CodeV-R1, commit 321443c)
1. The floor: there a round that keeps nothing makes p = 0, and the next round divides by it.
2. Prompts are counted one by one, there in packets of 8.
3. s is told of steps that end without being full, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class KeptShares:
    """The shares of prompts whose groups were kept; the same on all ranks. A rollout function's memory."""

    of_steps: float = 1.0
    """s, in [0, 1]."""
    of_rounds: float = 1.0
    """p, in [0, 1]."""

    def asks(self, missing: int, floor: float) -> int:
        """Prompts of the next round, at least one."""
        # Before dividing: 3 / 0.3 in binary is a little more than 10, which would ask for one prompt too many.
        share = max(min(self.of_steps, self.of_rounds), floor)
        return max(1, math.ceil(missing / share - 1e-9))

    def after_round(self, kept: int, asked: int) -> None:
        """So many of the round's prompts had a group that was kept."""
        self.of_rounds = min(self.of_rounds, kept / asked)

    def after_step(self, kept: int, asked: int) -> None:
        """The same of all rounds of a step."""
        self.of_steps, self.of_rounds = min(self.of_steps, kept / asked), 1.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep: between steps p is 1."""
        return {"of_steps": self.of_steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.of_steps, self.of_rounds = float(state["of_steps"]), 1.0
