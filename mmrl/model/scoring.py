"""Scores of answers under several views: log-probs, entropies and exact divergences, with or without gradient.

`score_packed` runs packed rows (`packing.py`, `attention.py`): a prompt once per group, its pictures once per step
(`vision_cache.py`), the head on answer tokens only (`logprobs.py`). `reference_scores.py` computes the same row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmrl.model.further import Aim, Wishes
from mmrl.model.logprobs import head_divergence, head_scores, head_spread
from mmrl.model.packing import Group, PackedRow, pack
from mmrl.model.policy import Policy
from mmrl.model.sharding import Lent
from mmrl.model.spread import HeadNumbers, Spread, picked_grid
from mmrl.types import Divergence, Scores


@dataclass(frozen=True)
class ScoreOutputs:
    """What to compute of a view."""

    entropy: bool = False
    divergence: Divergence | None = None
    """Exact divergence between the view "raw" and this one."""
    grad: bool = False
    vocabulary_mean: bool = False
    """Mean log-prob over all tokens that the tokenizer has."""
    top: int = 0
    """So many of the most likely tokens."""
    slot: tuple[int | str, ...] = ()
    """Tokens, by id or text, whose log-probs are wanted in the place behind each answer (`slot_ids`)."""
    suffix: bool = False
    """Log-probs of `Group.suffixes` behind each answer."""
    words: bool = False
    """Log-probs of the prompt's words, `Group.words`."""
    states: bool = False
    """Hidden states of answer tokens; of all answers B × T × D numbers."""
    picked: bool = False
    """Log-probs of `Group.picked` in each place of an answer, with gradient."""

    @property
    def wishes(self) -> Wishes:
        """What a row must predict besides its answers."""
        return Wishes(bool(self.slot), self.suffix, self.words, self.states)


@dataclass(frozen=True)
class _Seen:
    """One view after the language model: what its head needs."""

    states: Tensor
    """[N, D]: hidden states that predict the answer tokens, each token once."""
    row: PackedRow
    head: Lent
    """The head that reads them: the policy's or the reference's."""
    further: Mapping[str, Tensor]
    """[n, D]: states that predict each of the row's further aims."""
    picked: Sequence[tuple[int, Tensor]] = ()
    """Row of the batch, and long [T, k], the tokens whose log-probs are wanted, of each answer."""


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
        seen = _seen(policy, name, views[name], asked)
        if name == "raw" and against_raw:
            raw = seen  # kept alive only where it is needed: it is as large as the row
        if asked.divergence is None:
            plain = _view_scores(policy, seen, asked, shape)
        else:
            assert raw is not None, "an exact divergence needs the raw view"
            grad = asked.grad or outputs["raw"].grad
            plain = _compared_scores(policy, raw, seen, asked, grad, shape)
        out[name] = replace(plain, **_further_scores(policy, seen, asked, shape))
    return out


def hidden(policy: Policy, groups: Sequence[Group], grad: bool) -> tuple[Tensor, PackedRow]:
    """Last hidden states [N, D] that predict the answer tokens of these groups, in one packed row."""
    found, row = _read(policy, groups, grad, Wishes())
    return found[row.predict], row


def _read(
    policy: Policy, groups: Sequence[Group], grad: bool, wishes: Wishes
) -> tuple[Tensor, PackedRow]:
    """All last hidden states of one packed row, and what lies behind it (`packing.pack`)."""
    opened = [policy.prompts.of(group, grad) for group in groups]
    outside = [prompt and prompt.outside for prompt in opened]
    row = pack(groups, policy.device, outside, wishes)
    features = policy.vision.features(row.shown, grad)
    # What predicts tokens behind a prompt or a limb that is not in the row stands behind the row's own states.
    pieces = [state for prompt in opened if prompt is not None for state in prompt.behind]
    if wishes.words:
        pieces += [prompt.states for prompt in opened if prompt is not None]
    with torch.set_grad_enabled(grad):
        if len(row.ids):
            states = policy.language(row.ids, row.positions, row.layout, row.visual, features)
            pieces.insert(0, states)
        policy.counters["tokens/update" if grad else "tokens/score"] += len(row.ids)
        policy.counters["tokens/head"] += len(row.tokens) + row.further.size
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces), row


def slot_ids(policy: Policy, wanted: Sequence[int | str]) -> tuple[int, ...]:
    """Ids of tokens that may be asked for in the place behind an answer, given as ids or by their text.

    Raises ValueError for one that claims pictures, ends an answer, or is none.
    """
    return tuple(_slot_id(policy, one) for one in wanted)


