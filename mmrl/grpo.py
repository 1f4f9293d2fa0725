"""GRPO: the numbers of the core, and the loss of one micro-batch.

    loss = reduce(w · surrogate(logp, old, A)) + kl · reduce(k(logp, ref)) - entropy · mean(H)
           + Σ over objectives, terms: reduce(term)

with H the entropy of the policy over the vocabulary (a token mean whatever the rule), w the engine-mismatch weight (1
if off), k the chosen estimator, and every reduction over GLOBAL counts (`reduce.py`): add up the losses of an update's
micro-batches and the gradients of all ranks, never average them. The surrogate is reduced by its own rule if it is
marked with one, everything else by `GRPO.reduction`; an objective may fix rules of its own terms in a class attribute
`reductions` (term name -> rule). An objective that owns the surrogate brings the policy's loss itself, as terms.

Old log-probs are `batch.scores["raw"]`, or the current ones without gradient when none were stored (one update per
rollout). Log-probs that nobody may read (padding, observations, untrained answers) are zeroed before anything else, so
NaN there reaches neither the loss nor a gradient.

Metrics are summands too: add them up over the micro-batches of an update; names ending in `_max` take the maximum.

Departures
1. `kl_importance` multiplies the KL by the token ratio, which makes k3 unbiased off policy. TRL 1.16 does so by default
   (with a sequence ratio for sequence-level surrogates); verl, EasyR1 and PAPO do not.
2. Defaults are verl's (token mean, dual clip 3, no KL); TRL has no dual clip and truncates the mismatch by default.
3. An objective whose coefficients are zero adds no term, so the loss is bit-equal to GRPO's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.losses import importance, kl
from mmrl.losses.advantages import token_reward
from mmrl.losses.group_filters import overlong_penalty
from mmrl.losses.reduce import Reduction, Totals, keep, reduced, token_mean
from mmrl.losses.surrogates import (
    Clip,
    Surrogate,
    bounded_ratio,
    clip_range,
    own_reduction,
    ratio_metrics,
)
from mmrl.objectives.base import LiveScores, Objective, TokenMaps
from mmrl.types import Batch, Now, Role, Rollout, Scores, Shaped


@dataclass(frozen=True)
class GRPO:
    """The numbers of the core."""

    clip_low: float = 0.2
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is clipped above at 1 + clip_high (DAPO: 0.28)."""
    dual_clip: float | None = 3.0
    """Bound of the loss for negative advantages, in units of the advantage; None turns it off."""
    kl: float = 0.0
    """Weight of the KL to the reference policy; 0 needs no reference."""
    kl_kind: Literal["k1", "k2", "k3", "abs", "exact"] = "k3"
    """Estimator from the sampled tokens, or "exact" over the vocabulary."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Penalise in the loss, or in the token rewards before the advantage (then k1 is the right kind)."""
    kl_importance: bool = False
    """Multiply the KL in the loss by the token ratio (TRL's default)."""
    entropy: float = 0.0
    """Weight of the bonus for exact entropy over the vocabulary, a token mean; maximised. 0 computes none."""
    reduction: Reduction = "token"
    """token mean, sequence mean of token means, mean of sequence sums, or sums over a constant length."""
    length_constant: int = 0
    """Tokens that the "constant" reduction divides by, usually the longest allowed answer."""
    mismatch: Literal["off", "truncate", "mask"] = "off"
    """Correct sampler against trainer probabilities by truncated or masked importance weights."""
    mismatch_level: Literal["token", "sequence"] = "token"
    """Weight each token, or whole answers."""
    mismatch_cap: float = 2.0
    """Largest mismatch weight."""
    overlong_buffer: int = 0
    """Tokens before the longest answer in which the soft length penalty rises; 0 turns it off."""
    overlong_factor: float = 1.0
    """Penalty at the longest answer."""
    drop_truncated: bool = False
    """Do not train answers that were cut off (overlong filtering)."""

    def __post_init__(self) -> None:
        dual, constant = self.dual_clip, self.reduction == "constant"
        length_fits = self.length_constant > 0 or (not constant and self.length_constant == 0)
        require(
            self,
            clip_low=(0 <= self.clip_low <= 1, "in [0, 1]"),
            clip_high=(self.clip_high >= 0, "0 or positive"),
            dual_clip=(dual is None or dual > 1, "above 1, or None to turn it off"),
            kl=(self.kl >= 0, "0 or positive"),
            entropy=(self.entropy >= 0, "0 (off) or positive"),
            kl_importance=(
                not self.kl_importance or self.kl_in == "loss",
                "False when kl_in is 'reward'",
            ),
            length_constant=(
                length_fits,
                "a positive number of tokens when reduction is 'constant'",
            ),
            mismatch_cap=(self.mismatch_cap > 0, "positive"),
            overlong_buffer=(self.overlong_buffer >= 0, "0 (off) or positive"),
            overlong_factor=(self.overlong_factor >= 0, "0 or positive"),
        )


