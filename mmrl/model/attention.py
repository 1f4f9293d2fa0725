"""Shared-prefix attention: a group's prompt is computed once, its answers all look at it.

One packed row `[prompt 1 | answers of 1 | prompt 2 | answers of 2 | …]` goes through the stock language model. Its
attention calls the function registered here under the name `mmrl_shared_prefix`, which reads a `Layout` passed as the
keyword `layout` and computes three parts:

1. prompts, causal;
2. answers among themselves, causal (a padded batch of all answers);
3. answers to their prompt, not causal; query heads that share a key head are folded into the query length, so keys and
   values are never repeated, neither over the group nor over heads.

Parts 2 and 3 give (out, lse) each and are merged: L = logaddexp(l2, l3), out = o2·e^(l2−L) + o3·e^(l3−L). In the
backward each part is the ordinary flash backward called with the *merged* out and L; the sums are the exact
gradients. Without a layout the function is the library's sdpa, so padded batches and `generate` keep working.

Sampling uses the same function with a `Decoding` in place of the layout (`decoding.py`).

Kernels: CPU flash (fp32, fp64, bf16; what the tests run), CUDA flash for half precision, and a plain matrix form for
everything else. `verified_kernel` compares the chosen kernel with the plain form once per device and dtype and falls
back with a warning. The CUDA kernel has not been run by us yet.

Source: our design; the merge is the usual one of flash-decoding, the gradient argument is in the tests.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmrl.model.decoding import Decoding, decode
from mmrl.model.kernels import CPU_FLASH, CUDA_FLASH, PLAIN, Kernel
from mmrl.model.row_layout import Bucket, Layout, example_layout

NAME = "mmrl_shared_prefix"
FAR = 1e30
"""Log-sum-exp of padded queries in the backward: exp(score − FAR) is exactly 0."""


def register() -> str:
    """Make the function known to transformers and return its name. Safe to call again."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, shared_prefix_attention)
    # For an unknown name the library builds no mask at all and padded batches would see their padding.
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return NAME


def shared_prefix_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    layout: Layout | Decoding | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention with the signature of `transformers`: q [1, H, S, d], k and v [1, Hk, S, d] -> [1, S, H, d]."""
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(layout, Decoding):
        return decode(query, key, value, layout, int(module.layer_idx), scale), None  # type: ignore[arg-type]
    if layout.kept is not None:  # a prefill: detached, for sampling learns nothing
        layout.kept.append((key.detach(), value.detach()))
    return packed(query, key, value, layout, scale), None


def packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of one packed row: q [1, H, S, d], k and v [1, Hk, S, d] -> [1, S, H, d]. Differentiable."""
    assert query.shape[2] == layout.length, (
        f"row of {query.shape[2]} tokens, layout of {layout.length}"
    )
    kernel = verified_kernel(query.device.type, query.dtype)
    return _Packed.apply(query, key, value, layout, scale, kernel)  # type: ignore[no-any-return]


