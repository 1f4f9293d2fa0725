"""From rollouts to tensors: collate answers, cut a batch into parts by tokens, pack groups into one row.

A `Group` is the unit of computing: one prompt, the pixels it is seen with, and some of its answers. A `PackedRow` is
one row of groups, `[prompt 1 | answers of 1 | prompt 2 | …]`, without padding; of a group whose prompt was run before
(`open_prompts.py`) only the answers. The last token of an answer predicts
nothing and is left out of the row; the first token of each answer is predicted by the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.model.further import (
    NOTHING_FURTHER,
    Further,
    Said,
    Wishes,
    Worded,
    further,
    prompt_starts,
)
from mmrl.model.row_layout import ROOT, Layers, Layout, Past, moved
from mmrl.model.tree_row import Node, TreeRow, laid_out
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
    temperatures: tuple[float | Tensor, ...] = ()
    """What the logits of each answer are divided by: a number, or float64 [T_i], one per token."""
    shared: bool = True
    """Do all answers to the prompt see these pixels, also those that come in other parts?"""
    suffixes: tuple[Tensor, ...] = ()
    """long [S_i] each: what is scored behind each answer, where `Wishes.suffix` asks for it."""
    ends: tuple[int, ...] = ()
    """Tokens of each answer before the place that `Wishes.slot` asks for; empty: all of them."""
    words: Tensor | None = None
    """long [n]: which of the prompt's ids are words of its messages (`Processing.words`), where `Wishes.words` asks."""

    @property
    def size(self) -> int:
        """Tokens in a packed row, without what `Wishes` add."""
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
    further: Further = NOTHING_FURTHER
    """What it predicts besides."""


def pack(
    groups: Sequence[Group],
    device: torch.device,
    opened: Sequence[Layers | None] = (),
    wishes: Wishes = Wishes(),
) -> PackedRow:
    """Lay the groups out in one row.

    `opened`: per group, what its prompt left behind if that was run before (`open_prompts.py`), else None. Of such a
    group only answers are in the row, and in `predict` the last states of these prompts, in the order of the groups,
    are numbered on behind the row's own; behind these, if `wishes` ask for words, all states of each such prompt.
    """
    draft = _Draft(wishes)
    for number, group in enumerate(groups):
        draft.add(group, opened[number] if opened else None)
    row = laid_out(draft.nodes)
    answers = [answer for answer in draft.answers if len(answer.tokens)]
    lengths = torch.tensor([len(answer.tokens) for answer in answers], dtype=torch.long)
    rows = torch.tensor([answer.row for answer in answers], dtype=torch.long)
    temperatures = [temperature_of(answer.tokens, answer.temperature) for answer in answers]
    indices = {
        "ids": row.ids,
        "positions": row.positions,
        "visual": row.visual,
        "predict": _cat_or_empty([answer.predicted_by(row) for answer in answers]),
        "tokens": _cat_or_empty([answer.tokens for answer in answers]),
        "rows": rows.repeat_interleave(lengths),
        "columns": _cat_or_empty([torch.arange(len(answer.tokens)) for answer in answers]),
        # As bits, so that they travel with the rest.
        "temperature": _cat_or_empty(temperatures, torch.float64).view(torch.long),
    }
    there: dict[str, Any] = dict(
        zip(indices, moved(list(indices.values()), device), strict=True)
    )
    there["temperature"] = there["temperature"].view(torch.float64)
    layout = Layout(row.lengths, row.parents, device, pasts=draft.pasts(row))
    if wishes == Wishes():
        return PackedRow(layout=layout, **there)
    wished = further(wishes, draft.said(row), draft.asked(row, groups), device)
    return PackedRow(layout=layout, further=wished, **there)


@dataclass(frozen=True)
class _Answer:
    """An answer whose tokens a packed row predicts."""

    tokens: Tensor
    """long [T]."""
    node: int
    """Which node of the row it is."""
    opened: int | None
    """Which of the prompts that are not in the row it belongs to."""
    row: int
    temperature: float | Tensor
    suffix: Tensor
    """long [S]."""
    end: int
    """Tokens before its slot."""

    def first(self, row: TreeRow) -> int:
        """Place of the state that predicts the first token: that of the last one before the answer."""
        return row.before[self.node] if self.opened is None else len(row.ids) + self.opened

    def predicted_by(self, row: TreeRow) -> Tensor:
        """Places whose states predict the tokens, long [T]."""
        # Behind the first, each is predicted by the one before it.
        following = row.spans[self.node][0] + torch.arange(len(self.tokens) - 1)
        return torch.cat([torch.tensor([self.first(row)]), following])


