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

Sampling uses the same function with a `Decoding` layout: keys and values of a prompt are held once per group, those of
the answers in preallocated buffers.

Kernels: CPU flash (fp32, fp64, bf16; what the tests run), CUDA flash for half precision, and a plain matrix form for
everything else. `verified_kernel` compares the chosen kernel with the plain form once per device and dtype and falls
back with a warning. The CUDA kernel has not been run by us yet.

Source: our design; the merge is the usual one of flash-decoding, the gradient argument is in the tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mmrl.model.kernels import CPU_FLASH, CUDA_FLASH, PLAIN, Kernel

NAME = "mmrl_shared_prefix"
FAR = 1e30
"""Log-sum-exp of padded queries in the backward: exp(score − FAR) is exactly 0."""


ALONE = 512
"""Segments at least this long get a kernel call of their own; shorter ones of similar length share one."""
WASTE = 1.25
"""Largest padded size of a shared call, relative to its tokens."""


@dataclass(frozen=True)
class Bucket:
    """Segments that go through the kernel together, padded right."""

    index: Tensor
    """long [n, L]: stream index of each token, padded with 0."""
    valid: Tensor
    """bool [n, L]."""
    cut: slice | None
    """The segment itself if it is alone: then nothing is copied."""

    def take(self, x: Tensor) -> Tensor:
        """[1, H, S, d] -> [n, H, L, d]."""
        return (
            x[:, :, self.cut] if self.cut is not None else x[0][:, self.index].transpose(0, 1)
        )

    def put(self, total: Tensor, part: Tensor) -> None:
        """Write the valid tokens of part [n, H, L, ...] to total [1, H, S, ...]."""
        if self.cut is not None:
            total[:, :, self.cut] = part
        else:
            total[0][:, self.index[self.valid]] = part.transpose(0, 1)[:, self.valid].to(
                total.dtype
            )

    def add(self, total: Tensor, part: Tensor) -> None:
        """Add the valid tokens of part [n, H, L, d] to total [1, H, S, d]."""
        if self.cut is not None:
            total[:, :, self.cut] += part
        else:
            total[0][:, self.index[self.valid]] += part.transpose(0, 1)[:, self.valid]


@dataclass(frozen=True)
class Layout:
    """Where the segments of a packed row lie. Answers of a group follow their prompt without a gap."""

    prompts: tuple[tuple[int, int], ...]
    """[start, end) of each group's prompt."""
    answers: tuple[tuple[tuple[int, int], ...], ...]
    """Per group: [start, end) of each answer; empty segments are allowed."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kept: list[tuple[Tensor, Tensor]] | None = None
    """If a list, keys and values [1, Hk, S, d] of each layer are appended (prefill of a rollout)."""
    causal: tuple[Bucket, ...] = field(init=False, repr=False)
    """Prompts and answers, each causal in itself."""
    crossing: tuple[tuple[Bucket, Bucket], ...] = field(init=False, repr=False)
    """(answers of groups, their prompts): the answers attend to the prompt; prompts of a pair have one length."""

    def __post_init__(self) -> None:
        own = [
            s
            for s in (*self.prompts, *(s for group in self.answers for s in group))
            if s[1] > s[0]
        ]
        object.__setattr__(self, "causal", tuple(self._bucket(b) for b in _alike(own)))
        pairs: dict[int, list[tuple[tuple[int, int], tuple[int, int]]]] = {}
        for number, (prompt, group) in enumerate(zip(self.prompts, self.answers, strict=True)):
            end = max([prompt[1], *(e for _, e in group)])
            length = prompt[1] - prompt[0]
            if end > prompt[1] and length > 0:
                key = length if length < ALONE else -number - 1
                pairs.setdefault(key, []).append(((prompt[1], end), prompt))
        crossing = []
        for several in pairs.values():
            for chosen in _alike([answers for answers, _ in several]):
                prompt_of = dict(several)
                crossing.append(
                    (self._bucket(chosen), self._bucket([prompt_of[c] for c in chosen]))
                )
        object.__setattr__(self, "crossing", tuple(crossing))

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return max(
            (e for _, e in (*self.prompts, *(s for group in self.answers for s in group))),
            default=0,
        )

    def _bucket(self, segments: Sequence[tuple[int, int]]) -> Bucket:
        starts = torch.tensor([start for start, _ in segments]).reshape(-1, 1)
        lengths = torch.tensor([end - start for start, end in segments]).reshape(-1, 1)
        column = torch.arange(int(lengths.max()))
        valid = column < lengths
        cut = slice(*segments[0]) if len(segments) == 1 else None
        return Bucket(
            torch.where(valid, starts + column, 0).to(self.device), valid.to(self.device), cut
        )


def _alike(segments: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Segments sorted by length and cut into runs that waste little when padded."""
    runs: list[list[tuple[int, int]]] = []
    tokens = longest = 0
    for segment in sorted(segments, key=lambda s: s[0] - s[1]):
        length = segment[1] - segment[0]
        fits = (
            runs
            and longest < ALONE
            and longest * (len(runs[-1]) + 1) <= WASTE * (tokens + length) + 64
        )
        if fits:
            runs[-1].append(segment)
            tokens += length
        else:
            runs.append([segment])
            tokens, longest = length, length
    return runs


