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


DROPOUT = 0.0


def _spread(x: Tensor, heads: int) -> Tensor:
    """Repeat key heads [n, Hk, L, d] to the query heads [n, H, L, d] as a view where possible."""
    shared = x.shape[1]
    return x if shared == heads else x.repeat_interleave(heads // shared, dim=1)


def _for_queries(
    q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Keys and values with one head per query head, in another number format if asked for."""
    keys, values = _spread(k, q.shape[1]), _spread(v, q.shape[1])
    return (keys, values) if dtype is None else (keys.to(dtype), values.to(dtype))


def _gather(x: Tensor, shared: int) -> Tensor:
    """Sum gradients of repeated heads [n, H, L, d] back to [n, Hk, L, d]."""
    heads = x.shape[1]
    return x if heads == shared else x.unflatten(1, (shared, heads // shared)).sum(2)


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    keys, values = _for_queries(q, k, v)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, keys, values, DROPOUT, causal, scale=scale
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
    shared = k.shape[1]
    keys, values = _for_queries(q, k, v)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, keys, values, out, lse, DROPOUT, causal, scale=scale
    )
    return dq, _gather(dk, shared), _gather(dv, shared)


def _cuda_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    keys, values = _for_queries(q, k, v)
    found = torch.ops.aten._scaled_dot_product_flash_attention(
        q, keys, values, DROPOUT, causal, False, scale=scale
    )
    # The operator returns more than a caller needs; its backward wants just these back.
    out, lse, *rest = found
    return out, lse, tuple(rest[:6])


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
    shared = k.shape[1]
    keys, values = _for_queries(q, k, v)
    # Empty cumulated lengths and a random state that is not used: the batch is dense and nothing is dropped.
    cum_q, cum_k, max_q, max_k, seed, offset = extra
    # Contiguous, which the kernel takes for granted: these three may be cut out of a longer row.
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    inputs = (grad, q, keys, values, out, lse)
    lengths = (cum_q, cum_k, max_q, max_k)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *inputs, *lengths, DROPOUT, causal, seed, offset, scale=scale
    )
    return dq, _gather(dk, shared), _gather(dv, shared)


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    work = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = _for_queries(q, k, v, work)
    scores = _attention_scores(q.to(work), keys, causal, scale)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    return (weights @ values).to(q.dtype), lse, ()


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
    shared = k.shape[1]
    queries, incoming = q.to(work), grad.to(work)
    keys, values = _for_queries(q, k, v, work)
    scores = _attention_scores(queries, keys, causal, scale)
    # With the given lse and out, not with this part's own: the weights are those of the merged attention.
    weights = (scores - lse[..., None]).exp()
    delta = (incoming * out.to(work)).sum(-1, keepdim=True)
    # d softmax: the mean of the incoming gradient under the weights is `delta`, and it is taken away.
    inner = weights * (incoming @ values.transpose(-1, -2) - delta) * scale
    dq = inner @ keys
    dk = inner.transpose(-1, -2) @ queries
    dv = weights.transpose(-1, -2) @ incoming
    # Heads are summed before rounding to the narrow format.
    dk, dv = _gather(dk, shared), _gather(dv, shared)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _attention_scores(queries: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
    """[n, H, Lq, Lk]; minus infinity where a query may not look."""
    # Scaled after the product, as the flash kernels do.
    scores = queries @ keys.transpose(-1, -2) * scale
    if not causal:
        return scores
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    return scores.masked_fill(ahead.triu(1), float("-inf"))


CPU_FLASH: Kernel = (_cpu_forward, _cpu_backward)
CUDA_FLASH: Kernel = (_cuda_forward, _cuda_backward)
PLAIN: Kernel = (_plain_forward, _plain_backward)
