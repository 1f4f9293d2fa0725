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

from mmrl.model.row_layout import Layout
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
        return len(self.encoded.ids) + sum(max(len(a) - 1, 0) for a in self.answers)


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
    """float [N]."""


def pack(groups: Sequence[Group], device: torch.device) -> PackedRow:
    """Lay the groups out in one row."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    visual: list[Tensor] = []
    prompts: list[tuple[int, int]] = []
    answers: list[tuple[tuple[int, int], ...]] = []
    predict: list[Tensor] = []
    columns: list[Tensor] = []
    flat: list[tuple[int, float, Tensor]] = []
    at = 0
    for group in groups:
        prompt = len(group.encoded.ids)
        ids.append(group.encoded.ids)
        positions.append(group.encoded.positions)
        visual.extend(slot + at for slot in group.encoded.slots)
        prompts.append((at, at + prompt))
        last = at + prompt - 1
        at += prompt
        segments: list[tuple[int, int]] = []
        for answer, row, temperature in zip(
            group.answers, group.rows, group.temperatures, strict=True
        ):
            fed = max(len(answer) - 1, 0)
            ids.append(answer[:fed])
            positions.append((group.encoded.next_position + torch.arange(fed)).expand(3, fed))
            segments.append((at, at + fed))
            if len(answer):
                predict.append(torch.cat([torch.tensor([last]), at + torch.arange(fed)]))
                columns.append(torch.arange(len(answer)))
                flat.append((row, temperature, answer))
            at += fed
        if len(segments) == 1:  # a single answer simply goes on where its prompt ends
            prompts[-1] = (prompts[-1][0], at)
            segments = []
        answers.append(tuple(segments))
    lengths = torch.tensor([len(answer) for _, _, answer in flat], dtype=torch.long)
    spread = lambda values, dtype: torch.tensor(values, dtype=dtype).repeat_interleave(lengths)  # noqa: E731
    none = torch.zeros(0, dtype=torch.long)
    return PackedRow(
        ids=torch.cat(ids).to(device),
        positions=torch.cat(positions, dim=1).to(device),
        layout=Layout(tuple(prompts), tuple(answers), device),
        visual=(torch.cat(visual) if visual else none).to(device),
        predict=(torch.cat(predict) if predict else none).to(device),
        tokens=(torch.cat([answer for _, _, answer in flat]) if flat else none).to(device),
        rows=spread([row for row, _, _ in flat], torch.long).to(device),
        columns=(torch.cat(columns) if columns else none).to(device),
        temperature=spread([temperature for _, temperature, _ in flat], torch.float32).to(
            device
        ),
    )


def collate(rollouts: Sequence[Rollout]) -> Batch:
    """Pad answers to tensors; advantages are zero and there are no scores yet. Every rollout must be paid."""
    unpaid = [r.prompt.id for r in rollouts if r.reward is None]
    assert not unpaid, f"rollouts without a reward, prompts {unpaid[:3]}"
    longest = max((len(r.tokens) for r in rollouts), default=0)
    shape = (len(rollouts), longest)
    tokens = torch.zeros(shape, dtype=torch.long)
    roles = torch.full(shape, int(Role.OBSERVATION), dtype=torch.uint8)
    valid = torch.zeros(shape, dtype=torch.bool)
    for i, rollout in enumerate(rollouts):
        length = len(rollout.tokens)
        tokens[i, :length] = rollout.tokens
        roles[i, :length] = rollout.roles
        valid[i, :length] = True
    batch = Batch(
        rollouts=list(rollouts),
        group=torch.tensor([r.group for r in rollouts], dtype=torch.long),
        tokens=tokens,
        mask=valid & (roles == int(Role.POLICY)),
        reward=torch.tensor([float(r.reward or 0.0) for r in rollouts]),
        advantage=torch.zeros(shape),
        roles=roles,
    )
    if all(r.logp is not None for r in rollouts) and rollouts:
        sampler = torch.zeros(shape)
        for i, rollout in enumerate(rollouts):
            assert rollout.logp is not None
            sampler[i, : len(rollout.tokens)] = rollout.logp
        batch = replace(batch, scores={"sampler": Scores(sampler)})
    return batch


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
    )


def split(batch: Batch, prompt_lengths: Mapping[int, int], budget: int) -> list[Tensor]:
    """Cut into parts of rows whose packed rows hold at most `budget` tokens, whole groups where they fit.

    A group that is larger than the budget is cut and its prompt repeated once per part; a single answer that does not
    fit stands alone. `prompt_lengths`: group number -> tokens of its prompt.
    """
    parts: list[list[int]] = []
    current: list[int] = []
    used = 0
    members: dict[int, list[int]] = {}
    for row, number in enumerate(batch.group.tolist()):
        members.setdefault(number, []).append(row)
    lengths = [max(len(r.tokens) - 1, 0) for r in batch.rollouts]
    for number, rows in members.items():
        prompt = prompt_lengths[number]
        whole = prompt + sum(lengths[r] for r in rows)
        if current and used + whole > budget:
            parts.append(current)
            current, used = [], 0
        if whole <= budget:
            current, used = current + rows, used + whole
            continue
        size = prompt
        for row in rows:
            if current and size + lengths[row] > budget:
                parts.append(current)
                current, size = [], prompt
            current.append(row)
            size += lengths[row]
        parts.append(current)
        current, used = [], 0
    if current:
        parts.append(current)
    return [torch.tensor(part, dtype=torch.long) for part in parts]