@dataclass
class Decoding:
    """Keys and values of a rollout in progress: N answers advance by one token per call."""

    prompt_keys: list[Tensor]
    """Per layer [P, Hk, Lp, d], padded right."""
    prompt_values: list[Tensor]
    prompt_mask: Tensor
    """bool [P, Lp], True on real tokens."""
    answer_keys: list[Tensor]
    """Per layer [N, Hk, capacity, d]."""
    answer_values: list[Tensor]
    group: Tensor
    """long [N]: which prompt each active answer belongs to."""
    filled: int = 0
    """Answer tokens already in the buffers."""
    slots: Tensor = field(init=False)
    """long [P, Gmax]: active rows of each prompt, padded with 0."""
    place: Tensor = field(init=False)
    """long [N]: position of each row in the flattened `slots`."""

    def __post_init__(self) -> None:
        self._arrange()

    def _arrange(self) -> None:
        group = self.group.tolist()
        rows: list[list[int]] = [[] for _ in range(self.prompt_mask.shape[0])]
        for row, number in enumerate(group):
            rows[number].append(row)
        widest = max((len(r) for r in rows), default=0)
        self.slots = torch.tensor(
            [r + [0] * (widest - len(r)) for r in rows], device=self.group.device
        ).long()
        place = [0] * len(group)
        for number, members in enumerate(rows):
            for position, row in enumerate(members):
                place[row] = number * widest + position
        self.place = torch.tensor(place, device=self.group.device).long()

    def keep(self, rows: Tensor) -> None:
        """Go on with these answers only; prompts without answers are dropped too."""
        self.answer_keys = [k[rows] for k in self.answer_keys]
        self.answer_values = [v[rows] for v in self.answer_values]
        used, self.group = torch.unique(self.group[rows], return_inverse=True)
        if len(used) < self.prompt_mask.shape[0]:
            self.prompt_keys = [k[used] for k in self.prompt_keys]
            self.prompt_values = [v[used] for v in self.prompt_values]
            self.prompt_mask = self.prompt_mask[used]
        self._arrange()

    def grow(self, capacity: int) -> None:
        """Room for more answer tokens."""
        have = self.answer_keys[0].shape[2]
        if capacity > have:
            pad = (0, 0, 0, capacity - have)
            self.answer_keys = [torch.nn.functional.pad(k, pad) for k in self.answer_keys]
            self.answer_values = [torch.nn.functional.pad(v, pad) for v in self.answer_values]


def register() -> str:
    """Make the function known to transformers and return its name. Safe to call again."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, forward)
    # For an unknown name the library builds no mask at all and padded batches would see their padding.
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    return NAME


def forward(
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
    if layout.kept is not None:
        layout.kept.append((key.detach(), value.detach()))
    return packed(query, key, value, layout, scale), None


def packed(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Attention of one packed row: q [1, H, S, d], k and v [1, Hk, S, d] -> [1, S, H, d]. Differentiable."""
    assert query.shape[2] == layout.length, (
        f"row of {query.shape[2]} tokens, layout of {layout.length}"
    )
    kernel = verified_kernel(query.device.type, query.dtype)
    return _Packed.apply(query, key, value, layout, scale, kernel)  # type: ignore[no-any-return]


def decode(
    query: Tensor, key: Tensor, value: Tensor, store: Decoding, layer: int, scale: float
) -> Tensor:
    """One new token of each answer: q [N, H, 1, d], k and v [N, Hk, 1, d] -> [N, 1, H, d]. Writes k and v."""
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    fold = heads // shared
    end = store.filled + 1
    store.answer_keys[layer][:, :, store.filled] = key[:, :, 0]
    store.answer_values[layer][:, :, store.filled] = value[:, :, 0]
    own_keys, own_values = (
        store.answer_keys[layer][:, :, :end],
        store.answer_values[layer][:, :, :end],
    )
    folded = query.view(rows, shared, fold, width) * scale
    groups, widest = store.slots.shape
    # [P, Hk, Gmax·fold, d]: the answers of a prompt side by side, so that its keys are read once
    side = (
        folded[store.slots].permute(0, 2, 1, 3, 4).reshape(groups, shared, widest * fold, width)
    )
    to_prompt = torch.matmul(side, store.prompt_keys[layer].transpose(-1, -2)).float()
    to_prompt = to_prompt.masked_fill(~store.prompt_mask[:, None, None, :], float("-inf"))
    to_prompt = (
        to_prompt.view(groups, shared, widest, fold, -1)
        .permute(0, 2, 1, 3, 4)
        .flatten(0, 1)[store.place]
    )
    to_own = torch.matmul(folded, own_keys.transpose(-1, -2)).float()
    weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1).to(value.dtype)
    cut = to_prompt.shape[-1]
    weights_prompt = weights[..., :cut]
    out = torch.matmul(weights[..., cut:], own_values)
    back = weights_prompt.new_zeros(groups * widest, shared, fold, cut)
    back[store.place] = weights_prompt
    back = (
        back.view(groups, widest, shared, fold, cut)
        .permute(0, 2, 1, 3, 4)
        .reshape(groups, shared, widest * fold, cut)
    )
    seen = torch.matmul(back, store.prompt_values[layer]).view(
        groups, shared, widest, fold, width
    )
    out = out + seen.permute(0, 2, 1, 3, 4).flatten(0, 1)[store.place]
    return out.reshape(rows, 1, heads, width)