def _slot_id(policy: Policy, wanted: int | str) -> int:
    processing = policy.processing
    what = f"The token {wanted!r} is asked for behind each answer, but"
    remedy = "choose a special token that this model does not use"
    number = wanted
    if isinstance(wanted, str):
        number = processing.tokenizer.convert_tokens_to_ids(wanted)
        # Some tokenizers give the id of the unknown token.
        if number is None or processing.spell([number]) != wanted:
            added = sorted(processing.tokenizer.added_tokens_encoder)
            raise ValueError(
                f"{what} this tokenizer has none; {remedy}, of {', '.join(added)}."
            )
    assert isinstance(number, int)
    size = len(processing.real_ids)
    if not 0 <= number < size:
        raise ValueError(f"{what} ids go from 0 to {size - 1}; {remedy}.")
    if number in processing.banned_ids:
        raise ValueError(f"{what} it stands for pictures in {policy.family.name}; {remedy}.")
    if number in processing.stop_ids:
        raise ValueError(f"{what} it ends answers of {policy.family.name}; {remedy}.")
    return int(number)


def align(first: PackedRow, second: PackedRow) -> Tensor | slice:
    """Which of the first row's tokens each token of the second one is."""
    if _alike(first, second):
        return slice(None)
    # A token is known by its row and column in the batch, here folded into one number.
    width = int(max(first.columns.max(), second.columns.max())) + 1
    ours = first.rows * width + first.columns
    theirs = second.rows * width + second.columns
    if second.where is not None:
        # Any of a token's places will do.
        theirs = torch.empty_like(second.tokens).scatter_(0, second.where, theirs)
    order = torch.argsort(ours)
    found = order[torch.searchsorted(ours[order], theirs)]
    assert torch.equal(ours[found], theirs), "the two views hold different answers"
    return found if first.where is None else first.where[found]


def _alike(first: PackedRow, second: PackedRow) -> bool:
    """Do both rows predict the same tokens in the same order?"""
    if (first.where is None) != (second.where is None):
        return False
    pairs = [(first.rows, second.rows), (first.columns, second.columns)]
    if first.where is not None and second.where is not None:
        pairs.append((first.where, second.where))
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


def _seen(policy: Policy, name: str, groups: Sequence[Group], asked: ScoreOutputs) -> _Seen:
    with policy.reference() if name == "ref" else nullcontext():
        found, row = _read(policy, groups, asked.grad, asked.wishes)
        further: dict[str, Tensor] = {}
        for kind, aim in row.further.aims.items():
            # Only a slot is differentiated.
            source = found if kind == "slot" else found.detach()
            with torch.set_grad_enabled(asked.grad):
                further[kind] = source[aim.places]
        with torch.set_grad_enabled(asked.grad):
            states = found[row.predict]
        # Read in here: outside, the head would be the policy's again.
        picked = [
            pair for group in groups for pair in zip(group.rows, group.picked, strict=False)
        ]
        return _Seen(states, row, policy.head, further, picked)


def _view_scores(
    policy: Policy, seen: _Seen, asked: ScoreOutputs, shape: tuple[int, int]
) -> Scores:
    row = seen.row
    with torch.set_grad_enabled(asked.grad):
        found = seen.head(
            _numbers,
            seen.states,
            row.tokens,
            row.temperature,
            asked.entropy,
            replace(
                _spread(policy, asked), picked=_picked(seen, shape) if asked.picked else None
            ),
        )
        return _scores_on_grid(found, row, shape)


