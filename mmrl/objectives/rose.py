"""ROSE, semantically diverse tree exploration: answers branch where meanings part; each segment has its own advantage.

Which answers have which beginnings in common stands in their `Rollout.path`. With V of a node the mean reward of the
answers that pass through it, V of the prompt that of the whole group, and V of an answer's end its own reward R,

    A of a segment = V(node where it ends) - V(node where it begins)

so that the segments of an answer add up to R - V(prompt). Independent answers have one segment each, and R - mean.

Length: of a group's right answers the shortest is s. Another right answer i, which goes the first k tokens with s, gets

    A <- A - |A|·(1 - ((L_s - k) / (L_i - k))^length)           on its tokens behind the first k

Where to branch: over the k most likely tokens of a place, with probabilities p and unit embeddings e,

    S = Σ_{i≠j} p_i p_j cos(e_i, e_j) = |Σ p_i e_i|² - Σ p_i²,   H = -Σ p_i log p_i,   metric = -S·H

and the place with the largest metric of a tree is where it branches next (`rollouts.rose`).

Degenerate groups: one answer, or equal rewards, get 0; a reward that is not available is in no mean and gets 0; an
answer without trained tokens is in the means and has no token.

Departures from the official code (github.com/ZiqiZhao1/ROSE-rl, commit 2142dc79)
1. There all nodes of a group at the same number of tokens share one value, also those of different subtrees; here each
   has its own. `nodes="place"` is the official way.
2. Right is what the rewards declare; there it is a reward beyond 1e-6.
3. Lengths count the trained tokens; there a token with id 0 ends an answer.
4. `means="children"` is ours: a node's value is the mean of the values of what goes on from it, so that a beginning
   that was continued often weighs no more than another one, and independent answers are what the mean is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.traits import Slot
from mmrl.losses.reduce import keep
from mmrl.objectives.base import Objective, judged
from mmrl.types import Batch, Now, Rollout, Shaped

__all__ = ["ROSE", "branch_metric", "common", "leaf_weights", "segment_advantages", "shortened"]

Path = Sequence[tuple[int, int]]
"""(node, tokens) from the prompt to the end of an answer."""
Metric = Literal["cosine-entropy", "entropy", "cosine"]


@dataclass(frozen=True)
class ROSE(Objective):
    """Where answers branch, and what their segments are worth."""

    restart: float = 0.5
    """Probability that an answer begins at the prompt instead of branching off (ε); 1 never branches."""
    candidates: int = 20
    """Most likely tokens of a place that its metric looks at (k)."""
    branch_by: Metric = "cosine-entropy"
    """What is largest where a tree branches: -S·H, H or -S."""
    length: float = 0.0
    """How much a right answer loses for being longer than the shortest (λ); 0: nothing."""
    nodes: Literal["node", "place"] = "node"
    """What shares a value: the answers through one node, or (official) through any node at this number of tokens."""
    means: Literal["answers", "children"] = "answers"
    """A node's value: the mean over all answers through it, or over what goes on from it."""

    needs_correct: ClassVar[bool] = True
    spans_batch: ClassVar[bool] = False
    off: ClassVar[Mapping[str, Any]] = {"restart": 1.0, "length": 0.0}

    def __post_init__(self) -> None:
        require(
            self,
            restart=(0 <= self.restart <= 1, "in [0, 1]"),
            candidates=(2 <= self.candidates <= 1000, "2 to 1,000"),
            branch_by=(
                self.branch_by in ("cosine-entropy", "entropy", "cosine"),
                "'cosine-entropy', 'entropy' or 'cosine'",
            ),
            length=(0 <= self.length <= 100, "0 (off) to 100"),
            nodes=(self.nodes in ("node", "place"), "'node' or 'place'"),
            means=(self.means in ("answers", "children"), "'answers' or 'children'"),
        )
        if self.nodes == "place" and self.means == "children":
            raise ValueError(
                "ROSE.nodes is 'place', with which nodes of different subtrees share a value, but ROSE.means is "
                "'children', which goes by the tree; set --rose.nodes node, or --rose.means answers."
            )

    @property
    def on(self) -> bool:
        """Does it change anything? Else the estimator's advantage stays as it is."""
        return self.restart < 1 or self.length > 0

    def owns(self) -> tuple[Slot, ...]:
        """The advantage."""
        return ("estimator",) if self.on else ()

    def shape(self, advantage: Tensor, batch: Batch, now: Now) -> Shaped:
        """Each segment's advantage on its tokens. Logs the share of answers that branched off, and what length took."""
        if not self.on:
            return Shaped(advantage)
        right = judged(self, batch)
        found = torch.zeros(batch.mask.shape, dtype=torch.float64, device=advantage.device)
        taken = torch.zeros_like(found)
        for number in batch.group.unique().tolist():
            rows = (batch.group == number).nonzero().squeeze(-1)
            paths = [path_of(batch.rollouts[row], row) for row in rows.tolist()]
            mask = batch.mask[rows]
            own = segment_advantages(
                paths, batch.reward[rows], mask, nodes=self.nodes, means=self.means
            )
            known = right[rows] & ~batch.reward[rows].isnan()
            shorter = shortened(own, paths, known, mask, self.length)
            found[rows], taken[rows] = shorter, own - shorter
        shared = [float(len(rollout.path) > 1) for rollout in batch.rollouts]
        branched = torch.tensor(shared, device=advantage.device).unsqueeze(-1)
        logged = {
            "branched": branched.expand(batch.mask.shape).to(advantage),
            "length": taken.to(advantage.dtype),
        }
        return Shaped(keep(found.to(advantage.dtype), batch.mask), logged)


