"""The mathematics of one step: from paid rollouts to an optimizer step.

Scores, advantages and updates of one batch. What is scored when is decided once, in `score_plan.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise

import torch
from torch import Tensor

from mmrl.ground.seeds import generator
from mmrl.ground.stopping import shielded
from mmrl.grpo import GRPO, apply_kl_in_reward, loss, losses
from mmrl.losses.group_filters import without_truncated
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import Surrogate
from mmrl.model.branches import Views
from mmrl.model.packing import Group, collate, fed_tokens, rows_of
from mmrl.model.patches import Patches
from mmrl.model.policy import Policy
from mmrl.model.ranks import Ranks
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import ScoreOutputs, slot_ids
from mmrl.model.sharding import filler
from mmrl.objectives.base import Memory, Objective, shaped_in_turn
from mmrl.training.closeups import TokenMaps
from mmrl.training.optim import Optimizer
from mmrl.training.retries import ADVICE, NonFiniteStep, OnNonFinite
from mmrl.training.rollout_metrics import rollout_metrics, strength
from mmrl.training.run import PhaseTimer
from mmrl.training.score_plan import plan_scores
from mmrl.training.whole_batch import WholeBatch, as_wide, spans_batch
from mmrl.types import Batch, Now, Role, Rollout, Scores, VisualBranch

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(reward [B] or [B, T], group [B], mask [B, T]) -> advantage [B] or [B, T]."""


