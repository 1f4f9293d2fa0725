"""What one of several processes holds of a model before its weights are cut: pages of the file, shared by all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from mmrl.model.load import LoRA, load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")


def mappings(file):
    """Where this process has mapped a file: pairs of addresses."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            first, _, last = line.split()[0].partition("-")
            found.append((int(first, 16), int(last, 16)))
    return found


def in_file(model, folder):
    """Of the bytes of a model's parameters, the share that lies in its weight files and not in memory of its own."""
    places = [at for file in folder.resolve().glob("*.safetensors") for at in mappings(file)]
    seen = {p.data_ptr(): p.nbytes for p in model.parameters()}
    inside = [size for at, size in seen.items() if any(a <= at < b for a, b in places)]
    return sum(inside) / sum(seen.values())


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "LoRA"])
def test_weights_in_the_format_of_their_file_are_not_copied(tiny_folder, lora):
    model = load_model(tiny_folder, torch.device("cpu"), torch.float32, lora=lora)
    adapters = sum(p.nbytes for n, p in model.named_parameters() if "lora_" in n)
    whole = sum(p.nbytes for p in model.parameters())
    assert in_file(model, tiny_folder) >= 0.99 - adapters / whole
    # In another format each process has a copy of its own.
    other = load_model(tiny_folder, torch.device("cpu"), torch.bfloat16, lora=lora)
    assert in_file(other, tiny_folder) == 0.0
