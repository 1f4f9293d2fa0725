"""The tiled head: log-prob, entropy and exact divergences without a tokens × vocabulary tensor.

Hidden states [N, D] and the head's weight [V, D] go in, numbers per token come out. The forward keeps one log-sum-exp
per token; the backward recomputes each tile's logits. With l = h·Wᵀ/τ, p = softmax(l), ℓ = log p, u weights that sum
to 1 (a mean over the vocabulary):

    d ℓ[y] / d l = onehot(y) − p            d H / d l = −p·(ℓ + H)            d (u·ℓ) / d l = u − p
    forward  KL(p‖q):   d/d l_p = p·(ℓ_p − ℓ_q − KL),  d/d l_q = q − p      (reverse: exchange p and q; symmetric: mean)
    Jensen–Shannon, m = (p + q)/2:   d/d l_p = ½·p·(ℓ_p − log m − KL(p‖m)),  likewise for q

A tile is some tokens with the whole vocabulary, in fp32 (fp64 for fp64 inputs), at most `tile_bytes` large: one product
makes its logits, and two take its slopes. In between it is worked off in blocks that stay in a cache, in place.
The gradient of a leaf weight is accumulated straight into `weight.grad`, so that no second vocabulary × hidden tensor
exists; a weight that is not a plain leaf gets its gradient through autograd as usual. The gradient of a half-precision
weight is added up in fp32 (`model.gradients`): a running sum in bf16 stops growing after a few hundred tiles.

Source: our design; formulas are closed form and tested against autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.model.divergences import divergence_slopes, tile_divergence
from mmrl.model.gradients import collect_in_fp32, gradient_dtype
from mmrl.model.spread import NOTHING, HeadNumbers, Spread, SpreadRead
from mmrl.types import Divergence

CPU_TILE_BYTES = 128 * 2**20
"""Size of one tile of logits on a CPU. Each reads the whole weight, so that it must hold a few hundred tokens."""
CPU_BLOCK_BYTES = 2**20
"""Of a tile, what is turned from logits into numbers and slopes at once, on a CPU: it stays in a core's cache."""
GPU_BLOCKS = 16
"""The same on a GPU: a tile in so many pieces. Few, for each costs a launch; several, for pieces have copies."""
GPU_TILE_SHARE = 64
"""A tile on a GPU is this part of its memory. Small tiles would read the weight and write its gradient too often."""
CHUNK = 8192
"""Rows of the vocabulary that are widened to fp32 at once."""


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
    logp, found, *_ = _Head.apply(
        hidden, weight, None, None, tokens, scale, None, entropy, NOTHING
    )
    return logp, found if entropy else None


def head_spread(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    temperature: Tensor | float,
    entropy: bool,
    spread: Spread,
) -> HeadNumbers:
    """As `head_scores`, with what is asked about the spread of each token's distribution.

    Gradients come from log-prob, entropy, mean and picked tokens. Raises ValueError for more of the most likely tokens
    than there are.
    """
    if spread.top > len(weight):
        raise ValueError(
            f"The {spread.top} most likely tokens are asked for, but the vocabulary has {len(weight)}; ask for fewer."
        )
    scale = _inverse(temperature, hidden)
    logp, found, *_, mean, top, ids, picked = _Head.apply(
        hidden, weight, None, None, tokens, scale, None, entropy, spread
    )
    return HeadNumbers(logp, found if entropy else None, mean, top, ids, picked)


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
    scale = _inverse(temperature, hidden)
    found = _Head.apply(hidden, weight, other, other_weight, tokens, scale, kind, True, NOTHING)
    return found[:5]  # type: ignore[no-any-return]


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """h·Wᵀ [N, V] accumulated and returned in at least fp32, also for half-precision inputs."""
    same = hidden.dtype == weight.dtype
    if same and hidden.dtype in (torch.float32, torch.float64):
        return hidden @ weight.t()
    if same and hidden.is_cuda:
        return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    # In pieces, so that no fp32 copy of the whole weight is made.
    count, vocabulary = len(hidden), len(weight)
    out = hidden.new_empty(count, vocabulary, dtype=torch.float32)
    wide = hidden.float()
    for start in range(0, vocabulary, CHUNK):
        part = slice(start, start + CHUNK)
        torch.mm(wide, weight[part].float().t(), out=out[:, part])
    return out


