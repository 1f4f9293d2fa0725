"""Exact save and resume: `DIR/checkpoints/step-N`, written beside and renamed, so a torn one never has the name.

A checkpoint holds the trainable weights (safetensors), the optimizer (loadable without running pickled code) and
`state.json`: step, position in the data, states of objectives, and what the bits depend on (threads, versions). Weights
that never change are not stored; they come from the model the run started with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit the run."""


def save(
    folder: Path,
    step: int,
    named: list[tuple[str, nn.Parameter]],
    optimizer: dict[str, Any],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-N` atomically, then remove all but the newest `keep` checkpoints (0 keeps all)."""
    folder.mkdir(parents=True, exist_ok=True)
    target, draft = folder / f"step-{step}", folder / f".writing-step-{step}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_file(
        {name: p.detach().contiguous() for name, p in named}, draft / "weights.safetensors"
    )
    torch.save(optimizer, draft / "optimizer.pt")
    (draft / "state.json").write_text(json.dumps(state, indent=1, default=_plain))
    for file in draft.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    replaced = folder / f".replaced-step-{step}"
    if target.exists():
        os.replace(target, replaced)
    os.replace(draft, target)
    shutil.rmtree(replaced, ignore_errors=True)
    if keep > 0:
        for old in steps_in(folder)[:-keep]:
            doomed = (
                folder / f".writing-old-{old}"
            )  # under a draft's name, for half a checkpoint must not look whole
            os.replace(folder / f"step-{old}", doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    return target


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    if not folder.is_dir():
        return []
    found = [
        p.name.removeprefix("step-") for p in folder.iterdir() if p.name.startswith("step-")
    ]
    return sorted(
        int(n) for n in found if n.isdigit() and (folder / f"step-{n}" / "state.json").is_file()
    )


def clean(folder: Path) -> None:
    """Remove drafts that a killed run left behind; a checkpoint whose replacement did not arrive gets its name back."""
    if not folder.is_dir():
        return
    for draft in folder.glob(".writing-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for replaced in folder.glob(".replaced-step-*"):
        target = folder / replaced.name.removeprefix(".replaced-")
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            os.replace(replaced, target)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The numbers of a checkpoint."""
    with _readable(checkpoint):
        return json.loads((checkpoint / "state.json").read_text())


def read_optimizer(checkpoint: Path) -> dict[str, Any]:
    """The optimizer's state."""
    with _readable(checkpoint):
        return torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)


def restore_weights(checkpoint: Path, named: list[tuple[str, nn.Parameter]]) -> None:
    """Copy the stored weights into the parameters."""
    with _readable(checkpoint):
        stored = load_file(checkpoint / "weights.safetensors")
    missing = sorted({n for n, _ in named} ^ set(stored))
    if missing:
        raise CheckpointError(
            f"{checkpoint} holds other parameters than this run trains, for example {missing[:3]}; "
            "use the same model, adapter and frozen parts as the run that wrote it."
        )
    with torch.no_grad():
        for name, parameter in named:
            if parameter.shape != stored[name].shape:
                raise CheckpointError(
                    f"{checkpoint}: {name} has shape {tuple(stored[name].shape)}, the model {tuple(parameter.shape)}."
                )
            parameter.copy_(stored[name])


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Say which checkpoint is damaged and what to do."""
    try:
        yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        SafetensorError,
        UnpicklingError,
    ) as error:
        raise CheckpointError(
            f"{checkpoint} cannot be read ({error}); delete it to go on from an older one."
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(
        f"{type(value).__name__} cannot be kept in a checkpoint; return numbers, lists, dicts or tensors."
    )