@dataclass(frozen=True)
class _Step:
    """One batch with its advantages, on its way through the updates."""

    batch: Batch
    views: Views
    now: Now


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
    memories: Sequence[Memory | None] = ()
    """What each objective remembers of the run; the trainer's. Without any, every objective starts a fresh one."""
    nonfinite: OnNonFinite = "stop"
    """What happens to an update whose loss or gradient is not finite (`retries.py`)."""

    maps: TokenMaps = field(default_factory=TokenMaps)
    """Numbers per token of the last step's first group."""
    between_parts: Callable[[], None] = lambda: None
    """Called before each part of a pass, on all processes; may end the step on all (`giving_up.py`)."""

    def __post_init__(self) -> None:
        if not self.memories:
            self.memories = [objective.start_memory() for objective in self.objectives]
        self.plan = plan_scores(
            self.grpo, self.objectives, self.branches, self.updates_per_step
        )
        for asked in (*self.plan.stored.values(), *self.plan.live.values()):
            slot_ids(self.policy, asked.slot)  # refuses what cannot be asked for

    def learn(
        self,
        rollouts: Sequence[Rollout],
        now: Now,
        clock: PhaseTimer,
        places: Mapping[int, int] | None = None,
    ) -> dict[str, float]:
        """Score, shape and update; returns the metrics, which are those of all processes.

        `places`: group number -> where its prompt stands in the order of the data (`Supply.group_places`).
        """
        whole = WholeBatch.of(self.policy.ranks, rollouts, places)
        every = self._collated(whole.rollouts)
        batch = whole.own(every, rollouts)
        metrics = rollout_metrics(whole.rollouts, every)
        for name, branch in self.branches.items():
            found = strength(branch, now)
            if found is not None:
                metrics[f"branch/{name}/strength"] = found
        views = Views(self.policy, batch.rollouts, self.branches, now)
        with clock("score"):
            batch = self._with_stored_scores(batch, views)
            batch = self._with_advantages(batch, every, whole, now)
        self.maps = TokenMaps.of(batch)
        step = _Step(batch, views, now)
        with clock("update"):
            left_out = 0
            version = self.policy.version
            for rows in update_rows(every, self.updates_per_step, now):
                try:
                    metrics.update(self._update(step, whole.rows_here(rows)))
                except NonFiniteStep:
                    # The first update of a step can be tried again with other draws; later ones can only be left out.
                    has_moved = self.policy.version != version
                    if self.nonfinite == "stop" or (
                        self.nonfinite == "retry" and not has_moved
                    ):
                        raise
                    self._forget_update()
                    left_out += 1
            if left_out:
                metrics["update/nonfinite"] = float(left_out)
        return metrics

    def _forget_update(self) -> None:
        """Drop the gradients of an update that broke off, those that wait on pictures included."""
        self.optimizer.clear()
        self.policy.prompts.clear()
        self.policy.vision.clear()
        self.policy.forget_calls()

    def _collated(self, rollouts: Sequence[Rollout]) -> Batch:
        roles = {role for objective in self.objectives for role in objective.trains_roles}
        batch = collate(rollouts, sorted(roles | {Role.POLICY}))
        if self.grpo.drop_truncated:
            cut = torch.tensor([r.stop == "length" for r in rollouts])
            batch = replace(batch, mask=without_truncated(batch.mask, cut))
        return to(batch, self.policy.device)

    def _with_stored_scores(self, batch: Batch, views: Views) -> Batch:
        """Score without gradient what is read before the update or does not change in it."""
        stored = self.plan.stored
        if not stored:
            return batch
        found: dict[str, list[Scores]] = {name: [] for name in stored}
        parts = self._parts(batch, range(len(batch)))
        with torch.no_grad():
            for rows in self._as_many_everywhere(parts):
                if rows is None:
                    self._score_filler(stored)
                    continue
                for name, scores in self._score(batch, views, rows, stored).items():
                    found[name].append(scores)
                self.policy.prompts.end_part()
        if not parts:
            return batch
        merged = {name: gathered(parts, pieces) for name, pieces in found.items()}
        return replace(batch, scores={**batch.scores, **merged})

    def _with_advantages(
        self, batch: Batch, every: Batch, whole: WholeBatch, now: Now
    ) -> Batch:
        """This process's rows with their advantages; `every` row is seen where they depend on it."""

        def shape(batch: Batch) -> Batch:
            paid = apply_kl_in_reward(self.grpo, batch)
            advantage = self.estimator(paid, batch.group, batch.mask)
            # One number per answer is spread over its trained tokens; KL in the reward gives one per token.
            if advantage.ndim == 1:
                advantage = advantage[:, None] * batch.mask
            batch = replace(batch, advantage=advantage)
            return shaped_in_turn(self.objectives, self.memories, batch, now)

        with torch.no_grad():
            return whole.shaped(
                batch, every, shape, spans_batch(self.estimator, self.objectives)
            )

    def _update(self, step: _Step, rows: Sequence[int]) -> dict[str, float]:
        """One optimizer step on some rows of the batch."""
        mask = step.batch.mask
        # Left out: experts, and answers whose tokens are all masked.
        trained = mask.any(1).tolist()
        rows = [row for row in rows if trained[row]]
        index = torch.tensor(rows, dtype=torch.long, device=mask.device)
        # Counted over the whole update, so that the loss does not depend on the cut into parts.
        totals = _totals(mask[index], self.policy.ranks)
        if totals.tokens == 0:
            return {"update/skipped": 1.0}
        norms: dict[str, float] = {}
        if self.norms_every and step.now.step % self.norms_every == 0:
            norms = self._term_norms(step, rows, totals)
        sums: dict[str, Tensor] = {}
        problem = ""
        parts = self._parts(step.batch, rows)
        for number, part in enumerate(self._as_many_everywhere(parts)):
            if part is None:
                _nothing(self._score_filler(self.plan.live)).backward()
                continue
            piece, live = self._live(step, part)
            value, metrics = loss(
                self.grpo, self.surrogate, piece, live, self.objectives, totals, step.now
            )
            # Not raised here: other processes would wait for this one in their backward.
            problem = problem or _infinite_loss(value, metrics)
            self._through_all(value, live).backward()
            self.policy.end_part(self._shown_again(step, parts[number : number + 2]))
            accumulate(sums, metrics)
        # Before the norm: what collected on the pictures' features is part of the gradient.
        self.policy.vision.backward()
        summed = self._agreed(problem, sums)
        self.optimizer.collect()
        norm = self.optimizer.gradient_norm()
        if not norm < self.optimizer.largest_norm:  # written so that NaN is caught as well
            raise NonFiniteStep(f"the gradient norm is {norm}. {ADVICE}")
        with shielded():  # half a step of the optimizer could be neither saved nor repeated
            lr = self.optimizer.step(self.planned_updates)
            self.policy.stepped()
        return {**summed, **norms, "optim/grad_norm": norm, "optim/lr": lr}

    def _shown_again(self, step: _Step, parts: Sequence[Tensor]) -> list[Patches]:
        """The pictures of the next part, if it holds more answers of a group that was cut."""
        if len(parts) < 2:
            return []
        # Of the rollouts: the batch's own numbers lie on the device, and asking it would wait for it.
        border = (step.batch.rollouts[int(row)] for row in (parts[0][-1], parts[1][0]))
        if len({rollout.group for rollout in border}) > 1:
            return []
        views = [name for name, asked in self.plan.live.items() if asked.grad]
        shown: list[Patches] = []
        for name in views:
            for row in parts[1].tolist():
                shown.extend(step.views.shown(name, row))
        return shown

    def _agreed(self, problem: str, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics of all processes together. Raises NonFiniteStep on all if one has a problem."""
        numbers = {name: value.item() for name, value in sums.items()}
        told = self.policy.ranks.gathered((problem, numbers))
        for found, _ in told:
            if found:
                raise NonFiniteStep(found)
        return combined([each for _, each in told])

    def _term_norms(self, step: _Step, rows: Sequence[int], totals: Totals) -> dict[str, float]:
        """Norm of each loss term's gradient before clipping, by a forward and a backward of its own."""
        norms: dict[str, float] = {}
        names: list[str] = []
        # The names of the terms are known after the first forward only.
        while not norms or len(norms) < len(names):
            for part in self._as_many_everywhere(self._parts(step.batch, rows)):
                if part is None:
                    _nothing(self._score_filler(self.plan.live)).backward()
                    continue
                piece, live = self._live(step, part)
                terms, _ = losses(
                    self.grpo, self.surrogate, piece, live, self.objectives, totals, step.now
                )
                names = list(terms)
                term = self._through_all(terms[names[len(norms)]], live)
                if (
                    term.requires_grad
                ):  # a term may be constant here: no advantage, a plain branch
                    term.backward()
                self.policy.prompts.end_part()
                # At once, whoever shares the graph: the gradients of two terms must not mix in its leaves.
                if not self.policy.prompts.waiting:
                    self.policy.vision.backward()
            # A process without answers knows no terms.
            names = max(self.policy.ranks.gathered(names), key=len)
            self.optimizer.collect()
            norms[f"grad_norm/{names[len(norms)]}"] = self.optimizer.norm()
            self.optimizer.clear()
        return norms

    def _as_many_everywhere(self, parts: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """The parts of this process and then None, up to the number that the busiest process has."""
        most = self.policy.ranks.most(len(parts))
        for part in [*parts, *[None] * (most - len(parts))]:
            self.between_parts()
            yield part

    def _score_filler(self, outputs: Mapping[str, ScoreOutputs]) -> dict[str, Scores]:
        """Scores [1, 1] of nothing, by the same calls as any part's; not counted."""
        counted = self.policy.counters.copy()
        group = filler()
        found = scored(self.policy, {name: [group] for name in outputs}, outputs, (1, 1))
        self.policy.counters.clear()
        self.policy.counters.update(counted)
        return found

    def _through_all(self, value: Tensor, live: Mapping[str, Scores]) -> Tensor:
        """The same number, whose backward runs through every live view, used or not, as on the other processes."""
        return value + _nothing(live) if self.policy.ranks.several else value

    def _live(self, step: _Step, part: Tensor) -> tuple[Batch, dict[str, Scores]]:
        """Some rows, and their scores with the present weights where the plan wants them."""
        piece = rows_of(step.batch, part.to(step.batch.mask.device))
        fresh = self._score(step.batch, step.views, part, self.plan.live)
        self.maps.take(part.tolist(), fresh)
        return piece, {**piece.scores, **fresh}

    def _score(
        self, batch: Batch, views: Views, rows: Tensor, outputs: Mapping[str, ScoreOutputs]
    ) -> dict[str, Scores]:
        chosen = rows.tolist()
        seen: dict[str, list[Group]] = {}
        for name in outputs:
            self.policy.counters[f"scored/{name}"] += len(chosen)
            suffix = self.plan.suffixes.get(name) if outputs[name].suffix else None
            picked = self.plan.picks.get(name) if outputs[name].picked else None
            seen[name] = views.groups(
                name,
                chosen,
                suffix,
                words=outputs[name].words,
                ends=bool(outputs[name].slot),
                picked=picked,
            )
        # As wide as the whole batch, so that parts fit together again.
        shape = (len(chosen), batch.tokens.shape[1])
        return scored(self.policy, seen, outputs, shape)

    def _parts(self, batch: Batch, rows: Sequence[int]) -> list[Tensor]:
        """Rows cut into pieces that fit one packed pass; none without rows."""
        index = torch.tensor(list(rows), dtype=torch.long)
        some = replace(
            batch,
            rollouts=[batch.rollouts[i] for i in rows],
            group=batch.group.cpu()[index],
            scores={},
        )
        budget, behind = self.tokens_per_pass, self.plan.behind(some.rollouts)
        if any(objective.needs_whole_groups for objective in self.objectives):
            # Its terms compare the answers of a group: then a pass holds the largest one, whatever it takes.
            budget = max(budget, largest_group(some.rollouts, behind))
        parts = self.policy.prompts.parts(some, budget, behind)
        # `parts` counts from the first of these rows; the batch counts differently.
        return [index[part] for part in parts]


def _nothing(live: Mapping[str, Scores]) -> Tensor:
    """0, with a gradient of 0 to all of these scores."""
    tensors = [x for scores in live.values() for x in scores.present().values()]
    return torch.stack([0.0 * x.sum() for x in tensors if x.requires_grad]).sum()


def _infinite_loss(value: Tensor, metrics: Mapping[str, Tensor]) -> str:
    """What is wrong with a loss that is not finite; else nothing."""
    if torch.isfinite(value):
        return ""
    parts: dict[str, float] = {}
    for name, part in metrics.items():
        if name.startswith("loss/"):
            parts[name] = round(part.item(), 4)
    return f"the loss is {value.item()} (its parts: {parts}). {ADVICE}"


def update_rows(batch: Batch, updates_per_step: int, now: Now) -> list[list[int]]:
    """Rows of each update: whole groups, shuffled by the step's seed if there are several updates.

    `batch` holds the answers of all processes, so that an update trains the same however many there are.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(batch.group.tolist()):
        members.setdefault(group, []).append(row)
    groups = list(members.values())
    updates = min(updates_per_step, len(groups))
    if updates == 1:
        return [list(chain(*groups))]
    rng = generator(now.seed, now.step, "updates")
    order = torch.randperm(len(groups), generator=rng).tolist()
    # Rounded bounds instead of equal sizes: no group is left over and sizes differ by one at most.
    bounds = [round(i * len(groups) / updates) for i in range(updates + 1)]
    shares: list[list[int]] = []
    for begin, end in pairwise(bounds):
        chosen = [groups[number] for number in order[begin:end]]
        shares.append(list(chain(*chosen)))
    return shares


def combined(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Summands of several processes, added up; names ending in `_max` take the maximum."""
    out: dict[str, float] = {}
    for numbers in several:
        for name, value in numbers.items():
            known = out.get(name)
            if known is None:
                out[name] = value
            else:
                out[name] = max(known, value) if name.endswith("_max") else known + value
    return out


def accumulate(sums: dict[str, Tensor], metrics: Mapping[str, Tensor]) -> None:
    """Add up summands of micro-batches; names ending in `_max` take the maximum."""
    for name, value in metrics.items():
        if name not in sums:
            sums[name] = value
        elif name.endswith("_max"):
            sums[name] = torch.maximum(sums[name], value)
        else:
            sums[name] = sums[name] + value


def gathered(parts: Sequence[Tensor], pieces: Sequence[Scores]) -> Scores:
    """Scores of parts of a batch, put back in the batch's row order; `parts` are long [n] and cover all rows."""
    names = pieces[0].present()
    return Scores(
        **{name: _in_row_order(parts, [p.present()[name] for p in pieces]) for name in names}
    )


def _in_row_order(parts: Sequence[Tensor], pieces: Sequence[Tensor]) -> Tensor:
    """One tensor [B, ...] from the pieces of some rows each, those that are narrower than others padded with zeros."""
    rows = torch.cat(list(parts)).to(pieces[0].device)
    together = torch.cat(as_wide(pieces))
    out = torch.zeros_like(together)
    out[rows] = together
    return out


def largest_group(rollouts: Sequence[Rollout], behind: Sequence[int]) -> int:
    """Tokens of the largest group in a packed row, `behind` of them behind each answer; 0 without answers."""
    members: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        members.setdefault(rollout.group, []).append(row)
    sizes = [
        len(rollouts[rows[0]].prompt_ids)
        + fed_tokens([rollouts[row] for row in rows], [behind[row] for row in rows])
        for rows in members.values()
    ]
    return max(sizes, default=0)


def _totals(mask: Tensor, ranks: Ranks) -> Totals:
    """Trained tokens and answers of the masks [B, T] of all processes."""
    tokens, answers = ranks.total([int(mask.sum()), int(mask.any(1).sum())])
    return Totals(int(tokens), int(answers))


def to(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on a device."""
    names = ("group", "tokens", "mask", "reward", "advantage", "roles")
    moved = {name: getattr(batch, name).to(device) for name in names}
    # A fresh batch has the sampler's log-probs at most, which are log-probs and nothing else.
    scores: dict[str, Scores] = {}
    for name, found in batch.scores.items():
        scores[name] = Scores(found.logp.to(device))
    correct = None if batch.correct is None else batch.correct.to(device)
    return replace(batch, scores=scores, correct=correct, **moved)
