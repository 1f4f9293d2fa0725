"""Dense attention kernels with log-sum-exp, forward and backward: CPU flash, CUDA flash, and a plain matrix form.

A kernel is a pair of functions on dense batches: forward (q [n, H, Lq, d], k, v [n, Hk, Lk, d], causal, scale) ->
(out [n, H, Lq, d], lse [n, H, Lq], extra) and the matching backward with *given* out and lse, which lets parts of
one attention be merged. Query heads that share a key head read one copy of it. The flash operators are private to
torch, so they live in this file only. CPU flash covers fp32, fp64 and bf16; CUDA flash half precision (not run by us
yet); the plain form everything, in tiles of scores of at most `tile_bytes` of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from mmrl.model.logprobs import tile_bytes

Kernel = tuple[
    Callable[..., tuple[Tensor, Tensor, tuple[Any, ...]]],
    Callable[..., tuple[Tensor, Tensor, Tensor]],
]


DROPOUT = 0.0
LOWEST = -1e30
"""Stands for the log-sum-exp of a query that sees no key of a tile: every weight exp(score - LOWEST) is 0 then."""


def _side_by_side(x: Tensor, shared: int) -> Tensor:
    """[n, H, L, d] -> [H/Hk, Hk·n, L, d]: what reads the key heads first, then what reads them a second time, …"""
    grouped = x.unflatten(1, (shared, -1))
    return grouped.permute(2, 1, 0, 3, 4).flatten(1, 2)


def _back(x: Tensor, segments: int) -> Tensor:
    """Inverse of `_side_by_side` for n segments, for [H/Hk, Hk·n, L] as well."""
    order = (2, 1, 0, *range(3, x.ndim + 1))
    return x.unflatten(1, (-1, segments)).permute(order).flatten(1, 2)


def _keys_for(k: Tensor, readers: int) -> Tensor:
    """[n, Hk, L, d] -> [H/Hk, Hk·n, L, d], the same memory for every reader: nothing is repeated."""
    once = k.transpose(0, 1).flatten(0, 1)
    return once.expand(readers, *once.shape)


def _summed(grads: Tensor, like: Tensor) -> Tensor:
    """Gradients of every reader [H/Hk, Hk·n, L, d] -> [n, Hk, L, d], added up before they are rounded."""
    work = torch.promote_types(like.dtype, torch.float32)
    total = grads[0] if len(grads) == 1 else grads.sum(0, dtype=work).to(like.dtype)
    return total.unflatten(0, (-1, like.shape[0])).transpose(0, 1)


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    segments, shared = k.shape[:2]
    queries = _side_by_side(q, shared)
    keys, values = (_keys_for(x, len(queries)) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        queries, keys, values, DROPOUT, causal, scale=scale
    )
    return _back(out, segments), _back(lse, segments), ()


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
    segments, shared = k.shape[:2]
    incoming, queries, outs = (_side_by_side(x, shared) for x in (grad, q, out))
    levels = _side_by_side(lse[..., None], shared)[..., 0]
    keys, values = (_keys_for(x, len(queries)) for x in (k, v))
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        incoming, queries, keys, values, outs, levels, DROPOUT, causal, scale=scale
    )
    return _back(dq, segments), _summed(dk, k), _summed(dv, v)


def _cuda_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    # The operator itself lets several query heads read one key head.
    found = torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, DROPOUT, causal, False, scale=scale
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
    # Empty cumulated lengths and a random state that is not used: the batch is dense and nothing is dropped.
    cum_q, cum_k, max_q, max_k, seed, offset = extra
    # Contiguous, which the kernel takes for granted: these three may be cut out of a longer row.
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    inputs = (grad, q, k, v, out, lse)
    lengths = (cum_q, cum_k, max_q, max_k)
    return torch.ops.aten._scaled_dot_product_flash_attention_backward(  # type: ignore[no-any-return]
        *inputs, *lengths, DROPOUT, causal, seed, offset, scale=scale
    )


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    queries, keys, values = _widened(q, k, v)
    out = torch.zeros_like(queries)
    lse = queries.new_full(queries.shape[:-1], float("-inf"))
    for rows, columns in _tiles(queries, keys, causal):
        scores = _tile_scores(queries, keys, (rows, columns), causal, scale)
        level = scores.logsumexp(-1)
        weights = scores.sub_(level.clamp_min(LOWEST)[..., None]).exp_()
        seen = _times(weights, values[:, :, columns])
        # What earlier tiles saw, and what this one adds.
        before = lse[..., rows]
        total = torch.logaddexp(before, level)
        kept, new = ((x - total).exp()[..., None] for x in (before, level))
        out[..., rows, :] = out[..., rows, :] * kept + seen * new
        lse[..., rows] = total
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2), ()


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
    queries, keys, values = _widened(q, k, v)
    shape = (k.shape[1], -1)
    incoming, outs = (x.to(queries.dtype).unflatten(1, shape) for x in (grad, out))
    # With the given lse and out, not with this part's own: the weights are those of the merged attention.
    level = lse.to(queries.dtype).unflatten(1, shape)
    delta = (incoming * outs).sum(-1, keepdim=True)
    dq, dk, dv = (torch.zeros_like(x) for x in (queries, keys, values))
    for rows, columns in _tiles(queries, keys, causal):
        scores = _tile_scores(queries, keys, (rows, columns), causal, scale)
        weights = scores.sub_(level[..., rows, None]).exp_()
        mine = incoming[..., rows, :]
        dv[:, :, columns] += _per_key(weights, mine)
        slope = _times(mine, values[:, :, columns].transpose(-1, -2))
        # d softmax: the mean of the incoming gradient under the weights is `delta`, and it is taken away.
        inner = slope.sub_(delta[..., rows, :]).mul_(weights).mul_(scale)
        dq[..., rows, :] += _times(inner, keys[:, :, columns])
        dk[:, :, columns] += _per_key(inner, queries[..., rows, :])
    return dq.flatten(1, 2).to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _widened(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In at least fp32, queries [n, Hk, H/Hk, Lq, d] beside the key head that they read [n, Hk, Lk, d]."""
    work = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(work).unflatten(1, (k.shape[1], -1))
    return queries, k.to(work), v.to(work)


