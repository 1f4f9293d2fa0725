"""DeepSearch (arXiv 2509.25454): a tree search finds the answers, and its values are their advantages.

An answer is a way through a tree whose nodes are runs of tokens. In each round of the search one leaf is backed up: a
right one (verdict 1), else a wrong one, else one that was cut off (-1), among these the one that the policy is surest
of. On a way of `length` nodes, the node at `depth` (the prompt's: 0) takes in

    w = max((depth + 1) / length, least) · verdict

    value + w    if both have one sign, or the value is 0
    w            if the value is negative and w is not
    value        if the value is positive and w is not

and counts one visit more. Which node is looked at next, N its visits and Q its value:

    among siblings            Q / N + explore·√(ln N_parent / N)
    among all open leaves     by_parent·tanh(Q_parent) + by_own·tanh(Q) + by_entropy·H + by_depth·√(d / d_max)

Each token is paid what its node is worth: a node where answers end their verdict, others tanh(value), and the soft
penalty for long answers where there is one (`GRPO.overlong_buffer`). With r_it this pay and r_i its last one

    A_it = r_it - mean of r_i over the group                     over their deviation + eps if `scaled`

An answer that no search found is worth its verdict on every token, so a tree of depth one is R - mean with R = ±1.

The search itself, its budget, and the answers that are kept of it: `rollouts.deepsearch`, which reads this record.

Degenerate groups: a searched group that is all right or all wrong leaves the batch (departure 3); of one that was not
searched all get 0; with `scaled` a group whose answers all end alike is not
scaled up, it gets what it gets without; an answer without trained tokens, or whose reward is not available, is in no
mean and gets 0.

Departures from the official code (github.com/smiles724/DeepSearch, commit daf9067b)
1. A node without a visit counts as visited once where its exploration is reckoned: it was grown.
2. Right is what the rewards declare.
3. Where all answers of a tree are wrong their mean is -1, less than what any node inside is worth: by the formula every
   token on the way to them would be pushed up, and down in a tree that is all right. Such groups leave the batch.
   `even_groups` keeps them, as the formula has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective, judged
from mmrl.types import LARGEST_GROUP, Batch, Now, Rollout, Shaped

__all__ = [
    "DeepSearch",
    "backed_up",
    "frontier_score",
    "search_advantages",
    "sibling_score",
]

EPS = 1e-6
MOST_CHUNKS = 4096


@dataclass(frozen=True)
class DeepSearch(Objective):
    """The search, and what is made of its values."""

    search: bool = True
    """Search for answers; off is GRPO with the run's estimator."""
    chunks: int = 64
    """Runs of tokens that the longest answer has: a node is so much of it."""
    width: int = 8
    """Ways on from a node that are grown together."""
    answers: int = 8
    """Ended answers with which the search of a prompt stops."""
    nodes: int = 1024
    """Nodes of a tree at which its search stops, whatever it found."""
    explore: float = 2.0
    """Weight of what was visited little, among siblings (λ)."""
    by_parent: float = 0.4
    """Weight of the parent's value, among open leaves (λ1)."""
    by_entropy: float = 0.0
    """Weight of the leaf's mean entropy (λ2; 0.4 where the official code uses it)."""
    by_depth: float = 0.01
    """Weight of depth (λ3)."""
    by_own: float = 0.0
    """Weight of the leaf's own value (λ4)."""
    least: float = 0.1
    """Smallest share of a verdict that reaches a node."""
    hard: float = 0.25
    """Share of right answers up to which those of a prompt are kept for its next visit; below 0 keeps none."""
    scaled: bool = False
    """Divide by the deviation of a group's last values."""
    even_groups: bool = False
    """Train searched groups that are all right or all wrong as well."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any]] = {"search": False}

    def __post_init__(self) -> None:
        weights = ("explore", "by_parent", "by_entropy", "by_depth", "by_own")
        require(
            self,
            chunks=(1 <= self.chunks <= MOST_CHUNKS, f"1 to {MOST_CHUNKS:,}"),
            width=(1 <= self.width <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
            answers=(1 <= self.answers <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
            nodes=(self.width <= self.nodes, "at least width, or nothing could be grown"),
            least=(0 <= self.least <= 1, "in [0, 1]"),
            hard=(self.hard <= 1, "at most 1 (negative: keep no answers)"),
            **{
                name: (0 <= getattr(self, name) < math.inf, "0 or positive") for name in weights
            },
        )

    def owns(self) -> tuple[Slot, ...]:
        """The advantage."""
        return ("estimator",) if self.search else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """What each token's node is worth, less the mean. Logs the pay of tokens, and the share of searched answers."""
        if not self.search:
            return Shaped(advantage)
        right = judged(self, batch)
        pay = torch.stack([
            token_pay(rollout, bool(is_right), batch.mask.shape[1])
            for rollout, is_right in zip(batch.rollouts, right, strict=True)
        ]).to(advantage.device)  # fmt: skip
        mask = batch.mask & ~batch.reward.isnan().unsqueeze(-1)
        found = search_advantages(pay, mask, batch.group, scaled=self.scaled)
        told = [bool(rollout.valued) for rollout in batch.rollouts]
        searched = torch.tensor(told, device=advantage.device)
        stays = (
            None if self.even_groups else ~(searched & of_one_mind(right, mask, batch.group))
        )
        logged = {
            "value": pay.to(advantage.dtype),
            "searched": searched.unsqueeze(-1).expand(batch.mask.shape).to(advantage),
        }
        return Shaped(found.to(advantage.dtype), logged, trained=stays)


