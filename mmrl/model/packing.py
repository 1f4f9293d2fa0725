"""From rollouts to tensors: collate answers, cut a batch into parts by tokens, pack groups into one row.

A `Group` is the unit of computing: one prompt, the pixels it is seen with, and some of its answers. A `PackedRow` is
one row of groups, `[prompt 1 | answers of 1 | prompt 2 | …]`, without padding. The last token of an answer predicts
nothing and is left out of the row; the first token of each answer is predicted by the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrl.model.row_layout import Layout, moved
from mmrl.types import Batch, Role, Rollout, Scores

if TYPE_CHECKING:
    from mmrl.model.processing import Encoded, Patches


@dataclass(frozen=True)
class Group:
    """One prompt with some of its answers."""

    encoded: Encoded
    visual: tuple[Patches, ...]
    """Pixels of each medium under the branch that is looked through; same grids as `encoded.visual`."""
    answers: tuple[Tensor, ...] = ()
    """long [T_i] each."""
    rows: tuple[int, ...] = ()
    """Row of each answer in the batch."""
    temperatures: tuple[float, ...] = ()
    """What the logits of each answer are divided by."""

    @property
    def size(self) -> int:
        """Tokens in a packed row."""
        fed = sum(max(len(answer) - 1, 0) for answer in self.answers)
        return len(self.encoded.ids) + fed


@dataclass(frozen=True)
class PackedRow:
    """One packed row of S tokens that predicts N answer tokens."""

    ids: Tensor
    """long [S]."""
    positions: Tensor
    """long [3, S]."""
    layout: Layout
    visual: Tensor
    """long [n]: where the visual tokens lie, in the order of the media."""
    predict: Tensor
    """long [N]: stream index whose hidden state predicts the token."""
    tokens: Tensor
    """long [N]."""
    rows: Tensor
    """long [N]: row of the batch."""
    columns: Tensor
    """long [N]: position in the answer."""
    temperature: Tensor
    """float64 [N]."""


def pack(groups: Sequence[Group], device: torch.device) -> PackedRow:
    """Lay the groups out in one row."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    visual: list[Tensor] = []
    prompts: list[int] = []
    segments: list[list[int]] = []
    predicted: list[_Predicted] = []
    at = 0
    for group in groups:
        encoded, end = group.encoded, at + len(group.encoded.ids)
        ids.append(encoded.ids)
        positions.append(encoded.positions)
        # Slots are counted within the prompt, everything in a row from its start.
        visual.extend(slot + at for slot in encoded.slots)
        prompt, at = len(encoded.ids), end
        own: list[int] = []
        answers = zip(group.answers, group.rows, group.temperatures, strict=True)
        for answer, row, temperature in answers:
            fed = max(len(answer) - 1, 0)  # the last token predicts nothing
            # Every answer starts at the same position: they are alternatives, not a sequence.
            after = encoded.next_position + torch.arange(fed)
            ids.append(answer[:fed])
            positions.append(after.expand(3, fed))
            own.append(fed)
            if len(answer):
                predicted.append(_Predicted(answer, end - 1, at, row, temperature))
            at += fed
        if len(own) == 1:  # a single answer simply goes on where its prompt ends
            prompt, own = prompt + own[0], []
        prompts.append(prompt)
        segments.append(own)
    indices = {
        "ids": torch.cat(ids),
        "positions": torch.cat(positions, dim=1),
        "visual": _cat_or_empty(visual),
        **_per_token(predicted),
    }
    # In double precision, for heads that compute in it: 0.7 in single precision is another temperature.
    temperatures = _per_answer(predicted, [answer.temperature for answer in predicted])
    # Its bits travel with the indices, so that there is one transfer.
    *there, bits = moved([*indices.values(), temperatures.view(torch.long)], device)
    return PackedRow(
        layout=Layout.flat(prompts, segments, device),
        temperature=bits.view(torch.float64),
        **dict(zip(indices, there, strict=True)),
    )


@dataclass(frozen=True)
class _Predicted:
    """An answer whose tokens a packed row predicts."""

    tokens: Tensor
    """long [T]."""
    last: int
    """Place of the prompt's last token, which predicts the first one."""
    start: int
    """Place of the answer's first token, which predicts the second one."""
    row: int
    temperature: float


def _per_token(answers: Sequence[_Predicted]) -> dict[str, Tensor]:
    """The indices of a `PackedRow` that have one entry per answer token, long [N]."""
    sources: list[Tensor] = []
    columns: list[Tensor] = []
    for answer in answers:
        length = len(answer.tokens)
        first = torch.tensor([answer.last])
        following = answer.start + torch.arange(length - 1)
        sources.append(torch.cat([first, following]))
        columns.append(torch.arange(length))
    rows = _per_answer(answers, [answer.row for answer in answers])
    return {
        "predict": _cat_or_empty(sources),
        "tokens": _cat_or_empty([answer.tokens for answer in answers]),
        "rows": rows.long(),
        "columns": _cat_or_empty(columns),
    }


