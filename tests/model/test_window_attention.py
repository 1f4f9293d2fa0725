"""The tower's attention against the library's own, which calls its kernel once per window."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel, Qwen3VLVisionModel

from mmrl.model import window_attention as windows
from mmrl.model.ragged import LOOP, Segments
from mmrl.model.tower_inputs import tower_inputs
from mmrl.model.vision_tower import VisualFeatures, insert_features


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


def attention_calls(monkeypatch, grids):
    """Calls of the kernel over the released depth and blocks of Qwen2.5-VL (a narrow tower), and what went in."""
    released = {"depth": 32, "fullatt_block_indexes": [7, 15, 23, 31]}
    small = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 8, "out_hidden_size": 8}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(vision_config={**small, **released}).vision_config
    assert config.window_size // config.patch_size // config.spatial_merge_size == 4
    model = Qwen2_5_VisionTransformerPretrainedModel(config)
    config._attn_implementation = windows.register_windows()
    calls = []
    kernel_of_torch = functional.scaled_dot_product_attention

    def counted(*args, **more):
        calls.append(tuple(args[0].shape))
        return kernel_of_torch(*args, **more)

    monkeypatch.setattr(windows, "scaled_dot_product_attention", counted)
    count = sum(t * h * w for t, h, w in grids)
    values = torch.randn(count, 3 * 2 * 14**2)
    inputs = tower_inputs(model, grids, values.device)
    with torch.no_grad(), NoQuestions():
        model(values, **inputs, return_dict=True)
    return calls


@pytest.mark.parametrize(
    ("grids", "lengths"),
    [
        ([(1, 32, 24)], {64: 12}),  # 448 x 336 pixels: 12 whole windows
        ([(1, 32, 24), (1, 8, 16)], {64: 14}),  # of two pictures together
        ([(2, 10, 12)], {64: 2, 32: 2, 16: 2, 8: 2}),  # cut at both edges, two frames
    ],
)
def test_calls_of_the_kernel_with_released_geometry(monkeypatch, grids, lengths):
    """28 blocks look at windows: one call per length of window; 4 at whole frames: one call per size of frame."""
    calls = attention_calls(monkeypatch, grids)
    assert len(calls) == 28 * len(lengths) + 4 * len({h * w for _, h, w in grids})
    windowed = {(n, 2, length, 8) for length, n in lengths.items()}
    whole = {(t, 2, h * w, 8) for t, h, w in grids}
    assert set(calls) == windowed | whole


class NoQuestions(TorchFunctionMode):
    """Refuses what waits for a device: asking a tensor for numbers, or for sizes that depend on them."""

    asks = ("tolist", "item", "__bool__", "__int__", "__index__", "__float__", "nonzero",
            "unique_consecutive", "unique", "masked_select", "repeat_interleave")  # fmt: skip

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        assert name not in self.asks, f"{name} waits for the device"
        if name == "__getitem__":
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = [p for p in parts if isinstance(p, torch.Tensor) and p.dtype == torch.bool]
            assert not masks, "a boolean mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_towers_ask_the_device_nothing(family, grid):
    """What is computed on the host from the grids is what the library computes on the device."""
    model, grids = tower(family), [tuple(one) for one in grid]
    model.config._attn_implementation = windows.register_windows()
    count = sum(t * h * w for t, h, w in grids)
    channels = model.config.patch_size**2 * model.config.temporal_patch_size * 3
    values = torch.randn(count, channels, dtype=torch.float64)
    inputs = tower_inputs(model, grids, values.device)
    with torch.no_grad():
        expected = model(values, grid_thw=torch.tensor(grids), return_dict=True)
        with NoQuestions():
            found = model(values, **inputs, return_dict=True)
    assert torch.equal(found.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_further_levels_are_added_without_a_mask(dtype):
    """What the library adds under a mask, rows and gradients, and nothing is asked of the device."""
    rng = torch.Generator().manual_seed(0)
    rows, level = (torch.randn(n, 8, generator=rng).to(dtype).requires_grad_() for n in (9, 4))
    places = torch.tensor([1, 2, 5, 6])
    seen = VisualFeatures(torch.zeros(4, 8, dtype=dtype), (level,))
    found, levels = insert_features(rows, places, [seen])
    (whole,) = levels["deepstack_visual_embeds"]
    add = partial(Qwen3VLTextModel._deepstack_process, None)
    mask = torch.zeros(1, 9, dtype=torch.bool).index_fill(1, places, True)
    expected = add(found[None], mask, level)
    with NoQuestions():
        mine = add(found[None], levels["visual_pos_masks"], whole)
    assert torch.equal(mine, expected)
    weights = torch.randn(1, 9, 8, generator=rng).to(dtype)
    theirs = torch.autograd.grad((expected * weights).sum(), (rows, level), retain_graph=True)
    ours = torch.autograd.grad((mine * weights).sum(), (rows, level))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_guard_sees_what_it_should():
    some = torch.arange(4)
    for asks in (some.tolist, lambda: int(some[0]), lambda: some[some > 1], some.nonzero):
        with pytest.raises(AssertionError, match="waits"), NoQuestions():
            asks()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=9), st.integers(0, 99))
def test_windows_of_any_length(lengths, seed):
    if not sum(lengths):
        lengths = [*lengths, 1]
    rng = torch.Generator().manual_seed(seed)
    shape = (1, 2, sum(lengths), 8)
    q, k, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(3))
    of = Segments.of(lengths, torch.device("cpu"))
    where = windows.Windows.of(of.starts.tolist(), q.device)
    found = windows._by_length(q, k, v, where, 0.4)
    parts = []
    for a, b in zip(of.starts[:-1].tolist(), of.starts[1:].tolist(), strict=True):
        weights = (q[:, :, a:b] @ k[:, :, a:b].transpose(-1, -2) * 0.4).softmax(-1)
        parts.append(weights @ v[:, :, a:b])
    torch.testing.assert_close(found, torch.cat(parts, 2).transpose(1, 2), rtol=1e-9, atol=1e-9)
