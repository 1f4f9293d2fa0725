"""Divergences between two policies: per-token estimators from sampled log-probs, exact forms from logits.

Estimators take the log-probs of the *sampled* tokens, `a` under the policy that is trained (and, on policy, sampled the
tokens) and `b` under the other one (reference, masked image, ...). With u = b - a, for tokens drawn from a:

    k1  = -u              unbiased for KL(a‖b); E[grad] = 0, so useless as a loss, right as a reward penalty
    k2  = u² / 2          biased in value;      E[grad] = grad KL(a‖b)
    k3  = exp(u) - u - 1  unbiased in value;    E[grad] = grad KL(b‖a), the *other* direction; never negative
    abs = |u|

(Schulman's note "Approximating KL Divergence"; gradients with respect to a, checked in the tests.)

Exact forms take logits (or log-softmax, which is a fixed point of log_softmax) of shape [..., V] and return [...]. They
materialise the vocabulary axis: reference for tests and small vocabularies; the chunked forms live in `logprobs.py`.

Departures
1. verl, EasyR1 and PAPO clamp u to ±20 and k3 to ±10 (default here); TRL clamps nothing (`log_ratio_max=None,
   value_max=None`). Where a clamp binds, the gradient is zero.
2. verl's straight-through names ("k1+", "k3+") raise in the inspected commit and are not offered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from mmrl.types import Divergence

SampledKL = Literal["k1", "k2", "k3", "abs"]
"""Estimators on the log-probs of sampled tokens."""
Estimate = Callable[[Tensor, Tensor], Tensor]


def k1(a: Tensor, b: Tensor) -> Tensor:
    """Log-ratio a - b; any shape, broadcast."""
    return a - b


def k2(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared log-ratio; any shape, broadcast."""
    return 0.5 * (a - b).square()


def k3(
    a: Tensor,
    b: Tensor,
    *,
    log_ratio_max: float | None = 20.0,
    value_max: float | None = 10.0,
) -> Tensor:
    """exp(u) - u - 1 with u = b - a; any shape, broadcast.

    `log_ratio_max` clamps u to ± itself before the exponential, `value_max` clamps the outcome to ± itself; None: off.
    """
    u = b - a
    if log_ratio_max is not None:
        u = u.clamp(-log_ratio_max, log_ratio_max)
    # expm1 keeps precision where the policies nearly agree; exp(u) - 1 would lose it and may turn negative.
    value = torch.expm1(u) - u
    return value if value_max is None else value.clamp(-value_max, value_max)


def absolute(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|; any shape, broadcast. Gradient 0 where both agree."""
    return (a - b).abs()


ESTIMATORS: Mapping[SampledKL, Estimate] = MappingProxyType(
    {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}
)
"""The estimators by the names that settings use."""


def between(
    kind: SampledKL | Literal["exact"],
    a: Tensor,
    b: Tensor,
    exact: Tensor | None,
    *,
    value_max: float = 10.0,
) -> Tensor:
    """The divergence of a from b that `kind` names; [B, T].

    An estimator on sampled log-probs a and b (k3 clamped to ± `value_max`), or for "exact" the divergence that was
    computed over the vocabulary when the tokens were scored.
    """
    if kind == "k3":
        return k3(a, b, value_max=value_max)
    if kind != "exact":
        return ESTIMATORS[kind](a, b)
    if exact is None:
        raise ValueError(
            "the kind of divergence is 'exact', but the branch was scored without one; score it with "
            "divergence='forward' (an objective asks for it in `needs`), or use an estimator such as 'k3'."
        )
    return exact


def forward_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a‖b) over the vocabulary; logits [..., V] -> [...]. Infinite where b excludes a token that a allows."""
    log_a = torch.log_softmax(a, -1)
    log_b = torch.log_softmax(b, -1)
    return _expectation(log_a, log_b)


def reverse_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(b‖a) over the vocabulary; logits [..., V] -> [...]."""
    return forward_kl(b, a)


def symmetric_kl(a: Tensor, b: Tensor) -> Tensor:
    """Mean of KL(a‖b) and KL(b‖a) (half of Jeffreys' divergence); logits [..., V] -> [...]."""
    return 0.5 * (forward_kl(a, b) + forward_kl(b, a))


def jensen_shannon(a: Tensor, b: Tensor) -> Tensor:
    """Mean KL of a and of b to their mixture, in [0, log 2]; logits [..., V] -> [...]."""
    log_a = torch.log_softmax(a, -1)
    log_b = torch.log_softmax(b, -1)
    mixture = _log_mean(log_a, log_b)
    return 0.5 * (_expectation(log_a, mixture) + _expectation(log_b, mixture))


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits); [..., V] -> [...]. Tokens at -inf count as impossible."""
    log_p = torch.log_softmax(logits, -1)
    # Σ p · (log p - 0) = -H, computed by the sum that is safe for impossible tokens.
    return _expectation(log_p, torch.zeros_like(log_p)).neg()


EXACT: Mapping[Divergence, Estimate] = MappingProxyType(
    {
        "forward": forward_kl,
        "reverse": reverse_kl,
        "symmetric": symmetric_kl,
        "js": jensen_shannon,
    }
)
"""The exact divergences by the names that `ScoreRequest.divergence` uses."""


def _expectation(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Σ_v p(v) · (log p(v) - log q(v)), where impossible tokens (log p = -inf) add nothing, also to the gradient."""
    possible = log_p > -torch.inf
    # Masked twice: 0 · inf would be NaN in the value, and its gradient would be NaN even behind a single where.
    safe_p = torch.where(possible, log_p, 0.0)
    safe_q = torch.where(possible, log_q, 0.0)
    summand = safe_p.exp() * (safe_p - safe_q)  # [..., V]
    return torch.where(possible, summand, 0.0).sum(-1)


def _log_mean(log_a: Tensor, log_b: Tensor) -> Tensor:
    """log((exp(log_a) + exp(log_b)) / 2), -inf where both are."""
    possible = (log_a > -torch.inf) | (log_b > -torch.inf)
    # logaddexp(-inf, -inf) has a NaN gradient, so both are replaced before it and the outcome after it.
    safe_a = torch.where(possible, log_a, 0.0)
    safe_b = torch.where(possible, log_b, 0.0)
    mean = torch.logaddexp(safe_a, safe_b) - math.log(2.0)
    return torch.where(possible, mean, -torch.inf)
