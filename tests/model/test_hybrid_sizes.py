"""Sizes of models with linear attention: published numbers, two kinds of layers, what is carried."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmrl.model.load import LoRA
from mmrl.model.recurrent_row import carried_bytes
from mmrl.model.released import config_of
from mmrl.model.sizes import sizes, sizes_of

PUBLISHED = {
    "0.8B": "0.873",
    "2B": "2.27",
    "4B": "4.66",
    "9B": "9.65",
    "27B": "27.78",
    "35B-A3B": "35.95",
}
"""Billions of parameters as public pages round the hub's count."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_numbers_agree_with_the_published_ones(name: str) -> None:
    config = config_of(f"Qwen/Qwen3.5-{name}")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    # What the hub counts besides: a layer that predicts further tokens, and a matrix that joins its two inputs.
    text = config.get_text_config()
    assert text.layer_types[3] == "full_attention"
    further = sum(p.numel() for p in model.model.language_model.layers[3].parameters())
    whole = sum(p.numel() for p in model.parameters()) + further + 2 * text.hidden_size**2
    digits = len(PUBLISHED[name].partition(".")[2])
    assert f"{whole / 1e9:.{digits}f}" == PUBLISHED[name]


def test_keys_lie_in_every_fourth_layer_and_states_in_the_others() -> None:
    config = config_of("Qwen/Qwen3.5-9B")
    found = sizes(config, torch.bfloat16, (), LoRA())
    # Of a token: 8 of 32 layers hold 4 heads of 256 keys and values.
    assert found.layers * found.keys_values == 8 * 2 * 4 * 256
    assert found.carried == carried_bytes(config.get_text_config(), 2) > 50e6


def test_a_layers_graph_is_the_mean_of_both_kinds(tiny35_folder: Path) -> None:
    whole = sizes_of(tiny35_folder, torch.float32)
    config = config_of(tiny35_folder)
    text = config.get_text_config()
    assert text.layer_types == ["linear_attention", "linear_attention", "full_attention"]
    text.num_hidden_layers = 1
    graphs = []
    for kind in ("linear_attention", "full_attention"):
        text.layer_types = [kind]
        graphs.append(sizes(config, torch.float32, (), LoRA()).layer_graph)
    assert graphs[0] != graphs[1]
    assert whole.layer_graph == -(-(2 * graphs[0] + graphs[1]) // 3)
    assert dataclasses.replace(whole, carried=0) != whole
