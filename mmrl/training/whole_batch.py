"""The answers of a step over all ranks: whatever looks beyond one group sees them all, and each rank trains its own.

A rank samples, pays and scores the answers to its own prompts. Some numbers are of the whole step: advantages that are
normalised over the batch, an objective's means and ranks, which groups an update takes, what is logged. For these every
rank gets the answers of all (`everybodys`), in the order in which one process would have them, and computes the same:

    whole = WholeBatch.of(ranks, rollouts, places)     answers of all ranks, without their pictures
    batch = whole.own(collate(whole.rollouts), rollouts)
    batch = whole.shaped(batch, estimator and objectives)

With one process all of this hands through what it is given. An estimator or an objective that looks at nothing but the
answers of one group says so (`spans_batch = False`), and then no scores travel; one that does not say gets all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.losses.advantages import WITHIN_GROUPS
from mmrl.model.packing import rows_of
from mmrl.model.ranks import Ranks
from mmrl.objectives.base import Objective
from mmrl.types import Batch, Prompt, Rollout, Scores

MOST = ("time/", "memory/")
"""Metrics of which the slowest or fullest rank counts."""
PLAIN = (str, int, float, bool, type(None))
"""What columns of a row may hold to travel with its answers."""


@dataclass(frozen=True)
class WholeBatch:
    """The answers of all ranks, and which of them are this rank's."""

    ranks: Ranks
    rollouts: Sequence[Rollout]
    """Of all ranks in the order of the prompts, groups numbered 0, 1, …; alone: as they were given."""
    mine: Tensor
    """long [B]: places of this rank's answers among them."""

    @staticmethod
    def of(
        ranks: Ranks, rollouts: Sequence[Rollout], places: Mapping[int, int] | None = None
    ) -> WholeBatch:
        """From a rank's answers, grouped. `places`: group number -> where its prompt stands in the order of the data.

        Collective. Answers of others come without media and messages; of a row's columns and its reference those that
        are plain numbers and texts, or lists and mappings of them.
        """
        if not ranks.several:
            return WholeBatch(ranks, rollouts, torch.arange(len(rollouts)))
        places = places or {}
        sent = [(places.get(r.group, r.group), r.group, _light(r)) for r in rollouts]
        rows: list[tuple[tuple[int, int, int], int, Rollout]] = []
        for rank, theirs in enumerate(ranks.gathered(sent)):
            for row, (place, group, rollout) in enumerate(theirs):
                rows.append(((place, rank, group), row if rank == ranks.rank else -1, rollout))
        rows.sort(key=lambda one: one[0])  # stable: answers of a group keep their order
        numbers: dict[tuple[int, int, int], int] = {}
        everybodys: list[Rollout] = []
        mine = torch.zeros(len(rollouts), dtype=torch.long)
        for here, (key, row, rollout) in enumerate(rows):
            number = numbers.setdefault(key, len(numbers))
            everybodys.append(replace(rollout, group=number))
            if row >= 0:
                mine[row] = here
        return WholeBatch(ranks, everybodys, mine)

    def own(self, batch: Batch, rollouts: Sequence[Rollout]) -> Batch:
        """This rank's rows of the whole batch, with their pictures; as wide as the whole, groups numbered as there."""
        if not self.ranks.several:
            return batch
        mine = rows_of(batch, self.mine.to(batch.mask.device))
        numbers = mine.group.tolist()
        with_pictures = [
            replace(rollout, group=number)
            for rollout, number in zip(rollouts, numbers, strict=True)
        ]
        return replace(mine, rollouts=with_pictures)

    def shaped(
        self, own: Batch, whole: Batch, shape: Callable[[Batch], Batch], spans: bool
    ) -> Batch:
        """The batch of this rank after `shape`, which sees the whole batch with everybody's scores if it `spans` it.

        `own`: this rank's rows with their stored scores; `whole`: all rows, without those. Collective.
        """
        if not self.ranks.several or not spans:
            return shape(own)
        scores = self._everybodys_scores(own, whole)
        done = shape(replace(whole, scores=scores))
        mine = rows_of(done, self.mine.to(whole.mask.device))
        return replace(mine, rollouts=own.rollouts, scores=own.scores)

    def rows_here(self, rows: Sequence[int]) -> list[int]:
        """Of some rows of the whole batch those that are this rank's, by their place in its own batch."""
        if not self.ranks.several:
            return list(rows)
        here = {place: row for row, place in enumerate(self.mine.tolist())}
        return [here[row] for row in rows if row in here]

    def _everybodys_scores(self, own: Batch, whole: Batch) -> dict[str, Scores]:
        """Stored scores of all rows: float [B, T] each, on the device of the batch."""
        packed = {name: _numbers(scores) for name, scores in own.scores.items()}
        told = self.ranks.gathered((self.mine.tolist(), packed))
        found: dict[str, dict[str, Tensor]] = {}
        # Of words and suffixes each rank is as wide as its own.
        for name, kinds in _kinds(told).items():
            for kind in kinds:
                theirs = [
                    (places, s[name][kind]) for places, s in told if kind in s.get(name, {})
                ]
                wide = as_wide([numbers for _, numbers in theirs])
                of_all = wide[0].new_zeros(len(whole), *wide[0].shape[1:])
                for (places, _), numbers in zip(theirs, wide, strict=True):
                    of_all[places] = numbers
                found.setdefault(name, {})[kind] = of_all
        device = whole.mask.device
        return {
            name: Scores(**{kind: x.to(device) for kind, x in numbers.items()})
            for name, numbers in found.items()
        }


