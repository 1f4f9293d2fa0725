"""Attention kernels over segments of different lengths that lie one after another, without padding (CUDA).

A kernel is a pair of functions: forward (q [T, H, d], k and v [Tk, Hk, d], segments of the queries, segments of the
keys, causal, scale) -> (out [T, H, d], lse [H, T], extra) and the backward with *given* out and lse, as in
`kernels.py`. Query heads that share a key head need no copies of it. Three forms: the flash kernel that torch brings,
the one of the `flash-attn` package, and a plain loop over segments that runs everywhere and is what both are checked
against. The two flash forms have not been run by us yet; `attention.py` asks for proof before it uses one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmrl.model.kernels import PLAIN


@dataclass(frozen=True)
class Segments:
    """Segments without gaps: segment i is [starts[i], starts[i + 1])."""

    starts: Tensor
    """int32 [n + 1] on the device."""
    longest: int
    """Tokens of the longest one."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Segments:
        """Segments of these lengths."""
        starts = torch.tensor([0, *lengths]).cumsum(0)
        return cls(starts.to(device, torch.int32), max(lengths, default=0))


RaggedKernel = tuple[
    Callable[..., tuple[Tensor, Tensor, tuple[Any, ...]]],
    Callable[..., tuple[Tensor, Tensor, Tensor]],
]


def _torch_forward(
    q: Tensor, k: Tensor, v: Tensor, of_q: Segments, of_k: Segments, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        of_q.starts,
        of_k.starts,
        of_q.longest,
        of_k.longest,
        0.0,
        causal,
        False,
        scale=scale,
    )
    return out, lse, (state, unused)


def _torch_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    of_q: Segments,
    of_k: Segments,
    causal: bool,
    scale: float,
    extra: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = (grad.contiguous(), q, k, v, out.contiguous(), lse.contiguous())
    lengths = (of_q.starts, of_k.starts, of_q.longest, of_k.longest)
    return torch.ops.aten._flash_attention_backward(  # type: ignore[no-any-return]
        *inputs, *lengths, 0.0, causal, *extra, scale=scale
    )


def _package_forward(
    q: Tensor, k: Tensor, v: Tensor, of_q: Segments, of_k: Segments, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    from flash_attn.flash_attn_interface import (  # pyright: ignore[reportMissingImports]
        _flash_attn_varlen_forward,
    )

    out, lse, _, state = _flash_attn_varlen_forward(
        q, k, v, of_q.starts, of_k.starts, of_q.longest, of_k.longest, 0.0, scale, causal=causal
    )
    return out, lse, (state,)


def _package_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    of_q: Segments,
    of_k: Segments,
    causal: bool,
    scale: float,
    extra: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.flash_attn_interface import (  # pyright: ignore[reportMissingImports]
        _flash_attn_varlen_backward,
    )

    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    inputs = (grad.contiguous(), q, k, v, out.contiguous(), lse.contiguous())
    lengths = (of_q.starts, of_k.starts, of_q.longest, of_k.longest)
    _flash_attn_varlen_backward(
        *inputs,
        *grads,
        *lengths,
        0.0,
        scale,
        causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        rng_state=extra[0],
    )
    return grads


def _loop_forward(
    q: Tensor, k: Tensor, v: Tensor, of_q: Segments, of_k: Segments, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[1], len(q), dtype=wide)
    for queries, keys in _cuts(of_q, of_k):
        inputs = _dense(q[queries]), _dense(k[keys]), _dense(v[keys])
        part, level, _ = PLAIN[0](*inputs, causal, scale)
        out[queries], lse[:, queries] = part[0].transpose(0, 1), level[0]
    return out, lse, ()


def _loop_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    of_q: Segments,
    of_k: Segments,
    causal: bool,
    scale: float,
    extra: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for queries, keys in _cuts(of_q, of_k):
        inputs = (grad[queries], q[queries], k[keys], v[keys], out[queries])
        level = lse[None, :, queries]
        parts = PLAIN[1](*map(_dense, inputs), level, causal, scale, extra)
        for total, part, where in zip((dq, dk, dv), parts, (queries, keys, keys), strict=True):
            total[where] = part[0].transpose(0, 1)
    return dq, dk, dv


def _cuts(of_q: Segments, of_k: Segments) -> list[tuple[slice, slice]]:
    """Rows of each segment's queries and keys."""
    queries, keys = pairwise(of_q.starts.tolist()), pairwise(of_k.starts.tolist())
    pairs = zip(queries, keys, strict=True)
    return [(slice(*a), slice(*b)) for a, b in pairs if a[0] < a[1] and b[0] < b[1]]


def _dense(x: Tensor) -> Tensor:
    """[L, H, d] -> [1, H, L, d]."""
    return x.transpose(0, 1)[None]


TORCH_FLASH: RaggedKernel = (_torch_forward, _torch_backward)
PACKAGE_FLASH: RaggedKernel = (_package_forward, _package_backward)
LOOP: RaggedKernel = (_loop_forward, _loop_backward)
