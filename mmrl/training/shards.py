"""Checkpoints of a policy that lies in shards on several processes: each writes its own part, any number reads them.

Built on `torch.distributed.checkpoint`. A checkpoint's folder `shards/` holds under the name of each trained parameter
its weight at its most precise (the fp32 master where there is one) and what AdamW keeps of it; so it fits a policy on
one process, on as many as wrote it, or on others. The numbers of the run (`state.json`) and the checksums lie beside
it, as in a checkpoint of one process (`checkpoint.py`).

The weights are copied, and written while the training goes on, over a group of processes of its own; one checkpoint at
a time. It is written beside its place and gets its name from rank 0 as soon as every process has written its part.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from mmrl.model.folders import nonfinite
from mmrl.model.placement import own_part
from mmrl.model.ranks import Ranks, lost
from mmrl.training import checkpoint
from mmrl.training.checkpoint import CheckpointError, Named
from mmrl.training.optim import Optimizer

SPARE = 1.05
"""A disk must have so many times the bytes of a checkpoint free."""


class ShardedSaves:
    """Writes checkpoints of all ranks, one at a time, while the training goes on. All calls are collective."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mmrl-checkpoint")
        self._pending: tuple[Path, Path, Future[Any]] | None = None
        """Its place, its draft, and its end."""

    def start(
        self,
        folder: Path,
        named: Named,
        optimizer: Optimizer,
        state: Mapping[str, Any],
        keep: int,
    ) -> None:
        """Begin to write `folder/step-N` with the weights and moments of now; `state["step"]` is N.

        Waits for the one before. Raises CheckpointError for numbers that are not finite, and for a full disk.
        """
        self.settle()
        step = state["step"]
        tensors = pieces(named, optimizer)
        with self.ranks.together("save"):
            refuse_nonfinite(tensors, f"step {step}")
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        draft = self.ranks.by_first(lambda: _draft(folder, step, size))
        written: Any = dcp.async_save(
            dict(tensors), checkpoint_id=draft / "shards", process_group=self.ranks.saving
        )
        complete = partial(_complete, written, folder, draft, state, keep)
        # When rank 0 is told that it is written, all have written.
        work = complete if self.ranks.first else written.result
        self._pending = folder, draft, self._thread.submit(work)

    def settle(self) -> None:
        """Wait until the checkpoint is written and has its name, if there is one. Raises CheckpointError."""
        if self._pending is None:
            return
        (folder, draft, done), self._pending = self._pending, None
        with self.ranks.together("save"), checkpoint.writable(folder, draft):
            try:
                done.result()
            except CheckpointException as error:
                # It names all that failed; the first is the cause.
                raise OSError(str(next(iter(error.failures.values()))[0])) from error


def pieces(named: Named, optimizer: Optimizer, *, fresh: bool = False) -> dict[str, Tensor]:
    """ "KIND/NAME" -> tensor, for the weight of each parameter and what the optimizer keeps of it.

    `fresh`: also what it will only keep after its first step, as zeros to be filled.
    """
    found: dict[str, Tensor] = {}
    for place, (name, _) in enumerate(named):
        for kind, tensor in optimizer.kept(place, fresh=fresh).items():
            found[f"{kind}/{name}"] = tensor.detach()
    return found


def is_sharded_checkpoint(folder: Path) -> bool:
    """Was this checkpoint written by several processes?"""
    return (folder / "shards").is_dir()


def restore(folder: Path, named: Named, optimizer: Optimizer, ranks: Ranks, steps: int) -> None:
    """Weights and moments from a checkpoint of several processes, on any number of them. Raises CheckpointError."""
    stored = _stored(folder)
    _refuse_others(folder, named, stored)
    tensors = pieces(named, optimizer, fresh=True)
    known = {name: tensor for name, tensor in tensors.items() if name in stored}
    _load(folder, known, ranks)
    refuse_nonfinite(known, str(folder))
    # A parameter without a gradient so far has no moments, and those of 0 would be others.
    for place, (name, _) in enumerate(named):
        if f"exp_avg/{name}" not in stored:
            optimizer.forget(place)
    optimizer.restored(steps)


def restore_weights(folder: Path, named: Named) -> None:
    """The weights alone, into a policy on one process or a whole copy on each. Raises CheckpointError."""
    _refuse_others(folder, named, _stored(folder))
    weights = {f"weight/{name}": parameter.detach() for name, parameter in named}
    _load(folder, weights, Ranks.alone())
    refuse_nonfinite(weights, str(folder))


def weight(folder: Path, name: str) -> Tensor:
    """One trained parameter of a checkpoint of several processes, whole, on the CPU. Raises CheckpointError."""
    key = f"weight/{name}"
    if key not in _stored(folder):
        raise CheckpointError(f"{folder} holds no parameter {name}.")
    kept: Any = dcp.FileSystemReader(folder / "shards").read_metadata().state_dict_metadata[key]
    tensor = torch.empty(kept.size, dtype=kept.properties.dtype)
    _load(folder, {key: tensor}, Ranks.alone())
    return tensor


def refuse_nonfinite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError for a weight or a moment that is infinite or not a number."""
    bad = nonfinite({name: own_part(tensor) for name, tensor in tensors.items()})
    if bad:
        raise CheckpointError(
            f"{what} holds numbers that are not finite, for example in {bad[0]} ({len(bad)} tensors in all); it is "
            "neither saved nor used. Lower --optim.lr, and go on from an older checkpoint."
        )


def _load(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Fill tensors from the files, in place."""
    try:
        dcp.load(
            dict(tensors),
            checkpoint_id=folder / "shards",
            process_group=ranks.saving,
            no_dist=not ranks.several,
        )
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        if lost(error):
            raise
        raise CheckpointError(
            f"{folder} cannot be read ({error}); delete it to go on from an older one."
        ) from error


def _stored(folder: Path) -> set[str]:
    """Names of the tensors in a checkpoint."""
    try:
        reader = dcp.FileSystemReader(folder / "shards")
        return set(reader.read_metadata().state_dict_metadata)
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be read ({error}); delete it to go on from an older one."
        ) from error


def _refuse_others(
    folder: Path, named: Sequence[tuple[str, nn.Parameter]], stored: set[str]
) -> None:
    weights = {name.removeprefix("weight/") for name in stored if name.startswith("weight/")}
    unmatched = sorted({name for name, _ in named} ^ weights)
    if unmatched:
        raise CheckpointError(
            f"{folder} holds other parameters than this run trains, for example {unmatched[:3]}; "
            "use the same model, adapter and frozen parts as the run that wrote it."
        )


def _draft(folder: Path, step: int, size: int) -> Path:
    """A fresh folder to write into, where there is room. Raises CheckpointError."""
    draft = folder / f".writing-step-{step}-{os.getpid()}"
    with checkpoint.writable(folder, draft):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < SPARE * size:
            raise OSError(
                f"it takes {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left"
            )
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "shards").mkdir(parents=True)
    return draft


def _complete(
    written: Future[Any], folder: Path, draft: Path, state: Mapping[str, Any], keep: int
) -> None:
    """When the tensors are written: the numbers beside them, the checksums, the name; the oldest go."""
    written.result()
    checkpoint.complete(draft, state)
    checkpoint.take_place(folder, draft, state["step"], keep)
