"""Dense attention kernels with log-sum-exp, forward and backward: CPU flash, CUDA flash, and a plain matrix form.

A kernel is a pair of functions on dense batches: forward (q [n, H, Lq, d], k, v [n, Hk, Lk, d], causal, scale) ->
(out [n, H, Lq, d], lse [n, H, Lq], extra) and the matching backward with *given* out and lse, which lets parts of
one attention be merged. The flash operators are private to torch, so they live in this file only. CPU flash covers
fp32, fp64 and bf16; CUDA flash half precision (not run by us yet); the plain form everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Kernel = tuple[
    Callable[..., tuple[Tensor, Tensor, tuple[Any, ...]]],
    Callable[..., tuple[Tensor, Tensor, Tensor]],
]


def _spread(x: Tensor, heads: int) -> Tensor:
    """Repeat key heads [n, Hk, L, d] to the query heads [n, H, L, d] as a view where possible."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _gather(x: Tensor, shared: int) -> Tensor:
    """Sum gradients of repeated heads [n, H, L, d] back to [n, Hk, L, d]."""
    n, heads, length, width = x.shape
    return x if heads == shared else x.view(n, shared, heads // shared, length, width).sum(2)


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    heads = q.shape[1]
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, _spread(k, heads), _spread(v, heads), 0.0, causal, scale=scale
    )
    return out, lse, ()


def _cpu_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    extra: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    heads, shared = q.shape[1], k.shape[1]
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, _spread(k, heads), _spread(v, heads), out, lse, 0.0, causal, scale=scale
    )
    return dq, _gather(dk, shared), _gather(dv, shared)


def _cuda_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    heads = q.shape[1]
    found = torch.ops.aten._scaled_dot_product_flash_attention(
        q, _spread(k, heads), _spread(v, heads), 0.0, causal, False, scale=scale
    )
    return found[0], found[1], tuple(found[2:8])


def _cuda_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    extra: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    heads, shared = q.shape[1], k.shape[1]
    cum_q, cum_k, max_q, max_k, philox_seed, philox_offset = extra
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        grad.contiguous(), q, _spread(k, heads), _spread(v, heads), out.contiguous(), lse.contiguous(),
        cum_q, cum_k, max_q, max_k, 0.0, causal, philox_seed, philox_offset, scale=scale,
    )  # fmt: skip
    return dq, _gather(dk, shared), _gather(dv, shared)


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    heads = q.shape[1]
    scores = q.to(work) @ _spread(k, heads).to(work).transpose(-1, -2) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    lse = scores.logsumexp(-1)
    return ((scores - lse[..., None]).exp() @ _spread(v, heads).to(work)).to(q.dtype), lse, ()


def _plain_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    extra: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Tensor]:
    work = lse.dtype
    heads, shared = q.shape[1], k.shape[1]
    qw, kw, vw, gw = (
        q.to(work),
        _spread(k, heads).to(work),
        _spread(v, heads).to(work),
        grad.to(work),
    )
    scores = qw @ kw.transpose(-1, -2) * scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = (scores - lse[..., None]).exp()
    delta = (gw * out.to(work)).sum(-1, keepdim=True)
    inner = weights * (gw @ vw.transpose(-1, -2) - delta) * scale
    dk, dv = inner.transpose(-1, -2) @ qw, weights.transpose(-1, -2) @ gw
    return (
        (inner @ kw).to(q.dtype),
        _gather(dk, shared).to(k.dtype),
        _gather(dv, shared).to(v.dtype),
    )


CPU_FLASH: Kernel = (_cpu_forward, _cpu_backward)
CUDA_FLASH: Kernel = (_cuda_forward, _cuda_backward)
PLAIN: Kernel = (_plain_forward, _plain_backward)
