"""`mmrl doctor`: what this computer has, what is missing, and what each missing thing costs. Nothing is downloaded.

Exit code 1 if something that every run needs is missing or too old, else 0.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import Requirement

from mmrl.ground.version import __version__
from mmrl.recipes.shared.machines import this_machine
from mmrl.training.plan import GIB

OPTIONAL = {
    "flash-attn": "the tower and packed rows use torch's own flash kernel instead, checked at start",
    "vllm": "--load.engine vllm cannot be chosen; a server elsewhere can (docs/engines.md)",
    "torchao": "Optim.eight_bit and Optim.masters=False (stochastic rounding) cannot be chosen",
    "tensorboard": "--run.logger tensorboard cannot be chosen",
    "wandb": "--run.logger wandb cannot be chosen",
    "trackio": "--run.logger trackio cannot be chosen",
    "mlflow": "--run.logger mlflow cannot be chosen",
    "decord": "clips are read by PyAV alone (the default, and the one that is checked most)",
    "torchcodec": "clips are read by PyAV alone (the default, and the one that is checked most)",
    "render": "recipes.rrvf draws no code: no charts, SVG or pages (docs/sandbox.md)",
}
"""Extra of pyproject.toml -> what is missing without it."""
STANDS_FOR = {"render": "resvg-py"}
"""Package by which an extra of several is known, where it is not called like the extra."""
SMALL_DISK, SMALL_SHM = 20, 1
"""GiB below which a full disk, or a full /dev/shm, is likely in a run of real size."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    kind: str
    """"ok", "missing" (optional), "note" or "wrong" (no run works)."""
    what: str
    about: str

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "missing": "without", "note": "note   ", "wrong": "WRONG  "}
        return f"{mark[self.kind]}  {self.what:<14} {self.about}"


def report() -> tuple[str, int]:
    """The whole report and the exit code."""
    found = [*_needed(), *_devices(), *_optional(), *_places()]
    wrong = sum(one.kind == "wrong" for one in found)
    end = f"{wrong} of these stop every run." if wrong else "Runs will start."
    head = f"mmrl {__version__}, Python {platform.python_version()}, {platform.platform()}"
    return "\n".join([head, *map(str, found), end]), int(wrong > 0)


def _needed() -> Iterator[Finding]:
    """What pyproject.toml asks for, with the versions that are there."""
    for text in importlib.metadata.requires("mmrl") or ():
        need = Requirement(text)
        if need.marker is not None and "extra" in str(need.marker):
            continue
        have = _version(need.name)
        if have is None:
            fix = f"pip install '{need.name}{need.specifier}'"
            yield Finding("wrong", need.name, f"is not installed: {fix}")
        elif not need.specifier.contains(have, prereleases=True):
            fix = f"pip install '{need.name}{need.specifier}'"
            yield Finding("wrong", need.name, f"is {have}, needed is {need.specifier}: {fix}")
        elif need.name in ("torch", "transformers", "peft"):
            yield Finding("ok", need.name, have)
    yield from _pair()


def _pair() -> Iterator[Finding]:
    """torch and torchvision come in pairs; a wrong pair fails at import with a message about an operator."""
    try:
        import torchvision

        yield Finding("ok", "torchvision", torchvision.__version__)
    except Exception as error:
        told = str(error).split("\n", 1)[0]
        fix = "install both from one place: pip install --force-reinstall torch torchvision"
        yield Finding(
            "wrong", "torchvision", f"does not fit torch {torch.__version__} ({told}); {fix}"
        )


def _devices() -> Iterator[Finding]:
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: use --load.dtype float32"
        yield Finding(
            "ok",
            f"cuda:{number}",
            f"{name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, {half}",
        )
    if not torch.cuda.is_available():
        why = (
            "this torch was built without CUDA"
            if torch.version.cuda is None
            else "no GPU is seen"
        )
        asked = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if asked is None else f" (CUDA_VISIBLE_DEVICES is {asked!r})"
        yield Finding(
            "note", "cuda", f"{why}{hidden}: the embedded presets run, real models hardly"
        )
    cpu = this_machine(torch.device("cpu"))
    memory = "" if cpu is None else f", {cpu.memory / GIB:.0f} GiB free"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cpu", f"{cores} cores, {torch.get_num_threads()} threads{memory}")


def _optional() -> Iterator[Finding]:
    for name, cost in OPTIONAL.items():
        have = _version(STANDS_FOR.get(name, name))
        if name == "vllm" and have is not None:
            yield _fits(have)
        elif have is not None:
            yield Finding("ok", name, have)
        else:
            yield Finding("missing", name, f"{cost}. pip install 'mmrl[{name}]'")


def _fits(have: str) -> Finding:
    """vLLM is of use in the versions that were tested."""
    from mmrl.rollouts.vllm_local import UnfitVLLM, require_version

    try:
        require_version(have.partition("+")[0])
    except UnfitVLLM as error:
        return Finding("note", "vllm", str(error))
    return Finding("ok", "vllm", have)


def _places() -> Iterator[Finding]:
    """Disks, shared memory, caches."""
    free = shutil.disk_usage(Path.cwd()).free / GIB
    kind = "ok" if free >= SMALL_DISK else "note"
    small = (
        ""
        if kind == "ok"
        else "; checkpoints of real models are larger, see --run.output and --run.keep"
    )
    yield Finding(kind, "disk here", f"{free:.0f} GiB free{small}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).free / GIB
        if size < SMALL_SHM:
            about = f"{size:.2f} GiB free; several GPUs need more (docker run --shm-size=8g)"
            yield Finding("note", "/dev/shm", about)
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    offline = ", offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
    there = "" if cache.is_dir() else " (empty)"
    yield Finding("ok", "hub cache", f"{cache}{there}{offline}")
    if sys.platform == "win32":
        yield Finding(
            "note", "system", "rewards run without worker processes here: pass isolate=False"
        )


def _version(name: str) -> str | None:
    """The installed version of a distribution; None without one."""
    try:
        return importlib.metadata.version(re.sub(r"[._]+", "-", name))
    except importlib.metadata.PackageNotFoundError:
        return None
