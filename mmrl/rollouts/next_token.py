"""Drawing the next token: truncation of the distribution, and inverse-CDF draws from given uniform numbers.

Log-probs are those of the whole vocabulary at the sampling temperature, because that is what training computes; top-p,
top-k, min-p and banned ids only restrict what can be drawn and are not renormalised away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrl.ground.seeds import generator
from mmrl.types import Sampling

SORTED = 16_384
"""Vocabularies up to this size are sorted for top-p; larger ones are searched."""


def truncated(logp: Tensor, sampling: Sampling, banned: Tensor) -> Tensor:
    """Weights [N, V] of what may be drawn, from log-probs [N, V]; they need not sum to 1. At least one id stays.

    Banned ids are taken out before the softmax: a policy that is sure of one of them still gets a usable rest.
    """
    allowed = logp.index_fill(1, banned, float("-inf"))
    prob = allowed.softmax(-1)
    if sampling.min_p > 0:
        least = sampling.min_p * prob.amax(-1, keepdim=True)
        prob = prob.masked_fill(prob < least, 0.0)
    if 0 < sampling.top_k < prob.shape[-1]:
        highest = prob.topk(sampling.top_k, dim=-1).values
        least = highest[:, -1:]  # ids that tie with the last one stay, too
        prob = prob.masked_fill(prob < least, 0.0)
    if sampling.top_p < 1.0:
        keep = nucleus if prob.shape[-1] > SORTED else nucleus_by_sorting
        prob = prob.masked_fill(~keep(prob, sampling.top_p), 0.0)
    return prob


def nucleus_by_sorting(prob: Tensor, top_p: float) -> Tensor:
    """The fewest ids [N, V] (True) whose weights [N, V] pass top_p of their sum; of equal weights the lower ids first.

    An id stays while what comes before it is less than top_p of the present sum, which is below 1 once min-p or top-k
    have cut; the first always stays.
    """
    # Stable: among equal probabilities the lower ids are kept, on every machine.
    ordered, order = prob.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    inside = before < top_p * ordered.sum(-1, keepdim=True)
    return torch.zeros_like(inside).scatter(1, order, inside)


def nucleus(prob: Tensor, top_p: float) -> Tensor:
    """The same set without sorting, for large vocabularies: a search for the least weight that stays.

    Non-negative floats are ordered as their bits are, so halving the range of bits finds that weight exactly, in one
    pass over the row per bit. Nothing is asked of the device meanwhile.
    """
    bits = torch.int64 if prob.dtype == torch.float64 else torch.int32
    level = top_p * prob.sum(-1, keepdim=True, dtype=torch.float64)
    # The least weight above which less than the level lies: it is in low .. high.
    low = torch.zeros(len(prob), 1, dtype=bits, device=prob.device)
    high = prob.amax(-1, keepdim=True).view(bits)
    for _ in range(8 * prob.element_size() - 1):
        middle = low + (high - low) // 2
        above = _mass_above(prob, middle.view(prob.dtype))
        enough = above < level
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, torch.minimum(middle + 1, high))
    least = high.view(prob.dtype)
    # Of those that weigh exactly as much the lower ids stay, as many as the level needs.
    ties = prob == least
    rank = ties.cumsum(-1) - 1
    before = _mass_above(prob, least) + rank * least.double()
    return (prob > least) | (ties & (before < level))


def _mass_above(prob: Tensor, least: Tensor) -> Tensor:
    """Sum of the weights [N, V] above a bound [N, 1], in double precision."""
    return prob.masked_fill(prob <= least, 0.0).sum(-1, keepdim=True, dtype=torch.float64)


def drawn(prob: Tensor, uniform: Tensor) -> Tensor:
    """Token ids [N]: where the cumulated probabilities [N, V] pass uniform [N] in [0, 1) times their sum."""
    cumulated = prob.cumsum(-1)
    level = uniform[:, None].to(cumulated.dtype) * cumulated[:, -1:]
    at = torch.searchsorted(cumulated, level, right=True)
    # Rounding can put u·sum on or beyond the last step: take the last id that may be drawn.
    width = prob.shape[-1]
    drawable = prob.flip(-1).gt(0).to(torch.uint8)
    last = width - 1 - drawable.argmax(-1, keepdim=True)
    return torch.minimum(at, last).squeeze(1)


def uniforms(seeds: Sequence[tuple[int | str, ...]], length: int) -> Tensor:
    """float32 [N, length] in [0, 1): one reproducible row per answer, independent of all other answers."""
    rows = [torch.rand(length, generator=generator(*seed)) for seed in seeds]
    return torch.stack(rows)
