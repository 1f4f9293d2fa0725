"""Attention of the vision tower: windows and frames of different sizes, each alone, in few kernel calls.

Without flash attention the library calls a kernel once per window: 2,468 times per picture and forward in Qwen2.5-VL.
A name with "flash" in it makes it hand over all patches and where the windows begin. Here they then go through one call
that takes windows of any length (CUDA, half precision), or one call per distinct length, which is exact everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from mmrl.model.ragged import RaggedKernel, Segments

NAME = "mmrl_windows_flash"


def register_windows() -> str:
    """Make the function known to transformers and return its name. Safe to call again."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, window_attention)
    return NAME


@dataclass(frozen=True)
class Windows:
    """Where the windows of each length lie among the patches."""

    places: tuple[Tensor, ...]
    """Per length, long [windows, length]."""
    back: Tensor
    """long [N]: where each patch stands once the windows are sorted by length."""

    @classmethod
    def of(cls, edges: Sequence[int], device: torch.device) -> Windows:
        """Window i holds the patches [edges[i], edges[i + 1])."""
        of_length: dict[int, list[int]] = {}
        for start, end in itertools.pairwise(edges):
            if end > start:  # padding of a picture's edge leaves empty windows
                of_length.setdefault(end - start, []).append(start)
        places = [
            torch.tensor(begins)[:, None] + torch.arange(length)
            for length, begins in of_length.items()
        ]
        back = torch.cat([where.flatten() for where in places]).argsort()
        return cls(tuple(where.to(device) for where in places), back.to(device))


def window_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    windows: Mapping[int, Windows] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature of `transformers`: q, k, v [1, H, N, d] -> [1, N, H, d].

    Window i holds the patches [cu_seq_lens_q[i], cu_seq_lens_q[i + 1]); long [n + 1]. Nothing is masked within one.
    `windows`: the same by its number n + 1, made once for all blocks (`tower_inputs.py`), so that no block waits for
    the device to tell where its windows begin.
    """
    from mmrl.model.attention import verified_ragged_kernel

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    heads = query.shape[1]
    kernel = verified_ragged_kernel(
        query.device.type, query.dtype, query.shape[-1], (heads, heads)
    )
    if kernel is None:
        known = (windows or {}).get(len(cu_seq_lens_q))
        where = known or Windows.of(cu_seq_lens_q.tolist(), query.device)
        return _by_length(query, key, value, where, scale), None
    segments = Segments(cu_seq_lens_q.to(torch.int32), max_length_q)
    return _Windows.apply(query, key, value, segments, scale, kernel), None


def _by_length(
    query: Tensor, key: Tensor, value: Tensor, windows: Windows, scale: float
) -> Tensor:
    """One call per distinct length of a window."""
    if len(windows.places) == 1 and len(windows.places[0]) == 1:  # one window is all
        return _attend(query, key, value, scale).transpose(1, 2)
    outputs: list[Tensor] = []
    for where in windows.places:
        # [1, H, N, d] -> [n, H, length, d]
        q, k, v = (x[0][:, where].transpose(0, 1) for x in (query, key, value))
        out = _attend(q, k, v, scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[windows.back][None]


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(query, key, value, scale=scale)


class _Windows(torch.autograd.Function):
    """All windows in one call of a kernel for segments of any length."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        windows: Segments,
        scale: float,
        kernel: RaggedKernel,
    ) -> Tensor:  # type: ignore[override]
        rows = [x[0].transpose(0, 1) for x in (q, k, v)]
        out, lse, extra = kernel[0](*rows, windows, windows, False, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = (windows, scale, kernel, extra)
        return out[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        windows, scale, kernel, extra = ctx.rest
        rows = [x[0].transpose(0, 1) for x in (q, k, v)]
        grads = kernel[1](grad[0], *rows, out, lse, windows, windows, False, scale, extra)
        return (*(x.transpose(0, 1)[None] for x in grads), None, None, None)
