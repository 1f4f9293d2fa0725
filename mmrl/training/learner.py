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
from mmrl.model.packing import Group, collate, rows_of, split
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
        for name, branch in self.branches.items():
            found = strength(branch, now)
            if found is not None:
                metrics[f"branch/{name}/strength"] = found
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
            # One number per answer is spread over its trained tokens; KL in the reward gives one per token.
            if advantage.ndim == 1:
                advantage = advantage[:, None] * batch.mask
            for objective in self.objectives:
                advantage = objective.shape(advantage, batch, now)
        return replace(batch, advantage=advantage)

    def _update(
        self, batch: Batch, rows: Sequence[int], views: Views, now: Now
    ) -> dict[str, float]:
        """One optimizer step on some rows of the batch."""
        # Left out: experts, and answers whose tokens are all masked.
        trained = batch.mask.any(1).tolist()
        rows = [row for row in rows if trained[row]]
        whole = batch.mask[torch.tensor(rows, dtype=torch.long, device=batch.mask.device)]
        # Counted over the whole update, so that the loss does not depend on the cut into parts.
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
            _refuse_infinite_loss(value, metrics)
            value.backward()
            self.policy.vision.end_part()
            accumulate(sums, metrics)
        # Before the norm: what collected on the pictures' features is part of the gradient.
        self.policy.vision.backward()
        norm = self.optimizer.gradient_norm()
        if not norm < float("inf"):  # written so that NaN is caught as well
            raise FloatingPointError(
                f"the gradient norm is {norm}; lower optim.lr or the objectives' coefficients."
            )
        lr = self.optimizer.step(self.planned_updates)
        self.policy.stepped()
        summed = {name: value.item() for name, value in sums.items()}
        return {**summed, **norms, "optim/grad_norm": norm, "optim/lr": lr}

    def _term_norms(
        self, batch: Batch, rows: Sequence[int], views: Views, totals: Totals, now: Now
    ) -> dict[str, float]:
        """Norm of each loss term's gradient before clipping, by a forward and a backward of its own."""
        norms: dict[str, float] = {}
        names: list[str] = []
        # The names of the terms are known after the first forward only.
        while not norms or len(norms) < len(names):
            for part in self._parts(batch, rows):
                piece, live = self._live(batch, part, views)
                parts, _ = losses(
                    self.grpo, self.surrogate, piece, live, self.objectives, totals, now
                )
                names = list(parts)
                term = parts[names[len(norms)]]
                if (
                    term.requires_grad
                ):  # a term may be constant here: no advantage, a plain branch
                    term.backward()
                # At once, whoever shares the graph: the gradients of two terms must not mix in its leaves.
                self.policy.vision.backward()
            norms[f"grad_norm/{names[len(norms)]}"] = self._total_norm()
            self.optimizer.clear()
        return norms

    def _total_norm(self) -> float:
        """Norm of all gradients together, 0 if there is none."""
        grads = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        if not grads:
            return 0.0
        # In float32 even for half precision, whose squares overflow.
        return torch.stack([grad.float().norm() for grad in grads]).norm().item()

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
        seen: dict[str, list[Group]] = {}
        for name in wanted:
            self.policy.counters[f"scored/{name}"] += len(chosen)
            seen[name] = views.groups(name, chosen)
        return scored(self.policy, seen, wanted, (len(chosen), width))

    def _parts(self, batch: Batch, rows: Sequence[int]) -> list[Tensor]:
        """Rows cut into pieces that fit one packed pass."""
        index = torch.tensor(list(rows))
        some = replace(
            batch,
            rollouts=[batch.rollouts[i] for i in rows],
            group=batch.group.cpu()[index],
            scores={},
        )
        prompts = {r.group: len(r.prompt_ids) for r in some.rollouts}
        # `split` counts from the first of these rows; the batch counts differently.
        return [index[part] for part in split(some, prompts, self.tokens_per_pass)]


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
    before: set[str] = set()  # views that somebody reads before the update
    in_reward = grpo.kl > 0 and grpo.kl_in == "reward"
    if grpo.kl > 0:
        exact = grpo.kl_kind == "exact"
        want = Wanted(divergence="forward" if exact else None)
        # An exact divergence has a gradient towards the raw view, so it is computed where that one is.
        (live if exact and not in_reward else stored)["ref"] = want
    if in_reward:
        before.add("ref")
    # Raw scores of the rollout's own weights: after the first update nobody could compute them any more.
    early = updates > 1 or grpo.mismatch != "off" or in_reward
    for objective in objectives:
        for need in objective.needs():
            name = need.branch
            _refuse_unknown(objective, name, branches)
            branch = branches.get(name)
            grad = name == "raw" or (branch is not None and branch.grad)
            want = Wanted(need.entropy, need.divergence, grad)
            if need.stage == "shape":
                stored[name] = merged_want(name, stored.get(name), replace(want, grad=False))
                before.add(name)
                early = early or name == "raw" or need.divergence is not None
            elif grad or need.divergence or (branch is not None and branch.refresh):
                live[name] = merged_want(name, live.get(name), want)
            else:
                stored[name] = merged_want(name, stored.get(name), want)
    # What the update scores anyway need not be stored, unless somebody reads it earlier.
    stored = {name: want for name, want in stored.items() if name in before or name not in live}
    if early or any(want.divergence for want in stored.values()):
        stored["raw"] = merged_want("raw", stored.get("raw"), Wanted())
    return ScorePlan(stored, live)