def path_of(rollout: Rollout, row: int) -> Path:
    """The path of the answer in this row; of one that shares nothing a node of its own. Raises ValueError for one of
    another length."""
    length = len(rollout.tokens)
    if not rollout.path:
        return ((-1 - row, length),)  # engines count nodes from 0, so nobody else has this one
    told = sum(tokens for _, tokens in rollout.path)
    # Tool results may stand behind what was sampled; a path that is too long names tokens that are not there.
    if told > length:
        raise ValueError(
            f"An answer to {rollout.prompt.id!r} has {length} tokens, but its path speaks of {told}; "
            "Rollout.path must add up to its tokens."
        )
    return rollout.path


def segment_advantages(
    paths: Sequence[Path],
    reward: Tensor,
    mask: Tensor,
    *,
    nodes: Literal["node", "place"] = "node",
    means: Literal["answers", "children"] = "answers",
) -> Tensor:
    """V(end) - V(begin) on each token of the answers of one group; reward [n], mask [n, T] -> float64 [n, T].

    What lies behind the nodes of a path belongs to its last segment. NaN rewards are in no value, and get 0.
    """
    known = ~reward.isnan()
    out = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    weights = leaf_weights(paths) if means == "children" else [1.0] * len(paths)
    values = _values(paths, reward, known, nodes, weights)
    if values is None:
        return out
    for row, path in enumerate(paths):
        if not bool(known[row]):
            continue
        begin, *ends = [values[key] for key in _keys(path, nodes)]
        at = 0
        for end, (_, tokens) in zip(
            ends, path, strict=False
        ):  # the last node has no value but R
            out[row, at : at + tokens] = end - begin
            begin, at = end, at + tokens
        out[row, at:] = float(reward[row]) - begin
    return keep(out, mask)


def _keys(path: Path, nodes: str) -> list[tuple[int, ...]]:
    """What names the value of the prompt and of each node before the last, in their order."""
    keys: list[tuple[int, ...]] = [()]
    at = 0
    for node, tokens in path[:-1]:
        at += tokens
        # A place without a token before it is the prompt's.
        place: tuple[int, ...] = (at,) if at else ()
        keys.append((*keys[-1], node) if nodes == "node" else place)
    return keys


