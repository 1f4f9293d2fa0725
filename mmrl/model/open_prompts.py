"""Prompts that stay open: run once, while their answers come in several rows, and finished by one backward.

A group whose row would hold more tokens than a pass may is cut into slices of answers. Its prompt is run as a row of
its own, and what answers read of it is handed to every slice: the keys and values of each layer, and the last hidden
state, which predicts the first token.

    open      forward of the prompt; keys, values and last state are cut off from it as leaves
    slice     forward of some answers, which look at the leaves (`row_layout.Past`); the slice's backward frees it, and
              its gradients collect in the leaves, in at least fp32
    close     after the last slice: one backward from all that was cut off, with the collected gradients

The sums are the exact gradients. Held at any time: the open prompt, and one slice. Keys of a layer depend on the layer
below, so that one call with all of them as roots walks the prompt once from top to bottom; with activation
checkpointing it recomputes itself like any other row.

Order: the prompt's backward must reach the pictures' features before these go through the tower, so `VisionCache` is
finished after the prompts (`Policy.end_part`).

Layers with linear attention leave the last inputs of their convolution and their state in the place of keys and values.

Left as they were, cut groups repeating their prompt once per slice: weights that are cut over several processes, which
must all make the same calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmrl.model.gradients import collect_in_fp32
from mmrl.model.packing import Group, pack, split
from mmrl.model.recurrent_row import LINEAR
from mmrl.model.row_layout import Layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmrl.model.processing import Encoded
    from mmrl.model.vision_cache import VisionCache
    from mmrl.types import Batch, Prompt

Key = tuple[int, tuple[str, ...], bool, bool]
"""(object of the encoded prompt, contents of its pixels, read by the reference, with gradient)."""


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt that was run, and what its answers read of it."""

    last: Tensor
    """[1, D]: hidden state of its last token, a leaf."""
    layers: Layers
    """Keys and values [1, Hk, P, d] by layer, or what linear attention leaves behind; leaves."""
    made: tuple[Tensor, ...]
    """The same tensors as the language model made them, with their graph: last state, then keys and values."""
    states: Tensor
    """[P, D]: hidden states of all its tokens, without a graph; the memory is that of `made`."""

    def close(self) -> None:
        """Send the collected gradients back through the prompt and free its graph."""
        given = (self.last, *(x for pair in self.layers.values() for x in pair))
        roots: list[Tensor] = []
        grads: list[Tensor] = []
        for made, leaf in zip(self.made, given, strict=True):
            if leaf.grad is not None:
                roots.append(made)
                grads.append(leaf.grad.to(made.dtype))
        if roots:
            torch.autograd.backward(roots, grads)


class Runs(Protocol):
    """What is asked of the policy."""

    counters: Counter[str]
    vision: VisionCache
    shared: bool
    in_reference: bool
    language: Callable[..., Tensor]
    encode: Callable[[Prompt], Encoded]

    @property
    def base(self) -> Any:
        """The transformers model whose weights are read now."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def sharded(self) -> bool:
        """Are its weights cut over several processes?"""
        ...


class OpenPrompts:
    """The prompts of cut groups: opened when their first slice is scored, closed after their last."""

    def __init__(self, policy: Runs) -> None:
        self._policy = policy
        self._slices: Counter[int] = Counter()
        """Slices that are still to come, by object of the encoded prompt."""
        self._encoded: list[Encoded] = []
        """Keeps these objects alive, so that no other can take their name."""
        self._open: dict[Key, OpenPrompt] = {}
        self._in_part: set[int] = set()

    @property
    def waiting(self) -> bool:
        """Is a prompt open whose backward is still to come?"""
        return any(grad for *_, grad in self._open)

    def parts(self, batch: Batch, budget: int, behind: Sequence[int] = ()) -> list[Tensor]:
        """Rows of each part, as `packing.split` cuts them; prompts of cut groups will be opened.

        `behind`: tokens of each row's suffix; none if empty.

        Score the parts in this order and call `Policy.end_part` after each.
        """
        self.clear()
        lengths = {r.group: len(r.prompt_ids) for r in batch.rollouts}
        parts = split(batch, lengths, budget, behind)
        if self._is_exact:
            prompts = {r.group: r.prompt for r in batch.rollouts}
            for number, slices in _cut(batch, parts).items():
                encoded = self._policy.encode(prompts[number])
                self._encoded.append(encoded)
                self._slices[id(encoded)] += slices
        return parts

    def of(self, group: Group, grad: bool) -> OpenPrompt | None:
        """The open prompt of a group; None if the group is scored with its prompt in one row."""
        name = id(group.encoded)
        # Pixels that only one answer sees are read once, so there is nothing to share.
        if not self._slices[name] or not group.shared:
            return None
        self._in_part.add(name)
        pixels = tuple(medium.key for medium in group.visual)
        key = (name, pixels, self._policy.in_reference, grad)
        if key not in self._open:
            self._open[key] = self._opened(group, grad)
        return self._open[key]

    def end_part(self) -> None:
        """Call after the backward of one part: prompts without further slices are closed."""
        self._slices.subtract(self._in_part)
        for key in [key for key in self._open if self._slices[key[0]] <= 0]:
            self._open.pop(key).close()
        self._in_part.clear()

    def clear(self) -> None:
        """Forget what is open, its gradients included."""
        self._slices.clear()
        self._encoded.clear()
        self._open.clear()
        self._in_part.clear()

    @property
    def _is_exact(self) -> bool:
        config = self._policy.base.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        alone = not self._policy.sharded
        return self._policy.shared and alone and kinds <= {"full_attention", LINEAR}

    def _opened(self, group: Group, grad: bool) -> OpenPrompt:
        policy = self._policy
        noted: dict[int, tuple[Tensor, Tensor]] = {}
        row = pack([Group(group.encoded, group.visual)], policy.device)
        features = policy.vision.features(group.visual, grad)
        with torch.set_grad_enabled(grad):
            states = policy.language(
                row.ids, row.positions, row.layout.noting(noted), row.visual, features
            )
        policy.counters["tokens/update" if grad else "tokens/score"] += len(row.ids)
        pairs = [noted[layer] for layer in sorted(noted)]
        made = (states[-1:], *(x for pair in pairs for x in pair))
        # In a half-frozen model the keys of lower layers may depend on nothing that learns.
        last, *given = (x.detach().requires_grad_(x.requires_grad) for x in made)
        collect_in_fp32((last, *given))
        layers = dict(
            zip(sorted(noted), zip(given[::2], given[1::2], strict=True), strict=True)
        )
        return OpenPrompt(last, layers, made, states.detach())


def _cut(batch: Batch, parts: Sequence[Tensor]) -> dict[int, int]:
    """In how many parts each group lies, of those that lie in several."""
    found: Counter[int] = Counter()
    for part in parts:
        found.update(set(batch.group.cpu()[part].tolist()))
    return {number: count for number, count in found.items() if count > 1}
