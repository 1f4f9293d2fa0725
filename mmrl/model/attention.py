"""Shared-prefix attention: a group's prompt is computed once, its answers all look at it.

A packed row is a forest of segments (`row_layout.py`); a group is the tree of depth one, `[prompt | its answers]`. It
goes through the stock language model, whose attention calls the function registered here under the name
`mmrl_shared_prefix`. That reads a `Layout`, passed as the keyword `layout`, and computes:

1. all segments, each causal in itself (padded batches of those of like length);
2. for each segment, all that hangs on it looking at it, not causal: a slice of the row looking at a slice of the row.
   Query heads that share a key head are folded into the query length, so keys and values are never repeated, neither
   over descendants nor over heads;
3. the same for slices that look at a prompt outside of the row (`open_prompts.py`).

Each part gives (out, lse) and is merged with what its tokens have seen so far: L = logaddexp(l1, l2),
out = o1·e^(l1−L) + o2·e^(l2−L). In the backward each part is the ordinary flash backward called with the *merged* out
and L; the sums are the exact gradients. Without a layout the function is the library's sdpa, so padded batches and
`generate` keep working.

Sampling uses the same function with a `Decoding` in place of the layout (`decoding.py`), and where answers fork with a
`TreeDecoding` (`tree_decoding.py`).

Kernels: on the CPU flash on padded batches (fp32, fp64, bf16; what the tests run); on CUDA in half precision flash on
the row as it lies, without padding or copies of keys (`ragged.py`: of the flash-attn package if installed, else of
torch), else flash on padded batches; a plain matrix form for everything else. Each is compared with the plain form at
the model's head size before its first use, and not used, with a warning, if it differs. No CUDA kernel has been run by
us yet.

Source: our design; the merge is the usual one of flash-decoding, the gradient argument is in the tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmrl.model.decoding import Decoding, decode
from mmrl.model.kernels import CPU_FLASH, CUDA_FLASH, PLAIN, Kernel
from mmrl.model.ragged import PACKAGE_FLASH, TORCH_FLASH, RaggedKernel
from mmrl.model.row_layout import ROOT, Bucket, Layout
from mmrl.model.tree_decoding import TreeDecoding

NAME = "mmrl_shared_prefix"
Looking = TypeVar("Looking")
Seen = TypeVar("Seen")
ATTENTION_NUMBER = "mmrl_number"
"""Name under which a layer of a hybrid model says which one of its kind it is."""
FAR = 1e30
"""Log-sum-exp of padded queries in the backward: exp(score − FAR) is exactly 0."""


def refuse_windows(
    config: Any, what: str, known: Collection[str] = ("full_attention",)
) -> None:
    """Raise ValueError if a layer of this language model is of a kind that is not `known`.

    `what` is what would compute something else: masks and kernels here know full attention, and with
    `linear_attention.readable_kinds` layers that carry a state; none looks at a window only.
    """
    kinds: list[str] = list(getattr(config, "layer_types", None) or [])
    layers = [index for index, kind in enumerate(kinds) if kind not in known]
    if not layers:
        return
    if "sliding" not in kinds[layers[0]]:
        raise ValueError(
            f"Layers {layers[0]} to {layers[-1]} of the language model are of the kind {kinds[layers[0]]!r}, which "
            f"{what} does not know: answers could see their neighbours. Allowed are {', '.join(known)}; use a model "
            "that has no others."
        )
    raise ValueError(
        f"Layers {layers[0]} to {layers[-1]} of the language model have {kinds[layers[0]]} (window "
        f"{getattr(config, 'sliding_window', None)}), which {what} does not support. If prompt and answer together "
        "always fit into the window, set use_sliding_window to false and remove layer_types in the model's "
        "config.json: then the result is the same; else use a model with full attention."
    )


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
    layout: Layout | Decoding | TreeDecoding | None = None,
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
        # Keys are held for layers with attention only, in a hybrid model not for every layer.
        number = getattr(module, ATTENTION_NUMBER, module.layer_idx)
        return decode(query, key, value, layout, int(number), scale), None  # type: ignore[arg-type]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(layout, TreeDecoding):
        return layout.attend(query, key, value, layer, scale), None
    if layout.kept is not None:  # a prefill: detached, for sampling learns nothing
        layout.kept.append((key.detach(), value.detach()))
    if layout.noted is not None:
        # The first time counts: a layer whose activations are recomputed comes by again, in another graph.
        layout.noted.setdefault(layer, (key, value))
    return packed(query, key, value, layout, scale, layer), None


def packed(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, layer: int = 0
) -> Tensor:
    """Attention of one packed row: q [1, H, S, d], k and v [1, Hk, S, d] -> [1, S, H, d]. Differentiable.

    `layer` chooses among the keys and values of the layout's pasts; gradients reach them too.
    """
    assert query.shape[2] == layout.length, (
        f"row of {query.shape[2]} tokens, layout of {layout.length}"
    )
    device, dtype, width = query.device.type, query.dtype, query.shape[-1]
    heads = (query.shape[1], key.shape[1])
    pasts = [tensor for past in layout.pasts for tensor in past.layers[layer]]
    ragged = verified_ragged_kernel(device, dtype, width, heads)
    if ragged is not None:
        return _PackedRagged.apply(query, key, value, layout, scale, ragged, *pasts)  # type: ignore[no-any-return]
    kernel = verified_kernel(device, dtype, width, heads)
    return _Packed.apply(query, key, value, layout, scale, kernel, *pasts)  # type: ignore[no-any-return]


class _Packed(torch.autograd.Function):
    """Causal parts, crossing parts and their merge, with an exact backward."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        scale: float,
        kernel: Kernel,
        *pasts: Tensor,
    ) -> Tensor:
        run = kernel[0]
        out = q.new_zeros(q.shape)
        # Log-sum-exps decide how parts are weighed, so they are never held in half precision.
        wide = torch.promote_types(q.dtype, torch.float32)
        lse = q.new_zeros((*q.shape[:3], 1), dtype=wide)
        extras: list[tuple[Any, ...]] = []
        for bucket in layout.causal:
            inputs = (bucket.take(q), bucket.take(k), bucket.take(v))
            part, level, extra = run(*inputs, True, scale)
            bucket.put(out, part)
            bucket.put(lse, level[..., None])
            extras.append(extra)
        shared, heads = k.shape[1], q.shape[1]
        for looking, _, keys, values in _seen(layout.crossing, _taken(k, v), pasts):
            folded = _fold(looking.take(q), shared)
            part, level, extra = run(folded, keys, values, False, scale)
            # What they saw so far, and what they see of this ancestor.
            first, lse_first = looking.take(out).to(wide), looking.take(lse)
            second = _unfold(part, heads).to(wide)
            lse_second = _unfold(level[..., None].to(wide), heads)
            total = torch.logaddexp(lse_first, lse_second)
            merged = first * (lse_first - total).exp() + second * (lse_second - total).exp()
            looking.put(out, merged.to(out.dtype))
            looking.put(lse, total)
            extras.append(extra)
        ctx.save_for_backward(q, k, v, out, lse, *pasts)
        ctx.rest = (layout, scale, kernel, extras)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse, *pasts = ctx.saved_tensors
        layout, scale, kernel, extras = ctx.rest
        run = kernel[1]
        grad = grad.transpose(1, 2).contiguous()
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        of_pasts: list[Tensor] = []
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
        for looking, seen, keys, values in _seen(layout.crossing, _taken(k, v), pasts):
            still, away = _quiet(looking, grad, lse)
            folded, outs = (_fold(looking.take(x), shared) for x in (q, out))
            inputs = (folded, keys, values, outs)
            level = _fold(away, shared)[..., 0]
            gq, gk, gv = run(_fold(still, shared), *inputs, level, False, scale, next(rest))
            looking.add(dq, _unfold(gq, heads))
            if seen is None:
                of_pasts += [gk, gv]
                continue
            seen.add(dk, gk)
            seen.add(dv, gv)
        return dq, dk, dv, None, None, None, *of_pasts


