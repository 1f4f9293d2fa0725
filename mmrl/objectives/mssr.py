"""MSSR, stable single-rollout RL (arXiv 2512.18215): one answer per prompt, a remembered baseline, an entropy bonus.

Each prompt x keeps a Beta posterior of its success rate, v̂ = α / (α + β). With r ∈ {0, 1} the reward and v̂ *before* the
update:

    A = r - v̂, normalised over the batch to mean 0 and (population) variance 1
    Â_t = A + min(lambda_entropy·H_t, |A| / gamma)
    α ← η·α + r,  β ← η·β + (1 - r)

η forgets faster or slower with K̄, the mean over the last `window` steps of the k3 from the sampling policy to the
reference: η = eta_min + (K̄ / target)·(eta_max - eta_min) for K̄ ≤ target, eta_min above (a sawtooth, as printed and
coded); the middle before the first step. α₀ = N₀·v̂₀, β₀ = N₀·(1 - v̂₀) with N₀ = 1 / (1 - eta_min) and v̂₀ from a first
pass (`SuccessMemory.start`), or 0.5 for unseen prompts. H_t is -p log p of the sampled token (official code), or exact.

This objective owns the advantage: whatever the estimator said is replaced, unless `baseline=False`. Posteriors and
window are its memory (`SuccessMemory`), which the trainer owns and carries through a checkpoint.

Departures
1. The paper prints gamma 0.4 and lambda 2.0; the code has min(0.4·H, |A| / 2), which cannot flip a sign, and so do we.
2. The code's window is 10 (its setting of 20 is never passed); ours is a field, 10 by default.
3. The code sums an answer's KL over its padding too before it divides by the length; ours is masked.
4. Not offered: forgetting per prompt, prioritised sampling, the text-only KL (computed without gradient there).
5. One answer in the batch keeps its raw advantage, and equal advantages give 0, as in the code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses import kl
from mmrl.losses.reduce import Totals, keep, token_mean
from mmrl.losses.surrogates import answer_mean
from mmrl.objectives.base import LiveScores, Objective, ScoreRequest, TokenMaps
from mmrl.types import Batch, Now, Scores, Shaped


@dataclass(frozen=True)
class MSSR(Objective):
    """Single rollout with a per-prompt baseline and an entropy-shaped advantage."""

    lambda_entropy: float = 0.4
    """Weight of the token entropy in the advantage; 0 gives the plain single-rollout baseline."""
    gamma: float = 2.0
    """The entropy bonus is at most the absolute advantage over this."""
    eta_min: float = 0.875
    """Strongest forgetting: share of the old counts that is kept per visit."""
    eta_max: float = 0.96
    """Weakest forgetting."""
    target: float = 0.01
    """KL to the reference at which forgetting is weakest; above it is strongest."""
    window: int = 10
    """Steps over which the KL is averaged."""
    threshold: float = 0.5
    """Rewards above this count as a success for the posterior."""
    entropy: Literal["sampled", "exact"] = "sampled"
    """-p log p of the sampled token, or the entropy over the vocabulary."""
    baseline: bool = True
    """Replace the estimator's advantage by reward minus remembered success rate."""

    single_rollout: ClassVar[bool] = True
    """Meaningless with an estimator or a filter that compares the answers of a group."""
    off: ClassVar[Mapping[str, Any]] = {"lambda_entropy": 0.0, "baseline": False}
    remedies: ClassVar[Mapping[str, str]] = {
        "entropy": "lower MSSR.lambda_entropy, and keep the cap at gamma 2 (the printed 0.4 lets the bonus flip signs)",
    }

    def __post_init__(self) -> None:
        require(
            self,
            lambda_entropy=(self.lambda_entropy >= 0, "0 (off) or positive"),
            gamma=(self.gamma > 0, "positive"),
            eta_min=(0 <= self.eta_min < 1, "in [0, 1)"),
            eta_max=(self.eta_min <= self.eta_max <= 1, "in [eta_min, 1]"),
            target=(self.target > 0, "positive"),
            window=(self.window >= 1, "at least 1"),
        )

    def remembers_prompts(self) -> bool:
        """The success of each, unless it only adds its bonus."""
        return self.baseline

    def owns(self) -> tuple[Slot, ...]:
        """The advantage, unless it only adds its bonus."""
        return ("estimator",) if self.baseline else ()

    def score_requests(self) -> tuple[ScoreRequest, ...]:
        """Stored scores of policy and reference for the memory, of the policy for the entropy."""
        if not self.baseline and self.lambda_entropy == 0:
            return ()
        entropy = self.entropy == "exact" and self.lambda_entropy > 0
        raw = ScoreRequest("raw", stage="shape", entropy=entropy)
        if not self.baseline:
            return (raw,)
        # The forgetting follows the KL to the reference, whether or not the loss has one.
        return raw, ScoreRequest("ref", stage="shape")

    def start_memory(self) -> SuccessMemory:
        """No prompt seen, no step's KL."""
        return SuccessMemory(self)

    def shape(
        self, advantage: Tensor, batch: Batch, now: Now, memory: SuccessMemory | None = None
    ) -> Shaped:
        """The shaped advantage. Updates the posteriors of the batch's prompts in the memory.

        Logs bonus, share of tokens at its cap, r - v̂ and its absolute value (how well v̂ predicts), and of the memory
        after this step's update the success rate, the forgetting and the KL of the window.
        """
        logged: dict[str, float | Tensor] = {}
        if self.baseline:
            if memory is None:
                raise ValueError(
                    "MSSR.shape got no memory; pass the one that start_memory() made for this run (the trainer does)."
                )
            advantage, logged = self._surplus(batch, memory)
        if self.lambda_entropy == 0:
            return Shaped(advantage, logged)
        bonus = self.bonus(advantage, self._entropy(batch))
        at_cap = bonus >= advantage.abs() / self.gamma
        capped = (at_cap & (advantage != 0)).to(bonus)
        totals = Totals.of(batch.mask)
        logged["bonus"] = float(token_mean(bonus, batch.mask, totals))
        logged["capped"] = float(token_mean(capped, batch.mask, totals))
        return Shaped(keep(advantage + bonus, batch.mask), logged)

    def _surplus(
        self, batch: Batch, memory: SuccessMemory
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        """r - v̂, whitened, on every token [B, T], and what is logged of it and of the memory."""
        prompts = [rollout.prompt.id for rollout in batch.rollouts]
        before = memory.values(prompts).to(batch.reward)
        surplus = batch.reward - before
        # Only now: the baseline is what was remembered before these answers.
        memory.observe(prompts, batch.reward, self.answer_kl(batch))
        after = memory.values(prompts).to(batch.advantage)
        logged = {
            "surplus": float(surplus.nanmean()),
            "surplus_abs": float(surplus.abs().nanmean()),
            "value": after.unsqueeze(-1).expand_as(batch.mask),
            "forgetting": memory.forgetting(),
            "kl_window": memory.mean_kl(),
        }
        gain = whitened(surplus).unsqueeze(-1)  # [B, 1]
        return keep(gain.expand(batch.mask.shape), batch.mask), logged

    def bonus(self, advantage: Tensor, entropy: Tensor) -> Tensor:
        """min(lambda_entropy·H, |A| / gamma), never negative for H ≥ 0; [B, T]."""
        # The cap keeps the sign of the advantage, and an advantage of 0 gets no bonus at all.
        cap = advantage.abs() / self.gamma
        return torch.minimum(self.lambda_entropy * entropy, cap)

    def answer_kl(self, batch: Batch) -> Tensor:
        """Mean k3 from the sampling policy to the reference over the tokens of each answer; [B]."""
        if "ref" not in batch.scores:
            raise ValueError(
                f"MSSR adapts its memory to the KL to the reference, but there are only {sorted(batch.scores)} scores; "
                "set grpo.kl above 0, so that there is a reference."
            )
        raw = keep(self._scores(batch, "raw").logp, batch.mask)
        ref = keep(self._scores(batch, "ref").logp, batch.mask)
        distance = kl.k3(raw, ref)
        return answer_mean(distance, batch.mask).squeeze(-1)

    def metrics(self, live: LiveScores, batch: Batch, now: Now) -> TokenMaps:
        """Entropy of the sampled tokens, or exact."""
        if not self.score_requests():
            return {}
        return {"entropy": self._entropy(batch)}

    def _entropy(self, batch: Batch) -> Tensor:
        """H of every token, 0 on padding; [B, T]."""
        scores = self._scores(batch, "raw")
        if self.entropy == "sampled":
            logp = keep(scores.logp.detach(), batch.mask)
            return -logp.exp() * logp
        if scores.entropy is None:
            raise ValueError(
                "MSSR.entropy is 'exact', but 'raw' was scored without entropy; "
                "score it with entropy=True, or use entropy='sampled'."
            )
        return keep(scores.entropy.detach(), batch.mask)

    def _scores(self, batch: Batch, name: str) -> Scores:
        """Stored scores."""
        if name not in batch.scores:
            raise ValueError(
                f"MSSR reads the stored {name!r} scores, but there are {sorted(batch.scores)}; "
                "score them before the advantages."
            )
        return batch.scores[name]


class SuccessMemory:
    """The posterior of every prompt met so far, and the mean KL of the last steps."""

    def __init__(self, settings: MSSR) -> None:
        self.settings = settings
        self.posterior: dict[str, tuple[float, float]] = {}
        """Prompt id -> (α, β)."""
        self.window: list[float] = []
        """Mean KL of the last steps, the newest at the end."""

    def start(self, outcomes: Mapping[str, float]) -> None:
        """Set the posteriors from a first pass: prompt id -> share of right answers, in [0, 1]."""
        # As many pseudo-visits as the strongest forgetting can hold: a first pass does not outweigh later answers.
        counts = 1.0 / (1.0 - self.settings.eta_min)
        for prompt, rate in outcomes.items():
            if not 0 <= rate <= 1:
                raise ValueError(
                    f"MSSR's memory got success rate {rate} for prompt {prompt!r}; it must lie in [0, 1]."
                )
            self.posterior[prompt] = (counts * rate, counts * (1.0 - rate))

    def values(self, prompts: Sequence[str]) -> Tensor:
        """v̂ of each prompt, 0.5 for unseen ones; float64 [B]."""
        values: list[float] = []
        for prompt in prompts:
            alpha, beta = self.posterior.get(prompt, (1.0, 1.0))
            values.append(alpha / (alpha + beta))
        return torch.tensor(values, dtype=torch.float64)

    def observe(self, prompts: Sequence[str], reward: Tensor, answer_kl: Tensor) -> None:
        """Put the step's KL (of each answer, [B]) into the window, then update each prompt, repeated ones in turn."""
        self.window.append(float(answer_kl.double().mean()))
        del self.window[: -self.settings.window]
        eta = self.forgetting()  # with this step's KL, as in the code
        unseen = 0.5 / (1.0 - self.settings.eta_min)
        for prompt, value in zip(prompts, reward.tolist(), strict=True):
            if math.isnan(value):  # the reward is not available
                continue
            right = float(value > self.settings.threshold)
            alpha, beta = self.posterior.get(prompt, (unseen, unseen))
            self.posterior[prompt] = (eta * alpha + right, eta * beta + 1.0 - right)

    def forgetting(self) -> float:
        """η for the present window."""
        low, high = self.settings.eta_min, self.settings.eta_max
        if not self.window:
            return 0.5 * (low + high)
        ratio = self.mean_kl() / self.settings.target
        # A sawtooth: right above the target forgetting is strongest, not weakest.
        return low if ratio > 1 else low + ratio * (high - low)

    def mean_kl(self) -> float:
        """Mean of the window, 0 before the first step."""
        return sum(self.window) / max(len(self.window), 1)

    def state(self) -> dict[str, Any]:
        """Posteriors and window, as plain JSON."""
        posterior = {name: list(pair) for name, pair in self.posterior.items()}
        return {"posterior": posterior, "kl": list(self.window)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back posteriors and window."""
        self.posterior.clear()
        for name, (alpha, beta) in state["posterior"].items():
            self.posterior[name] = (float(alpha), float(beta))
        self.window[:] = [float(value) for value in state["kl"]]


def whitened(gain: Tensor) -> Tensor:
    """Known values to mean 0 and population variance 1 (at least 1e-6 is divided by); NaN gives 0; [B]."""
    known = ~gain.isnan()
    some = gain[known]
    if len(some) > 1:  # a single answer keeps its raw gain, as in the code
        some = some - some.mean()
        variance = some.square().mean()
        some = some * torch.rsqrt(variance.clamp(min=1e-6))
    out = torch.zeros_like(gain)
    out[known] = some
    return out
