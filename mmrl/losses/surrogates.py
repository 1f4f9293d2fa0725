"""Policy-gradient surrogates: per-token losses, minimised.

    surrogate(logp, old, advantage, mask, *, clip_low, clip_high, dual_clip) -> [B, T]

All tensors [B, T]: current log-probs (with gradient), log-probs at sampling time, advantage, trained tokens. Padding is
0 in the outcome and passes no gradient, whatever stands there. ρ = exp(logp - old), A advantage, |o| trained tokens.

    clipped     max(-Aρ, -A·clip(ρ, 1 - low, 1 + high)); A < 0: at most -A·dual_clip       PPO, GRPO, DAPO 2503.14476
    gspo        the same with s = exp(mean_t(logp - old)) for ρ                            2507.18071
    gspo_token  s in value, gradient through each token's own log-prob                     2507.18071, verl's "gspo"
    cispo       -sg(clip(ρ, 1 - low, 1 + high))·A·logp: a clipped token keeps its gradient 2506.13585
    gmpo        -A·exp(mean_t of the log-ratio clipped against A to [-low, high])          2507.20673
    sapo        -A·(4 / τ)·σ(τ(ρ - 1)), τ depends on the sign of A: a soft clip            2511.20347
    reinforce   -A·logp (GPG and plain policy gradient)

How a map becomes a number is the caller's choice (`reduce.py`), unless the method fixes it: such functions are marked
by `@reduces("sequence")`, read through `own_reduction`. An answer-level value is repeated on every token, so that the
mean over the tokens of the answer gives it back. `Bounded(clipped, bounds)` has a clip range for each token.

Departures
1. The log-ratio is clamped to ±20 before the exponential (verl, EasyR1); TRL does not. Sequence ratios: exponent ≤ 20
   (verl 10).
2. TRL's `delta` (two-sided clip: ρ ≤ delta in the unclipped branch) is a keyword of `clipped`; TRL has no dual clip.
3. CISPO clips on both sides as verl and EasyR1. TRL clips from above only, at its `epsilon_high` E itself: that is
   clip_low=1, clip_high=E - 1.
4. `dual_clip` acts in `clipped`, `gspo` and `gspo_token` (EasyR1); verl's GSPO has none: pass None. The others ignore
   it, and `sapo` and `reinforce` ignore the clip range.
5. GMPO's range is in log units, as in verl (paper: 0.4 on both sides).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from mmrl.ground.traits import having, traits_of
from mmrl.losses.reduce import Reduction, keep

LOG_RATIO_MAX = 20.0
"""Largest log-ratio that is exponentiated."""
Clip = float | Tensor
"""How far the ratio may go: one number, or one for each token, [B, T]."""
Bounds = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(old log-probs [B, T], advantage [B, T]) -> smallest and largest ratio of each token, [B, T] each."""


class Surrogate(Protocol):
    """A per-token loss [B, T]."""

    def __call__(
        self,
        logp: Tensor,
        old: Tensor,
        advantage: Tensor,
        mask: Tensor,
        /,
        *,
        clip_low: Clip,
        clip_high: Clip,
        dual_clip: float | None,
    ) -> Tensor: ...


Marked = TypeVar("Marked", bound=Callable[..., Tensor])


def reduces(rule: Reduction) -> Callable[[Marked], Marked]:
    """Mark a surrogate that must be reduced by this rule, whatever the run's reduction is."""

    def mark(function: Marked) -> Marked:
        vars(function)["reduction"] = rule
        return function

    return mark


def own_reduction(surrogate: Callable[..., Any]) -> Reduction | None:
    """The rule a surrogate was marked with, also through functools.partial; None: the run's choice."""
    return getattr(innermost(surrogate), "reduction", None)


def innermost(surrogate: Callable[..., Any]) -> Callable[..., Any]:
    """The function below partials and bounds."""
    # A partial has no attributes of its function; the mark is at the bottom.
    while isinstance(surrogate, functools.partial | Bounded):
        surrogate = surrogate.inner if isinstance(surrogate, Bounded) else surrogate.func
    return surrogate