def _refuse_unknown(
    objective: Objective, name: str, branches: Mapping[str, VisualBranch]
) -> None:
    if name not in ("raw", "ref") and name not in branches:
        raise ValueError(
            f"{type(objective).__name__} reads the visual branch {name!r}, but the branches are "
            f"{sorted(branches)}; add branches={{{name!r}: VisualBranch(...)}}."
        )


def _refuse_infinite_loss(value: Tensor, metrics: Mapping[str, Tensor]) -> None:
    if torch.isfinite(value):
        return
    parts = {k: round(v.item(), 4) for k, v in metrics.items() if k.startswith("loss/")}
    raise FloatingPointError(
        f"the loss is {value.item()} (its parts: {parts}). Lower optim.lr or the objectives' coefficients."
    )


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
    rng = generator(now.seed, now.step, "updates")
    order = torch.randperm(len(groups), generator=rng).tolist()
    # Rounded bounds instead of equal sizes: no group is left over and sizes differ by one at most.
    bounds = [round(i * len(groups) / updates) for i in range(updates + 1)]
    shares = [order[begin:end] for begin, end in pairwise(bounds)]
    return [[row for group in share for row in groups[group]] for share in shares]


def rollout_metrics(rollouts: Sequence[Rollout], batch: Batch) -> dict[str, float]:
    """Rewards, lengths and how many groups carry signal, of the policy's own answers; others under their origin.

    If no answer is the policy's own (supervised training), all count.
    """
    own = torch.tensor([r.origin == "policy" for r in rollouts], device=batch.reward.device)
    others = _metrics_of_others(rollouts)
    reward = batch.reward[own] if own.any() else batch.reward
    rollouts = [r for r in rollouts if r.origin == "policy"] or rollouts
    parts: dict[str, list[float]] = {}
    groups: dict[int, list[float]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(float(rollout.reward or 0.0))
        for name, value in rollout.parts.items():
            if value is not None:  # a reward may abstain; its mean is over those that were paid
                parts.setdefault(f"reward/{name}", []).append(float(value))
    count = len(rollouts)
    even = sum(max(rewards) == min(rewards) for rewards in groups.values())
    return {
        "reward/total": reward.mean().item(),
        "reward/std": reward.std(unbiased=False).item(),
        "reward/group_std": sum(pstdev(rewards) for rewards in groups.values()) / len(groups),
        "reward/even_groups": even / len(groups),
        "answer/length": sum(len(r.tokens) for r in rollouts) / count,
        "answer/truncated": sum(r.stop == "length" for r in rollouts) / count,
        "answer/count": float(count),
        **{name: sum(values) / len(values) for name, values in parts.items()},
        **others,
    }


def _metrics_of_others(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Metrics of labels and experts, by their origin."""
    found: dict[str, float] = {}
    for origin in sorted({r.origin for r in rollouts} - {"policy"}):
        given = [r for r in rollouts if r.origin == origin]
        for name, value in _given_metrics(given).items():
            found[f"{origin}/{name}"] = value
    return found


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
        elif name.endswith("_max"):
            sums[name] = torch.maximum(sums[name], value)
        else:
            sums[name] = sums[name] + value


def gathered(parts: Sequence[tuple[Tensor, Scores]], count: int) -> Scores:
    """Scores of parts of a batch, put back in the batch's row order."""
    rows = [where for where, _ in parts]
    logp = _in_row_order(rows, [scores.logp for _, scores in parts], count)
    assert logp is not None
    return Scores(
        logp,
        _in_row_order(rows, [scores.entropy for _, scores in parts], count),
        _in_row_order(rows, [scores.divergence for _, scores in parts], count),
    )


def _in_row_order(
    rows: Sequence[Tensor], pieces: Sequence[Tensor | None], count: int
) -> Tensor | None:
    """One tensor [count, T] from the pieces of some rows each; None if the first piece is."""
    if pieces[0] is None:
        return None
    out = pieces[0].new_zeros(count, pieces[0].shape[1])
    for where, piece in zip(rows, pieces, strict=True):
        assert piece is not None
        out[where.to(out.device)] = piece
    return out


def to(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on a device."""
    names = ("group", "tokens", "mask", "reward", "advantage", "roles")
    moved = {name: getattr(batch, name).to(device) for name in names}
    # A fresh batch has the sampler's log-probs at most, which are log-probs and nothing else.
    scores = {name: Scores(found.logp.to(device)) for name, found in batch.scores.items()}
    return replace(batch, scores=scores, **moved)
