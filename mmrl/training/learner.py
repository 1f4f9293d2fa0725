"""The mathematics of one step: from paid rollouts to an optimizer step.

Scores, advantages and updates of one batch. What is scored when is decided once, by `plan_scores`: a view that nobody
reads before the update and that has gradient (or wants the newest weights) is scored inside it, everything else once
beforehand without gradient, and nothing that nobody reads at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import pstdev

import torch
from torch import Tensor

from mmrl.ground.seeds import generator
from mmrl.grpo import GRPO, apply_kl_in_reward, loss, losses
from mmrl.losses.group_filters import without_truncated
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import Surrogate
from mmrl.model.branches import Views
from mmrl.model.packing import collate, rows_of, split
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import Wanted
from mmrl.objectives.base import Objective
from mmrl.training.optim import Optimizer
from mmrl.training.run import Clock
from mmrl.types import Batch, Divergence, Now, Rollout, Scores, VisualBranch

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(reward [B] or [B, T], group [B], mask [B, T]) -> advantage [B] or [B, T]."""


@dataclass
class Learner:
    """Turns paid rollouts into optimizer steps."""

    policy: Policy
    optimizer: Optimizer
    estimator: Estimator
    surrogate: Surrogate
    grpo: GRPO
    branches: Mapping[str, VisualBranch]
    objectives: Sequence[Objective]
    updates_per_step: int
    tokens_per_pass: int
    planned_updates: int
    """Optimizer steps of the whole run, for the learning-rate schedule."""
    norms_every: int = 0
    """Log the gradient norm of each loss term each so many steps; 0: never."""

    def __post_init__(self) -> None:
        self.plan = plan_scores(
            self.grpo, self.objectives, self.branches, self.updates_per_step
        )

    def learn(self, rollouts: Sequence[Rollout], now: Now, clock: Clock) -> dict[str, float]:
        """Score, shape and update; returns the metrics."""
        batch = self._collated(rollouts)
        metrics = rollout_metrics(rollouts, batch)
        metrics |= {
            f"branch/{n}/strength": s
            for n, b in self.branches.items()
            if (s := strength(b, now)) is not None
        }
        views = Views(self.policy, batch.rollouts, self.branches, now)
        with clock("score"):
            batch = self._with_stored_scores(batch, views)
            batch = self._with_advantages(batch, now)
        with clock("update"):
            for rows in update_rows(batch, self.updates_per_step, now):
                metrics.update(self._update(batch, rows, views, now))
        return metrics

    def _collated(self, rollouts: Sequence[Rollout]) -> Batch:
        batch = collate(rollouts)
        if self.grpo.drop_truncated:
            cut = torch.tensor([r.stop == "length" for r in rollouts])
            batch = replace(batch, mask=without_truncated(batch.mask, cut))
        return to(batch, self.policy.device)

    def _with_stored_scores(self, batch: Batch, views: Views) -> Batch:
        """Score without gradient what is read before the update or does not change in it."""
        stored = self.plan.stored
        if not stored:
            return batch
        found: dict[str, list[tuple[Tensor, Scores]]] = {name: [] for name in stored}
        with torch.no_grad():
            for rows in self._parts(batch, range(len(batch))):
                scores = self._score(views, rows, stored, batch.tokens.shape[1])
                for name, part in scores.items():
                    found[name].append((rows, part))
        merged = {name: gathered(parts, len(batch)) for name, parts in found.items()}
        return replace(batch, scores={**batch.scores, **merged})

    def _with_advantages(self, batch: Batch, now: Now) -> Batch:
        with torch.no_grad():
            paid = apply_kl_in_reward(self.grpo, batch)
            advantage = self.estimator(paid, batch.group, batch.mask)
            if advantage.ndim == 1:
                advantage = advantage[:, None] * batch.mask
            for objective in self.objectives:
                advantage = objective.shape(advantage, batch, now)
        return replace(batch, advantage=advantage)

    def _update(
        self, batch: Batch, rows: Sequence[int], views: Views, now: Now
    ) -> dict[str, float]:
        """One optimizer step on some rows of the batch."""
        trained = batch.mask.any(1).tolist()
        rows = [
            row for row in rows if trained[row]
        ]  # experts, and answers whose tokens are all masked
        whole = batch.mask[torch.tensor(rows, dtype=torch.long, device=batch.mask.device)]
        totals = Totals(int(whole.sum()), int(whole.any(1).sum()))
        if totals.tokens == 0:
            return {"update/skipped": 1.0}
        norms: dict[str, float] = {}
        if self.norms_every and now.step % self.norms_every == 0:
            norms = self._term_norms(batch, rows, views, totals, now)
        sums: dict[str, Tensor] = {}
        for part in self._parts(batch, rows):
            piece, live = self._live(batch, part, views)
            value, metrics = loss(
                self.grpo, self.surrogate, piece, live, self.objectives, totals, now
            )
            if not torch.isfinite(value):
                parts = {
                    k: round(v.item(), 4) for k, v in metrics.items() if k.startswith("loss/")
                }
                raise FloatingPointError(
                    f"the loss is {value.item()} (its parts: {parts}). Lower optim.lr or the objectives' coefficients."
                )
            value.backward()
            self.policy.vision.end_part()
            accumulate(sums, metrics)
        self.policy.vision.backward()
        norm = self.optimizer.gradient_norm()
        if not norm < float("inf"):
            raise FloatingPointError(
                f"the gradient norm is {norm}; lower optim.lr or the objectives' coefficients."
            )
        lr = self.optimizer.step(self.planned_updates)
        self.policy.stepped()
        return {
            **{k: v.item() for k, v in sums.items()},
            **norms,
            "optim/grad_norm": norm,
            "optim/lr": lr,
        }

    def _term_norms(
        self, batch: Batch, rows: Sequence[int], views: Views, totals: Totals, now: Now
    ) -> dict[str, float]:
        """Norm of each loss term's gradient before clipping, by a forward and a backward of its own."""
        norms: dict[str, float] = {}
        names: list[str] = []
        while not norms or len(norms) < len(names):
            for part in self._parts(batch, rows):
                piece, live = self._live(batch, part, views)
                parts, _ = losses(
                    self.grpo, self.surrogate, piece, live, self.objectives, totals, now
                )
                names = list(parts)
                if (term := parts[names[len(norms)]]).requires_grad:
                    term.backward()
                self.policy.vision.backward()
            grads = [
                p.grad.float().norm() for p in self.optimizer.parameters if p.grad is not None
            ]
            norms[f"grad_norm/{names[len(norms)]}"] = (
                torch.stack(grads).norm().item() if grads else 0.0
            )
            self.optimizer.clear()
        return norms

    def _live(
        self, batch: Batch, part: Tensor, views: Views
    ) -> tuple[Batch, dict[str, Scores]]:
        """Some rows, and their scores with the present weights where the plan wants them."""
        piece = rows_of(batch, part.to(batch.mask.device))
        live = dict(piece.scores)
        live.update(self._score(views, part, self.plan.live, batch.tokens.shape[1]))
        return piece, live

    def _score(
        self, views: Views, rows: Tensor, wanted: Mapping[str, Wanted], width: int
    ) -> dict[str, Scores]:
        chosen = rows.tolist()
        for name in wanted:
            self.policy.counters[f"scored/{name}"] += len(chosen)
        return scored(
            self.policy,
            {n: views.groups(n, chosen) for n in wanted},
            wanted,
            (len(chosen), width),
        )

    def _parts(self, batch: Batch, rows: Sequence[int]) -> list[Tensor]:
        """Rows cut into pieces that fit one packed pass."""
        index = torch.tensor(list(rows))
        some = replace(
            batch,
            rollouts=[batch.rollouts[i] for i in rows],
            group=batch.group.cpu()[index],
            scores={},
        )
        lengths = {r.group: len(r.prompt_ids) for r in some.rollouts}
        return [index[part] for part in split(some, lengths, self.tokens_per_pass)]