class _PackedRagged(torch.autograd.Function):
    """The same parts for kernels without padding: one call for all causal segments, one for each level of the tree."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layout: Layout,
        scale: float,
        kernel: RaggedKernel,
        *pasts: Tensor,
    ) -> Tensor:  # type: ignore[override]
        run, own = kernel[0], layout.ragged.causal
        queries, keys, values = map(_as_rows, (q, k, v))
        out, lse, extra = run(queries, keys, values, own, own, True, scale)
        extras = [extra]
        pieces = _indexed(keys, values)
        for looking, _, *pair in _seen(layout.ragged.crossings, pieces, map(_as_rows, pasts)):
            at, settings = looking.places, (looking.queries, looking.keys, False, scale)
            second, level, extra = run(queries[at], *pair, *settings)
            extras.append(extra)
            wide = lse.dtype
            lse_first, lse_second = lse[:, at], level.to(wide)
            total = torch.logaddexp(lse_first, lse_second)
            of_first, of_second = (
                (x - total).exp().t()[..., None] for x in (lse_first, lse_second)
            )
            merged = out[at].to(wide) * of_first + second.to(wide) * of_second
            out[at] = merged.to(out.dtype)
            lse[:, at] = total
        ctx.save_for_backward(q, k, v, out, lse, *pasts)
        ctx.rest = (layout, scale, kernel, extras)
        return out[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse, *pasts = ctx.saved_tensors
        layout, scale, kernel, extras = ctx.rest
        run, own = kernel[1], layout.ragged.causal
        queries, keys, values = map(_as_rows, (q, k, v))
        grad = grad[0]
        rest = iter(extras)
        # With the merged `out` and `lse` each part's backward is exact, and the parts add up.
        settings = (own, own, True, scale, next(rest))
        dq, dk, dv = run(grad, queries, keys, values, out, lse, *settings)
        of_pasts: list[Tensor] = []
        pieces = _indexed(keys, values)
        for looking, seen, *pair in _seen(
            layout.ragged.crossings, pieces, map(_as_rows, pasts)
        ):
            at, settings = looking.places, (looking.queries, looking.keys, False, scale)
            inputs = (grad[at], queries[at], *pair, out[at], lse[:, at])
            gq, gk, gv = run(*inputs, *settings, next(rest))
            # No place comes twice, so an indexed sum is safe.
            dq[at] += gq
            if seen is None:
                of_pasts += [x.transpose(0, 1)[None] for x in (gk, gv)]
                continue
            dk[seen] += gk
            dv[seen] += gv
        back = (x.transpose(0, 1)[None] for x in (dq, dk, dv))
        return (*back, None, None, None, *of_pasts)


def _seen(
    pairs: Iterable[tuple[Looking, Seen | None]],
    within: Callable[[Seen], tuple[Tensor, Tensor]],
    beyond: Iterable[Tensor],
) -> Iterator[tuple[Looking, Seen | None, Tensor, Tensor]]:
    """Each pair with the keys and values looked at: those `within` the row, or the next two from `beyond` it."""
    pasts = iter(beyond)
    for looking, seen in pairs:
        keys, values = (next(pasts), next(pasts)) if seen is None else within(seen)
        yield looking, seen, keys, values


def _taken(k: Tensor, v: Tensor) -> Callable[[Bucket], tuple[Tensor, Tensor]]:
    return lambda bucket: (bucket.take(k), bucket.take(v))


def _indexed(keys: Tensor, values: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda places: (keys[places], values[places])


def _as_rows(x: Tensor) -> Tensor:
    """[1, H, S, d] -> [S, H, d]."""
    return x[0].transpose(0, 1)


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
def verified_kernel(
    device: str, dtype: torch.dtype, width: int = 64, heads: tuple[int, int] = (4, 2)
) -> Kernel:
    """The fastest kernel for dense batches that agrees with the plain form on a small example of these heads."""
    if device == "cpu":
        return CPU_FLASH
    if device != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return PLAIN
    problem = _disagreement(_Packed.apply, CUDA_FLASH, device, dtype, width, heads)
    if problem is None:
        return CUDA_FLASH
    warnings.warn(
        f"Flash attention on {device} in {dtype} is not used ({problem}); the slower plain form is.",
        stacklevel=2,
    )
    return PLAIN


@lru_cache
def verified_ragged_kernel(
    device: str, dtype: torch.dtype, width: int, heads: tuple[int, int]
) -> RaggedKernel | None:
    """The first kernel for unpadded rows that agrees with the plain form on a small example; None if there is none."""
    if device != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    candidates = {"torch": TORCH_FLASH}
    if find_spec("flash_attn") is not None:
        candidates = {"flash-attn": PACKAGE_FLASH, **candidates}
    for name, kernel in candidates.items():
        problem = _disagreement(_PackedRagged.apply, kernel, device, dtype, width, heads)
        if problem is None:
            return kernel
        warnings.warn(
            f"The flash attention of {name} for rows of many lengths is not used in {dtype} ({problem}).",
            stacklevel=2,
        )
    return None


def _disagreement(
    run: Callable[..., Tensor],
    kernel: Kernel | RaggedKernel,
    device: str,
    dtype: torch.dtype,
    width: int,
    heads: tuple[int, int],
) -> str | None:
    """Compare forward and backward with the plain form on two ragged trees; None if they agree."""
    parents = (ROOT, 0, 0, 2, 2, ROOT, 5)
    layout = Layout((19, 5, 9, 4, 2, 7, 3), parents, torch.device(device))
    rng = torch.Generator().manual_seed(0)
    queries, keys = ((1, n, layout.length, width) for n in heads)
    # Drawn on the CPU, so that every device is asked the same.
    inputs = [torch.randn(shape, generator=rng) for shape in (queries, keys, keys)]
    grad = torch.randn((1, layout.length, heads[0], width), generator=rng)

    def results(apply: Callable[..., Tensor], with_kernel: object) -> list[Tensor]:
        q, k, v = (x.to(device, dtype).requires_grad_() for x in inputs)
        out = apply(q, k, v, layout, width**-0.5, with_kernel)
        found = torch.autograd.grad(out, (q, k, v), grad.to(device, dtype))
        return [x.detach().float() for x in (out, *found)]

    try:
        ours = results(run, kernel)
    # All that a private operator may raise when a version of torch has changed it.
    except (
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        NotImplementedError,
        ImportError,
    ) as error:
        return str(error).splitlines()[0]
    names = ("out", "dq", "dk", "dv")
    for name, mine, plain in zip(names, ours, results(_Packed.apply, PLAIN), strict=True):
        gap = (mine - plain).abs().max().item()
        # "Not below" instead of "above": a NaN is a disagreement too.
        if not gap <= 0.03 * plain.abs().max().item():
            return f"{name} differs from the plain form by {gap:.3g}"
    return None
