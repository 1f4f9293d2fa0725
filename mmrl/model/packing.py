"""From rollouts to tensors: collate answers, cut a batch into parts by tokens, pack groups into one row.

A `Group` is the unit of computing: one prompt, the pixels it is seen with, and some of its answers. A `PackedRow` is
one row of groups, `[prompt 1 | answers of 1 | prompt 2 | …]`, without padding; of a group whose prompt was run before
(`open_prompts.py`) only the answers. What answers have in common by their paths is in the row once (`answer_trees.py`).
The last token of an answer predicts nothing and is left out of the row, unless others go on from it; the first token of
each answer is predicted by the last token of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmrl.model.answer_trees import Path, answer_tree, check_path, unique_tokens
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
    paths: tuple[Path, ...] = ()
    """What each answer has in common with others, `Rollout.path`; empty: nothing beyond the prompt."""

    @property
    def size(self) -> int:
        """Tokens in a packed row, without what `Wishes` add."""
        paths = self.paths or ((),) * len(self.answers)
        fed = unique_tokens(paths, [len(answer) for answer in self.answers])
        return len(self.encoded.ids) + fed


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
    runs = [run for run in draft.runs if len(run.tokens)]
    lengths = torch.tensor([answer.length for answer in draft.answers], dtype=torch.long)
    rows = torch.tensor([answer.row for answer in draft.answers], dtype=torch.long)
    indices = {
        "ids": row.ids,
        "positions": row.positions,
        "visual": row.visual,
        "predict": _cat_or_empty([run.predicted_by(row) for run in runs]),
        "tokens": _cat_or_empty([run.tokens for run in runs]),
        "rows": rows.repeat_interleave(lengths),
        "columns": _cat_or_empty([torch.arange(answer.length) for answer in draft.answers]),
        # As bits, so that they travel with the rest.
        "temperature": _cat_or_empty([run.temperature for run in runs], torch.float64).view(
            torch.long
        ),
    }
    if draft.shares:
        indices["where"] = draft.where()
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
class _Run:
    """A piece of answers, whose tokens a packed row predicts."""

    tokens: Tensor
    """long [T]."""
    temperature: Tensor
    """float64 [T]."""
    node: int
    """Which node of the row it is."""
    opened: int | None
    """Which of the prompts that are not in the row it belongs to."""

    def first(self, row: TreeRow) -> int:
        """Place of the state that predicts the first token: that of the last one before the piece."""
        before = row.before[self.node]
        # Nothing in the row comes before it: then its prompt does, which is not there.
        outside = before < 0 and self.opened is not None
        return len(row.ids) + (self.opened or 0) if outside else before

    def own(self, row: TreeRow) -> Tensor:
        """Places of its tokens, long [T], the last of which is in the row only if something follows it."""
        return row.spans[self.node][0] + torch.arange(len(self.tokens))

    def predicted_by(self, row: TreeRow) -> Tensor:
        """Places whose states predict the tokens, long [T], of at least one."""
        # Behind the first, each is predicted by the one before it.
        return torch.cat([torch.tensor([self.first(row)]), self.own(row)[:-1]])


@dataclass(frozen=True)
class _Answer:
    """An answer, made of runs."""

    runs: tuple[int, ...]
    """Numbers of its runs, from the prompt on; at least one."""
    length: int
    """Tokens of all of them."""
    row: int
    suffix: Tensor
    """long [S]."""
    end: int
    """Tokens before its slot."""
    behind: tuple[int, int]
    """Where its suffix begins, if one is fed: node, and tokens of that node before it."""


@dataclass
class _Draft:
    """Groups on their way into a row."""

    wishes: Wishes
    nodes: list[Node] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)
    answers: list[_Answer] = field(default_factory=list)
    beyond: list[tuple[range, Layers]] = field(default_factory=list)
    """Nodes that look at a prompt which is not in the row."""
    roots: list[int | None] = field(default_factory=list)
    """Node of each group's prompt; None if it is not in the row."""

    def add(self, group: Group, layers: Layers | None) -> None:
        """One more group; only its answers if its prompt was run before and left `layers` behind."""
        encoded = group.encoded
        base = encoded.next_position
        begin = len(self.nodes)
        self.roots.append(begin if layers is None else None)
        if layers is None:
            self.nodes.append(Node(encoded.ids, encoded.positions, base, slots=encoded.slots))
            self._grow(group, begin, base, None)
            return
        self._grow(group, ROOT, base, len(self.beyond))
        self.beyond.append((range(begin, len(self.nodes)), layers))

    def _grow(self, group: Group, root: int, base: int, opened: int | None) -> None:
        """The answers of a group, whose first tokens stand behind the node `root`."""
        tree = answer_tree(group.answers, group.paths, group.temperatures)
        nothing = torch.zeros(0, dtype=torch.long)
        suffixes = group.suffixes or (nothing,) * len(group.answers)
        ends = group.ends or tuple(map(len, group.answers))
        first, inner, endings = len(self.runs), tree.inner, tree.endings
        behind: dict[int, tuple[int, int]] = {}
        node_of: list[int] = []
        for number, piece in enumerate(tree.pieces):
            above = root if piece.above == ROOT else node_of[piece.above]
            node_of.append(len(self.nodes))
            self.runs.append(_Run(piece.tokens, piece.temperature, node_of[-1], opened))
            ending = endings[number]
            # A suffix lies in its answer's own node where nothing else goes on from there, else in one behind it.
            alone = number not in inner and len(ending) == 1
            mine = [
                _fed(suffixes[answer]) if self.wishes.suffix else nothing for answer in ending
            ]
            fed = piece.tokens
            if alone and self.wishes.feed_last:
                fed = torch.cat([fed, mine[0]])
            elif number not in inner and not self.wishes.feed_last:
                fed = _fed(fed)  # the last token predicts nothing
            # Every answer starts at the same position: they are alternatives, not a sequence.
            self.nodes.append(Node.text(fed, above, base))
            for answer, tokens in zip(ending, mine, strict=True):
                behind[answer] = (node_of[-1], len(piece.tokens))
                if not alone and len(tokens):
                    behind[answer] = (len(self.nodes), 0)
                    self.nodes.append(Node.text(tokens, node_of[-1], base))
        for answer, way in enumerate(tree.ways):
            self.answers.append(
                _Answer(
                    tuple(first + piece for piece in way),
                    len(group.answers[answer]),
                    group.rows[answer],
                    suffixes[answer],
                    ends[answer],
                    behind[answer],
                )
            )

    @property
    def shares(self) -> bool:
        """Does a token stand in several answers, or in another order than in the row?"""
        said = [number for answer in self.answers for number in answer.runs]
        return said != list(range(len(self.runs)))

    def where(self) -> Tensor:
        """long [M]: number, among the tokens of all runs, of each token of each answer."""
        starts = [0, *accumulate(len(run.tokens) for run in self.runs)]
        return _cat_or_empty(
            [
                torch.arange(starts[run], starts[run + 1])
                for answer in self.answers
                for run in answer.runs
            ]
        )

    def said(self, row: TreeRow) -> list[Said]:
        """Every answer, also those without a token, and where it is."""
        found: list[Said] = []
        for one in self.answers:
            runs = [self.runs[number] for number in one.runs]
            node, offset = one.behind
            found.append(
                Said(
                    torch.cat([run.tokens for run in runs]),
                    one.suffix,
                    one.row,
                    runs[0].first(row),
                    torch.cat([run.own(row) for run in runs]),
                    row.spans[node][0] + offset,
                    one.end,
                )
            )
        return found

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


def _fed(tokens: Tensor) -> Tensor:
    """All but the last."""
    return tokens[: max(len(tokens) - 1, 0)]


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
        check_path(rollout.path, length)
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