def _per_answer(answers: Sequence[_Predicted], values: Sequence[float]) -> Tensor:
    """A number of each answer once per token of it, float64 [N]."""
    # The number formats are said, since there may be no answers (a prefill).
    lengths = torch.tensor([len(answer.tokens) for answer in answers], dtype=torch.long)
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(lengths)


def _cat_or_empty(pieces: Sequence[Tensor]) -> Tensor:
    """long [n]; empty if there is nothing to join, which `torch.cat` refuses."""
    empty = torch.zeros(0, dtype=torch.long)
    return torch.cat(list(pieces)) if pieces else empty


def collate(rollouts: Sequence[Rollout]) -> Batch:
    """Pad answers to tensors; advantages are zero and there are no scores yet. Every rollout must be paid."""
    unpaid = [r.prompt.id for r in rollouts if r.reward is None]
    assert not unpaid, f"rollouts without a reward, prompts {unpaid[:3]}"
    longest = max((len(r.tokens) for r in rollouts), default=0)
    shape = (len(rollouts), longest)
    tokens = torch.zeros(shape, dtype=torch.long)
    # Padding counts as somebody else's words: no role but the policy's own is ever trained.
    roles = torch.full(shape, int(Role.OBSERVATION), dtype=torch.uint8)
    valid = torch.zeros(shape, dtype=torch.bool)
    # As precise as the most precise of the samplers' log-probs: double if the policy computes in it.
    kinds = [r.logp.dtype for r in rollouts if r.logp is not None]
    kind = torch.float64 if torch.float64 in kinds else torch.float32
    sampler = torch.zeros(shape, dtype=kind)
    for i, rollout in enumerate(rollouts):
        length = len(rollout.tokens)
        tokens[i, :length] = rollout.tokens
        roles[i, :length] = rollout.roles
        valid[i, :length] = True
        if rollout.logp is not None:
            sampler[i, :length] = rollout.logp
    # All or none: in a row without them, the zeros would pass for log-probs.
    sampled = bool(rollouts) and all(r.logp is not None for r in rollouts)
    return Batch(
        rollouts=list(rollouts),
        group=torch.tensor([r.group for r in rollouts], dtype=torch.long),
        tokens=tokens,
        mask=valid & (roles == int(Role.POLICY)),
        reward=torch.tensor([float(r.reward or 0.0) for r in rollouts]),
        advantage=torch.zeros(shape),
        roles=roles,
        scores={"sampler": Scores(sampler)} if sampled else {},
    )


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch with everything that belongs to them; the padded length stays."""
    return replace(
        batch,
        rollouts=[batch.rollouts[i] for i in rows.tolist()],
        group=batch.group[rows],
        tokens=batch.tokens[rows],
        mask=batch.mask[rows],
        reward=batch.reward[rows],
        advantage=batch.advantage[rows],
        roles=batch.roles[rows],
        scores={name: scores[rows] for name, scores in batch.scores.items()},
        shaped=[shaped[rows] for shaped in batch.shaped],
    )


def split(batch: Batch, prompt_lengths: Mapping[int, int], budget: int) -> list[Tensor]:
    """Cut into parts of rows whose packed rows hold at most `budget` tokens, whole groups where they fit.

    A group that is larger than the budget is cut and its prompt repeated once per part; a single answer that does not
    fit stands alone. `prompt_lengths`: group number -> tokens of its prompt.
    """
    members: dict[int, list[int]] = {}
    for row, number in enumerate(batch.group.tolist()):
        members.setdefault(number, []).append(row)
    fed = [max(len(r.tokens) - 1, 0) for r in batch.rollouts]
    parts: list[list[int]] = []
    current: list[int] = []
    used = 0
    for number, rows in members.items():
        prompt = prompt_lengths[number]
        whole = prompt + sum(fed[row] for row in rows)
        if current and used + whole > budget:
            parts.append(current)
            current, used = [], 0
        if whole <= budget:
            current, used = current + rows, used + whole
            continue
        size = prompt
        for row in rows:
            if current and size + fed[row] > budget:
                parts.append(current)
                current, size = [], prompt
            current.append(row)
            size += fed[row]
        # Closed even if there is room: a group that was cut never shares a part.
        parts.append(current)
        current, used = [], 0
    if current:
        parts.append(current)
    return [torch.tensor(part, dtype=torch.long) for part in parts]