def tile_bytes(device: torch.device) -> int:
    """Size of one tile of logits on the device."""
    if device.type != "cuda":
        return CPU_TILE_BYTES
    return torch.cuda.get_device_properties(device).total_memory // GPU_TILE_SHARE


def tile_rows(vocabulary: int, itemsize: int, device: torch.device) -> int:
    """Tokens per tile."""
    return max(1, tile_bytes(device) // (vocabulary * itemsize))


def _inverse(temperature: Tensor | float, hidden: Tensor) -> Tensor:
    # A factor instead of a divisor: one division per token, not one per logit.
    work = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    value = torch.as_tensor(temperature, dtype=work, device=hidden.device)
    return (1.0 / value).expand(hidden.shape[0])


def _accumulates(weight: Tensor) -> bool:
    """May the backward write into weight.grad itself? Only a plain leaf without hooks that is no distributed tensor."""
    # Hooks expect to see the whole gradient once; here it comes in tiles and past autograd.
    return (
        weight.is_leaf
        and type(weight) in (Tensor, torch.nn.Parameter)
        and not weight._backward_hooks
        and not getattr(weight, "_post_accumulate_grad_hooks", None)
    )


def add_to_grad(weight: Tensor) -> Tensor:
    """The weight's gradient buffer, at least fp32, made of zeros if there is none yet."""
    collect_in_fp32([weight])
    if weight.grad is None:
        weight.grad = _zeros(weight)
    return weight.grad


@dataclass
class _Side:
    """One head over the tokens: its inputs and, after the forward, its numbers per token."""

    hidden: Tensor
    """[N, D]."""
    weight: Tensor
    """[V, D]."""
    lse: Tensor
    """[N]: log-sum-exp of the logits, all that the backward needs to make them again."""
    logp: Tensor
    """[N]."""
    entropy: Tensor
    """[N]; zero where nobody asked."""

    @classmethod
    def empty(cls, hidden: Tensor, weight: Tensor, like: Tensor) -> _Side:
        """A side whose numbers are still to be computed."""
        return cls(hidden, weight, *(torch.zeros_like(like) for _ in range(3)))

    def tile(self, rows: slice, scale: Tensor) -> Tensor:
        """Logits [n, V] of some tokens, divided by the temperature."""
        return logits(self.hidden[rows], self.weight).mul_(scale[rows, None])

    def score(self, rows: slice, tile: Tensor, tokens: Tensor) -> None:
        """Fill in the numbers of some tokens; turns their logits into log-probs [n, V] in place."""
        self.lse[rows] = tile.logsumexp(-1)
        tile.sub_(self.lse[rows, None])
        self.logp[rows] = tile.gather(1, tokens[rows, None]).squeeze(1)
        self.entropy[rows] = -torch.linalg.vecdot(tile.exp(), tile)

    def score_in_place(self, rows: slice, tile: Tensor, tokens: Tensor) -> None:
        """As `score` without the entropy; uses up the logits."""
        top = tile.amax(-1)
        chosen = tile.sub_(top[:, None]).gather(1, tokens[rows, None]).squeeze(1)
        mass = tile.exp_().sum(-1).log_()
        self.lse[rows] = top + mass
        self.logp[rows] = chosen - mass


@dataclass
class _Pull:
    """Gradients of one side, as the backward collects them tile by tile."""

    hidden: Tensor | None
    """[N, D], or None if nobody wants it."""
    weight: Tensor | None
    """[V, D], or None if nobody wants it."""
    direct: bool
    """Is `weight` the parameter's own gradient buffer?"""

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor) -> _Pull:
        """Buffers of zeros where a gradient is wanted, or the parameter's own."""
        direct = weight.requires_grad and _accumulates(weight)
        buffer = None
        if weight.requires_grad:
            buffer = add_to_grad(weight) if direct else _zeros(weight)
        return cls(torch.zeros_like(hidden) if hidden.requires_grad else None, buffer, direct)

    @property
    def wanted(self) -> bool:
        return self.hidden is not None or self.weight is not None

    def add(self, rows: slice, slope: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """Pull the slope of some tokens' logits [n, V] back to their hidden states and the weight."""
        into = None if self.hidden is None else self.hidden[rows]
        _pull(slope, hidden[rows], weight, into, self.weight)

    def for_autograd(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Both gradients in the format of their inputs."""
        # What is in the parameter's own buffer already must not be added a second time.
        if self.direct or self.weight is None:
            return self.hidden, None
        return self.hidden, self.weight.to(dtype)


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
        asked: Spread,
    ) -> tuple[Tensor | None, ...]:
        sides = [_Side.empty(hidden, weight, scale)]
        if other is not None and other_weight is not None:
            sides.append(_Side.empty(other, other_weight, scale))
        divergence = torch.zeros_like(scale) if kind else None
        spread = SpreadRead.empty(asked, scale)
        step = tile_rows(weight.shape[0], scale.element_size(), weight.device)
        for rows in _runs(0, len(hidden), step):
            tiles = [side.tile(rows, scale) for side in sides]
            for block, place in _blocks(rows, tiles[0]):
                parts = [tile[place] for tile in tiles]
                spread.read(block, parts[0])
                for side, part in zip(sides, parts, strict=True):
                    (side.score if entropy else side.score_in_place)(block, part, tokens)
                if divergence is not None:
                    divergence[block] = tile_divergence(parts[0], parts[1], kind)
        ctx.save_for_backward(hidden, weight, other, other_weight, tokens, scale)
        spread.normalise(sides[0].lse)
        ctx.kind, ctx.step, ctx.weights = kind, step, spread.weights
        ctx.wanted = spread.wanted
        if spread.top is not None:
            ctx.mark_non_differentiable(spread.top, spread.ids)
        # Not through `save_for_backward`: these are neither inputs nor all of them outputs.
        ctx.numbers = [(side.lse, side.entropy) for side in sides]
        # A score that the loss does not use arrives as None and costs nothing, instead of as zeros.
        ctx.set_materialize_grads(False)
        told = [(side.logp, side.entropy) for side in sides] + [(None, None)]
        of_spread = spread.mean, spread.top, spread.ids, spread.picked
        return (*told[0], *told[1], divergence, *of_spread)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, other, other_weight, tokens, scale = ctx.saved_tensors
        inputs = (
            [(hidden, weight)] if other is None else [(hidden, weight), (other, other_weight)]
        )
        pulls = [_Pull.of(*pair) for pair in inputs]
        # Of the log-prob, the entropy and the mean; the second side has no mean, and no picked tokens.
        score_grads = ((*grads[0:2], grads[5]), (*grads[2:4], None))
        of_picked = grads[8]
        divergence_grad = grads[4]
        # Known from what came back, not from its numbers: a side that nobody reads costs no product.
        asked = [
            divergence_grad is not None or any(g is not None for g in three)
            for three in score_grads
        ]
        asked[0] = asked[0] or of_picked is not None
        learns = [pull.wanted and side for pull, side in zip(pulls, asked, strict=False)]
        for rows in _runs(0, len(hidden), ctx.step):
            tiles = [logits(h[rows], w) for h, w in inputs]
            for block, place in _blocks(rows, tiles[0]):
                parts = [tile[place].mul_(scale[block, None]) for tile in tiles]
                for part, (lse, _) in zip(parts, ctx.numbers, strict=True):
                    part.sub_(lse[block, None])
                # Before the scores' slopes, which use up the log-probs.
                slopes: list[Tensor | None] = [None] * len(inputs)
                if divergence_grad is not None:
                    slopes = divergence_slopes(parts, ctx.kind, divergence_grad[block])
                for i, part in enumerate(parts):
                    if not learns[i]:
                        continue
                    incoming = [_column(grad, block) for grad in score_grads[i]]
                    own_entropy = ctx.numbers[i][1][block]
                    picked = None
                    if i == 0 and of_picked is not None:
                        picked = of_picked[block], ctx.wanted[block]
                    slope = _score_slope(
                        part, tokens[block], own_entropy, ctx.weights, *incoming, picked=picked
                    )
                    slope = _added(slope, slopes[i])
                    assert slope is not None  # something was asked of this side
                    torch.mul(slope, scale[block, None], out=part)
            for i, (h, w) in enumerate(inputs):
                if learns[i]:
                    pulls[i].add(rows, tiles[i], h, w)
        found = [grad for pull in pulls for grad in pull.for_autograd(weight.dtype)]
        # One per argument of `forward`: a missing second side, and five that have no gradient.
        return (*found, *[None] * (9 - len(found)))


def _runs(start: int, end: int, step: int) -> Iterator[slice]:
    """[start, end) in pieces of at most `step`."""
    for first in range(start, end, step):
        yield slice(first, min(first + step, end))


def _blocks(rows: slice, tile: Tensor) -> Iterator[tuple[slice, slice]]:
    """(tokens, where they are in the tile) of pieces that are worked off one after another."""
    row = tile.shape[1] * tile.element_size()
    room = tile_bytes(tile.device) // GPU_BLOCKS if tile.is_cuda else CPU_BLOCK_BYTES
    for place in _runs(0, len(tile), max(1, room // row)):
        yield slice(rows.start + place.start, rows.start + place.stop), place


def _zeros(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=gradient_dtype(weight.dtype))


def _column(grad: Tensor | None, rows: slice) -> Tensor | None:
    return None if grad is None else grad[rows, None]


def _added(slope: Tensor | None, extra: Tensor | None) -> Tensor | None:
    """Their sum, where either may be missing."""
    if slope is None or extra is None:
        return extra if slope is None else slope
    return slope.add_(extra)


def _score_slope(
    logp: Tensor,
    tokens: Tensor,
    entropy: Tensor,
    weights: Tensor | None,
    g_logp: Tensor | None,
    g_ent: Tensor | None,
    g_mean: Tensor | None,
    picked: tuple[Tensor, Tensor] | None,
) -> Tensor | None:
    """d(log-prob, entropy, mean, picked)/d logits [n, V], weighted by the incoming gradients. Uses up `logp`.

    Gradients are [n, 1]; `picked` has those of the picked tokens [n, k], and which these are.
    """
    # All but the entropy are logits less the log-sum-exp, whose slope is p.
    g_picked = None if picked is None else picked[0].sum(-1, keepdim=True)
    several = [g for g in (g_logp, g_mean, g_picked) if g is not None]
    g_lse = functools.reduce(torch.add, several) if several else None
    if g_lse is None and g_ent is None:
        return None
    # In place where log-probs are not read again: a tile is as large as memory allows.
    slope = logp.exp_() if g_ent is None else logp.exp()
    if g_ent is not None:
        factor = (logp + entropy[:, None]).mul_(-g_ent)
        if g_lse is not None:
            factor.sub_(g_lse)
        slope.mul_(factor)
    else:
        slope.mul_(-g_lse)  # type: ignore[operator]
    if g_mean is not None and weights is not None:
        slope.addcmul_(g_mean, weights[None])
    if g_logp is not None:
        slope.scatter_add_(1, tokens[:, None], g_logp.to(slope.dtype))
    if picked is not None:
        slope.scatter_add_(1, picked[1], picked[0].to(slope.dtype))
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
    if slope.is_cuda:  # tensor cores add up in fp32 themselves
        low = slope.to(weight.dtype)
        if out_h is not None:
            out_h.add_(low @ weight)
        if out_w is not None:
            torch.addmm(out_w, low.t(), hidden, out_dtype=out_w.dtype, out=out_w)
        return
    # Half precision on the CPU: products in fp32, of a piece of the vocabulary at a time.
    wide = None if out_h is None else torch.zeros_like(out_h, dtype=slope.dtype)
    states = hidden.to(slope.dtype)
    for start in range(0, weight.shape[0], CHUNK):
        part = slice(start, start + CHUNK)
        if wide is not None:
            wide.addmm_(slope[:, part], weight[part].to(slope.dtype))
        if out_w is not None:
            out_w[part].addmm_(slope[:, part].t(), states)
    if out_h is not None and wide is not None:
        out_h.add_(wide.to(out_h.dtype))


class _Embed(torch.autograd.Function):
    """Rows of an embedding whose gradient goes straight into weight.grad."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(ids)
        # The parameter itself, not a saved copy of its value: the backward writes into its `grad`.
        ctx.weight, ctx.padding = weight, padding
        return weight[ids]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        if ctx.padding is not None:
            silent = (ids == ctx.padding)[:, None]
            grad = grad.masked_fill(silent, 0.0)
        total = add_to_grad(ctx.weight)
        total.index_add_(0, ids, grad.to(total.dtype))
        return None, None, None


def embed(weight: Tensor, ids: Tensor, padding: int | None = None) -> Tensor:
    """weight[ids] for ids [S] -> [S, D]; no dense vocabulary × hidden gradient is made for a leaf weight.

    The row `padding` gets no gradient, as in `torch.nn.Embedding(padding_idx=…)`.
    """
    if weight.requires_grad and torch.is_grad_enabled() and _accumulates(weight):
        return _Embed.apply(weight, ids, padding)  # type: ignore[no-any-return]
    return torch.nn.functional.embedding(ids, weight, padding)
