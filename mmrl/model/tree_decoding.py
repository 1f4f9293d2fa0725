"""Attention of trees that grow: every row's new token looks at all that lies on its way, which is held only once.

Keys and values lie in blocks of one size. A run of tokens (`TreeKeys.open`) has blocks of its own and goes on from any
token of another run, whose blocks it looks at up to there: nothing is copied when a row forks, and the row that goes on
behind the fork writes where nobody else looks. Every block is read once for all rows that look at it.

Each block is weighed by itself; a row then merges the blocks on its way by the largest score of all of them, which is
one softmax over the way but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.model.decoding import LOW, blocks_of

SCRATCH = 0
"""The block into which a token is written that is there already; nobody looks at it."""


@dataclass
class _Run:
    """A run of tokens."""

    parent: int | None
    cut: int
    """So many tokens of the parent come before it."""
    blocks: list[int] = field(default_factory=list)
    written: int = 0
    """Its tokens whose keys and values are there."""


@dataclass(frozen=True)
class Fed:
    """One token that goes through the model: the last one that a row sees."""

    run: int
    place: int
    """Of the token in its run. Written unless it was before: what lies before it must be there."""


class TreeKeys:
    """Keys and values of runs of tokens, each once, in blocks of `size` tokens."""

    def __init__(self, size: int) -> None:
        assert size >= 1, "a block holds tokens"
        self.size = size
        self.keys: list[Tensor] = []
        """Per layer [room, Hk, size, d]."""
        self.values: list[Tensor] = []
        self._runs: dict[int, _Run] = {}
        self._used = 1
        """Blocks that are taken, `SCRATCH` included."""

    @property
    def tokens(self) -> int:
        """Whose keys and values are there, each counted once."""
        return sum(run.written for run in self._runs.values())

    def open(self, run: int, parent: int | None = None, cut: int = 0) -> None:
        """A new run without tokens, behind the first `cut` of its parent."""
        self._runs[run] = _Run(parent, cut)

    def written(self, run: int) -> int:
        """Tokens of a run whose keys and values are there."""
        return self._runs[run].written

    def way(self, run: int, upto: int) -> list[tuple[int, int]]:
        """(block, its tokens that are seen) from the root to the first `upto` tokens of a run, in their order."""
        found: list[list[tuple[int, int]]] = []
        at: int | None = run
        while at is not None:
            one = self._runs[at]
            found.append(
                [
                    (block, min(self.size, upto - number * self.size))
                    for number, block in enumerate(one.blocks[: blocks_of(upto, self.size)])
                ]
            )
            at, upto = one.parent, one.cut
        return [pair for level in reversed(found) for pair in level]

    def write(
        self, run: int, kept: Sequence[tuple[Tensor, Tensor]], start: int, end: int
    ) -> None:
        """Put tokens [start, end) of a packed row behind a run; `kept`: its keys and values [1, Hk, S, d] per layer."""
        if not self.keys:
            self.keys = [
                key.new_zeros(0, key.shape[1], self.size, key.shape[3]) for key, _ in kept
            ]
            self.values = [v.new_zeros(0, v.shape[1], self.size, v.shape[3]) for _, v in kept]
        blocks, offsets = self.room(run, end - start)
        for layer, (key, value) in enumerate(kept):
            self.keys[layer][blocks, :, offsets] = key[0, :, start:end].transpose(0, 1)
            self.values[layer][blocks, :, offsets] = value[0, :, start:end].transpose(0, 1)

    def room(self, run: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Places of so many further tokens of a run, which count as written: blocks and offsets in them, long [n]."""
        one = self._runs[run]
        places = range(one.written, one.written + tokens)
        one.written += tokens
        missing = blocks_of(one.written, self.size) - len(one.blocks)
        one.blocks += range(self._used, self._used + missing)
        self._used += missing
        self._hold(self._used)
        device = self.keys[0].device
        blocks = torch.tensor(
            [one.blocks[place // self.size] for place in places], device=device
        )
        offsets = torch.tensor([place % self.size for place in places], device=device)
        return blocks.long(), offsets.long()

    def before(self, run: int) -> dict[int, tuple[Tensor, Tensor]]:
        """As `gathered`, of all that lies before a run."""
        one = self._runs[run]
        assert one.parent is not None, "nothing lies before a root"
        return self.gathered(one.parent, one.cut)

    def gathered(self, run: int, upto: int) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values [1, Hk, P, d] of all on the way to the first `upto` tokens of a run, by layer; copies."""
        way = self.way(run, upto)
        device = self.keys[0].device
        seen = torch.tensor([count for _, count in way])
        blocks = torch.tensor([block for block, _ in way]).repeat_interleave(seen).to(device)
        offsets = torch.cat([torch.arange(count) for _, count in way]).to(device)

        def row(held: Tensor) -> Tensor:
            return held[blocks, :, offsets].transpose(0, 1)[None]

        pairs = zip(self.keys, self.values, strict=True)
        return {layer: (row(keys), row(values)) for layer, (keys, values) in enumerate(pairs)}

    def _hold(self, blocks: int) -> None:
        """Have room for so many blocks; doubled, so that copies stay few."""
        more = blocks - len(self.keys[0])
        if more <= 0:
            return
        more = max(more, len(self.keys[0]))
        for held in (self.keys, self.values):
            for layer in range(len(held)):
                held[layer] = pad(held[layer], (0, 0, 0, 0, 0, 0, 0, more))


@dataclass
class _Looks:
    """Who looks at what, as index tensors. N blocks from `first` on, or those of `chosen`; B rows."""

    first: int
    last: int
    chosen: Tensor | None
    """long [N]; None: all blocks from `first` to `last`."""
    slots: Tensor
    """long [N, G]: rows that look at each block, padded with 0."""
    seen: Tensor
    """long [N, G]: tokens of the block that they see."""
    parts: Tensor
    """long [B, M]: blocks of each row's way, as places in the flattened `slots`; the first is repeated."""
    absent: Tensor
    """bool [B, M, 1, 1]: True where a part is such a repetition."""

    def of(self, held: Tensor) -> Tensor:
        """[N, Hk, size, d] out of all blocks; without a copy where they lie close together."""
        return held[self.first : self.last] if self.chosen is None else held[self.chosen]


class TreeDecoding:
    """One step of rows that each feed one token: what attention asks of it while the layers run."""

    def __init__(self, tree: TreeKeys, rows: Sequence[Fed]) -> None:
        """`rows`: the tokens that are fed, in the order of the batch; no new one may come twice."""
        self.tree = tree
        targets = [self._target(row) for row in rows]
        device = tree.keys[0].device
        self._blocks = torch.tensor([block for block, _ in targets], device=device)
        self._offsets = torch.tensor([offset for _, offset in targets], device=device)
        self._looks = _looks([tree.way(row.run, row.place + 1) for row in rows], device)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, scale: float
    ) -> Tensor:
        """q [B, H, 1, d], k and v [B, Hk, 1, d] -> [B, 1, H, d]. Writes k and v."""
        at, (rows, heads, _, width), shared = self._looks, query.shape, key.shape[1]
        self.tree.keys[layer][self._blocks, :, self._offsets] = key[:, :, 0]
        self.tree.values[layer][self._blocks, :, self._offsets] = value[:, :, 0]
        keys, values = at.of(self.tree.keys[layer]), at.of(self.tree.values[layer])
        # Query heads that share a key head become further queries of it, so that no key is copied.
        folded = query.view(rows, shared, heads // shared, width) * scale
        wide = torch.promote_types(folded.dtype, torch.float32)
        scores = torch.matmul(_by_block(folded[at.slots]), keys.transpose(-1, -2)).to(wide)
        scores = _of_slots(scores, at).masked_fill(self._unseen(at), LOW)
        level = scores.amax(-1, keepdim=True)
        weights = (scores - level).exp()
        mass = weights.sum(-1, keepdim=True)
        seen = torch.matmul(_by_block(weights.to(values.dtype)), values).to(wide)
        return (
            _merged(level, mass, _of_slots(seen, at), at)
            .to(value.dtype)
            .reshape(rows, 1, heads, -1)
        )

    def _target(self, row: Fed) -> tuple[int, int]:
        """Where its keys and values are written."""
        written = self.tree.written(row.run)
        assert row.place <= written, "tokens before it were not fed"
        if row.place < written:
            return SCRATCH, 0
        block, offset = self.tree.room(row.run, 1)
        return int(block), int(offset)

    def _unseen(self, at: _Looks) -> Tensor:
        """bool [N, G, 1, 1, size]."""
        columns = torch.arange(self.tree.size, device=at.seen.device)
        return (columns >= at.seen[..., None])[:, :, None, None]


def _looks(ways: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> _Looks:
    """Index tensors of rows whose ways are given as (block, tokens of it that are seen)."""
    used = sorted({block for way in ways for block, _ in way})
    first, last = used[0], used[-1] + 1
    # A gap is computed and never read; where most would be gaps, blocks are picked out instead.
    close = last - first <= 2 * len(used)
    there = range(first, last) if close else used
    place = {block: number for number, block in enumerate(there)}
    members: list[list[tuple[int, int]]] = [[] for _ in there]
    parts: list[list[tuple[int, int]]] = []
    for row, way in enumerate(ways):
        parts.append([(place[block], len(members[place[block]])) for block, _ in way])
        for block, seen in way:
            members[place[block]].append((row, seen))
    widest, longest = max(map(len, members)), max(map(len, parts))
    slots = torch.zeros(len(members), widest, 2, dtype=torch.long)
    for number, own in enumerate(members):
        if own:
            slots[number, : len(own)] = torch.tensor(own)
    flat = [[number * widest + slot for number, slot in own] for own in parts]
    padded = torch.tensor([own + own[:1] * (longest - len(own)) for own in flat])
    lengths = torch.tensor([len(own) for own in flat])
    absent = (torch.arange(longest) >= lengths[:, None])[..., None, None, None]
    chosen = None if close else torch.tensor(used, device=device)
    rows, seen = slots.to(device).unbind(-1)
    return _Looks(first, last, chosen, rows, seen, padded.to(device), absent.to(device))


def _merged(level: Tensor, mass: Tensor, seen: Tensor, at: _Looks) -> Tensor:
    """Parts [N, G, Hk, fold, 1 or d] -> [B, Hk, fold, d]: the sums over each row's way."""
    level, mass, seen = (part.flatten(0, 1)[at.parts] for part in (level, mass, seen))
    share = (level - level.amax(1, keepdim=True)).exp().masked_fill(at.absent, 0.0)
    return (seen * share).sum(1) / (mass * share).sum(1)


def _by_block(x: Tensor) -> Tensor:
    """[N, G, Hk, fold, n] -> [N, Hk, G·fold, n]: all that looks at a block side by side."""
    return x.transpose(1, 2).flatten(2, 3)


def _of_slots(x: Tensor, at: _Looks) -> Tensor:
    """Inverse of `_by_block`."""
    return x.unflatten(2, (at.slots.shape[1], -1)).transpose(1, 2)