def spans_batch(estimator: Callable[..., Any], objectives: Sequence[Objective]) -> bool:
    """Does anything that makes the advantages look beyond the answers of one group?"""
    inner = estimator
    while isinstance(inner, partial):
        inner = inner.func
    within = inner in WITHIN_GROUPS or not getattr(inner, "spans_batch", True)
    # Without a `shape` of its own an objective changes no advantage.
    shaping = [one for one in objectives if type(one).shape is not Objective.shape]
    return not within or any(one.spans_batch for one in shaping)


def summed(ranks: Ranks, metrics: Mapping[str, float]) -> dict[str, float]:
    """Sums of all ranks by name, the largest for names that end in `_max`; a rank may lack some. Collective."""
    found: dict[str, list[float]] = {}
    for theirs in ranks.gathered(dict(metrics)):
        for name, value in theirs.items():
            found.setdefault(name, []).append(value)
    return {
        name: max(values) if name.endswith("_max") else sum(values)
        for name, values in found.items()
    }


def together(ranks: Ranks, metrics: Mapping[str, float]) -> dict[str, float]:
    """Counts of all ranks, added up; seconds (`time/`) and bytes (`memory/`) of the rank that has most. Collective."""
    sizes = {name: value for name, value in metrics.items() if name.startswith(MOST)}
    counts = {name: value for name, value in metrics.items() if name not in sizes}
    largest = summed(ranks, {f"{name}_max": value for name, value in sizes.items()})
    return summed(ranks, counts) | {name[: -len("_max")]: v for name, v in largest.items()}


def everybodys(ranks: Ranks, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Paid answers of all ranks to prompts that were dealt out in turn, without pictures, in their order. Collective.

    Rollouts are grouped by the place of their prompt among the rank's own (`Engine.generate`).
    """
    if not ranks.several:
        return list(rollouts)
    places = {r.group: r.group * ranks.world + ranks.rank for r in rollouts}
    return list(WholeBatch.of(ranks, rollouts, places).rollouts)


def _light(rollout: Rollout) -> Rollout:
    """An answer as it travels: what was said, paid and asked, without pictures."""
    prompt = rollout.prompt
    columns = {name: value for name, value in prompt.extra.items() if _is_plain(value)}
    truth = prompt.answer if _is_plain(prompt.answer) else None
    asked = Prompt(prompt.id, (), (), truth, prompt.source, columns)
    return replace(rollout, prompt=asked, prompt_ids=rollout.prompt_ids[:0], media=())


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    return isinstance(value, PLAIN)


def _numbers(scores: Scores) -> dict[str, Tensor]:
    """The tensors that are there, on the CPU."""
    return {name: x.detach().cpu() for name, x in scores.present().items()}


def _kinds(
    told: Sequence[tuple[list[int], Mapping[str, Mapping[str, Tensor]]]],
) -> dict[str, list[str]]:
    """View -> which numbers of it any rank has."""
    found: dict[str, dict[str, None]] = {}
    for _, scores in told:
        for name, numbers in scores.items():
            found.setdefault(name, {}).update(dict.fromkeys(numbers))
    return {name: list(kinds) for name, kinds in found.items()}


def as_wide(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [n, W, ...] padded behind with zeros to the widest W; those of one width as they are."""
    widest = max(piece.shape[1] for piece in pieces)
    out: list[Tensor] = []
    for piece in pieces:
        missing = (0, 0) * (piece.ndim - 2) + (0, widest - piece.shape[1])
        out.append(pad(piece, missing) if missing[-1] else piece)
    return out
