"""Model folders on disk: written in one go, with checksums, and looked at before they are used.

A folder that mmrl writes carries `mmrl-checksums.json` (`mmrl.ground.checksums`). What is wrong with a folder is said
in one paragraph: which file, what is the matter, how to mend it. Weights that are not finite are neither written nor
used.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mmrl.ground.checksums import LIST, damage, is_sealed, listed, seal
from mmrl.ground.faults import first_line
from mmrl.model.placement import own_part

UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    SafetensorError,
)
"""What the libraries raise for files that are gone, cut or of another kind."""


class ModelError(ValueError):
    """A model folder cannot be read or written."""


def refuse_damaged(source: str | Path) -> None:
    """Raise ModelError for a folder of ours that no longer holds what was written."""
    folder = Path(source)
    if not is_sealed(folder):
        return  # a hub name, or a folder that others made
    if problem := damage(folder):
        raise ModelError(
            f"The model in {folder} is damaged: {problem}. Copy it again or make it again; for the folder of a run, "
            f"--model RUN goes on from its newest whole checkpoint. If you changed the file yourself, delete {LIST}."
        )


@contextmanager
def readable(source: str | Path, mend: str) -> Iterator[None]:
    """Turn whatever a library raises for unreadable files into a ModelError with a remedy."""
    try:
        yield
    except (ModelError, torch.OutOfMemoryError):
        raise
    except UNREADABLE as error:
        raise ModelError(
            f"{source} cannot be loaded ({type(error).__name__}: {first_line(error)}). {mend}"
        ) from error


def refuse_missing(source: str | Path, info: Mapping[str, Any]) -> None:
    """Raise ModelError if weights were not in the files, or of another shape: they would be drawn at random."""
    lacking = sorted(info.get("missing_keys", ()))
    # (name, shape in the file, shape in the model)
    lacking += [f"{name} (of another shape)" for name, *_ in info.get("mismatched_keys", ())]
    if lacking:
        raise ModelError(
            f"{source} lacks weights: {', '.join(lacking[:3])}{' …' if len(lacking) > 3 else ''} ({len(lacking)} in "
            "all). Copy or download the weight files again, all of them, and check that they belong to config.json."
        )


def refuse_nonfinite(source: str | Path, tensors: Mapping[str, Any]) -> None:
    """Raise ModelError for weights with an infinity or a NaN."""
    if bad := nonfinite(tensors):
        raise ModelError(
            f"{source} holds weights that are not finite, for example {bad[0]} ({len(bad)} of {len(tensors)}). They "
            "are not used; take an older checkpoint, or the model that the run began with."
        )


def nonfinite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that hold an infinity or a NaN."""
    bad: list[str] = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        tensor = own_part(tensor)  # of a sharded one each process looks at what it holds
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            tensor = tensor.dequantize()  # moments in 8 bits
        # Largest and smallest say it without a copy of the tensor: a NaN becomes both.
        if tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
            bad.append(name)
    return bad


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A draft beside `folder` to write a model into; it takes the name at the end, with its checksums.

    A process that dies leaves the old model or none, never half of one under a valid list. Files of others in the
    folder stay. Raises ModelError for a disk that does not take it.
    """
    folder = Path(folder)
    draft = folder.with_name(f".writing-{folder.name}-{os.getpid()}")
    try:
        _sweep(folder)
        draft.mkdir(parents=True)
        yield draft
        seal(draft)
        _move(draft, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"The model could not be written to {folder} ({first_line(error)}). Free space there, raise the limit on "
            "file sizes, or choose another place; the same command then writes it again."
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove drafts of processes that were killed, and one of our own that failed."""
    for left in folder.parent.glob(f".writing-{folder.name}-*"):
        number = left.name.rpartition("-")[2]
        if number.isdigit() and not _is_another_alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _is_another_alive(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # somebody else's
    return True


def _move(draft: Path, folder: Path) -> None:
    """Put the draft's files in place."""
    if not folder.is_dir() or not any(folder.iterdir()):
        os.replace(draft, folder)
        return
    old = listed(folder)
    # Without the list from here on, so that a kill half way leaves a folder that says it is not whole.
    (folder / LIST).unlink(missing_ok=True)
    new = sorted(file.relative_to(draft) for file in draft.rglob("*") if file.is_file())
    # What the old model had and the new one has not would be read with it (an adapter's settings, more shards).
    for name in set(old) - {file.as_posix() for file in new}:
        (folder / name).unlink(missing_ok=True)
    for name in sorted(new, key=lambda each: each.name == LIST):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / name, folder / name)
