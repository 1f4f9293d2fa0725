"""Exact save and resume: `DIR/checkpoints/step-N`, written beside and renamed, so a torn one never has the name.

A checkpoint holds the trainable weights (safetensors), the optimizer (loadable without running pickled code),
`state.json` (whose run it is and with which settings, step, position in the data, states of objectives, and what the
bits depend on) and its checksums. Weights that never change are not stored; they come from the model the run
started with.

Numbers that are not finite are neither written nor read. A checkpoint that no longer agrees with its checksums is set
aside as `damaged-step-N`, and the one before it is used (`newest_whole`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mmrl.ground.checksums import damage, seal
from mmrl.ground.faults import first_line
from mmrl.model.folders import nonfinite
from mmrl.model.placement import fill

Named = list[tuple[str, nn.Parameter]]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, cannot be read or does not fit the run."""


def save(
    folder: Path,
    step: int,
    named: Named,
    optimizer: dict[str, Any],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `folder/step-N` atomically, then remove all but the newest `keep` checkpoints (0 keeps all).

    Raises CheckpointError for numbers that are not finite, and for a disk that does not take it; what was there stays.
    """
    refuse_nonfinite(named, optimizer, f"step {step}")
    draft = folder / f".writing-step-{step}-{os.getpid()}"
    with writable(folder, draft):
        folder.mkdir(parents=True, exist_ok=True)
        _write(draft, named, optimizer, state)
    return take_place(folder, draft, step, keep)


def take_place(folder: Path, draft: Path, step: int, keep: int) -> Path:
    """Give a written draft the name `folder/step-N`, then remove all but the newest `keep` (0 keeps all)."""
    target = folder / f"step-{step}"
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
        # Copied folders such as "step-40 (1)" are the user's. One without its numbers counts: it is damaged, and that
        # must be said; an empty folder never was a checkpoint.
        if number.isdigit() and checkpoint.is_dir() and any(checkpoint.iterdir()):
            steps.append(int(number))
    return sorted(steps)


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that agrees with its checksums (None without any), and what is wrong with newer ones.

    Raises CheckpointError if there are checkpoints and none of them is whole.
    """
    complaints: list[str] = []
    steps = steps_in(folder)
    for step in reversed(steps):
        candidate = folder / f"step-{step}"
        problem = damage(candidate)
        if not problem:
            return candidate, complaints
        complaints.append(f"{candidate} is damaged: {problem}.")
    if steps:
        raise CheckpointError(
            "\n".join(complaints)
            + f"\nNo whole checkpoint is left in {folder}. Put one back from a copy, start anew "
            "with --run.overwrite, or choose another --run.output."
        )
    return None, complaints


def set_aside(folder: Path, newest: Path) -> list[Path]:
    """Rename the damaged checkpoints newer than `newest` to `damaged-step-N`; where they went."""
    moved: list[Path] = []
    newer = [step for step in steps_in(folder) if step > int(newest.name.removeprefix("step-"))]
    for step in newer:
        place = folder / f"damaged-step-{step}"
        shutil.rmtree(place, ignore_errors=True)
        os.replace(folder / f"step-{step}", place)
        moved.append(place)
    return moved


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


def refuse_nonfinite(named: Named, optimizer: Mapping[str, Any], what: str) -> None:
    """Raise CheckpointError for a weight, a moment or a master copy that is infinite or not a number."""
    weights = {name: parameter.detach() for name, parameter in named}
    kept: dict[str, torch.Tensor] = {}
    for number, moments in optimizer.get("adam", {}).get("state", {}).items():
        kept |= {f"{name} of parameter {number}": value for name, value in moments.items()}
    for number, master in enumerate(optimizer.get("masters", ())):
        kept[f"master copy {number}"] = master
    bad = nonfinite({**weights, **kept})
    if bad:
        raise CheckpointError(
            f"{what} holds numbers that are not finite, for example in {bad[0]} ({len(bad)} tensors in all); it is "
            "neither saved nor used. Lower --optim.lr, and go on from an older checkpoint."
        )


def restore_weights(checkpoint: Path, named: Named) -> list[torch.Tensor]:
    """Copy the stored weights into the parameters; returns them as they were stored, in the order of the parameters.

    Raises CheckpointError for others, and for numbers that are not finite.
    """
    with _readable(checkpoint):
        stored = load_file(checkpoint / "weights.safetensors")
    names = {name for name, _ in named}
    unmatched = sorted(names ^ set(stored))
    if unmatched:
        raise CheckpointError(
            f"{checkpoint} holds other parameters than this run trains, for example {unmatched[:3]}; "
            "use the same model, adapter and frozen parts as the run that wrote it."
        )
    if bad := nonfinite(stored):
        raise CheckpointError(
            f"{checkpoint} holds weights that are not finite, for example {bad[0]} ({len(bad)} of {len(stored)}); it "
            "is not used. Delete it to go on from an older one."
        )
    with torch.no_grad():
        for name, parameter in named:
            if parameter.shape != stored[name].shape:
                raise CheckpointError(
                    f"{checkpoint}: {name} has shape {tuple(stored[name].shape)}, the model {tuple(parameter.shape)}."
                )
            fill(parameter, stored[name])
    return [stored[name] for name, _ in named]


def _write(
    draft: Path,
    named: Named,
    optimizer: dict[str, Any],
    state: dict[str, Any],
) -> None:
    """Write the files of a checkpoint and see them on the disk."""
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    # safetensors takes no tensor that shares or skips memory.
    weights = {name: parameter.detach().contiguous() for name, parameter in named}
    save_file(weights, draft / "weights.safetensors")
    torch.save(optimizer, draft / "optimizer.pt")
    complete(draft, state)


def complete(draft: Path, state: Mapping[str, Any]) -> None:
    """Write the numbers of the run beside its tensors, and the checksums of all; see them on the disk."""
    text = json.dumps(state, indent=1, default=_as_json)
    (draft / "state.json").write_text(text)
    seal(draft)


@contextmanager
def disk(run: Path) -> Iterator[None]:
    """Say what the disk of a run did not take outside of its checkpoints (metrics, samples), and what is left."""
    try:
        yield
    # What a user can mend otherwise has a kind of its own, which is a ValueError or a RuntimeError.
    except OSError as error:
        kept = [f"checkpoints/step-{step}" for step in steps_in(run / "checkpoints")]
        raise CheckpointError(
            f"The run in {run} cannot go on: {error.strerror or error}{_about(error)}. Free space there, raise the "
            "limit on file sizes, or copy the run to another disk; the same command then goes on from "
            f"{_going_on(kept)}."
        ) from error


def _about(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


@contextmanager
def writable(folder: Path, draft: Path) -> Iterator[None]:
    """Say what the disk did not take, and what is left; a half-written draft makes room again."""
    try:
        yield
    # torch and safetensors have kinds of their own for a disk that is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        kept = [f"step-{step}" for step in steps_in(folder)]
        raise CheckpointError(
            f"A checkpoint could not be written to {folder} ({first_line(error)}). Free space there, raise the limit "
            f"on file sizes, or copy the run to another disk; the same command then goes on from {_going_on(kept)}."
        ) from error


def _going_on(kept: list[str]) -> str:
    return kept[-1] if kept else "the start, for there is no older checkpoint"


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


def plain(state: Any) -> Any:
    """A state as a checkpoint gives it back."""
    return json.loads(json.dumps(state, default=_as_json))


def _as_json(value: Any) -> Any:
    """States of parts may hold tensors, and what says itself how it is kept."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if hasattr(value, "as_json"):
        return value.as_json()
    raise TypeError(
        f"{type(value).__name__} cannot be kept in a checkpoint; return numbers, lists, dicts or tensors."
    )
