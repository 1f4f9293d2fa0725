"""The tiled head: log-prob, entropy and exact divergences without a tokens × vocabulary tensor.

Hidden states [N, D] and the head's weight [V, D] go in, numbers per token come out. The forward keeps one log-sum-exp
per token; the backward recomputes each tile's logits. With l = h·Wᵀ/τ, p = softmax(l), ℓ = log p:

    d ℓ[y] / d l = onehot(y) − p            d H / d l = −p·(ℓ + H)
    forward  KL(p‖q):   d/d l_p = p·(ℓ_p − ℓ_q − KL),  d/d l_q = q − p      (reverse: exchange p and q; symmetric: mean)
    Jensen–Shannon, m = (p + q)/2:   d/d l_p = ½·p·(ℓ_p − log m − KL(p‖m)),  likewise for q

A tile is a block of tokens with the whole vocabulary, in fp32 (fp64 for fp64 inputs), at most `TILE_BYTES` large.
The gradient of a leaf weight is accumulated straight into `weight.grad`, so that no second vocabulary × hidden tensor
exists; a weight that is not a plain leaf gets its gradient through autograd as usual.

Source: our design; formulas are closed form and tested against autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmrl.types import Divergence

TILE_BYTES = 32 * 2**20
"""Size of one tile of logits."""


def head_scores(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: Tensor | float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-prob [N] of the tokens [N] and, if asked for, the entropy [N] in nats. hidden [N, D], weight [V, D].

    `temperature` divides the logits, a number or [N]. Gradients reach hidden and weight.
    """
    scale = _inverse(temperature, hidden)
    logp, ent, _, _, _ = _Head.apply(hidden, weight, None, None, tokens, scale, None, entropy)
    return logp, ent if entropy else None


