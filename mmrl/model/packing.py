"""From rollouts to tensors: collate answers, cut a batch into parts by tokens, pack groups into one row.

A `Group` (`row_draft.py`) is the unit of computing: one prompt, its pixels, and some of its answers. A `PackedRow` is
one row of groups, `[prompt 1 | answers of 1 | prompt 2 | …]`, without padding; of a group whose prompt was run before
(`open_prompts.py`) only the answers. What answers have in common by their paths is in the row once (`answer_trees.py`).
The last token of an answer predicts nothing and is left out of the row, unless others go on from it; the first token of
each answer is predicted by the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.model.answer_trees import check_path, unique_tokens
from mmrl.model.further import NOTHING_FURTHER, Further, Wishes, further
from mmrl.model.row_draft import Draft, Group, Outside, cat_or_empty
from mmrl.model.row_layout import Layers, Layout, Past, moved
from mmrl.model.tree_row import Node, laid_out
from mmrl.types import Batch, Role, Rollout, Scores

if TYPE_CHECKING:
    from mmrl.model.patches import Patches


@dataclass(frozen=True)
class PackedRow:
    """One packed row of S tokens that predicts N answer tokens, which stand in M places of the batch."""

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
    """long [M]: row of the batch."""
    columns: Tensor
    """long [M]: position in the answer."""
    temperature: Tensor
    """float64 [N]."""
    where: Tensor | None = None
    """long [M]: which of the N tokens stands in each place; None if each stands in one, in this order."""
    further: Further = NOTHING_FURTHER
    """What it predicts besides."""
    shown: tuple[Patches, ...] = ()
    """The media whose tokens lie in it, in the order of the row."""


def pack(
    groups: Sequence[Group],
    device: torch.device,
    opened: Sequence[Outside | None] = (),
    wishes: Wishes = Wishes(),
) -> PackedRow:
    """Lay the groups out in one row.

    `opened`: per group, what of it was run before (`open_prompts.py`), else None. It is not in the row; in `predict`
    its states (`Outside.states`), in the order of the groups, are numbered on behind the row's own; behind these, if
    `wishes` ask for words, all states of each such prompt.
    """
    draft = Draft(wishes)
    for number, group in enumerate(groups):
        draft.add(group, opened[number] if opened else None)
    row = laid_out(draft.nodes)
    runs = [run for run in draft.runs if len(run.tokens)]
    lengths = torch.tensor([answer.length for answer in draft.answers], dtype=torch.long)
    rows = torch.tensor([answer.row for answer in draft.answers], dtype=torch.long)
    indices = {
        "ids": row.ids,
        "positions": row.positions,
        "visual": row.visual,
        "predict": cat_or_empty([run.predicted_by(row) for run in runs]),
        "tokens": cat_or_empty([run.tokens for run in runs]),
        "rows": rows.repeat_interleave(lengths),
        "columns": cat_or_empty([answer.columns for answer in draft.answers]),
        # As bits, so that they travel with the rest.
        "temperature": cat_or_empty([run.temperature for run in runs], torch.float64).view(
            torch.long
        ),
    }
    if draft.shares:
        indices["where"] = draft.where()
    there: dict[str, Any] = dict(
        zip(indices, moved(list(indices.values()), device), strict=True)
    )
    there["temperature"] = there["temperature"].view(torch.float64)
    there["layout"] = Layout(row.lengths, row.parents, device, pasts=draft.pasts(row))
    there["shown"] = tuple(draft.shown)
    if wishes == Wishes():
        return PackedRow(**there)
    wished = further(wishes, draft.said(row), draft.asked(row, groups), device)
    return PackedRow(further=wished, **there)


def pack_limb(
    node: Node, shown: tuple[Patches, ...], before: Sequence[Layers], device: torch.device
) -> PackedRow:
    """A piece of answers, not empty, as a row of its own behind what was run before; it predicts nothing by itself."""
    row = laid_out([node])
    ids, positions, visual = moved([row.ids, row.positions, row.visual], device)
    pasts = tuple(Past((0, len(row.ids)), layers) for layers in before)
    layout = Layout(row.lengths, row.parents, device, pasts=pasts)
    nothing = visual[:0]
    aims = (nothing, nothing, nothing, nothing, nothing.double())
    return PackedRow(ids, positions, layout, visual, *aims, shown=shown)


def collate(rollouts: Sequence[Rollout], trained: Sequence[Role] = (Role.POLICY,)) -> Batch:
    """Pad answers to tensors; advantages are zero and there are no scores yet. Every rollout must be paid.

    `trained`: roles whose tokens are in the mask.
    """
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
        check_path(rollout.path, length)
        tokens[i, :length] = rollout.tokens
        roles[i, :length] = rollout.roles
        valid[i, :length] = not rollout.unheeded
        if rollout.logp is not None:
            sampler[i, :length] = rollout.logp
    # All or none: in a row without them, the zeros would pass for log-probs.
    sampled = bool(rollouts) and all(r.logp is not None for r in rollouts)
    judged = [r.correct for r in rollouts if r.correct is not None]
    return Batch(
        rollouts=list(rollouts),
        group=torch.tensor([r.group for r in rollouts], dtype=torch.long),
        tokens=tokens,
        mask=valid & torch.isin(roles, torch.tensor([int(role) for role in trained])),
        reward=torch.tensor([float(r.reward or 0.0) for r in rollouts]),
        advantage=torch.zeros(shape),
        roles=roles,
        scores={"sampler": Scores(sampler)} if sampled else {},
        # All or none here too: what is not known is neither right nor wrong.
        correct=torch.tensor(judged) if judged and len(judged) == len(rollouts) else None,
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
        correct=None if batch.correct is None else batch.correct[rows],
    )


def fed_tokens(rollouts: Sequence[Rollout], behind: Sequence[int] = ()) -> int:
    """Tokens that answers to one prompt take in a packed row, with so many of a suffix behind each of them."""
    more = behind or (0,) * len(rollouts)
    lengths = [len(r.tokens) + n for r, n in zip(rollouts, more, strict=True)]
    return unique_tokens([r.path for r in rollouts], lengths)


def split(
    batch: Batch,
    prompt_lengths: Mapping[int, int],
    budget: int,
    behind: Sequence[int] = (),
) -> list[Tensor]:
    """Cut into parts of rows whose packed rows hold at most `budget` tokens, whole groups where they fit.

    A group that is larger than the budget is cut, its prompt counted in each part (`open_prompts.py` runs it once for
    all of them); a single answer that does not fit stands alone.

    `prompt_lengths`: group number -> tokens of its prompt. `behind`: tokens of each row's suffix; none if empty.
    """
    members: dict[int, list[int]] = {}
    for row, number in enumerate(batch.group.tolist()):
        members.setdefault(number, []).append(row)
    more = behind or [0] * len(batch.rollouts)

    def fed(rows: Sequence[int]) -> int:
        return fed_tokens([batch.rollouts[row] for row in rows], [more[row] for row in rows])

    parts: list[list[int]] = []
    current: list[int] = []
    used = 0
    for number, rows in members.items():
        prompt = prompt_lengths[number]
        whole = prompt + fed(rows)
        if current and used + whole > budget:
            parts.append(current)
            current, used = [], 0
        if whole <= budget:
            current, used = current + rows, used + whole
            continue
        size = prompt
        # Answers with much in common stay together; without paths the order is theirs.
        for row in sorted(rows, key=lambda row: [node for node, _ in batch.rollouts[row].path]):
            apart = not current or not batch.rollouts[row].path
            grown = size + fed([row]) if apart else prompt + fed([*current, row])
            if current and grown > budget:
                parts.append(current)
                current, grown = [], prompt + fed([row])
            current.append(row)
            size = grown
        # Closed even if there is room: a group that was cut never shares a part.
        parts.append(current)
        current, used = [], 0
    if current:
        parts.append(current)
    return [torch.tensor(part, dtype=torch.long) for part in parts]
