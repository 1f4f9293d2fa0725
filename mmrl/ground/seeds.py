"""Random numbers without a global state: every draw is keyed by what it is for.

`derive_seed(run_seed, step, prompt_id, branch)` gives the same 63-bit number on every machine, rank and worker, so a
rerun of a step draws the same masks and the same answers. `generator` makes a torch generator of it.

`philox` and `Streams` are the counterpart for NumPy: Philox4x64 and its documented distributions only, no clock, no
`hash()`. A sample's identity (source id, task, version, knobs, seed, index, attempt) is hashed; each named sub-stream
(`selection`, `geometry`, `appearance`, `wording`, or any other name) hashes its name on top and keys its own Philox
generator. Adding a draw to one stream therefore shifts no other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Part = int | float | str | bool | None | Sequence["Part"] | Mapping[str, "Part"]
"""What may identify a draw: JSON values."""


def derive_seed(*parts: int | str) -> int:
    """Hash the parts (order and type matter) to a seed in [0, 2^63)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    hashed = hashlib.blake2b(text.encode(), digest_size=8).digest()
    # One bit less, because torch and NumPy take seeds as signed 64-bit numbers.
    return int.from_bytes(hashed, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator of torch, seeded from the parts."""
    import torch  # here, because processes without torch use the rest of this file

    return torch.Generator().manual_seed(derive_seed(*parts))


def uniform_draw(*parts: int | str) -> float:
    """One uniform number in [0, 1), keyed by the parts."""
    import torch

    return torch.rand(1, generator=generator(*parts)).item()


def digest(*parts: Part, size: int = 16) -> bytes:
    """BLAKE2b of the parts as canonical JSON (sorted keys; types and order matter), `size` bytes."""
    # Pure ASCII without NaN: the text, and with it every draw, is the same on every platform.
    text = json.dumps(
        parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def philox(*parts: Part) -> np.random.Generator:
    """A NumPy generator keyed by the parts."""
    # Little-endian whatever the machine: the bytes are the key, not its numbers.
    words = np.frombuffer(digest(*parts, size=16), dtype="<u8")
    bits = np.random.Philox(key=words.astype(np.uint64))
    return np.random.Generator(bits)


class Streams:
    """The named sub-streams of one sample. Asking twice for a name continues the same stream."""

    def __init__(self, *identity: Part) -> None:
        self._identity = digest(*identity).hex()
        self._open: dict[str, np.random.Generator] = {}

    def __getitem__(self, name: str) -> np.random.Generator:
        if name not in self._open:
            self._open[name] = philox(self._identity, name)
        return self._open[name]

    @property
    def selection(self) -> np.random.Generator:
        """Which media, pieces, frames or kinds of change."""
        return self["selection"]

    @property
    def geometry(self) -> np.random.Generator:
        """Positions, sizes, orders."""
        return self["geometry"]

    @property
    def appearance(self) -> np.random.Generator:
        """Colours, noise, jitter: nothing that the truth depends on."""
        return self["appearance"]

    @property
    def wording(self) -> np.random.Generator:
        """Prompt variant and worked example."""
        return self["wording"]

    def child(self, *name: Part) -> Streams:
        """Fresh sub-streams below this identity (for a part of a composed task)."""
        return Streams(self._identity, *name)