@dataclass(frozen=True)
class ScorePlan:
    """Which views are scored when."""

    stored: Mapping[str, Wanted]
    """Once per rollout, without gradient."""
    live: Mapping[str, Wanted]
    """In every update."""


def plan_scores(
    grpo: GRPO,
    objectives: Sequence[Objective],
    branches: Mapping[str, VisualBranch],
    updates: int,
) -> ScorePlan:
    """Decide the freshness of every view from what the objectives read. Raises ValueError for an unknown branch."""
    stored: dict[str, Wanted] = {}
    live: dict[str, Wanted] = {"raw": Wanted(grad=True)}
    exact = grpo.kl > 0 and grpo.kl_kind == "exact"
    if grpo.kl > 0 and grpo.kl_in == "loss" and exact:
        live["ref"] = Wanted(divergence="forward")
    elif grpo.kl > 0:
        stored["ref"] = Wanted(divergence="forward" if exact else None)
    before = (
        {"ref"} if grpo.kl > 0 and grpo.kl_in == "reward" else set()
    )  # read before the update
    early = updates > 1 or grpo.mismatch != "off" or (grpo.kl > 0 and grpo.kl_in == "reward")
    for objective in objectives:
        for need in objective.needs():
            name = need.branch
            if name not in ("raw", "ref") and name not in branches:
                raise ValueError(
                    f"{type(objective).__name__} reads the visual branch {name!r}, but the branches are "
                    f"{sorted(branches)}; add branches={{{name!r}: VisualBranch(...)}}."
                )
            want = Wanted(
                need.entropy,
                need.divergence,
                grad=name == "raw" or (name in branches and branches[name].grad),
            )
            if need.stage == "shape":
                stored[name] = merged_want(name, stored.get(name), replace(want, grad=False))
                before.add(name)
                early = early or name == "raw" or need.divergence is not None
            elif (
                name == "raw"
                or want.grad
                or need.divergence
                or (name in branches and branches[name].refresh)
            ):
                live[name] = merged_want(name, live.get(name), want)
            else:
                stored[name] = merged_want(name, stored.get(name), want)
    stored = {name: want for name, want in stored.items() if name in before or name not in live}
    if early or any(w.divergence for w in stored.values()):
        stored["raw"] = merged_want("raw", stored.get("raw"), Wanted())
    return ScorePlan(stored, live)


