"""A packed row while it is put together: where every piece of every answer goes, and what it goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmrl.model.answer_media import advance, refuse_other_media
from mmrl.model.answer_trees import Name, Path, answer_tree, unique_tokens
from mmrl.model.further import Said, Wishes, Worded, prompt_starts
from mmrl.model.row_layout import ROOT, Layers, Past
from mmrl.model.tree_row import Node, TreeRow

if TYPE_CHECKING:
    from mmrl.model.answer_media import Inside
    from mmrl.model.encoded import Encoded
    from mmrl.model.processing import Patches


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
    inside: tuple[Inside | None, ...] = ()
    """Pictures and clips within each answer, under the same branch; empty: none."""
    picked: tuple[Tensor, ...] = ()
    """long [T_i, k] each: tokens whose log-probs are wanted in each place of an answer."""
    columns: tuple[Tensor, ...] = ()
    """long [T_i] each: column of each token in the batch; empty: 0 to T_i - 1."""

    @property
    def size(self) -> int:
        """Tokens in a packed row, without what `Wishes` add."""
        paths = self.paths or ((),) * len(self.answers)
        fed = unique_tokens(paths, [len(answer) for answer in self.answers])
        return len(self.encoded.ids) + fed

    @property
    def within(self) -> Sequence[Inside | None]:
        """`inside`, with None for each answer that shows nothing."""
        return self.inside or (None,) * len(self.answers)


@dataclass(frozen=True)
class Limb:
    """A piece of answers that was run before (`open_prompts.py`)."""

    layers: Layers
    """What it left behind for those that go on from it."""
    length: int
    """Its tokens, at least one."""


@dataclass(frozen=True)
class Outside:
    """What of a group is not in the row: its prompt, and pieces of its answers."""

    layers: Layers
    """What the prompt left behind."""
    limbs: Mapping[Name, Limb] = field(default_factory=dict)
    """Piece -> what it left behind. Of a piece all those before it are here too, but for empty ones."""

    @property
    def states(self) -> int:
        """Hidden states that answers read of it: the prompt's last, then those of the limbs, in their order."""
        return 1 + sum(limb.length for limb in self.limbs.values())


@dataclass(frozen=True)
class _Run:
    """A piece of answers, whose tokens a packed row predicts."""

    tokens: Tensor
    """long [T]."""
    temperature: Tensor
    """float64 [T]."""
    node: int | None
    """Which node of the row it is; None if it is not in the row."""
    before: int
    """State behind the row that comes before it, where nothing in the row does."""
    behind: int = 0
    """First of its states behind the row, if it is not in the row."""

    def first(self, row: TreeRow) -> int:
        """Place of the state that predicts the first token: that of the last one before the piece."""
        place = -1 if self.node is None else row.before[self.node]
        return place if place >= 0 else len(row.ids) + self.before

    def own(self, row: TreeRow) -> Tensor:
        """Places of its tokens, long [T], the last of which is in the row only if something follows it."""
        inside = self.node is not None
        start = row.spans[self.node][0] if inside else len(row.ids) + self.behind  # type: ignore[index]
        return start + torch.arange(len(self.tokens))

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
    columns: Tensor
    """long [T]: column in the batch of each token."""
    suffix: Tensor
    """long [S]."""
    end: int
    """Tokens before its slot."""
    behind: tuple[int, int] | None
    """Where its suffix begins, if one is fed: node, and tokens of that node before it."""


@dataclass(frozen=True)
class _Stand:
    """Where something that goes on from a piece, or from the prompt, is put."""

    node: int
    """The node in the row; `ROOT` if it is not in the row."""
    base: int
    """Position behind it."""
    state: int
    """Its last state behind the row, if it is not in the row."""
    layers: tuple[Layers, ...] = ()
    """What it, and what comes before it, left behind."""