def _compared_scores(
    policy: Policy,
    raw: _Seen,
    seen: _Seen,
    asked: ScoreOutputs,
    grad: bool,
    shape: tuple[int, int],
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
        scores = Scores(
            _on_grid(logp, row, shape),
            _on_grid(entropy, row, shape) if asked.entropy else None,
            _on_grid(divergence, row, shape),
        )
    if not (asked.vocabulary_mean or asked.top or asked.picked):
        return scores
    # The pair of heads does not know the spread; it costs a pass of this one.
    alone = _view_scores(policy, seen, asked, shape)
    return replace(
        scores,
        vocabulary_mean=alone.vocabulary_mean,
        top_logp=alone.top_logp,
        top_ids=alone.top_ids,
        picked=alone.picked,
    )


def _further_scores(
    policy: Policy, seen: _Seen, asked: ScoreOutputs, shape: tuple[int, int]
) -> dict[str, Tensor]:
    """The fields of `Scores` that come from a row's further aims."""
    found: dict[str, Tensor] = {}
    aims = seen.row.further.aims
    if "slot" in aims:
        found["slot"] = _slot_scores(policy, seen, asked, shape[0])
    if "suffix" in aims:
        logp, mask = _ragged_scores(seen, "suffix", shape[0])
        found |= {"suffix": logp, "suffix_mask": mask}
    members = seen.row.further.members
    if members is not None:
        count = int(members.groups.max()) + 1 if len(members.groups) else 0
        each, mask = _ragged_scores(seen, "words", count)  # of the groups
        for name, values in (("words", each), ("words_mask", mask)):
            empty = values.new_zeros(shape[0], values.shape[1])
            found[name] = empty.index_copy(0, members.rows, values[members.groups])
    if "states" in aims:
        found["states"] = _on_grid(seen.further["states"], aims["states"], shape)
    return found


def _slot_scores(policy: Policy, seen: _Seen, asked: ScoreOutputs, rows: int) -> Tensor:
    """Log-probs [B, n] of the asked ids in the place behind each answer."""
    aim = seen.row.further.aims["slot"]
    numbers = slot_ids(policy, asked.slot)
    width = len(numbers)
    with torch.set_grad_enabled(asked.grad):
        states = seen.further["slot"].repeat_interleave(width, 0)
        ids = torch.tensor(numbers, device=states.device).repeat(len(aim.rows))
        logp, _ = seen.head(_scores, states, ids, 1.0, False)
        empty = logp.new_zeros(rows, width)
        return empty.index_copy(0, aim.rows, logp.view(-1, width))


@torch.no_grad()
def _ragged_scores(seen: _Seen, kind: str, rows: int) -> tuple[Tensor, Tensor]:
    """Log-probs [rows, n] of an aim's tokens, padded right, and where they are."""
    aim = seen.row.further.aims[kind]
    logp, _ = seen.head(_scores, seen.further[kind], aim.tokens, 1.0, False)
    width = int(aim.columns.max()) + 1 if len(aim.columns) else 0
    on = torch.ones_like(aim.rows, dtype=torch.bool)
    return _on_grid(logp, aim, (rows, width)), _on_grid(on, aim, (rows, width))


def _spread(policy: Policy, asked: ScoreOutputs) -> Spread:
    if not asked.vocabulary_mean:
        return Spread(top=asked.top)
    return Spread(vocabulary_weights(policy), asked.top)


def _picked(seen: _Seen, shape: tuple[int, int]) -> Tensor | None:
    """long [N, k]: the picked tokens of each of the row's tokens."""
    grid, row = picked_grid(seen.picked, shape), seen.row
    if grid is None:
        return None
    each = grid.to(row.tokens.device)[row.rows, row.columns]
    if row.where is None:
        return each
    # What answers have in common is predicted once; they pick the same there.
    once = each.new_zeros(len(row.tokens), each.shape[1])
    return once.index_copy(0, row.where, each)


def vocabulary_weights(policy: Policy) -> Tensor:
    """float64 [V]: weights of a mean over the ids that the tokenizer has; 0 for what pads the vocabulary."""
    size = policy.head.weight.shape[0]
    real = policy.processing.real_ids[:size].float()
    weights = torch.nn.functional.pad(real, (0, size - len(real)))
    return (weights.double() / weights.sum()).to(policy.device)


def _numbers(weight: Tensor, states: Tensor, *rest: Any) -> HeadNumbers:
    return head_spread(states, weight, *rest)


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


def _scores_on_grid(found: HeadNumbers, row: PackedRow, shape: tuple[int, int]) -> Scores:
    def placed(values: Tensor | None) -> Tensor | None:
        return None if values is None else _on_grid(values, row, shape)

    return Scores(
        _on_grid(found.logp, row, shape),
        placed(found.entropy),
        vocabulary_mean=placed(found.mean),
        top_logp=placed(found.top_logp),
        top_ids=placed(found.top_ids),
        picked=placed(found.picked),
    )


def _on_grid(values: Tensor, row: PackedRow | Aim, shape: tuple[int, int]) -> Tensor:
    """Numbers of answer tokens [N, ...] -> [B, T, ...]; what answers have in common goes to each of them."""
    if isinstance(row, PackedRow) and row.where is not None:
        # Gathered and not copied, so that gradients of all its places add up in a token.
        values = values[row.where]
    flat = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
    places = row.rows * shape[1] + row.columns
    return flat.index_copy(0, places, values).view(*shape, *values.shape[1:])