def merged_want(name: str, first: Wanted | None, second: Wanted) -> Wanted:
    """Both requests in one; two different divergences of one branch are refused."""
    if first is None:
        return second
    kinds: set[Divergence] = {k for k in (first.divergence, second.divergence) if k}
    if len(kinds) > 1:
        raise ValueError(
            f"Branch {name!r} is asked for two exact divergences, {sorted(kinds)}; let the objectives read two "
            "branches with different names, or the same divergence."
        )
    return Wanted(
        first.entropy or second.entropy, next(iter(kinds), None), first.grad or second.grad
    )


def update_rows(batch: Batch, updates_per_step: int, now: Now) -> list[list[int]]:
    """Rows of each update: whole groups, shuffled by the step's seed if there are several updates."""
    members: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        members.setdefault(group, []).append(row)
    groups = list(members.values())
    updates = min(updates_per_step, len(groups))
    if updates == 1:
        return [[row for group in groups for row in group]]
    order = torch.randperm(
        len(groups), generator=generator(now.seed, now.step, "updates")
    ).tolist()
    bounds = [round(i * len(groups) / updates) for i in range(updates + 1)]
    return [[row for g in order[a:b] for row in groups[g]] for a, b in pairwise(bounds)]


def rollout_metrics(rollouts: Sequence[Rollout], batch: Batch) -> dict[str, float]:
    """Rewards, lengths and how many groups carry signal, of the policy's own answers; others under their origin.

    If no answer is the policy's own (supervised training), all count.
    """
    own = torch.tensor([r.origin == "policy" for r in rollouts])
    other = {
        f"{origin}/{name}": value
        for origin in sorted({r.origin for r in rollouts} - {"policy"})
        for name, value in _given_metrics([r for r in rollouts if r.origin == origin]).items()
    }
    reward = batch.reward[own.to(batch.reward.device)] if own.any() else batch.reward
    rollouts = [r for r in rollouts if r.origin == "policy"] or rollouts
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.parts.items():
            if value is not None:
                values.setdefault(f"reward/{name}", []).append(float(value))
    groups: dict[int, list[float]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(float(rollout.reward or 0.0))
    even = sum(max(g) == min(g) for g in groups.values())
    return {
        "reward/total": reward.mean().item(),
        "reward/std": reward.std(unbiased=False).item(),
        "reward/group_std": sum(pstdev(g) for g in groups.values()) / len(groups),
        "reward/even_groups": even / len(groups),
        "answer/length": sum(len(r.tokens) for r in rollouts) / len(rollouts),
        "answer/truncated": sum(r.stop == "length" for r in rollouts) / len(rollouts),
        "answer/count": float(len(rollouts)),
        **{name: sum(v) / len(v) for name, v in values.items()},
        **other,
    }


def _given_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Count, mean reward and mean length of labels or experts."""
    count = len(rollouts)
    reward = sum(float(r.reward or 0.0) for r in rollouts) / count
    return {
        "count": float(count),
        "reward": reward,
        "length": sum(len(r.tokens) for r in rollouts) / count,
    }


def strength(branch: VisualBranch, now: Now) -> float | None:
    """How strong a branch's view is now, if it says so (noise)."""
    known = getattr(branch.view, "strength", None)
    return None if known is None else float(known(now))


def accumulate(sums: dict[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
    """Add up summands of micro-batches; names ending in `_max` take the maximum."""
    for name, value in metrics.items():
        if name not in sums:
            sums[name] = value
        else:
            sums[name] = (
                torch.maximum(sums[name], value)
                if name.endswith("_max")
                else sums[name] + value
            )


def gathered(parts: Sequence[tuple[Tensor, Scores]], count: int) -> Scores:
    """Scores of parts of a batch, put back in the batch's row order."""

    def whole(pick: Callable[[Scores], Tensor | None]) -> Tensor | None:
        first = pick(parts[0][1])
        if first is None:
            return None
        out = first.new_zeros(count, first.shape[1])
        for rows, scores in parts:
            piece = pick(scores)
            assert piece is not None
            out[rows.to(out.device)] = piece
        return out

    logp = whole(lambda s: s.logp)
    assert logp is not None
    return Scores(logp, whole(lambda s: s.entropy), whole(lambda s: s.divergence))


def to(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on a device."""
    names = ("group", "tokens", "mask", "reward", "advantage", "roles")
    scores = {n: Scores(s.logp.to(device)) for n, s in batch.scores.items()}
    return replace(
        batch, scores=scores, **{name: getattr(batch, name).to(device) for name in names}
    )