def head_divergence(
    hidden: Tensor,
    weight: Tensor,
    other: Tensor,
    other_weight: Tensor,
    tokens: Tensor,
    kind: Divergence,
    temperature: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(logp, entropy, other's logp, other's entropy, exact divergence), each [N], with gradients to both sides.

    forward = KL(this‖other), reverse = KL(other‖this), symmetric = their mean, js = Jensen–Shannon; in nats.
    """
    if kind not in ("forward", "reverse", "symmetric", "js"):
        raise ValueError(
            f"divergence is {kind!r}; it must be 'forward', 'reverse', 'symmetric' or 'js'."
        )
    return _Head.apply(
        hidden, weight, other, other_weight, tokens, _inverse(temperature, hidden), kind, True
    )  # type: ignore[no-any-return]


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """h·Wᵀ [N, V] accumulated and returned in at least fp32, also for half-precision inputs."""
    if hidden.dtype in (torch.float32, torch.float64) and hidden.dtype == weight.dtype:
        return hidden @ weight.t()
    if hidden.is_cuda and hidden.dtype == weight.dtype:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    out = hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=torch.float32)
    wide = hidden.float()
    for start in range(0, weight.shape[0], 8192):
        torch.mm(
            wide, weight[start : start + 8192].float().t(), out=out[:, start : start + 8192]
        )
    return out


def tile_rows(vocabulary: int, itemsize: int = 4) -> int:
    """Tokens per tile."""
    return max(1, TILE_BYTES // (vocabulary * itemsize))


def _inverse(temperature: Tensor | float, hidden: Tensor) -> Tensor:
    work = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    value = torch.as_tensor(temperature, dtype=work, device=hidden.device)
    return (1.0 / value).expand(hidden.shape[0])


def _accumulates(weight: Tensor) -> bool:
    """May the backward write into weight.grad itself? Only a plain leaf without hooks that is no distributed tensor."""
    return (
        weight.is_leaf
        and type(weight) in (Tensor, torch.nn.Parameter)
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
    )


def add_to_grad(weight: Tensor) -> Tensor:
    """The weight's gradient buffer, made of zeros if there is none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad


class _Head(torch.autograd.Function):
    """One or two heads over the same tokens, tile by tile."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        other: Tensor | None,
        other_weight: Tensor | None,
        tokens: Tensor,
        scale: Tensor,
        kind: Divergence | None,
        entropy: bool,
    ) -> tuple[Tensor | None, ...]:
        count = hidden.shape[0]
        sides = [(hidden, weight)] + (
            [(other, other_weight)] if other is not None and other_weight is not None else []
        )
        numbers = [
            [scale.new_zeros(count) for _ in range(3)] for _ in sides
        ]  # lse, logp, entropy
        divergence = scale.new_zeros(count) if kind else None
        step = tile_rows(weight.shape[0], scale.element_size())
        for start in range(0, count, step):
            rows = slice(start, start + step)
            tiles = []
            for (h, w), (lse, logp, ent) in zip(sides, numbers, strict=True):
                tile = logits(h[rows], w).mul_(scale[rows, None])
                if not entropy:  # in place: one tile is all that is alive
                    top = tile.amax(-1)
                    chosen = tile.sub_(top[:, None]).gather(1, tokens[rows, None]).squeeze(1)
                    mass = tile.exp_().sum(-1).log_()
                    lse[rows], logp[rows] = top + mass, chosen - mass
                    continue
                lse[rows] = tile.logsumexp(-1)
                tile.sub_(lse[rows, None])  # ℓ
                logp[rows] = tile.gather(1, tokens[rows, None]).squeeze(1)
                prob = tile.exp()
                ent[rows] = -torch.linalg.vecdot(prob, tile)
                del prob
                tiles.append(tile)
            if divergence is not None:
                divergence[rows] = _divergence(tiles[0], tiles[1], kind)
        ctx.save_for_backward(hidden, weight, other, other_weight, tokens, scale)
        ctx.kind, ctx.step, ctx.numbers = kind, step, [(n[0], n[2]) for n in numbers]
        ctx.set_materialize_grads(False)
        second = (numbers[1][1], numbers[1][2]) if len(sides) == 2 else (None, None)
        return numbers[0][1], numbers[0][2], *second, divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, other, other_weight, tokens, scale = ctx.saved_tensors
        g_div = grads[4]
        sides = [(hidden, weight, grads[0], grads[1])]
        if other is not None:
            sides.append((other, other_weight, grads[2], grads[3]))
        wants = [(h.requires_grad, w.requires_grad) for h, w, _, _ in sides]
        out_h = [
            torch.zeros_like(h) if need else None
            for (h, _, _, _), (need, _) in zip(sides, wants, strict=True)
        ]
        direct = [
            need and _accumulates(w)
            for (_, w, _, _), (_, need) in zip(sides, wants, strict=True)
        ]
        out_w = [
            (add_to_grad(w) if put else torch.zeros_like(w)) if need else None
            for (_, w, _, _), (_, need), put in zip(sides, wants, direct, strict=True)
        ]
        for start in range(0, hidden.shape[0], ctx.step):
            rows = slice(start, start + ctx.step)
            logps = []
            for (h, w, _, _), (lse, _) in zip(sides, ctx.numbers, strict=True):
                logps.append(logits(h[rows], w).mul_(scale[rows, None]).sub_(lse[rows, None]))
            slopes = (
                _divergence_slopes(logps, ctx.kind, g_div[rows])
                if g_div is not None
                else [None] * len(sides)
            )
            for i, (h, w, g_logp, g_ent) in enumerate(sides):
                if out_h[i] is None and out_w[i] is None:
                    continue
                entropy = ctx.numbers[i][1][rows]
                slope = _score_slope(
                    logps[i], tokens[rows], entropy, _cut(g_logp, rows), _cut(g_ent, rows)
                )
                extra = slopes[i]
                if extra is not None:
                    slope = extra if slope is None else slope.add_(extra)
                if slope is None:
                    continue
                slope.mul_(scale[rows, None])
                into = out_h[i]
                _pull(slope, h[rows], w, None if into is None else into[rows], out_w[i])
        out_w = [None if put else w for w, put in zip(out_w, direct, strict=True)]
        if len(sides) == 1:
            return out_h[0], out_w[0], None, None, None, None, None, None
        return out_h[0], out_w[0], out_h[1], out_w[1], None, None, None, None


def _cut(grad: Tensor | None, rows: slice) -> Tensor | None:
    return None if grad is None else grad[rows, None]


def _score_slope(
    logp: Tensor, tokens: Tensor, entropy: Tensor, g_logp: Tensor | None, g_ent: Tensor | None
) -> Tensor | None:
    """d(log-prob, entropy)/d logits [n, V], weighted by the incoming gradients [n, 1]. Uses up `logp`."""
    if g_logp is None and g_ent is None:
        return None
    slope = logp.exp_() if g_ent is None else logp.exp()
    if g_ent is not None:
        factor = (logp + entropy[:, None]).mul_(-g_ent)
        if g_logp is not None:
            factor.sub_(g_logp)
        slope.mul_(factor)
    else:
        slope.mul_(-g_logp)  # type: ignore[operator]
    if g_logp is not None:
        slope.scatter_add_(1, tokens[:, None], g_logp.to(slope.dtype))
    return slope


def _pull(
    slope: Tensor, hidden: Tensor, weight: Tensor, out_h: Tensor | None, out_w: Tensor | None
) -> None:
    """Add slope·W to out_h [n, D] and slopeᵀ·h to out_w [V, D]; half precision is multiplied in chunks of fp32."""
    if slope.dtype == weight.dtype:
        if out_h is not None:
            torch.addmm(out_h, slope, weight, out=out_h)
        if out_w is not None:
            out_w.addmm_(slope.t(), hidden)
        return
    if slope.is_cuda:
        low = slope.to(weight.dtype)
        if out_h is not None:
            out_h.add_(low @ weight)
        if out_w is not None:
            out_w.addmm_(low.t(), hidden)
        return
    wide = (
        None
        if out_h is None
        else torch.zeros(out_h.shape, dtype=slope.dtype, device=slope.device)
    )
    for start in range(0, weight.shape[0], 8192):
        part = slice(start, start + 8192)
        if wide is not None:
            wide.addmm_(slope[:, part], weight[part].to(slope.dtype))
        if out_w is not None:
            out_w[part] += (slope[:, part].t() @ hidden.to(slope.dtype)).to(out_w.dtype)
    if out_h is not None and wide is not None:
        out_h.add_(wide.to(out_h.dtype))


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a‖b) [n] from log-probs [n, V]."""
    return torch.linalg.vecdot(a.exp(), a - b)


def _mean_logp(a: Tensor, b: Tensor) -> Tensor:
    """log((e^a + e^b)/2)."""
    return torch.logaddexp(a, b).sub_(0.6931471805599453)


def _divergence(a: Tensor, b: Tensor, kind: Divergence | None) -> Tensor:
    if kind == "forward":
        return _kl(a, b)
    if kind == "reverse":
        return _kl(b, a)
    if kind == "symmetric":
        return 0.5 * (_kl(a, b) + _kl(b, a))
    middle = _mean_logp(a, b)
    return 0.5 * (_kl(a, middle) + _kl(b, middle))


def _divergence_slopes(
    logps: list[Tensor], kind: Divergence, grad: Tensor
) -> list[Tensor | None]:
    """d divergence / d logits of both sides [n, V], weighted by the incoming gradient [n]."""
    a, b = logps
    p, q, g = a.exp(), b.exp(), grad[:, None].to(a.dtype)
    if kind == "js":
        middle = _mean_logp(a, b)
        return [
            0.5 * g * x * (lx - middle - _kl(lx, middle)[:, None]) for x, lx in ((p, a), (q, b))
        ]
    ahead = p * (a - b - _kl(a, b)[:, None]) if kind != "reverse" else None
    back = q * (b - a - _kl(b, a)[:, None]) if kind != "forward" else None
    if kind == "forward":
        assert ahead is not None
        return [ahead * g, (q - p) * g]
    if kind == "reverse":
        assert back is not None
        return [(p - q) * g, back * g]
    assert ahead is not None and back is not None
    return [0.5 * g * (ahead + p - q), 0.5 * g * (back + q - p)]


class _Embed(torch.autograd.Function):
    """Rows of an embedding whose gradient goes straight into weight.grad."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding = weight, padding
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            grad = grad.masked_fill((ids == ctx.padding)[:, None], 0.0)
        add_to_grad(ctx.weight).index_add_(0, ids, grad.to(ctx.weight.dtype))
        return None, None, None


def embed(weight: Tensor, ids: Tensor, padding: int | None = None) -> Tensor:
    """weight[ids] for ids [S] -> [S, D]; no dense vocabulary × hidden gradient is made for a leaf weight.

    The row `padding` gets no gradient, as in `torch.nn.Embedding(padding_idx=…)`.
    """
    if weight.requires_grad and torch.is_grad_enabled() and _accumulates(weight):
        return _Embed.apply(weight, ids, padding)  # type: ignore[no-any-return]
    return torch.nn.functional.embedding(ids, weight, padding)