def loss(
    grpo: GRPO,
    surrogate: Surrogate,
    batch: Batch,
    live: LiveScores,
    objectives: Sequence[Objective],
    totals: Totals,
    now: Now,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summand of one micro-batch: scalar with gradient, and detached metrics.

    `live["raw"]` carries gradient; `live["ref"]` (or `batch.scores["ref"]`) is read if there is a KL in the loss.
    `batch` and `live` hold the same rows; `totals` counts the whole update.
    """
    parts, metrics = losses(grpo, surrogate, batch, live, objectives, totals, now)
    total = torch.stack(list(parts.values())).sum()  # in the order of the parts, which is fixed
    metrics |= {f"loss/{name}": part.detach() for name, part in parts.items()}
    metrics["loss/total"] = total.detach()
    return total, metrics


def losses(
    grpo: GRPO,
    surrogate: Surrogate,
    batch: Batch,
    live: LiveScores,
    objectives: Sequence[Objective],
    totals: Totals,
    now: Now,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The named parts that `loss` adds up, each a scalar with gradient, and the metrics that are not losses."""
    batch, live = _readable(batch, live)
    raw, mask = live["raw"], batch.mask
    # With one update per step nothing is stored: the policy's own log-probs are the old ones, and the ratio is 1.
    old = raw.logp.detach()
    if "raw" in batch.scores:
        old = batch.scores["raw"].logp
    clip = clip_range(surrogate, old, batch.advantage, mask, grpo.clip_low, grpo.clip_high)
    metrics = _policy_metrics(grpo, live, old, batch, totals, clip)

    parts: dict[str, Tensor] = {}
    # Whoever owns the surrogate brings the policy's loss as terms.
    if not any("surrogate" in objective.owns() for objective in objectives):
        parts["policy"], of_mismatch = _policy_loss(grpo, surrogate, raw, old, batch, totals)
        metrics |= of_mismatch

    if grpo.kl > 0 and grpo.kl_in == "loss":
        divergence = kl_map(grpo, raw.logp, _reference(live, batch))
        metrics["policy/kl_ref"] = token_mean(divergence.detach(), mask, totals)
        weight = bounded_ratio(raw.logp - old) if grpo.kl_importance else 1.0
        penalty = grpo.kl * divergence * weight
        parts["kl"] = _reduced(grpo, penalty, mask, totals, grpo.reduction)

    if grpo.entropy > 0:
        bonus = -grpo.entropy * _entropy(raw)
        parts["entropy_bonus"] = _reduced(grpo, bonus, mask, totals, "token")
    own = batch.shaped or [Shaped(batch.advantage) for _ in objectives]
    for objective, shaped in zip(objectives, own, strict=True):
        seen = replace(batch, kept=shaped.kept)
        _add_terms(parts, objective, live, seen, grpo, totals, now)
        metrics |= _objective_metrics(objective, shaped, live, seen, totals, now)
    if not parts:
        owners = [type(one).__name__ for one in objectives if "surrogate" in one.owns()]
        raise ValueError(
            f"{owners[0]} owns the surrogate, but its terms are empty; return the policy's loss as a term."
        )
    return parts, metrics


def _policy_loss(
    grpo: GRPO,
    surrogate: Surrogate,
    raw: Scores,
    old: Tensor,
    batch: Batch,
    totals: Totals,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The surrogate as a number, and what is logged of the engine-mismatch weights."""
    mask, metrics = batch.mask, dict[str, Tensor]()
    policy = surrogate(
        raw.logp,
        old,
        batch.advantage,
        mask,
        clip_low=grpo.clip_low,
        clip_high=grpo.clip_high,
        dual_clip=grpo.dual_clip,
    )
    if grpo.mismatch != "off":
        weight = mismatch_weight(grpo, old, batch)
        policy = policy * weight
        metrics["policy/mismatch_weight"] = token_mean(weight, mask, totals)
        metrics["policy/mismatch_weight_max"] = _largest(weight, mask)
    # A surrogate of whole answers (GSPO, GMPO) is only itself under its own reduction.
    rule = own_reduction(surrogate) or grpo.reduction
    return _reduced(grpo, policy, mask, totals, rule), metrics


def _add_terms(
    parts: dict[str, Tensor],
    objective: Objective,
    live: LiveScores,
    batch: Batch,
    grpo: GRPO,
    totals: Totals,
    now: Now,
) -> None:
    """Reduce an objective's terms and add them to the parts; terms of one name from several objectives add up."""
    for name, x in objective.terms(live, batch, now).items():
        _check_map(objective, name, x, batch.mask)
        # A term keeps its paper's rule whatever the surrogate's is: an entropy is a token mean in every run of PAPO.
        rule = objective.reductions.get(name, grpo.reduction)
        part = _reduced(grpo, x, batch.mask, totals, rule)
        parts[name] = parts[name] + part if name in parts else part


@torch.no_grad()
def _objective_metrics(
    objective: Objective,
    shaped: Shaped,
    live: LiveScores,
    batch: Batch,
    totals: Totals,
    now: Now,
) -> dict[str, Tensor]:
    """What an objective logs of its `shape` and of its `metrics`, as summands or maxima under its own name."""
    maps: TokenMaps = {}
    for name, value in shaped.logged.items():
        # A number of the step becomes a constant map, so that adding up micro-batches gives the number again.
        known = isinstance(value, Tensor)
        maps[name] = value if known else torch.full_like(batch.advantage, value)
    maps |= objective.metrics(live, batch, now)
    prefix = type(objective).__name__.lower()
    found: dict[str, Tensor] = {}
    for name, x in maps.items():
        _check_map(objective, name, x, batch.mask)
        if name.endswith("_max"):
            found[f"{prefix}/{name}"] = _largest(x, batch.mask)
        else:
            found[f"{prefix}/{name}"] = token_mean(x, batch.mask, totals)
    return found


def kl_map(grpo: GRPO, logp: Tensor, ref: Scores) -> Tensor:
    """The divergence of the policy to the reference as `kl_kind` says; [B, T]. Padding must be clean."""
    return kl.between(grpo.kl_kind, logp, ref.logp, ref.divergence)


def with_overlong_penalty(
    grpo: GRPO, rollouts: Sequence[Rollout], max_tokens: int
) -> list[Rollout]:
    """Paid answers with the penalty for those that come close to `max_tokens`, as a part `overlong`."""
    if not grpo.overlong_buffer:
        return list(rollouts)
    out: list[Rollout] = []
    for rollout in rollouts:
        penalty = overlong_penalty(
            len(rollout.tokens),
            max_tokens,
            buffer=grpo.overlong_buffer,
            factor=grpo.overlong_factor,
        )
        reward = (rollout.reward or 0.0) + penalty
        parts = {**rollout.parts, "overlong": penalty}
        out.append(replace(rollout, reward=reward, parts=parts))
    return out


def apply_kl_in_reward(grpo: GRPO, batch: Batch) -> Tensor:
    """What the estimator is paid: token rewards [B, T] = reward on the last token - kl · divergence of each token.

    The rewards [B] as they are, if there is no KL in the reward. Needs stored "raw" and "ref" scores.
    """
    if grpo.kl == 0 or grpo.kl_in != "reward":
        return batch.reward
    for name in ("raw", "ref"):
        if name not in batch.scores:
            raise ValueError(
                f"GRPO.kl_in is 'reward', but the batch has no {name!r} scores (it has {sorted(batch.scores)}); "
                "score it before the advantages, or use kl_in='loss'."
            )
    batch, _ = _readable(batch, {})
    divergence = kl_map(grpo, batch.scores["raw"].logp, batch.scores["ref"])
    penalty = keep(divergence, batch.mask)
    # Detached: in the reward the penalty is a number that is paid, not a path for the gradient.
    return token_reward(batch.reward, batch.mask) - grpo.kl * penalty.detach()


def mismatch_weight(grpo: GRPO, old: Tensor, batch: Batch) -> Tensor:
    """The engine-mismatch weight as `grpo.mismatch` says, detached, 0 on padding; [B, T]. Needs "sampler" scores."""
    if "sampler" not in batch.scores:
        raise ValueError(
            f"GRPO.mismatch is {grpo.mismatch!r}, but there are no 'sampler' scores (there are {sorted(batch.scores)});"
            " use an engine that returns its log-probs, or mismatch='off'."
        )
    # Of the old probabilities, not the present ones: the ratio corrects the engine, the surrogate corrects the update.
    weight = importance.importance(
        old, batch.scores["sampler"].logp, batch.mask, level=grpo.mismatch_level
    )
    bound = (
        importance.truncated_weight if grpo.mismatch == "truncate" else importance.masked_weight
    )
    return bound(weight, cap=grpo.mismatch_cap)


def _entropy(raw: Scores) -> Tensor:
    """Exact entropy of the policy; [B, T]."""
    if raw.entropy is None:
        raise ValueError(
            "GRPO.entropy is positive, but the raw view was scored without entropy; score it with entropy=True, "
            "or set entropy=0."
        )
    return raw.entropy


def _reference(live: LiveScores, batch: Batch) -> Scores:
    """Scores of the reference policy."""
    # Live where an exact divergence must see the present weights, else as scored before the update.
    ref = live.get("ref") or batch.scores.get("ref")
    if ref is None:
        raise ValueError(
            "GRPO.kl is positive, but there are no 'ref' scores; score the reference policy, or set kl=0."
        )
    return ref


def _readable(batch: Batch, live: LiveScores) -> tuple[Batch, dict[str, Scores]]:
    """Batch and live scores with 0 wherever nothing may be read: neither trained nor hint nor expert tokens."""
    written = (batch.roles == Role.HINT) | (batch.roles == Role.EXPERT)
    read = batch.mask.bool() | written

    def cleaned(several: Mapping[str, Scores]) -> dict[str, Scores]:
        return {name: scores.at(read) for name, scores in several.items()}

    advantage = keep(batch.advantage, batch.mask)
    stored = cleaned(batch.scores)
    return replace(batch, advantage=advantage, scores=stored), cleaned(live)


def _policy_metrics(
    grpo: GRPO,
    live: LiveScores,
    old: Tensor,
    batch: Batch,
    totals: Totals,
    clip: tuple[Clip, Clip],
) -> dict[str, Tensor]:
    """Token means: what the ratio does, surprise -logp, entropy, distance to the sampler, k3 to each branch."""
    raw, mask = live["raw"], batch.mask
    logp = raw.logp.detach()
    low, high = clip
    maps = ratio_metrics(
        logp,
        old,
        batch.advantage,
        mask,
        clip_low=low,
        clip_high=high,
        dual_clip=grpo.dual_clip,
    )
    maps["surprise"] = -logp  # an entropy that costs nothing
    if raw.entropy is not None:
        maps["entropy"] = raw.entropy.detach()
    if "sampler" in batch.scores:
        maps["mismatch"] = (old - batch.scores["sampler"].logp).abs()
    metrics: dict[str, Tensor] = {}
    for name, x in maps.items():
        metrics[f"policy/{name}"] = token_mean(x, mask, totals)
    metrics["policy/ratio_max"] = _largest(maps["ratio"], mask)
    if "mismatch" in maps:
        metrics["policy/mismatch_max"] = _largest(maps["mismatch"], mask)
    for name in live.keys() - {"raw", "ref", "sampler"}:
        distance = kl.k3(logp, live[name].logp.detach())
        metrics[f"branch/{name}/kl"] = token_mean(distance, mask, totals)
    return metrics


def _reduced(grpo: GRPO, x: Tensor, mask: Tensor, totals: Totals, rule: Reduction) -> Tensor:
    """A token map as a number under the rule."""
    return reduced(x, mask, totals, rule, grpo.length_constant)


def _largest(x: Tensor, mask: Tensor) -> Tensor:
    """The largest value on a trained token, 0 if all are negative or there is none."""
    if not x.numel():  # a batch without answers has no largest number
        return x.new_zeros(())
    return keep(x, mask).amax()


def _check_map(objective: Objective, name: str, x: Tensor, mask: Tensor) -> None:
    """Every term and metric is a token map."""
    if x.shape != mask.shape:
        raise ValueError(
            f"{type(objective).__name__} returned {name!r} of shape {tuple(x.shape)}; the core reduces token maps of "
            f"shape [B, T] = {tuple(mask.shape)}: do not average inside the objective."
        )
