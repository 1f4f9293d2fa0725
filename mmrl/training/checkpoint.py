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
    target = folder / f"step-{step}"
    draft = folder / f".writing-step-{step}-{os.getpid()}"
    _write(draft, named, optimizer, state)
    # A folder cannot be replaced in one go: the old one steps aside, and `clean` brings it back if we die here.
    replaced = folder / f".replaced-step-{step}"
    if target.exists():
        os.replace(target, replaced)
    os.replace(draft, target)
    shutil.rmtree(replaced, ignore_errors=True)
    if keep > 0:
        for old in steps_in(folder)[:-keep]:
            # Under a draft's name first, for a checkpoint that is half deleted must not look whole.
            doomed = folder / f".writing-old-{old}"
            os.replace(folder / f"step-{old}", doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    return target


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    if not folder.is_dir():
        return []
    steps: list[int] = []
    for checkpoint in folder.glob("step-*"):
        number = checkpoint.name.removeprefix("step-")
        # Copied folders such as "step-40 (1)" are the user's.
        if number.isdigit() and (checkpoint / "state.json").is_file():
            steps.append(int(number))
    return sorted(steps)


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
        # weights_only: a checkpoint from elsewhere must not run code.
        return torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)


def restore_weights(checkpoint: Path, named: list[tuple[str, nn.Parameter]]) -> None:
    """Copy the stored weights into the parameters."""
    with _readable(checkpoint):
        stored = load_file(checkpoint / "weights.safetensors")
    names = {name for name, _ in named}
    unmatched = sorted(names ^ set(stored))
    if unmatched:
        raise CheckpointError(
            f"{checkpoint} holds other parameters than this run trains, for example {unmatched[:3]}; "
            "use the same model, adapter and frozen parts as the run that wrote it."
        )
    with torch.no_grad():
        for name, parameter in named:
            if parameter.shape != stored[name].shape:
                raise CheckpointError(
                    f"{checkpoint}: {name} has shape {tuple(stored[name].shape)}, the model {tuple(parameter.shape)}."
                )
            parameter.copy_(stored[name])


def _write(
    draft: Path,
    named: list[tuple[str, nn.Parameter]],
    optimizer: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write the three files of a checkpoint and see them on the disk."""
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    # safetensors takes no tensor that shares or skips memory.
    weights = {name: parameter.detach().contiguous() for name, parameter in named}
    save_file(weights, draft / "weights.safetensors")
    torch.save(optimizer, draft / "optimizer.pt")
    text = json.dumps(state, indent=1, default=_as_json)
    (draft / "state.json").write_text(text)
    # Before the rename, or a power cut could leave the final name on empty files.
    for file in draft.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


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


def _as_json(value: Any) -> Any:
    """States of objectives may hold tensors."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(
        f"{type(value).__name__} cannot be kept in a checkpoint; return numbers, lists, dicts or tensors."
    )