@dataclass
class Draft:
    """Groups on their way into a row."""

    wishes: Wishes
    nodes: list[Node] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)
    answers: list[_Answer] = field(default_factory=list)
    beyond: dict[tuple[int, int], tuple[Layers, int, int]] = field(default_factory=dict)
    """What is not in the row, and the first and the last node that look at it; by group and object."""
    roots: list[int | None] = field(default_factory=list)
    """Node of each group's prompt; None if it is not in the row."""
    seen: dict[int, tuple[Layers, ...]] = field(default_factory=dict)
    """What lies outside before each node without a parent in the row."""
    outside: int = 0
    """States behind the row."""
    shown: list[Patches] = field(default_factory=list)
    """Media of the nodes, in their order: features of deeper layers are put in the order of the row."""

    def add(self, group: Group, outside: Outside | None) -> None:
        """One more group; only those of its answers' pieces that were not run before, if its prompt was."""
        encoded = group.encoded
        base = encoded.next_position
        self.roots.append(len(self.nodes) if outside is None else None)
        if outside is None:
            stand = _Stand(len(self.nodes), base, 0)
            self.nodes.append(Node(encoded.ids, encoded.positions, base, slots=encoded.slots))
            self.shown += group.visual
            self._grow(group, stand, {})
            return
        stand = _Stand(ROOT, base, self.outside, (outside.layers,))
        self.outside += 1
        self._grow(group, stand, outside.limbs)

    def _grow(self, group: Group, root: _Stand, limbs: Mapping[Name, Limb]) -> None:
        """The answers of a group, the first tokens of which go on from `root`."""
        tree = answer_tree(group.answers, group.paths, group.temperatures)
        media = group.within
        refuse_other_media(tree, media)
        nothing = torch.zeros(0, dtype=torch.long)
        suffixes = group.suffixes or (nothing,) * len(group.answers)
        ends = group.ends or tuple(map(len, group.answers))
        columns = group.columns or tuple(torch.arange(len(a)) for a in group.answers)
        first = len(self.runs)
        starts = self._limb_states(limbs)
        stands: list[_Stand] = []
        behind: dict[int, tuple[int, int] | None] = {}
        inner, endings = tree.inner, tree.endings
        for number, piece in enumerate(tree.pieces):
            above = root if piece.above == ROOT else stands[piece.above]
            mine = {
                answer: _fed(suffixes[answer]) if self.wishes.suffix else nothing
                for answer in endings[number]
            }
            if piece.name in limbs:
                limb, start = limbs[piece.name], starts[piece.name]
                run = _Run(piece.tokens, piece.temperature, None, above.state, start)
                layers = (*above.layers, limb.layers)
                last = start + limb.length - 1
                base = above.base + advance(media[piece.answer], *piece.span)
                stands.append(_Stand(ROOT, base, last, layers))
            else:
                alone = number not in inner and len(mine) == 1
                fed = self._read(piece.tokens, leaf=number not in inner)
                # A suffix lies in its answer's own node where nothing else goes on from there.
                own = next(iter(mine.values())) if alone else nothing
                tokens = torch.cat([fed, own])
                node = self._put(tokens, above, media[piece.answer], piece.span)
                run = _Run(piece.tokens, piece.temperature, node, above.state)
                # Nothing of it but empty pieces is on the way from outside: their states stay those to go on from.
                inside = len(piece.tokens) > 0 or above.node != ROOT
                stands.append(_Stand(node, 0, 0) if inside else above)
                if alone:
                    behind[next(iter(mine))] = (node, len(piece.tokens))
                    mine = {}
            self.runs.append(run)
            for answer, tokens in mine.items():
                behind[answer] = (self._put(tokens, stands[-1]), 0) if len(tokens) else None
        for answer, way in enumerate(tree.ways):
            self.answers.append(
                _Answer(
                    tuple(first + piece for piece in way),
                    len(group.answers[answer]),
                    group.rows[answer],
                    columns[answer],
                    suffixes[answer],
                    ends[answer],
                    behind[answer],
                )
            )

    def _limb_states(self, limbs: Mapping[Name, Limb]) -> dict[Name, int]:
        """The first state behind the row of each limb."""
        found: dict[Name, int] = {}
        for name, limb in limbs.items():
            found[name] = self.outside
            self.outside += limb.length
        return found

    def _read(self, tokens: Tensor, *, leaf: bool) -> Tensor:
        """What of a piece is fed: nothing follows the last token of a leaf, unless something is wished for there."""
        return _fed(tokens) if leaf and not self.wishes.feed_last else tokens

    def _put(
        self,
        tokens: Tensor,
        above: _Stand,
        inside: Inside | None = None,
        span: tuple[int, int] = (0, 0),
    ) -> int:
        """A node behind `above`; its number. `span`: which tokens it is of an answer that shows what is `inside`."""
        node = len(self.nodes)
        # Every answer starts at the same position: they are alternatives, not a sequence.
        if inside is None:
            self.nodes.append(Node.text(tokens, above.node, above.base))
        else:
            self.nodes.append(inside.node(tokens, *span, above.node, above.base))
            self.shown += inside.pixels(*span)
        top = node
        while self.nodes[top].parent != ROOT:
            top = self.nodes[top].parent
        for layers in self.seen.setdefault(top, above.layers):
            # By group as well: two groups may ask the same prompt, and lie apart.
            key = (len(self.roots), id(layers))
            first = self.beyond.get(key, (layers, node, node))[1]
            self.beyond[key] = (layers, first, node)
        return node

    @property
    def shares(self) -> bool:
        """Does a token stand in several answers, or in another order than in the row?"""
        said = [number for answer in self.answers for number in answer.runs]
        return said != list(range(len(self.runs)))

    def where(self) -> Tensor:
        """long [M]: number, among the tokens of all runs, of each token of each answer."""
        starts = [0, *accumulate(len(run.tokens) for run in self.runs)]
        return cat_or_empty(
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
            node, offset = one.behind or (None, 0)
            found.append(
                Said(
                    torch.cat([run.tokens for run in runs]),
                    one.suffix,
                    one.row,
                    runs[0].first(row),
                    torch.cat([run.own(row) for run in runs]),
                    0 if node is None else row.spans[node][0] + offset,
                    one.end,
                )
            )
        return found

    def asked(self, row: TreeRow, groups: Sequence[Group]) -> list[Worded]:
        """Every prompt, and where it is; nothing if nobody asks for its words."""
        if not self.wishes.words:
            return []
        lengths = [len(group.encoded.ids) for group in groups]
        starts = prompt_starts(row, self.roots, lengths, len(row.ids) + self.outside)
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
        for layers, first, last in self.beyond.values():
            span = (row.spans[first][0], row.spans[last][1])
            if span[0] < span[1]:  # answers of one token feed nothing
                found.append(Past(span, layers))
        return tuple(found)


def _fed(tokens: Tensor) -> Tensor:
    """All but the last."""
    return tokens[: max(len(tokens) - 1, 0)]


def cat_or_empty(pieces: Sequence[Tensor], dtype: torch.dtype = torch.long) -> Tensor:
    """[n]; empty if there is nothing to join, which `torch.cat` refuses."""
    empty = torch.zeros(0, dtype=dtype)
    return torch.cat(list(pieces)) if pieces else empty
