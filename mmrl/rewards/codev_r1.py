"""CodeV-R1's reward (arXiv 2505.24183): a circuit that behaves like the reference is worth 1, anything else 0.

    r = 1  if <think>, </think>, <answer>, </answer> stand in the answer once each, in this order, and the module in it
           has the outputs of a reference at every random input (`simulation.py`); of several references any will do
    r = 0  otherwise

The module is the last fenced block inside <answer> </answer>, or all of its text. A row may hold what stands around the
code, in columns `before` and `after`: then the code is a part of the module, and its references are whole modules.

Departures
1. The published testbenches, made by a tool that analyses the reference, are not ours: `simulation.py` has rules of its
   own. A reference that these cannot try makes the part unavailable for its group, counted as
   `simulation/no_reference`; it is not a 0.
2. Outputs that the reference leaves unknown may be anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmrl.rewards.code_answers import code_of, tags_once
from mmrl.rewards.contract import Reward
from mmrl.rewards.simulation import Simulator

if TYPE_CHECKING:
    from mmrl.types import Rollout


@dataclass(frozen=True)
class CircuitReward(Reward):
    """1 for an answer in the form whose module equals a reference, else 0. An async reward."""

    simulator: Simulator
    think: bool = True
    """Shall a thought stand before the answer?"""

    async def __call__(self, rollout: Rollout) -> float | None:
        row = rollout.prompt.extra
        code = code_of(rollout.text)
        if code is None or not tags_once(rollout.text, think=self.think):
            self.simulator.counts["form"] += 1
            return 0.0
        module = f"{row.get('before') or ''}{code}{row.get('after') or ''}"
        return await asyncio.to_thread(self._equals_any, module, rollout)

    def _equals_any(self, module: str, rollout: Rollout) -> float | None:
        """1 if the module equals a reference, 0 if it equals none, None if no reference can be tried."""
        tried = False
        known = rollout.prompt.answer
        for reference in [known] if isinstance(known, str) else known or ():
            try:
                verdict = self.simulator(reference, module)
            except (
                ValueError
            ):  # this reference cannot be tried, which is not the answer's fault
                self.simulator.counts["no reference"] += 1
                continue
            if verdict.equal:
                return 1.0
            tried = True
        return 0.0 if tried else None

    def metrics(self) -> Mapping[str, float]:
        """How many candidates were equal, differed, did not compile, … since the last call (`simulation/...`)."""
        counts = self.simulator.counts
        found = {f"simulation/{name.replace(' ', '_')}": float(n) for name, n in counts.items()}
        counts.clear()
        return {"simulation/equal": 0.0, **found}
