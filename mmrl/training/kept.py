"""Where the state of a run is kept: its checkpoints, whether one process trains or several, in shards or in copies.

A policy that lies in shards is written by all processes at once (`shards.py`), any other by the first one
(`checkpoint.py`). Either kind is read by any number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl.ground.progress import Progress
from mmrl.model.placement import is_sharded
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.training import checkpoint, shards
from mmrl.training.identity import refuse_other_run
from mmrl.training.optim import Optimizer
from mmrl.training.run import Run

NOTHING = "nothing is saved yet"


class Kept:
    """The checkpoints of a run. All ranks call the same methods in the same order."""

    def __init__(self, run: Run, policy: Policy, optimizer: Optimizer, ranks: Ranks) -> None:
        self.run, self.policy, self.optimizer, self.ranks = run, policy, optimizer, ranks
        self._sharded = shards.ShardedSaves(ranks)
        ranks.place.kept = self._newest_in_words

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.run.folder / "checkpoints"

    def save(self, state: Mapping[str, Any], *, wait: bool = True) -> None:
        """Keep the weights and moments of now with the numbers of the run. Raises CheckpointError.

        Without `wait`, shards are written while the training goes on.
        """
        # A run that continues from here starts without features, so this one goes on without them: equal batches
        # of pictures through the tower, equal bits.
        self.policy.vision.clear()
        named, keep, chosen = self.policy.named_parameters(), self.run.keep, dict(state)
        if any(is_sharded(parameter) for _, parameter in named):
            chosen["updates"] = self.optimizer.steps
            self._sharded.start(self.folder, named, self.optimizer, chosen, keep)
            if wait:
                self._sharded.settle()
            return
        moments, step = self.optimizer.state(), chosen["step"]
        self.ranks.by_first(
            lambda: checkpoint.save(self.folder, step, named, moments, chosen, keep)
        )

    def settle(self) -> None:
        """Wait for the one that is being written. Raises CheckpointError."""
        self._sharded.settle()

    def newest(self, identity: str) -> tuple[Path | None, dict[str, Any]]:
        """The newest whole checkpoint and its numbers; damaged ones are named and set aside. For the first rank.

        Raises CheckpointError if none is whole, and OutputError if they are another run's.
        """
        checkpoint.clean(self.folder)
        newest, complaints = checkpoint.newest_whole(self.folder)
        if newest is None:
            return None, {}
        state = checkpoint.read_state(newest)
        refuse_other_run(self.run.folder, state, identity)
        if complaints:
            Progress.say("\n".join(complaints) + f"\nThe checkpoint before is whole: {newest}.")
            checkpoint.set_aside(self.folder, newest)
        return newest, state

    def restore(self, newest: Path, state: Mapping[str, Any]) -> None:
        """Take weights and moments from a checkpoint. Raises CheckpointError."""
        named = self.policy.named_parameters()
        if shards.is_sharded_checkpoint(newest):
            shards.restore(newest, named, self.optimizer, self.ranks, state["updates"])
        else:
            moments = checkpoint.read_optimizer(newest)
            checkpoint.refuse_nonfinite([], moments, f"The optimizer in {newest}")
            weights = checkpoint.restore_weights(newest, named)
            self.optimizer.load_whole(moments, weights)

    def _newest_in_words(self) -> str:
        steps = checkpoint.steps_in(self.folder)
        return f"the last checkpoint is {self.folder}/step-{steps[-1]}" if steps else NOTHING
