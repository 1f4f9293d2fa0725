"""Random numbers without a global state: every draw is keyed by what it is for.

`derive_seed(run_seed, step, prompt_id, branch)` gives the same 63-bit number on every machine, rank and worker, so a
rerun of a step draws the same masks and the same answers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: int | str) -> int:
    """Hash the parts (order and type matter) to a seed in [0, 2^63)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded from the parts."""
    import torch  # here, because processes without torch use the rest of this file

    return torch.Generator().manual_seed(derive_seed(*parts))


def uniform_draw(*parts: int | str) -> float:
    """One uniform number in [0, 1), keyed by the parts."""
    import torch

    return torch.rand(1, generator=generator(*parts)).item()
