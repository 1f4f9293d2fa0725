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
        # Stable: among equal probabilities the lower ids are kept, on every machine.
        ordered, order = prob.sort(dim=-1, descending=True, stable=True)
        before = (
            ordered.cumsum(-1) - ordered
        )  # what comes before an id; 0 for the first, which always stays
        # Of the present sum, which is below 1 once min-p or top-k have cut.
        outside = before >= sampling.top_p * ordered.sum(-1, keepdim=True)
        back = torch.zeros_like(outside).scatter(1, order, outside)
        prob = prob.masked_fill(back, 0.0)
    return prob


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
