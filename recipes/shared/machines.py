"""Machines in words: `80` is a GPU with 80 GiB, `8x80` eight of them, `cpu:24` a computer with 24 GiB and no GPU."""

from __future__ import annotations

import re

import torch

from mmrl.model.budget import free_bytes
from mmrl.model.ranks import Ranks
from mmrl.training.plan import GIB, Device

ONE_NODE = "8x80"
"""Eight GPUs of 80 GiB: what the papers trained models up to 8 B on."""
TWO_LARGE_NODES = "16x141"
"""Sixteen GPUs of 141 GiB: the whole of a 32 B model lies on each while it samples."""
LAPTOP = "cpu:8"
ONE_LARGE, ONE_LARGEST = "141", "192"
PATTERN = re.compile(r"(?:(?P<count>\d+)x|(?P<cpu>cpu:))?(?P<gib>\d+(?:\.\d+)?)")


def machine(text: str) -> Device:
    """The machine that a text names. Raises ValueError."""
    found = PATTERN.fullmatch(text.replace(" ", ""))
    if found is None or float(found["gib"]) <= 0 or found["count"] == "0":
        raise ValueError(
            f"--machine is {text!r}; write the GiB of one GPU (80), how many and how large (8x80), or the memory of a "
            "computer without GPU (cpu:24)."
        )
    kind = "cpu" if found["cpu"] else "cuda"
    return Device(kind, int(float(found["gib"]) * GIB), int(found["count"] or 1))


def in_words(device: Device) -> str:
    """What a message calls it."""
    gib = f"{device.memory / GIB:.3g} GiB"
    if device.kind == "cpu":
        return f"a CPU with {gib} of memory"
    return f"a GPU with {gib}" if device.count == 1 else f"{device.count} GPUs with {gib} each"


def this_machine(where: torch.device) -> Device | None:
    """The devices of a run with the free memory of this one; None if nobody knows how much that is."""
    free = free_bytes(where)
    return None if free is None else Device(where.type, free, Ranks.here().world)