def _values(
    paths: Sequence[Path],
    reward: Tensor,
    known: Tensor,
    nodes: str,
    weights: Sequence[float],
) -> dict[tuple[int, ...], float] | None:
    """Key -> mean reward of the answers that pass; None where no answer has a reward."""
    through: dict[tuple[int, ...], dict[int, None]] = {}
    for row, path in enumerate(paths):
        if bool(known[row]):
            for key in _keys(path, nodes):
                through.setdefault(key, {})[row] = None
    rewards = [float(one) for one in reward]
    found: dict[tuple[int, ...], float] = {}
    for key, rows in through.items():
        first = rewards[next(iter(rows))]
        if all(rewards[row] == first for row in rows):
            found[key] = first  # a mean of equal numbers may be an ulp off, which is no signal
            continue
        mass = [weights[row] for row in rows]
        total = sum(weight * rewards[row] for weight, row in zip(mass, rows, strict=True))
        found[key] = total / sum(mass)
    return found or None


def leaf_weights(paths: Sequence[Path]) -> list[float]:
    """What each answer of a group counts if whatever goes on from a node counts alike; they add up to 1.

    Continuations of one node are independent given the node, answers of a tree are not: the weighted mean is the value
    of the prompt that independent answers would tell.
    """
    children: dict[tuple[int, ...], dict[int, None]] = {}
    for path in paths:
        before: tuple[int, ...] = ()
        for node, _ in path:
            children.setdefault(before, {})[node] = None
            before = (*before, node)
    ends: dict[tuple[int, ...], int] = {}
    for path in paths:
        whole = tuple(node for node, _ in path)
        ends[whole] = ends.get(whole, 0) + 1
    found: list[float] = []
    for path in paths:
        whole = tuple(node for node, _ in path)
        weight = 1.0 / ends[whole]  # answers that are the same to the end
        for depth in range(len(whole)):
            weight /= len(children[whole[:depth]])
        found.append(weight)
    return found


def common(one: Path, other: Path) -> int:
    """How many tokens two answers of a group have in common."""
    tokens = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        tokens += mine[1]
    return tokens


def shortened(
    advantage: Tensor, paths: Sequence[Path], right: Tensor, mask: Tensor, length: float
) -> Tensor:
    """The advantage of one group's answers, less for right ones that are longer than the shortest right one; [n, T].

    `right` bool [n]; `length` is λ, at least 0. The shortest one, and wrong ones, stay as they are.
    """
    trained = right & mask.any(-1)
    rows = trained.nonzero().squeeze(-1).tolist()
    if length == 0 or len(rows) < 2:
        return advantage
    lengths = mask.sum(-1).tolist()
    shortest = min(rows, key=lambda row: lengths[row])
    out = advantage.clone()
    for row in rows:
        shared = common(paths[shortest], paths[row])
        before = int(mask[row, :shared].sum())
        if row == shortest or lengths[row] <= before:
            continue
        share = (lengths[shortest] - before) / (lengths[row] - before)
        tail = out[row, shared:]
        out[row, shared:] = tail - tail.abs() * (1 - share**length)
    return out


def branch_metric(logp: Tensor, vectors: Tensor, metric: Metric = "cosine-entropy") -> Tensor:
    """How much a tree wants to branch at each place; larger is sooner. -> float64 [n].

    `logp` [n, k]: of the most likely tokens in each place; `vectors` [n, k, D]: their input embeddings, of any length.
    """
    p = logp.double().exp()
    surprise = torch.where(p > 0, logp.double(), 0.0)
    entropy = -(p * surprise).sum(-1)
    if metric == "entropy":
        return entropy
    unit = torch.nn.functional.normalize(vectors.double(), dim=-1)
    middle = torch.einsum("nk,nkd->nd", p, unit)
    # By the norms themselves and not by 1: an embedding of zeros is similar to nothing, itself included.
    with_itself = p.square() * unit.square().sum(-1)
    alike = middle.square().sum(-1) - with_itself.sum(-1)
    return -alike if metric == "cosine" else -alike * entropy