class _Packed(torch.autograd.Function):
    """Causal parts, crossing parts and their merge, with an exact backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, kernel: Kernel
    ) -> Tensor:  # type: ignore[override]
        run = kernel[0]
        out = q.new_zeros(q.shape)
        # Log-sum-exps decide how parts are weighed, so they are never held in half precision.
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        lse = q.new_zeros((*q.shape[:3], 1), dtype=wide)
        extras: list[tuple[Any, ...]] = []
        for bucket in layout.causal:
            inputs = (bucket.take(q), bucket.take(k), bucket.take(v))
            part, level, extra = run(*inputs, True, scale)
            bucket.put(out, part)
            bucket.put(lse, level[..., None])
            extras.append(extra)
        shared, heads = k.shape[1], q.shape[1]
        for answers, prompts in layout.crossing:
            folded = _fold(answers.take(q), shared)
            part, level, extra = run(folded, prompts.take(k), prompts.take(v), False, scale)
            # What the answers saw of themselves, and what they see of their prompt.
            first, lse_first = answers.take(out).to(wide), answers.take(lse)
            second = _unfold(part, heads).to(wide)
            lse_second = _unfold(level[..., None].to(wide), heads)
            total = torch.logaddexp(lse_first, lse_second)
            merged = first * (lse_first - total).exp() + second * (lse_second - total).exp()
            answers.put(out, merged.to(out.dtype))
            answers.put(lse, total)
            extras.append(extra)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.rest = (layout, scale, kernel, extras)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        layout, scale, kernel, extras = ctx.rest
        run = kernel[1]
        grad = grad.transpose(1, 2).contiguous()
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        rest = iter(extras)
        # `out` and `lse` are the merged ones in both loops: with them each part's backward is exact (see the head).
        for bucket in layout.causal:
            still, away = _quiet(bucket, grad, lse)
            inputs = (bucket.take(q), bucket.take(k), bucket.take(v), bucket.take(out))
            parts = run(still, *inputs, away[..., 0], True, scale, next(rest))
            # Written, not added: every token lies in exactly one causal segment, and these come first.
            for total, part in zip((dq, dk, dv), parts, strict=True):
                bucket.put(total, part)
        shared, heads = k.shape[1], q.shape[1]
        for answers, prompts in layout.crossing:
            still, away = _quiet(answers, grad, lse)
            inputs = (
                _fold(answers.take(q), shared),
                prompts.take(k),
                prompts.take(v),
                _fold(answers.take(out), shared),
            )
            level = _fold(away, shared)[..., 0]
            gq, gk, gv = run(_fold(still, shared), *inputs, level, False, scale, next(rest))
            answers.add(dq, _unfold(gq, heads))
            prompts.add(dk, gk)
            prompts.add(dv, gv)
        return dq, dk, dv, None, None, None


def _quiet(bucket: Bucket, grad: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [n, H, L, d] and lse [n, H, L, 1] of a bucket, silent on padding."""
    if bucket.cut is not None:
        return bucket.take(grad), bucket.take(lse)
    # Padded queries repeat token 0: neither its gradient nor its weights may count a second time.
    valid = bucket.valid[:, None, :, None]
    return bucket.take(grad) * valid, bucket.take(lse).masked_fill(~valid, FAR)


def _fold(x: Tensor, shared: int) -> Tensor:
    """[b, H, n, d] -> [b, Hk, (H/Hk)·n, d]: query heads of one key head become further queries."""
    batch, heads, n, width = x.shape
    return x.reshape(batch, shared, heads // shared * n, width)


def _unfold(x: Tensor, heads: int) -> Tensor:
    """Inverse of `_fold`."""
    batch, shared, n, width = x.shape
    return x.reshape(batch, heads, n * shared // heads, width)


@lru_cache
def verified_kernel(device: str, dtype: torch.dtype) -> Kernel:
    """The fastest kernel for this device and dtype that agrees with the plain form on a small example."""
    if device == "cpu":
        return CPU_FLASH
    if device != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return PLAIN
    try:
        problem = _kernel_disagreement(CUDA_FLASH, device, dtype)
    # All that a private operator may raise when a version of torch has changed it.
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        problem = str(error).splitlines()[0]
    if problem is None:
        return CUDA_FLASH
    warnings.warn(
        f"Flash attention on {device} in {dtype} is not used ({problem}); the slower plain form is.",
        stacklevel=2,
    )
    return PLAIN


def _kernel_disagreement(kernel: Kernel, device: str, dtype: torch.dtype) -> str | None:
    """Compare forward and backward with the plain form on two ragged groups; None if they agree."""
    layout = example_layout((19, 7), ((5, 9), (3,)), torch.device(device))
    rng = torch.Generator().manual_seed(0)
    queries, keys = (1, 4, layout.length, 64), (1, 2, layout.length, 64)
    # Drawn on the CPU, so that every device is asked the same.
    inputs = [torch.randn(shape, generator=rng) for shape in (queries, keys, keys)]
    grad = torch.randn((1, layout.length, 4, 64), generator=rng)
    found: list[list[Tensor]] = []
    for candidate in (kernel, PLAIN):
        q, k, v = (x.to(device, dtype).requires_grad_() for x in inputs)
        out = _Packed.apply(q, k, v, layout, 0.125, candidate)
        out.backward(grad.to(device, dtype))
        results = (out, q.grad, k.grad, v.grad)
        found.append([x.detach().float() for x in results if x is not None])
    for name, ours, plain in zip(("out", "dq", "dk", "dv"), *found, strict=True):
        gap = (ours - plain).abs().max().item()
        # "Not below" instead of "above": a NaN is a disagreement too.
        if not gap <= 0.03 * plain.abs().max().item():
            return f"{name} differs from the plain form by {gap:.3g}"
    return None
