"""Attention of a rollout in progress: one new token of each answer looks at its prompt and at its own past.

Keys and values of a prompt are held once per group, in blocks of one size, so that a long prompt takes many blocks and
a short one few; those of the answers lie in one row each. The answers of a prompt stand side by side in one product, so
that its keys are read once for all of them. Rows begin and end at different times: `Decoding.written` says where each
of them stands.

Where every prompt has one block, prompt and own past go through one softmax. Otherwise the blocks of a prompt are
weighed relative to the largest score of the whole prompt and added up, then merged with the own past by the larger of
both scores: the same numbers but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmrl.model.recurrent_row import Carried

LOW = -1e30
"""Score of what must not be seen: finite, so that a block of it alone gives no NaN, and exp of it is exactly 0."""
LARGEST_BLOCK = {"cpu": 64, "cuda": 256}
"""Tokens of a block: half of one is lost per prompt, and every block repeats its prompt's queries."""


def blocks_of(tokens: int, size: int) -> int:
    """Blocks of `size` tokens that a prompt takes."""
    return -(-tokens // size)


class PromptBlocks:
    """Keys and values of prompts, each once, in blocks of `size` tokens; `room` blocks in all."""

    def __init__(self, size: int, room: int) -> None:
        self.size = size
        self.keys: list[Tensor] = []
        """Per layer [room, Hk, size, d]."""
        self.values: list[Tensor] = []
        self.blocks: dict[int, list[int]] = {}
        """Prompt -> its blocks, in the order of its tokens."""
        self.carried: dict[int, Carried] = {}
        """Prompt -> what its layers of linear attention leave behind; none for other models."""
        self._filled = [0] * room
        self._free = list(range(room))

    @property
    def room(self) -> int:
        """Blocks, used or not."""
        return len(self._filled)

    @property
    def free(self) -> int:
        """Blocks that no prompt takes."""
        return len(self._free)

    @property
    def single(self) -> bool:
        """Has every prompt one block?"""
        return all(len(blocks) == 1 for blocks in self.blocks.values())

    def add(
        self,
        numbers: Sequence[int],
        segments: Sequence[tuple[int, int]],
        kept: list[tuple[Tensor, Tensor]],
        carried: Carried | None = None,
    ) -> None:
        """Take prompts [start, end) of a packed row, with its keys and values [1, Hk, S, d] per layer; empties `kept`.

        `carried`: what layers of linear attention leave behind, one sequence per prompt. One layer after the other is
        copied and forgotten, so that they are never all there twice.
        """
        taken: list[int] = []
        where: list[Tensor] = []
        for number, (start, end) in zip(numbers, segments, strict=True):
            own = [self._free.pop(0) for _ in range(blocks_of(end - start, self.size))]
            self.blocks[number] = own
            taken += own
            for position, block in enumerate(own):
                first = start + position * self.size
                self._filled[block] = min(self.size, end - first)
                # The last block is padded with whatever comes next; it is never looked at.
                where.append((first + torch.arange(self.size)).clamp(max=end - 1))
        device = kept[0][0].device
        places, rows = torch.stack(where).to(device), torch.tensor(taken, device=device)
        for layer in range(len(kept)):
            key, value = kept.pop(0)
            if len(self.keys) <= layer:
                self.keys.append(self._empty(key))
                self.values.append(self._empty(value))
            self.keys[layer][rows] = key[0][:, places].transpose(0, 1)
            self.values[layer][rows] = value[0][:, places].transpose(0, 1)
        if carried is not None and carried.states:
            for position, number in enumerate(numbers):
                self.carried[number] = carried.of(torch.tensor([position], device=device))

    def drop(self, number: int) -> None:
        """Forget a prompt; others may take its blocks."""
        self.carried.pop(number, None)
        for block in self.blocks.pop(number):
            self._filled[block] = 0
            self._free.append(block)

    def shrink(self) -> None:
        """Give up the room that no prompt takes."""
        used = sorted(block for own in self.blocks.values() for block in own)
        if len(used) == self.room:
            return
        rows = torch.tensor(used, device=self.keys[0].device)
        for layer in range(len(self.keys)):
            self.keys[layer] = self.keys[layer][rows]
            self.values[layer] = self.values[layer][rows]
        new = {block: place for place, block in enumerate(used)}
        self.blocks = {n: [new[b] for b in own] for n, own in self.blocks.items()}
        self._filled = [self._filled[block] for block in used]
        self._free = []

    def unseen(self) -> Tensor:
        """bool [room, 1, 1, size]: False on tokens of prompts."""
        device = self.keys[0].device
        filled = torch.tensor(self._filled, device=device)
        return (torch.arange(self.size, device=device) >= filled[:, None])[:, None, None]

    def _empty(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.room, like.shape[1], self.size, like.shape[3])


@dataclass
class _Places:
    """Which rows look at which blocks, as index tensors. P prompts, N blocks, B rows."""

    slots: Tensor
    """long [P, Gmax]: rows of each prompt, padded with 0."""
    place: Tensor
    """long [B]: position of each row in the flattened `slots`; 0 for a row without prompt."""
    unseen: Tensor
    """bool [N, 1, 1, size]: padding of blocks."""
    owner: Tensor
    """long [N]: prompt of each block; 0 for a free block."""
    parts: Tensor
    """long [P, Mmax]: blocks of each prompt; the first is repeated."""
    members: Tensor
    """[P, N]: 1 where the block is the prompt's, else 0."""


@dataclass(frozen=True)
class Widths:
    """Least sizes of the index tensors: with fixed ones, a step has the same shapes whoever sits in its rows."""

    prompts: int = 0
    group: int = 0
    parts: int = 0


class Decoding:
    """Keys and values of a rollout in progress: B rows, each empty or one answer that advances by a token per call."""

    def __init__(self, prompts: PromptBlocks, widths: Widths | None = None) -> None:
        self.prompts = prompts
        self.widths = widths or Widths()
        self.fixed = widths is not None
        """Shall nothing depend on how long answers are by now? Then a step can be replayed."""
        self.keys: list[Tensor] = []
        """Of the answers, per layer [B, Hk, capacity, d]."""
        self.values: list[Tensor] = []
        self.group: list[int | None] = []
        """The prompt of each row; None if nobody sits there."""
        self.written = torch.zeros(0, dtype=torch.long)
        """long [B]: tokens of each answer that are in its row."""
        self.carried = Carried()
        """What layers of linear attention carry, one sequence per row; nothing for other models."""
        self.single = True
        """Has every prompt one block, so that a block is its prompt and nothing has to be added up?"""
        self.version = 0
        """Grows when a tensor is replaced by another, so that what was recorded with the old ones is void."""
        self.places: _Places | None = None
        self._reach = 0
        self._even: int | None = None
        self._ahead: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Tokens that a row has room for."""
        return self.keys[0].shape[2] if self.keys else 0

    def arrange(self, rows: Sequence[int | None], capacity: int) -> None:
        """Go on with these rows in this order (None: an empty one), with room for at least `capacity` tokens."""
        like = self.prompts.keys[0]
        device = like.device
        more = max(0, capacity - self.capacity)
        if not self.keys:
            shape = (len(rows), like.shape[1], capacity, like.shape[3])
            self.keys = [like.new_zeros(shape) for _ in self.prompts.keys]
            self.values = [v.new_zeros((*shape[:3], v.shape[3])) for v in self.prompts.values]
            self.written = torch.zeros(len(rows), dtype=torch.long, device=device)
            self.group = [None] * len(rows)
            self.version += 1
            return
        if list(rows) != list(range(len(self.group))):
            # An empty row begins as a copy of the first; what is there is never looked at.
            index = torch.tensor([row or 0 for row in rows], device=device).long()
            self._each(lambda tensor: tensor[index])
            self.carried.arrange(index)
            self.written = self.written[index]
            self.group = [None if row is None else self.group[row] for row in rows]
        if more:
            self._each(lambda tensor: pad(tensor, (0, 0, 0, more)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        """One tensor after the other, so that the old ones are never all there beside the new ones."""
        self.version += 1
        for tensors in (self.keys, self.values):
            for layer in range(len(tensors)):
                tensors[layer] = change(tensors[layer])

    def carry(self, rows: Sequence[int], prompts: Sequence[int]) -> None:
        """Answers to these prompts begin in these rows: each goes on by itself from what its prompt leaves behind."""
        if not self.prompts.carried:
            return
        ends = [self.prompts.carried[number] for number in prompts]
        if not self.carried.states:
            self.carried = ends[0].room(len(self.group))
            self.version += 1
        self.carried.put(torch.tensor(rows, device=self.written.device), ends)

    def seat(self, group: Sequence[int | None]) -> None:
        """Say which prompt each row answers; None for nobody. Every prompt named must have its blocks."""
        self.group = list(group)
        blocks = self.prompts.blocks
        self.single = self.widths.parts <= 1 if self.fixed else self.prompts.single
        numbers = list(blocks)
        at = {n: blocks[n][0] if self.single else i for i, n in enumerate(numbers)}
        count = self.prompts.room if self.single else max(len(numbers), self.widths.prompts)
        members: list[list[int]] = [[] for _ in range(count)]
        for row, number in enumerate(group):
            if number is not None:
                members[at[number]].append(row)
        widest = max(self.widths.group, max(map(len, members), default=0), 1)
        place = [0] * len(group)
        for position, rows in enumerate(members):
            for order, row in enumerate(rows):
                place[row] = position * widest + order
        slots = [rows + [0] * (widest - len(rows)) for rows in members]
        self._place(slots, place, {at[n]: own for n, own in blocks.items()}, count)

    def _place(
        self,
        slots: list[list[int]],
        place: list[int],
        blocks: dict[int, list[int]],
        prompts: int,
    ) -> None:
        """Set the index tensors."""
        like = self.prompts.keys[0]
        owner = [0] * self.prompts.room
        most = max(self.widths.parts, max(map(len, blocks.values()), default=1))
        parts = [[0] * most for _ in range(prompts)]
        wide = torch.promote_types(like.dtype, torch.float32)
        members = torch.zeros(prompts, self.prompts.room, dtype=wide)
        for position, own in blocks.items():
            parts[position] = own + own[:1] * (most - len(own))
            members[position, own] = 1.0
            for block in own:
                owner[block] = position
        found = {
            "slots": torch.tensor(slots),
            "place": torch.tensor(place).long(),
            "unseen": self.prompts.unseen(),
            "owner": torch.tensor(owner),
            "parts": torch.tensor(parts),
            "members": members,
        }
        self._set({name: tensor.to(like.device) for name, tensor in found.items()})

    def _set(self, found: dict[str, Tensor]) -> None:
        """Take over the index tensors; of the same shapes they are written into the old ones, which a replay reads."""
        old = {} if self.places is None else vars(self.places)
        shapes = {name: tensor.shape for name, tensor in found.items()}
        if shapes == {name: tensor.shape for name, tensor in old.items()}:
            for name, tensor in found.items():
                old[name].copy_(tensor)
            return
        self.places = _Places(**found)
        self.version += 1

    def begin(self, longest: int, even: int | None) -> None:
        """Prepare a step: no answer has more than `longest` tokens in its row; all have `even`, if that is known."""
        self._even = None if self.fixed else even
        self._reach = self.capacity if self.fixed else longest + 1
        self._ahead = None
        if self._even is None:
            tokens = torch.arange(self._reach, device=self.written.device)
            self._ahead = (tokens > self.written[:, None])[:, None, None]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new token's key and value [B, Hk, 1, d] into the rows; all that may be seen [B, Hk, reach, d]."""
        keys, values = self.keys[layer], self.values[layer]
        if self._even is not None:
            keys[:, :, self._even : self._even + 1] = key
            values[:, :, self._even : self._even + 1] = value
        else:
            rows = torch.arange(len(keys), device=keys.device)
            keys[rows, :, self.written] = key[:, :, 0]
            values[rows, :, self.written] = value[:, :, 0]
        # `written` itself is moved by the engine after the last layer: all layers write to one place.
        return keys[:, :, : self._reach], values[:, :, : self._reach]

    def own(self, folded: Tensor, keys: Tensor) -> Tensor:
        """Scores of the own past, at least fp32 [B, Hk, fold, reach]."""
        scores = torch.matmul(folded, keys.transpose(-1, -2))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores if self._ahead is None else scores.masked_fill(self._ahead, LOW)


def decode(
    query: Tensor, key: Tensor, value: Tensor, store: Decoding, layer: int, scale: float
) -> Tensor:
    """One new token of each answer: q [B, H, 1, d], k and v [B, Hk, 1, d] -> [B, 1, H, d]. Writes k and v."""
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    own = store.write(layer, key, value)
    # Query heads that share a key head become further queries of it, so that no key is copied: [B, Hk, H/Hk, d].
    folded = query.view(rows, shared, heads // shared, width) * scale
    attend = _at_once if store.single else _in_parts
    return attend(folded, *own, store, layer).reshape(rows, 1, heads, width)


def _at_once(
    folded: Tensor, own_keys: Tensor, own_values: Tensor, store: Decoding, layer: int
) -> Tensor:
    """Every prompt in one block: one softmax over prompt and own past, which compete for the same attention."""
    at = store.places
    assert at is not None, "no answer has a seat"
    keys, values = store.prompts.keys[layer], store.prompts.values[layer]
    together = _per_prompt(folded[at.slots])
    # Scores are never held in half precision, and double precision stays double.
    wide = torch.promote_types(folded.dtype, torch.float32)
    to_prompt = torch.matmul(together, keys.transpose(-1, -2)).to(wide)
    to_prompt = _per_answer(to_prompt.masked_fill(at.unseen, LOW), at)
    to_own = store.own(folded, own_keys)
    weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1).to(own_values.dtype)
    cut = to_prompt.shape[-1]
    on_prompt, on_own = weights[..., :cut], weights[..., cut:]
    out = torch.matmul(on_own, own_values)
    # What stands in the padding of `slots` is computed and never read.
    seen = torch.matmul(_per_prompt(on_prompt[at.slots]), values)
    return out + _per_answer(seen, at)


def _in_parts(
    folded: Tensor, own_keys: Tensor, own_values: Tensor, store: Decoding, layer: int
) -> Tensor:
    """Prompts in several blocks: each block by itself, their sums, and the merge with the own past."""
    at = store.places
    assert at is not None, "no answer has a seat"
    keys, values = store.prompts.keys[layer], store.prompts.values[layer]
    wide = torch.promote_types(folded.dtype, torch.float32)
    together = _per_prompt(folded[at.slots])
    scores = torch.matmul(together[at.owner], keys.transpose(-1, -2)).to(wide)
    scores = scores.masked_fill(at.unseen, LOW)
    level = scores.amax(-1)[at.parts].amax(1)  # the largest of each prompt [P, Hk, Gmax·fold]
    weights = (scores - level[at.owner][..., None]).exp()
    mass = _summed(weights.sum(-1, keepdim=True), at)
    seen = _summed(torch.matmul(weights.to(values.dtype), values).to(wide), at)
    level, mass, seen = (_per_answer(x, at) for x in (level[..., None], mass, seen))
    to_own = store.own(folded, own_keys)
    own_level = to_own.amax(-1, keepdim=True)
    own_weights = (to_own - own_level).exp()
    own_mass = own_weights.sum(-1, keepdim=True)
    own_seen = torch.matmul(own_weights.to(own_values.dtype), own_values).to(wide)
    top = torch.maximum(level, own_level)
    share, own_share = (level - top).exp(), (own_level - top).exp()
    out = (seen * share + own_seen * own_share) / (mass * share + own_mass * own_share)
    return out.to(own_values.dtype)


def _summed(parts: Tensor, at: _Places) -> Tensor:
    """[N, Hk, n, m] -> [P, Hk, n, m]: sums over the blocks of each prompt. A product: equal bits on every call."""
    return torch.matmul(at.members, parts.flatten(1)).unflatten(1, parts.shape[1:])


def _per_prompt(x: Tensor) -> Tensor:
    """[P, Gmax, Hk, fold, n] -> [P, Hk, Gmax·fold, n]: the answers of a prompt side by side."""
    groups, widest, shared, fold, last = x.shape
    return x.permute(0, 2, 1, 3, 4).reshape(groups, shared, widest * fold, last)


def _per_answer(x: Tensor, at: _Places) -> Tensor:
    """[P, Hk, Gmax·fold, n] -> [B, Hk, fold, n]: back to one row per answer, without the padding of `slots`."""
    groups, widest = at.slots.shape
    shared, last = x.shape[1], x.shape[-1]
    split = x.view(groups, shared, widest, -1, last)
    return split.permute(0, 2, 1, 3, 4).flatten(0, 1)[at.place]
