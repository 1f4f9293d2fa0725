"""Random numbers of a sample: counter-based, keyed by what they are for, never shared.

A sample's identity (source id, task, version, knobs, seed, index, attempt) is hashed with BLAKE2b; each named
sub-stream (`selection`, `geometry`, `appearance`, `wording`, or any other name) hashes its name on top and keys its
own Philox generator. Adding a draw to one stream therefore shifts no other, and a sample is the same on every machine,
worker and rank. Only NumPy's Philox4x64 and its documented distributions are used; there is no global state, no clock,
no `hash()`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

Part = int | float | str | bool | None | Sequence["Part"] | Mapping[str, "Part"]
"""What may identify a draw: JSON values."""


def digest(*parts: Part, size: int = 16) -> bytes:
    """BLAKE2b of the parts as canonical JSON (sorted keys; types and order matter)."""
    text = json.dumps(
        parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.blake2b(text.encode(), digest_size=size).digest()


def generator(*parts: Part) -> np.random.Generator:
    """A Philox generator keyed by the parts."""
    key = np.frombuffer(digest(*parts, size=16), dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


class Streams:
    """The named sub-streams of one sample. Asking twice for a name continues the same stream."""

    def __init__(self, *identity: Part) -> None:
        self._identity = digest(*identity).hex()
        self._open: dict[str, np.random.Generator] = {}

    def __getitem__(self, name: str) -> np.random.Generator:
        if name not in self._open:
            self._open[name] = generator(self._identity, name)
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
