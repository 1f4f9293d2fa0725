"""Exact divergences of two distributions over the vocabulary, and their slopes, from the log-probs of one tile.

Formulas: `logprobs.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmrl.types import Divergence

LOG_2 = 0.6931471805599453


def _kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a‖b) [n] from log-probs [n, V]."""
    return torch.linalg.vecdot(a.exp(), a - b)


def _mean_logp(a: Tensor, b: Tensor) -> Tensor:
    """log((e^a + e^b)/2)."""
    return torch.logaddexp(a, b).sub_(LOG_2)


def tile_divergence(a: Tensor, b: Tensor, kind: Divergence | None) -> Tensor:
    """Divergence [n] of one tile from the log-probs [n, V] of both sides."""
    if kind == "forward":
        return _kl(a, b)
    if kind == "reverse":
        return _kl(b, a)
    if kind == "symmetric":
        return 0.5 * (_kl(a, b) + _kl(b, a))
    middle = _mean_logp(a, b)
    return 0.5 * (_kl(a, middle) + _kl(b, middle))


def divergence_slopes(
    logps: list[Tensor], kind: Divergence, grad: Tensor
) -> list[Tensor | None]:
    """d divergence / d logits of both sides [n, V], weighted by the incoming gradient [n]. Formulas: see the head."""
    a, b = logps
    p, q = a.exp(), b.exp()
    g = grad[:, None].to(a.dtype)
    if kind == "js":
        middle = _mean_logp(a, b)
        return [_js_slope(p, a, middle, g), _js_slope(q, b, middle, g)]
    if kind == "forward":
        return [_own_slope(p, a, b) * g, (q - p) * g]
    if kind == "reverse":
        return [(p - q) * g, _own_slope(q, b, a) * g]
    ahead, back = _own_slope(p, a, b), _own_slope(q, b, a)
    return [0.5 * g * (ahead + p - q), 0.5 * g * (back + q - p)]


def _own_slope(p: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """d KL(a‖b) / d logits of a, with p = exp(a)."""
    return p * (a - b - _kl(a, b)[:, None])


def _js_slope(p: Tensor, a: Tensor, middle: Tensor, g: Tensor) -> Tensor:
    """One side's part of the Jensen–Shannon slope. `middle` needs no slope of its own: it is the best middle."""
    return 0.5 * g * p * (a - middle - _kl(a, middle)[:, None])
