"""What the parts of a run remember from step to step: started once, saved with the run, taken back when it goes on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.objectives.base import Memory, Objective, named
from mmrl.rollouts.groups import RolloutCall, chain
from mmrl.rollouts.prompt_order import Supply
from mmrl.training.checkpoint import plain

Named = list[tuple[str, Memory | None]]


@dataclass(frozen=True)
class Memories:
    """Memories by name; None where a part has none."""

    objectives: Named
    rollout: Named

    @staticmethod
    def of(
        objectives: Sequence[Objective],
        memories: Sequence[Memory | None],
        rollout: RolloutCall,
        supply: Supply,
    ) -> Memories:
        """Those of the objectives as given, and those that the supply keeps for each rollout function."""
        parts = chain(rollout)
        kept: Named = []
        for place, part in enumerate(parts):
            kept.append((f"{place}:{type(part).__name__}", supply.memory(part)))
        return Memories(named(objectives, memories), kept)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep: copies, for after a failed step the memory of the step before it is saved."""
        return {
            "objectives": {name: _state(memory) for name, memory in self.objectives},
            # Only of those that have one: most runs have none.
            "remembered": {
                name: _state(memory) for name, memory in self.rollout if memory is not None
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned, as it comes from a file, whoever took it."""
        told = [
            *((memory, state["objectives"].get(name)) for name, memory in self.objectives),
            # A run of an older version has none.
            *((memory, state.get("remembered", {}).get(name)) for name, memory in self.rollout),
        ]
        for memory, found in told:
            if memory is not None and found is not None:
                memory.load(plain(found))


def _state(memory: Memory | None) -> dict[str, Any]:
    return {} if memory is None else copy.deepcopy(memory.state())
