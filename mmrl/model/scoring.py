"""Scores of answers under several views: log-probs, entropies and exact divergences, with or without gradient.

`score_packed` runs packed rows (`packing.py`, `attention.py`): a prompt once per group, its pictures once per step
(`vision_cache.py`), the head on answer tokens only (`logprobs.py`). `reference_scores.py` computes the same row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmrl.model.logprobs import head_divergence, head_scores
from mmrl.model.packing import Group, PackedRow, pack
from mmrl.model.policy import Policy
from mmrl.model.sharding import Lent
from mmrl.types import Divergence, Scores


@dataclass(frozen=True)
class ScoreOutputs:
    """What to compute of a view."""

    entropy: bool = False
    divergence: Divergence | None = None
    """Exact divergence between the view "raw" and this one."""
    grad: bool = False


@dataclass(frozen=True)
class _Seen:
    """One view after the language model: what its head needs."""

    states: Tensor
    """[N, D]: hidden states that predict the answer tokens."""
    row: PackedRow
    head: Lent
    """The head that reads them: the policy's or the reference's."""


def score_packed(
    policy: Policy,
    views: Mapping[str, Sequence[Group]],
    outputs: Mapping[str, ScoreOutputs],
    shape: tuple[int, int],
) -> dict[str, Scores]:
    """Scores [B, T] of the groups' answers under each view; a view with a divergence is held against "raw".

    The view "ref" is scored with the reference weights. `shape` is (B, T) of the batch that the groups' rows refer to;
    entries without a token are 0.
    """
    out: dict[str, Scores] = {}
    raw: _Seen | None = None
    against_raw = any(asked.divergence for asked in outputs.values())
    # "raw" goes first, since others are compared with it; the order of the rest is the caller's.
    for name in sorted(outputs, key=lambda name: name != "raw"):
        asked = outputs[name]
        seen = _seen(policy, name, views[name], asked.grad)
        if name == "raw" and against_raw:
            raw = seen  # kept alive only where it is needed: it is as large as the row
        if asked.divergence is None:
            out[name] = _view_scores(seen, asked, shape)
            continue
        assert raw is not None, "an exact divergence needs the raw view"
        grad = asked.grad or outputs["raw"].grad
        out[name] = _compared_scores(raw, seen, asked, grad, shape)
    return out


def hidden(policy: Policy, groups: Sequence[Group], grad: bool) -> tuple[Tensor, PackedRow]:
    """Last hidden states [N, D] that predict the answer tokens of these groups, in one packed row."""
    opened = [policy.prompts.of(group, grad) for group in groups]
    row = pack(groups, policy.device, [prompt and prompt.layers for prompt in opened])
    seen = [group for group, prompt in zip(groups, opened, strict=True) if prompt is None]
    features = policy.vision.features([x for group in seen for x in group.visual], grad)
    # What predicts the first tokens of answers whose prompt is not in the row stands behind the row's own states.
    pieces = [prompt.last for prompt in opened if prompt is not None]
    with torch.set_grad_enabled(grad):
        if len(row.ids):
            states = policy.language(row.ids, row.positions, row.layout, row.visual, features)
            pieces.insert(0, states)
        policy.counters["tokens/update" if grad else "tokens/score"] += len(row.ids)
        policy.counters["tokens/head"] += len(row.tokens)
        found = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return found[row.predict], row


def align(first: PackedRow, second: PackedRow) -> Tensor | slice:
    """Order that brings the answer tokens of the first row into the order of the second."""
    if torch.equal(first.rows, second.rows) and torch.equal(first.columns, second.columns):
        return slice(None)
    # A token is known by its row and column in the batch, here folded into one number.
    width = int(max(first.columns.max(), second.columns.max())) + 1
    ours = first.rows * width + first.columns
    theirs = second.rows * width + second.columns
    order = torch.argsort(ours)
    found = order[torch.searchsorted(ours[order], theirs)]
    assert torch.equal(ours[found], theirs), "the two views hold different answers"
    return found


def _seen(policy: Policy, name: str, groups: Sequence[Group], grad: bool) -> _Seen:
    with policy.reference() if name == "ref" else nullcontext():
        states, row = hidden(policy, groups, grad)
        # Read in here: outside, the head would be the policy's again.
        return _Seen(states, row, policy.head)


def _view_scores(seen: _Seen, asked: ScoreOutputs, shape: tuple[int, int]) -> Scores:
    row = seen.row
    with torch.set_grad_enabled(asked.grad):
        logp, entropy = seen.head(
            _scores, seen.states, row.tokens, row.temperature, asked.entropy
        )
        return Scores(
            _on_grid(logp, row, shape),
            None if entropy is None else _on_grid(entropy, row, shape),
        )


def _compared_scores(
    raw: _Seen, seen: _Seen, asked: ScoreOutputs, grad: bool, shape: tuple[int, int]
) -> Scores:
    """Scores of a view with its divergence from the raw one, whose gradient reaches both sides."""
    row, kind = seen.row, asked.divergence
    assert kind is not None
    with torch.set_grad_enabled(grad):
        # Per-answer views are packed one by one, so their tokens may lie in another order.
        states = raw.states[align(raw.row, row)]
        _, _, logp, entropy, divergence = raw.head(
            _divergences, seen.head, states, seen.states, row.tokens, kind, row.temperature
        )
        return Scores(
            _on_grid(logp, row, shape),
            _on_grid(entropy, row, shape) if asked.entropy else None,
            _on_grid(divergence, row, shape),
        )


def _scores(weight: Tensor, states: Tensor, *rest: Any) -> tuple[Tensor, Tensor | None]:
    return head_scores(states, weight, *rest)


def _divergences(
    weight: Tensor, other: Lent, states: Tensor, other_states: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """`head_divergence` of two heads, which are both gathered while it runs."""

    def compared(other_weight: Tensor, here: Tensor, there: Tensor) -> tuple[Tensor, ...]:
        return head_divergence(here, weight, there, other_weight, *rest)

    # One unit is not called inside itself.
    if other.weight is weight:
        return compared(weight, states, other_states)
    return other(compared, states, other_states)


def _on_grid(values: Tensor, row: PackedRow, shape: tuple[int, int]) -> Tensor:
    """One number per answer token [N] -> [B, T]."""
    flat = values.new_zeros(shape[0] * shape[1])
    places = row.rows * shape[1] + row.columns
    return flat.index_copy(0, places, values).view(shape)
