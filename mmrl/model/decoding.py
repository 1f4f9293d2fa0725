"""Attention of a rollout in progress: one new token of each answer looks at its prompt and at its own past.

Keys and values of a prompt are held once per group, those of the answers in preallocated buffers. The answers of a
prompt stand side by side in one product, so that its keys are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass
class Decoding:
    """Keys and values of a rollout in progress: N answers advance by one token per call."""

    prompt_keys: list[Tensor]
    """Per layer [P, Hk, Lp, d], padded right."""
    prompt_values: list[Tensor]
    prompt_mask: Tensor
    """bool [P, Lp], True on real tokens."""
    answer_keys: list[Tensor]
    """Per layer [N, Hk, capacity, d]."""
    answer_values: list[Tensor]
    group: Tensor
    """long [N]: which prompt each active answer belongs to."""
    filled: int = 0
    """Answer tokens already in the buffers."""
    slots: Tensor = field(init=False)
    """long [P, Gmax]: active rows of each prompt, padded with 0."""
    place: Tensor = field(init=False)
    """long [N]: position of each row in the flattened `slots`."""

    def __post_init__(self) -> None:
        self._arrange()

    def keep(self, rows: Tensor) -> None:
        """Go on with these answers only; prompts without answers are dropped too."""
        self.answer_keys = [k[rows] for k in self.answer_keys]
        self.answer_values = [v[rows] for v in self.answer_values]
        used, self.group = torch.unique(self.group[rows], return_inverse=True)
        if len(used) < self.prompt_mask.shape[0]:
            self.prompt_keys = [k[used] for k in self.prompt_keys]
            self.prompt_values = [v[used] for v in self.prompt_values]
            self.prompt_mask = self.prompt_mask[used]
        self._arrange()

    def grow(self, capacity: int) -> None:
        """Room for more answer tokens."""
        more = capacity - self.answer_keys[0].shape[2]
        if more > 0:
            room = (0, 0, 0, more)
            self.answer_keys = [pad(keys, room) for keys in self.answer_keys]
            self.answer_values = [pad(values, room) for values in self.answer_values]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new token's key and value [N, Hk, 1, d] into the buffers; all so far [N, Hk, filled + 1, d]."""
        keys, values = self.answer_keys[layer], self.answer_values[layer]
        # `filled` itself is moved by the engine after the last layer: all layers write to one place.
        end = self.filled + 1
        keys[:, :, self.filled : end] = key
        values[:, :, self.filled : end] = value
        return keys[:, :, :end], values[:, :, :end]

    def _arrange(self) -> None:
        """Work out `slots` and `place` from `group`."""
        group = self.group.tolist()
        prompts = len(self.prompt_mask)
        rows: list[list[int]] = [[] for _ in range(prompts)]
        for row, number in enumerate(group):
            rows[number].append(row)
        widest = max((len(members) for members in rows), default=0)
        place = [0] * len(group)
        for number, members in enumerate(rows):
            for position, row in enumerate(members):
                place[row] = number * widest + position
            members += [0] * (widest - len(members))
        self.slots = self._long(rows)
        self.place = self._long(place)

    def _long(self, numbers: Sequence[object]) -> Tensor:
        # Without a type, since an empty list alone would be read as floats and refuse to be an index.
        return torch.tensor(numbers, device=self.group.device).long()


def decode(
    query: Tensor, key: Tensor, value: Tensor, store: Decoding, layer: int, scale: float
) -> Tensor:
    """One new token of each answer: q [N, H, 1, d], k and v [N, Hk, 1, d] -> [N, 1, H, d]. Writes k and v."""
    rows, heads, _, width = query.shape
    shared = key.shape[1]
    own_keys, own_values = store.write(layer, key, value)
    # Query heads that share a key head become further queries of it, so that no key is copied: [N, Hk, H/Hk, d].
    folded = query.view(rows, shared, heads // shared, width) * scale
    together = _per_prompt(folded[store.slots])
    prompt_keys, prompt_values = store.prompt_keys[layer], store.prompt_values[layer]
    padding = ~store.prompt_mask[:, None, None, :]
    # Scores are never held in half precision, and double precision stays double.
    wide = torch.promote_types(query.dtype, torch.float32)
    to_prompt = torch.matmul(together, prompt_keys.transpose(-1, -2)).to(wide)
    to_prompt = _per_answer(to_prompt.masked_fill(padding, float("-inf")), store)
    to_own = torch.matmul(folded, own_keys.transpose(-1, -2)).to(wide)
    # One softmax over both: prompt and own past compete for the same attention.
    weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1).to(value.dtype)
    cut = to_prompt.shape[-1]
    on_prompt, on_own = weights[..., :cut], weights[..., cut:]
    out = torch.matmul(on_own, own_values)
    # Padding of `slots` must weigh nothing, so the weights are written into zeros instead of gathered.
    groups, widest = store.slots.shape
    filled = on_prompt.new_zeros(groups * widest, *on_prompt.shape[1:])
    filled[store.place] = on_prompt
    together = _per_prompt(filled.unflatten(0, (groups, widest)))
    seen = torch.matmul(together, prompt_values)
    out = out + _per_answer(seen, store)
    return out.reshape(rows, 1, heads, width)


def _per_prompt(x: Tensor) -> Tensor:
    """[P, Gmax, Hk, fold, n] -> [P, Hk, Gmax·fold, n]: the answers of a prompt side by side."""
    groups, widest, shared, fold, last = x.shape
    return x.permute(0, 2, 1, 3, 4).reshape(groups, shared, widest * fold, last)


def _per_answer(x: Tensor, store: Decoding) -> Tensor:
    """[P, Hk, Gmax·fold, n] -> [N, Hk, fold, n]: back to one row per answer, without the padding of `slots`."""
    groups, widest = store.slots.shape
    shared, last = x.shape[1], x.shape[-1]
    split = x.view(groups, shared, widest, -1, last)
    return split.permute(0, 2, 1, 3, 4).flatten(0, 1)[store.place]
