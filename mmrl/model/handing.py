"""Weights of a policy as others read them: every tensor by its name in a checkpoint, or the adapter alone as a folder.

Both are what the policy computes with at this moment; of a sharded policy inside `Policy.whole()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from mmrl.model.policy import Policy

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What an adapter's folder holds."""


def all_weights(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """Name and values of each weight, without an adapter's; a weight that two layers share comes once."""
    for name, weight in policy.base.named_parameters():
        yield name, weight.detach()


def write_adapter(policy: Policy, folder: Path) -> None:
    """The adapter's files. Raises ValueError for a policy without one."""
    if not policy.has_adapter:
        raise ValueError("This policy has no adapter; hand over all of its weights.")
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.save_pretrained(str(folder))  # type: ignore[operator]


def adapts_tower(policy: Policy) -> bool:
    """Is any weight of the vision tower adapted?"""
    names = (name for name, _ in policy.named_parameters() if "lora_" in name)
    return policy.has_adapter and any("visual" in name for name in names)
