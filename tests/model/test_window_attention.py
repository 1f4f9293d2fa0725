"""The tower's attention against the library's own, which calls its kernel once per window."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from mmrl.model import window_attention as windows
from mmrl.model.ragged import LOOP, Segments


def tower(family):
    """A narrow tower with the released geometry: patches, windows of 112 pixels, whole frames in some blocks."""
    torch.manual_seed(0)
    if family == "qwen2_5_vl":
        small = {
            "depth": 3,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(vision_config=small).vision_config
        assert (config.patch_size, config.window_size, config.spatial_merge_size) == (
            14,
            112,
            2,
        )
        return Qwen2_5_VisionTransformerPretrainedModel(config).double()
    small = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    return Qwen3VLVisionModel(Qwen3VLConfig(vision_config=small).vision_config).double()


GRIDS = {
    "whole windows": [[1, 16, 16]],
    "cut windows": [[1, 18, 26]],
    "two pictures": [[1, 10, 22], [1, 8, 8]],
    "a clip": [[3, 12, 20]],
    "smaller than a window": [[1, 2, 4]],
}


@pytest.mark.parametrize("kernel", [None, LOOP], ids=["by length", "one call"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_equals_one_call_per_window(monkeypatch, family, grid, kernel):
    model, grid = tower(family), torch.tensor(grid)
    monkeypatch.setattr("mmrl.model.attention.verified_ragged_kernel", lambda *_: kernel)
    count = int(grid.prod(1).sum())
    channels = model.config.patch_size**2 * model.config.temporal_patch_size * 3
    values = torch.randn(count, channels, dtype=torch.float64)
    calls = []
    kernel_of_torch = functional.scaled_dot_product_attention

    def counted(*args, **more):
        calls.append(args[0].shape)
        return kernel_of_torch(*args, **more)

    monkeypatch.setattr(windows, "scaled_dot_product_attention", counted)

    def run(name):
        model.config._attn_implementation = name
        model.zero_grad()
        out = model(values, grid_thw=grid, return_dict=True).pooler_output
        out.square().sum().backward()
        return out.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected, theirs = run("sdpa")
    found, mine = run(windows.register_windows())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    # Windows at the edges are cut along one side, the other or both: four lengths at most.
    assert len(calls) <= 4 * model.config.depth if kernel is None else not calls


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=9), st.integers(0, 99))
def test_windows_of_any_length(lengths, seed):
    if not sum(lengths):
        lengths = [*lengths, 1]
    rng = torch.Generator().manual_seed(seed)
    shape = (1, 2, sum(lengths), 8)
    q, k, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
    of = Segments.of(lengths, torch.device("cpu"))
    found = windows._by_length(q, k, v, of.starts, 0.4)
    parts = []
    for a, b in zip(of.starts[:-1].tolist(), of.starts[1:].tolist(), strict=True):
        weights = (q[:, :, a:b] @ k[:, :, a:b].transpose(-1, -2) * 0.4).softmax(-1)
        parts.append(weights @ v[:, :, a:b])
    torch.testing.assert_close(found, torch.cat(parts, 2).transpose(1, 2), rtol=1e-9, atol=1e-9)