@dataclass(frozen=True)
class Bounded:
    """A surrogate with a clip range for each token, in the place of the run's `clip_low` and `clip_high`."""

    inner: Surrogate
    """Whose range it is, for example `clipped`."""
    bounds: Bounds
    """From old log-probs and advantage to the range."""

    def traits(self) -> tuple[str, ...]:
        """Its own, and those of the surrogate inside."""
        return ("bounds each ratio", *traits_of(self.inner))

    def __call__(
        self,
        logp: Tensor,
        old: Tensor,
        advantage: Tensor,
        mask: Tensor,
        /,
        *,
        clip_low: Clip = 0.0,
        clip_high: Clip = 0.0,
        dual_clip: float | None = None,
    ) -> Tensor:
        low, high = clip_range(self, old, advantage, mask, clip_low, clip_high)
        return self.inner(
            logp, old, advantage, mask, clip_low=low, clip_high=high, dual_clip=dual_clip
        )


def clip_range(
    surrogate: Callable[..., Any],
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip_low: Clip,
    clip_high: Clip,
) -> tuple[Clip, Clip]:
    """How far below and above 1 the ratio may go: as bounded for each token, detached [B, T], else as given."""
    while isinstance(surrogate, functools.partial):
        surrogate = surrogate.func
    if not isinstance(surrogate, Bounded):
        return clip_low, clip_high
    with torch.no_grad():
        low, high = surrogate.bounds(*_trained(mask, old, advantage))
    for name, bound in (("low", low), ("high", high)):
        if bound.shape != mask.shape:
            raise ValueError(
                f"{getattr(surrogate.bounds, '__qualname__', type(surrogate.bounds).__name__)} gave a {name} bound of "
                f"shape {tuple(bound.shape)}; give one ratio per token, [B, T] = {tuple(mask.shape)}."
            )
    return 1.0 - low, high - 1.0


