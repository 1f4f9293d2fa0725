"""A row of trees: runs of tokens, each going on where another one ends, with their places and positions.

Positions are exact because a block of them may be shifted as a whole: a node counts its own from 0, and all axes of
what follows start where the node says that it ends (behind a picture that is not its number of tokens).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrl.model.row_layout import ROOT, Segment


@dataclass(frozen=True)
class Node:
    """A run of n tokens. It must not begin or end within the tokens of a medium."""

    ids: Tensor
    """long [n]."""
    positions: Tensor
    """long [3, n]: time, row and column, counted from its own beginning."""
    advance: int
    """How far what follows is behind its beginning, on all three axes."""
    parent: int = ROOT
    """Number of the node that it goes on from."""
    slots: tuple[Tensor, ...] = ()
    """Per medium, long [its tokens]: where its placeholders stand in `ids`."""
    base: int = 0
    """Position at which it begins if it has no parent in the row."""

    @classmethod
    def text(cls, ids: Tensor, parent: int = ROOT, base: int = 0) -> Node:
        """Words only: every token is one further on all axes."""
        count = len(ids)
        return cls(ids, torch.arange(count).expand(3, count), count, parent, (), base)


@dataclass(frozen=True)
class TreeRow:
    """Nodes laid out one after another: S tokens."""

    ids: Tensor
    """long [S]."""
    positions: Tensor
    """long [3, S]."""
    visual: Tensor
    """long [n]: places of visual tokens, medium by medium in the order of the row."""
    spans: tuple[Segment, ...]
    """Where each node lies."""
    before: tuple[int, ...]
    """Per node, place of the token that comes before its first one; -1 if none does."""
    lengths: tuple[int, ...]
    """Segments of the row's `Layout`: a node, or several of which each is the only one that goes on from the last."""
    parents: tuple[int, ...]
    """Of the segments."""


def laid_out(nodes: Sequence[Node]) -> TreeRow:
    """A row of these nodes, which come in depth-first order. Host tensors."""
    children = Counter(node.parent for node in nodes)
    spans: list[Segment] = []
    bases: list[int] = []
    before: list[int] = []
    segment_of: list[int] = []
    lengths: list[int] = []
    parents: list[int] = []
    at = 0
    for node in nodes:
        above = node.parent
        spans.append((at, at + len(node.ids)))
        at = spans[-1][1]
        bases.append(node.base if above == ROOT else bases[above] + nodes[above].advance)
        before.append(-1 if above == ROOT else _end(spans[above], before[above]))
        if above != ROOT and children[above] == 1:
            # An only child needs no segment of its own: it goes on in its parent's.
            segment_of.append(segment_of[above])
            lengths[-1] += len(node.ids)
            continue
        segment_of.append(len(lengths))
        lengths.append(len(node.ids))
        parents.append(ROOT if above == ROOT else segment_of[above])
    visual = [
        slot + start
        for node, (start, _) in zip(nodes, spans, strict=True)
        for slot in node.slots
    ]
    shifted = [node.positions + base for node, base in zip(nodes, bases, strict=True)]
    nothing = torch.zeros(0, dtype=torch.long)
    return TreeRow(
        torch.cat([nothing, *(node.ids for node in nodes)]),
        torch.cat([nothing.expand(3, 0), *shifted], dim=1),
        torch.cat([nothing, *visual]),
        tuple(spans),
        tuple(before),
        tuple(lengths),
        tuple(parents),
    )


def _end(span: Segment, before: int) -> int:
    """Place of a node's last token; of the one before it if it has none."""
    start, end = span
    return end - 1 if end > start else before