def of_one_mind(right: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Is each one's group all right or all wrong? Answers without tokens in the mask do not count; bool [B]."""
    there = mask.bool().any(-1)
    out = torch.ones_like(right)
    for number in group.unique().tolist():
        rows = group == number
        verdicts = right[rows & there]
        out[rows] = not (bool(verdicts.any()) and not bool(verdicts.all()))
    return out


def token_pay(rollout: Rollout, right: bool, width: int) -> Tensor:
    """r_it of one answer, float64 [width]: its nodes' values as the search told them, else its verdict everywhere.

    Raises ValueError where the values speak of more tokens than there are.
    """
    verdict = 1.0 if right else -1.0
    pay = torch.full((width,), verdict, dtype=torch.float64)
    at = 0
    for tokens, value in rollout.valued:
        pay[at : at + tokens] = value
        at += tokens
    if at > len(rollout.tokens):
        raise ValueError(
            f"An answer to {rollout.prompt.id!r} has {len(rollout.tokens)} tokens, but its values speak of {at}; "
            "Rollout.valued must add up to its tokens."
        )
    return pay + (rollout.parts.get("overlong") or 0.0)


def search_advantages(
    pay: Tensor, mask: Tensor, group: Tensor, *, scaled: bool = False
) -> Tensor:
    """Pay of each token less the mean of the group's last ones; pay, mask [B, T], group [B] -> float64 [B, T].

    An answer without tokens in the mask is in no mean.
    """
    on, value = mask.bool(), pay.double()
    if not on.shape[1]:  # answers of length 0 have no last token
        return value
    there = on.any(-1)
    steps = torch.arange(on.shape[1], device=on.device)
    last = torch.where(on, steps, 0).amax(-1)
    end = value.gather(1, last.unsqueeze(-1)).squeeze(1)
    out = torch.zeros_like(value)
    for number in group.unique().tolist():
        rows = group == number
        ends = end[rows & there]
        if not len(ends):
            continue
        equal = bool((ends == ends[0]).all())
        centred = value[rows] - (ends[0] if equal else ends.mean())
        # The deviation of ends that are all alike is 0: dividing by eps would make anything of nothing.
        out[rows] = (
            centred / (ends.std(unbiased=False) + EPS) if scaled and not equal else centred
        )
    return keep(out, on)


def backed_up(value: float, verdict: float, depth: int, length: int, least: float) -> float:
    """The value of the node at `depth` on a way of `length` nodes, after a leaf with this verdict (1 or -1)."""
    share = max((depth + 1) / length, least) * verdict
    if value * share >= 0:
        return value + share
    # What was right once stays worth it; what was only ever wrong forgets that when it is right.
    return share if share > 0 else value


def sibling_score(value: float, visits: int, parent_visits: int, explore: float) -> float:
    """Q / N + explore·√(ln N_parent / N) of a node beside its siblings; without a visit the first part is 0."""
    mean = value / visits if visits else 0.0
    return mean + explore * math.sqrt(math.log(max(parent_visits, 1)) / max(visits, 1))


def frontier_score(
    search: DeepSearch, *, parent: float, own: float, entropy: float, depth: int
) -> float:
    """How much an open leaf wants to be grown on; `parent` and `own` are values, `entropy` in nats per token."""
    return (
        search.by_parent * math.tanh(parent)
        + search.by_own * math.tanh(own)
        + search.by_entropy * entropy
        + search.by_depth * math.sqrt(depth / search.chunks)
    )
