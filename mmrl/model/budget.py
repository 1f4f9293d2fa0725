"""How many bytes of a device a run's work may hold, and for what: one record that everybody asks.

Weights, gradients and the optimizer's states are there all the time; what they leave free is divided here. A rollout
holds keys and values, the row of a prefill and logits; an update holds activations; features of pictures and the
tower's graphs live through both:

    rollout   keys_values + prefill + logits     0.70 of the free bytes
    update    activations                        0.70
    both      features 0.05, graphs 0.15
    nobody    0.10, for what an allocator cannot use

`free_bytes` says what a device has left; on a CPU half of it is taken, for other programs want memory too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmrl.ground.require import require
from mmrl.model.ranks import Ranks
from mmrl.model.recurrent_row import LINEAR, carried_bytes

GIB = 2**30
KEYS_VALUES, PREFILL, LOGITS = 0.45, 0.15, 0.10
"""Shares of a rollout."""
ACTIVATIONS = 0.70
"""Share of an update."""
FEATURES, GRAPHS = 0.05, 0.15
"""Shares of pictures, in both."""
CPU_SHARE = 0.5
"""Part of a computer's available memory that a run takes on its own account."""
LEAST = GIB // 4
"""What work is given in any case: below it nothing could be done, and whether a run fits is asked before."""
UNKNOWN = 4 * GIB
"""Free memory of a computer that does not tell it."""


@dataclass(frozen=True)
class Budget:
    """Bytes that work may hold on one device, by what holds them."""

    keys_values: int
    """Keys and values of the prompts and answers of a rollout."""
    prefill: int
    """One packed row of prompts while it is computed, its pictures in the tower included."""
    logits: int
    """Numbers over the vocabulary of all answers that advance together."""
    features: int
    """Features of pictures that are remembered."""
    graphs: int
    """What the vision tower keeps of a rollout for its update."""
    activations: int
    """What autograd keeps of one packed row of an update, and the row itself."""

    def __post_init__(self) -> None:
        names = ("keys_values", "prefill", "logits", "features", "graphs", "activations")
        rules = {name: (getattr(self, name) >= 0, "0 or more bytes") for name in names}
        require(self, **rules)

    @classmethod
    def of(cls, free: int) -> Budget:
        """The parts of so many free bytes."""
        free = max(free, LEAST)
        return cls(
            keys_values=int(KEYS_VALUES * free),
            prefill=int(PREFILL * free),
            logits=int(LOGITS * free),
            features=int(FEATURES * free),
            graphs=int(GRAPHS * free),
            activations=int(ACTIVATIONS * free),
        )

    @classmethod
    def auto(cls, device: torch.device, expected: int = 0) -> Budget:
        """The parts of what is free on the device now, less `expected` bytes that the optimizer is still to take."""
        free = free_bytes(device)
        if free is None:
            free = UNKNOWN
        if device.type != "cuda":
            free = int(free * CPU_SHARE)
        return cls.of(free - expected)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that this process may still take on the device; None where nobody tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch has taken and does not use is free for us.
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + own
    free = _free_memory() if device.type == "cpu" else None
    # Processes on CPUs share the memory of their machine.
    return None if free is None else free // Ranks.here().local_world


def _free_memory() -> int | None:
    """Bytes that a process may still take, of the machine and of its container; None where it cannot be read."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                found.append(int(value.split()[0]) * 1024)
        most = Path("/sys/fs/cgroup/memory.max")
        if most.is_file() and most.read_text().strip() != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            found.append(max(0, int(most.read_text()) - used))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


@dataclass(frozen=True)
class Costs:
    """Bytes that sampling takes for each of its units."""

    token: int
    """Keys and values of one token, in all layers."""
    prefill: int
    """One token of a packed row while it is computed, its keys and values included."""
    patch: int
    """One patch in the vision tower."""
    row: int
    """Numbers over the vocabulary of one answer that advances."""
    carried: int = 0
    """What linear attention carries of one prompt or one answer, however long it is."""

    @classmethod
    def of(
        cls, *, itemsize: int, layers: int, keys_values: int, hidden: int, widest: int,
        vocabulary: int, tower_hidden: int, tower_intermediate: int, patch_numbers: int,
        carried: int = 0,
    ) -> Costs:  # fmt: skip
        """From the sizes of a model. `keys_values`: numbers per token and layer that has any; `widest`: of its MLP."""
        token = layers * keys_values * itemsize
        # Three widths of the MLP, or attention, beside the rows and what becomes of them.
        working = (3 * widest + 4 * hidden) * itemsize
        tower = (3 * tower_intermediate + 4 * tower_hidden + patch_numbers) * itemsize
        # Logits, log-probs, weights and their sums, in at least single precision.
        return cls(token, token + working, tower, 6 * max(4, itemsize) * vocabulary, carried)

    @classmethod
    def of_model(cls, base: Any) -> Costs:
        """Of a loaded transformers model."""
        text = base.config.get_text_config()
        tower = getattr(base.config, "vision_config", None)
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        shared = getattr(text, "num_key_value_heads", None) or heads
        side = getattr(tower, "patch_size", 14)
        side = side if isinstance(side, int) else side[0]
        itemsize = base.lm_head.weight.element_size()
        without_keys = list(getattr(text, "layer_types", None) or []).count(LINEAR)
        return cls.of(
            itemsize=itemsize,
            layers=text.num_hidden_layers - without_keys,
            keys_values=2 * shared * width,
            hidden=text.hidden_size,
            widest=_widest(text),
            vocabulary=len(base.lm_head.weight),
            tower_hidden=getattr(tower, "hidden_size", 0),
            tower_intermediate=getattr(tower, "intermediate_size", 0),
            patch_numbers=3 * side**2 * getattr(tower, "temporal_patch_size", 1),
            carried=carried_bytes(text, itemsize),
        )


def _widest(text: Any) -> int:
    """Width of an MLP, or of the experts that a token visits."""
    experts = getattr(text, "num_experts_per_tok", None)
    each = getattr(text, "moe_intermediate_size", None)
    if experts and each:
        return experts * each
    return text.intermediate_size