@dataclass
class _Draft:
    """Groups on their way into a row."""

    wishes: Wishes
    nodes: list[Node] = field(default_factory=list)
    answers: list[_Answer] = field(default_factory=list)
    beyond: list[tuple[range, Layers]] = field(default_factory=list)
    """Nodes that look at a prompt which is not in the row."""
    roots: list[int | None] = field(default_factory=list)
    """Node of each group's prompt; None if it is not in the row."""

    def add(self, group: Group, layers: Layers | None) -> None:
        """One more group; only its answers if its prompt was run before and left `layers` behind."""
        encoded, opened = group.encoded, None
        after, base = ROOT, encoded.next_position
        self.roots.append(len(self.nodes) if layers is None else None)
        if layers is None:
            after = len(self.nodes)
            root = Node(encoded.ids, encoded.positions, base, slots=encoded.slots)
            self.nodes.append(root)
        else:
            opened = len(self.beyond)
            end = len(self.nodes) + len(group.answers)
            self.beyond.append((range(len(self.nodes), end), layers))
        nothing = torch.zeros(0, dtype=torch.long)
        suffixes = group.suffixes or (nothing,) * len(group.answers)
        ends = group.ends or tuple(map(len, group.answers))
        each = zip(group.answers, group.rows, group.temperatures, suffixes, ends, strict=True)
        for tokens, row, temperature, suffix, end in each:
            node = len(self.nodes)
            self.answers.append(_Answer(tokens, node, opened, row, temperature, suffix, end))
            fed = tokens[: max(len(tokens) - 1, 0)]  # the last token predicts nothing
            if self.wishes.feed_last:
                behind = suffix[: max(len(suffix) - 1, 0)] if self.wishes.suffix else nothing
                fed = torch.cat([tokens, behind])
            # Every answer starts at the same position: they are alternatives, not a sequence.
            self.nodes.append(Node.text(fed, after, base))

    def said(self, row: TreeRow) -> list[Said]:
        """Every answer, also those without a token, and where it is."""
        return [
            Said(
                one.tokens, one.suffix, one.row, one.first(row), row.spans[one.node][0], one.end
            )
            for one in self.answers
        ]

    def asked(self, row: TreeRow, groups: Sequence[Group]) -> list[Worded]:
        """Every prompt, and where it is; nothing if nobody asks for its words."""
        if not self.wishes.words:
            return []
        lengths = [len(group.encoded.ids) for group in groups]
        starts = prompt_starts(row, self.roots, lengths)
        found: list[Worded] = []
        for group, start in zip(groups, starts, strict=True):
            assert group.words is not None, (
                "words are asked for, but a group does not name them"
            )
            found.append(Worded(group.words, group.encoded.ids, start, group.rows))
        return found

    def pasts(self, row: TreeRow) -> tuple[Past, ...]:
        """Which tokens of the row look beyond it."""
        found: list[Past] = []
        for nodes, layers in self.beyond:
            places = [place for node in nodes for place in row.spans[node]]
            if places and places[0] < places[-1]:  # answers of one token feed nothing
                found.append(Past((places[0], places[-1]), layers))
        return tuple(found)


def temperature_of(tokens: Tensor, temperature: float | Tensor) -> Tensor:
    """The temperature of each of the tokens [T], float64 [T], from one number or one per token."""
    # In double precision, for heads that compute in it: 0.7 in single precision is another temperature.
    value = torch.as_tensor(temperature, dtype=torch.float64, device="cpu")
    if value.ndim and value.shape != tokens.shape:
        raise ValueError(
            f"An answer of {len(tokens)} tokens has {len(value)} temperatures; give one number, or one per token."
        )
    return value.expand(len(tokens))


def _cat_or_empty(pieces: Sequence[Tensor], dtype: torch.dtype = torch.long) -> Tensor:
    """[n]; empty if there is nothing to join, which `torch.cat` refuses."""
    empty = torch.zeros(0, dtype=dtype)
    return torch.cat(list(pieces)) if pieces else empty


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
        tokens[i, :length] = rollout.tokens
        roles[i, :length] = rollout.roles
        valid[i, :length] = True
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


def fed_tokens(rollout: Rollout, behind: int = 0) -> int:
    """Tokens that an answer takes in a packed row, with so many of a suffix; the last token predicts nothing."""
    return max(len(rollout.tokens) + behind - 1, 0)


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
    fed = [fed_tokens(r, n) for r, n in zip(batch.rollouts, more, strict=True)]
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
