"""Sizes of models with linear attention: published numbers, two kinds of layers, what is carried."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mmrl.model.load import LoRA
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.recurrent_row import carried_bytes
from mmrl.model.released import config_of
from mmrl.model.scoring import hidden
from mmrl.model.sizes import sizes, sizes_of
from mmrl.training.plan import Device, Settings, Work, plan
from mmrl.types import Prompt

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


@pytest.mark.parametrize("length", [33, 60, 140])
def test_a_plan_counts_what_autograd_keeps_of_states_too(
    tiny35_folder: Path, length: int
) -> None:
    policy = Policy.load(
        tiny35_folder, device="cpu", dtype="float32", freeze=("vision", "merger")
    )
    question = [{"type": "text", "text": "red" + " blue" * 100}]
    encoded = policy.encode(Prompt("q", [{"role": "user", "content": question}]))
    answers = tuple(torch.arange(5, 5 + length) for _ in range(6))
    group = Group(encoded, encoded.visual, answers, tuple(range(6)), (1.0,) * 6)
    held: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage()._cdata for p in policy.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden(policy, [group], grad=True)
    found = sum(x.untyped_storage().nbytes() for name, x in held.items() if name not in own)
    known = sizes_of(tiny35_folder, torch.float32, ("vision", "merger"))
    work = Work(
        prompts=1,
        group=6,
        prompt_tokens=len(encoded.ids),
        answer_tokens=length,
        graphs=1,
        evaluated=0,
    )
    planned = plan(known, work, Settings(checkpointing=False), Device("cpu", 2**40)).phases[
        "update"
    ]
    assert 0.9 * planned["graphs"] < found < 1.15 * planned["graphs"], (found, planned)


def test_states_stand_in_the_plan_of_a_rollout() -> None:
    known = sizes(config_of("Qwen/Qwen3.5-9B"), torch.bfloat16, (), LoRA())
    work = Work(prompts=16, group=8, evaluated=0)
    phases = plan(known, work, Settings(), Device("cuda", 300 * 10**9)).phases
    # 128 answers, and the prompts that they begin from.
    assert phases["generate"]["states"] == (16 + 128) * known.carried
    small = plan(known, work, Settings(), Device("cuda", 40 * 10**9)).phases["generate"]
    assert 0 < small["states"] < phases["generate"]["states"], "fewer answers advance together"
    assert (
        "states"
        not in plan(
            dataclasses.replace(known, carried=0), work, Settings(), Device("cuda", 40 * 10**9)
        ).phases["generate"]
    )