class _Packed(torch.autograd.Function):
    """Causal parts, crossing parts and their merge, with an exact backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, scale: float, kernel: Kernel
    ) -> Tensor:  # type: ignore[override]
        run = kernel[0]
        out = q.new_zeros(q.shape)
        lse = q.new_zeros(
            (*q.shape[:3], 1),
            dtype=torch.float64 if q.dtype == torch.float64 else torch.float32,
        )
        extras: list[tuple[Any, ...]] = []
        for bucket in layout.causal:
            part, level, extra = run(
                bucket.take(q), bucket.take(k), bucket.take(v), True, scale
            )
            bucket.put(out, part)
            bucket.put(lse, level[..., None])
            extras.append(extra)
        shared, heads = k.shape[1], q.shape[1]
        for answers, prompts in layout.crossing:
            part, level, extra = run(
                _fold(answers.take(q), shared), prompts.take(k), prompts.take(v), False, scale
            )
            first, lse_first = answers.take(out).to(lse.dtype), answers.take(lse)
            second, lse_second = (
                _unfold(part, heads).to(lse.dtype),
                _unfold(level[..., None].to(lse.dtype), heads),
            )
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
        for bucket in layout.causal:
            still, away = _quiet(bucket, grad, lse)
            inputs = (bucket.take(q), bucket.take(k), bucket.take(v), bucket.take(out))
            parts = run(still, *inputs, away[..., 0], True, scale, next(rest))
            for total, part in zip((dq, dk, dv), parts, strict=True):
                bucket.put(total, part)
        shared, heads = k.shape[1], q.shape[1]
        for answers, prompts in layout.crossing:
            still, away = _quiet(answers, grad, lse)
            fold = [_fold(x, shared) for x in (still, answers.take(q), answers.take(out), away)]
            gq, gk, gv = run(
                fold[0],
                fold[1],
                prompts.take(k),
                prompts.take(v),
                fold[2],
                fold[3][..., 0],
                False,
                scale,
                next(rest),
            )
            answers.add(dq, _unfold(gq, heads))
            prompts.add(dk, gk)
            prompts.add(dv, gv)
        return dq, dk, dv, None, None, None


def _quiet(bucket: Bucket, grad: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [n, H, L, d] and lse [n, H, L, 1] of a bucket, silent on padding."""
    if bucket.cut is not None:
        return bucket.take(grad), bucket.take(lse)
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
        problem = _disagreement(CUDA_FLASH, device, dtype)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
        problem = str(error).splitlines()[0]
    if problem is None:
        return CUDA_FLASH
    warnings.warn(
        f"Flash attention on {device} in {dtype} is not used ({problem}); the slower plain form is.",
        stacklevel=2,
    )
    return PLAIN


def _disagreement(kernel: Kernel, device: str, dtype: torch.dtype) -> str | None:
    """Compare forward and backward with the plain form on two ragged groups; None if they agree."""
    layout = example_layout((19, 7), ((5, 9), (3,)), torch.device(device))
    rng = torch.Generator().manual_seed(0)
    shapes: Sequence[tuple[int, ...]] = (
        (1, 4, layout.length, 64),
        (1, 2, layout.length, 64),
        (1, 2, layout.length, 64),
    )
    found: list[list[Tensor]] = []
    draws = [
        torch.randn(shape, generator=rng) for shape in (*shapes, (1, layout.length, 4, 64))
    ]
    for candidate in (kernel, PLAIN):
        q, k, v = (x.to(device, dtype).requires_grad_() for x in draws[:3])
        out = _Packed.apply(q, k, v, layout, 0.125, candidate)
        out.backward(draws[3].to(device, dtype))
        found.append(
            [x.detach().float() for x in (out, q.grad, k.grad, v.grad) if x is not None]
        )
    for name, ours, plain in zip(("out", "dq", "dk", "dv"), *found, strict=True):
        gap = (ours - plain).abs().max().item()
        if not gap <= 0.03 * plain.abs().max().item():
            return f"{name} differs from the plain form by {gap:.3g}"
    return None


def example_layout(
    prompts: Sequence[int], answers: Sequence[Sequence[int]], device: torch.device | None = None
) -> Layout:
    """Layout of groups given by their lengths: prompts (19, 7), answers ((5, 9), (3,))."""
    spans: list[tuple[int, int]] = []
    segments: list[tuple[tuple[int, int], ...]] = []
    at = 0
    for prompt, group in zip(prompts, answers, strict=True):
        spans.append((at, at + prompt))
        at += prompt
        row = []
        for length in group:
            row.append((at, at + length))
            at += length
        segments.append(tuple(row))
    return Layout(tuple(spans), tuple(segments), device or torch.device("cpu"))
