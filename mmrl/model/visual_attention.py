"""How much each visual token is looked at inside the policy's own vision tower, without another model.

For the chosen blocks, with attention A over the patches of one frame (mean over heads),

    received_j = sum over patches i != j of A[i, j]                  in [0, number of patches of the frame)

averaged over the blocks and over the patches that are merged into one visual token. It is PAPO's rule for DINOv2
(`mmrl.perception.saliency`, arXiv 2507.06448) on another encoder. Chosen are the blocks of the second half of the
tower that attend to the whole frame: in Qwen2.5-VL the others see windows only (left are 23 and 31 of 32 blocks).

The tower runs once more, without gradient; weights are summed up in slices of queries, so that no [N, N] is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mmrl.model.tower_inputs import tower_inputs

SLICE = 512
"""Queries whose attention is in memory at once."""


@torch.no_grad()
def token_saliency(visual: Any, values: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Attention received by each visual token of one medium: float32 [F', h, w].

    `values` [N, patch] are its patches in the tower's order, `grid` its temporal patches, rows and columns of patches.
    """
    seen: dict[int, tuple[Tensor, tuple[Tensor, Tensor]]] = {}
    # Hooks on what goes in: the fast kernels of the library return no weights.
    chosen = whole_frame_blocks(visual)
    handles = []
    for i in chosen:
        hook = partial(_keep_inputs, seen, i)
        handles.append(visual.blocks[i].attn.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        visual(values, **tower_inputs(visual, [grid], values.device), return_dict=True)
    finally:
        for handle in handles:
            handle.remove()
    frames, rows, columns = grid
    bounds = [number * rows * columns for number in range(frames + 1)]
    per_block = [received(visual.blocks[i].attn, bounds, *seen[i]) for i in chosen]
    scores = torch.stack(per_block).mean(0)
    merge = int(visual.config.spatial_merge_size)
    # The patches of one visual token are neighbours in the tower's order, see `patches.py`.
    tokens = scores.view(-1, merge * merge).mean(1)
    ordered = tokens[_natural_order(visual, torch.tensor([grid]))]
    return ordered.view(frames, rows // merge, columns // merge)


def whole_frame_blocks(visual: Any) -> list[int]:
    """Blocks of the second half (or, if there is none among them, the last) that attend to the whole frame."""
    depth = len(visual.blocks)
    # Qwen3-VL has no windows and names no such blocks.
    whole = list(getattr(visual, "fullatt_block_indexes", range(depth)))
    return [i for i in whole if i >= depth // 2] or whole[-1:]


def received(
    attention: Any, bounds: Sequence[int], states: Tensor, rotary: tuple[Tensor, Tensor]
) -> Tensor:
    """Attention that each patch receives from the others of its frame, mean over heads: float32 [N].

    states [N, D] go into the attention; `bounds` are the frames' limits; `rotary` cosines and sines [N, d].
    """
    heads = attention.num_heads
    packed = attention.qkv(states).view(len(states), 3, heads, -1)
    queries, keys, _ = packed.unbind(1)  # [N, H, d]
    queries, keys = _turned(queries, rotary), _turned(keys, rotary)
    out = states.new_zeros(len(states), dtype=torch.float32)
    for start, end in pairwise(bounds):
        there = keys[start:end].permute(1, 2, 0)  # [H, d, n]
        for first in range(start, end, SLICE):
            last = min(first + SLICE, end)
            scores = queries[first:last].transpose(0, 1) @ there * attention.scaling
            weights = scores.softmax(-1).mean(0)  # [slice, n]
            rows = torch.arange(last - first, device=out.device)
            # After the softmax: what a patch pays to itself is taken away, not given to others.
            weights[rows, rows + first - start] = 0.0
            out[start:end] += weights.sum(0)
    return out


def _turned(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions applied to [N, H, d], in float32."""
    cosine, sine = (part.float()[:, None] for part in rotary)
    wide = x.float()
    return wide * cosine + _half_turn(wide) * sine


def _keep_inputs(
    seen: dict[int, Any],
    index: int,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Remember what an attention layer is given."""
    states = args[0] if args else kwargs["hidden_states"]
    seen[index] = (states, kwargs["position_embeddings"])


def _half_turn(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _natural_order(visual: Any, grid: Tensor) -> Tensor | slice:
    """Where each visual token stands in the tower; Qwen2.5-VL sorts them by windows."""
    if not hasattr(visual, "fullatt_block_indexes"):
        return slice(None)
    from transformers.vision_utils import get_vision_window_index

    index, _ = get_vision_window_index(
        grid,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    return torch.argsort(index).to(next(visual.parameters()).device)