def clipped(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 0.2,
    clip_high: Clip = 0.2,
    dual_clip: float | None = 3.0,
    delta: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate on token ratios; -> [B, T]. `delta` caps the ratio of the unclipped branch (TRL)."""
    logp, old, advantage = _trained(mask, logp, old, advantage)
    ratio = bounded_ratio(logp - old)
    return _clipped(ratio, advantage, clip_low, clip_high, dual_clip, delta)


@reduces("sequence")
@having("ratio of whole answers")
def gspo(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 3e-4,
    clip_high: Clip = 4e-4,
    dual_clip: float | None = None,
) -> Tensor:
    """Clipped surrogate on the length-normalised sequence ratio, gradient through the mean; -> [B, T]."""
    logp, old, advantage = _trained(mask, logp, old, advantage)
    sequence = answer_mean(logp - old, mask)  # [B, 1]
    ratio = bounded_ratio(sequence).expand(logp.shape)
    return keep(_clipped(ratio, advantage, clip_low, clip_high, dual_clip), mask)


@reduces("sequence")
@having("ratio of whole answers")
def gspo_token(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 3e-4,
    clip_high: Clip = 4e-4,
    dual_clip: float | None = None,
) -> Tensor:
    """GSPO whose gradient runs through each token's own log-prob: allows token-wise advantages; -> [B, T]."""
    logp, old, advantage = _trained(mask, logp, old, advantage)
    sequence = answer_mean(logp - old, mask).detach()  # [B, 1]
    # logp - logp.detach() is 0 in value and brings the gradient of each token's own log-prob.
    ratio = bounded_ratio(sequence + logp - logp.detach())
    return keep(_clipped(ratio, advantage, clip_low, clip_high, dual_clip), mask)


def cispo(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 1.0,
    clip_high: Clip = 4.0,
    dual_clip: float | None = None,
) -> Tensor:
    """Policy gradient weighted by the clipped, detached ratio; -> [B, T]."""
    del dual_clip
    logp, old, advantage = _trained(mask, logp, old, advantage)
    ratio = bounded_ratio(logp - old)
    # Detached: the ratio only weighs, so that a clipped token still learns through logp.
    weight = _between(ratio, 1.0 - clip_low, 1.0 + clip_high).detach()
    return -weight * advantage * logp


@reduces("sequence")
@having("ratio of whole answers")
def gmpo(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 0.4,
    clip_high: Clip = 0.4,
    dual_clip: float | None = None,
) -> Tensor:
    """Geometric mean of the clipped token ratios times the mean advantage of the answer; -> [B, T]."""
    del dual_clip
    logp, old, advantage = _trained(mask, logp, old, advantage)
    log_ratio = logp - old
    inside = _between(log_ratio, -clip_low, clip_high)
    # Pessimistic, as PPO: clip from above where A > 0, from below where A < 0.
    from_above = torch.minimum(log_ratio, inside)
    from_below = torch.maximum(log_ratio, inside)
    bounded = torch.where(advantage >= 0, from_above, from_below)
    ratio = bounded_ratio(answer_mean(bounded, mask))  # [B, 1]
    # The mean advantage serves token-wise advantages too; for one advantage per answer it is that number.
    loss = -answer_mean(advantage, mask) * ratio  # [B, 1]
    return keep(loss.expand(logp.shape), mask)


@reduces("sequence")
@having("has no clip")
def sapo(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 0.0,
    clip_high: Clip = 0.0,
    dual_clip: float | None = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Tensor:
    """Soft adaptive gate in place of a clip: gradient fades smoothly away from ρ = 1; -> [B, T]."""
    del clip_low, clip_high, dual_clip
    logp, old, advantage = _trained(mask, logp, old, advantage)
    ratio = bounded_ratio(logp - old)
    tau = torch.where(advantage > 0, tau_positive, tau_negative)
    # σ has slope 1/4 at 0: with 4 / τ the gradient at ρ = 1 is that of the plain ratio.
    gate = torch.sigmoid(tau * (ratio - 1.0))
    return -advantage * gate * 4.0 / tau


@having("has no clip")
def reinforce(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip = 0.0,
    clip_high: Clip = 0.0,
    dual_clip: float | None = None,
) -> Tensor:
    """-A·logp, no ratio and no clip; -> [B, T]."""
    del old, clip_low, clip_high, dual_clip
    return -keep(advantage, mask) * keep(logp, mask)


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """exp of the log-ratio clamped to ±20; any shape."""
    return log_ratio.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp()


def answer_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the trained tokens of each answer, 0 if there are none; x, mask [B, T] -> [B, 1]."""
    lengths = mask.bool().sum(-1, keepdim=True)  # [B, 1]
    return keep(x, mask).sum(-1, keepdim=True) / lengths.clamp(min=1)


def ratio_metrics(
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    clip_low: Clip,
    clip_high: Clip,
    dual_clip: float | None,
) -> dict[str, Tensor]:
    """How far the policy has moved, without gradient; token maps [B, T], 0 on padding.

    `clip_high`: A > 0 and ρ above the range; `clip_low`: A < 0 and ρ below; `clip_dual`: A < 0 and ρ above dual_clip
    (shares once averaged: clip_high + clip_low is verl's pg_clipfrac). `ratio`: ρ itself; `kl_old`: k1 = old - logp.
    Always token ratios, also for surrogates that clip the ratio of a whole answer.
    """
    with torch.no_grad():
        logp, old, advantage = _trained(mask, logp, old, advantage)
        log_ratio = logp - old
        ratio = bounded_ratio(log_ratio)
        positive, negative = advantage > 0, advantage < 0
        dual = torch.zeros_like(negative)
        if dual_clip is not None:
            dual = negative & (ratio > dual_clip)
        maps = {
            "clip_high": (positive & (ratio > 1.0 + clip_high)).float(),
            "clip_low": (negative & (ratio < 1.0 - clip_low)).float(),
            "clip_dual": dual.float(),
            "ratio": ratio,
            "kl_old": -log_ratio,
        }
        return {name: keep(x, mask) for name, x in maps.items()}


def _between(x: Tensor, low: Clip, high: Clip) -> Tensor:
    """x, no less than low and no more than high; both numbers or both [B, T]."""
    bounds: Any = (low, high)  # torch types its two kinds apart
    return x.clamp(*bounds)


def _trained(mask: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
    """Token maps [B, T] with 0 on padding, before anything is computed: 0 · NaN would be NaN on the way back."""
    return tuple(keep(x, mask) for x in maps)


def _clipped(
    ratio: Tensor,
    advantage: Tensor,
    clip_low: Clip,
    clip_high: Clip,
    dual_clip: float | None,
    delta: float | None = None,
) -> Tensor:
    """The pessimistic of the plain and the clipped loss, bounded for negative advantages; [B, T]."""
    free = ratio if delta is None else ratio.clamp(max=delta)
    inside = _between(ratio, 1.0 - clip_low, 1.0 + clip_high)
    # The maximum of two losses is pessimistic: a ratio beyond the range earns no further gain, hence no gradient.
    loss = torch.maximum(-advantage * free, -advantage * inside)
    if dual_clip is None:
        return loss
    # A < 0 and ρ huge: the loss -Aρ has no upper end without this.
    bounded = torch.minimum(loss, -advantage * dual_clip)
    return torch.where(advantage < 0, bounded, loss)