def _times(x: Tensor, of_keys: Tensor) -> Tensor:
    """[n, Hk, g, L, a] times [n, Hk, a, b] -> [n, Hk, g, L, b]: the readers of a key head become further rows."""
    flat = x.flatten(2, 3) @ of_keys
    return flat.unflatten(2, x.shape[2:4])


def _per_key(weights: Tensor, x: Tensor) -> Tensor:
    """[n, Hk, g, Lq, Lk] and [n, Hk, g, Lq, d] -> [n, Hk, Lk, d], summed over queries and readers."""
    return weights.flatten(2, 3).transpose(-1, -2) @ x.flatten(2, 3)


def _tile_scores(
    queries: Tensor, keys: Tensor, tile: tuple[slice, slice], causal: bool, scale: float
) -> Tensor:
    """[n, Hk, g, rows, columns] of one tile; minus infinity where a query may not look."""
    rows, columns = tile
    # Scaled after the product, as the flash kernels do.
    of_keys = keys[:, :, columns].transpose(-1, -2)
    scores = _times(queries[..., rows, :], of_keys).mul_(scale)
    # A tile whose last key is not ahead of its first query hides nothing.
    if not causal or columns.stop - 1 <= rows.start:
        return scores
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    return scores.masked_fill_(ahead.triu(rows.start - columns.start + 1), float("-inf"))


def _tiles(queries: Tensor, keys: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """(queries, keys) of every tile of scores that is not masked as a whole; none is larger than `tile_bytes`."""
    lines = queries.shape[:3].numel()
    asked, seen = queries.shape[3], keys.shape[2]
    room = tile_bytes(queries.device) // (queries.element_size() * max(lines, 1))
    # Square tiles read keys and queries equally often; a side that is short leaves its room to the other.
    width = max(1, min(seen, max(isqrt(room), room // max(asked, 1))))
    height = max(1, min(asked, room // width))
    for start in range(0, asked, height):
        rows = slice(start, min(start + height, asked))
        visible = min(seen, rows.stop) if causal else seen
        for first in range(0, visible, width):
            yield rows, slice(first, min(first + width, visible))


CPU_FLASH: Kernel = (_cpu_forward, _cpu_backward)
CUDA_FLASH: Kernel = (_cuda_forward, _cuda_backward)
PLAIN: Kernel = (_plain_forward, _plain_backward)
