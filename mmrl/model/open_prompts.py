"""Prompts that stay open: run once, while their answers come in several rows, and finished by one backward.

A group whose row would hold more tokens than a pass may is cut into slices of answers. Its prompt is run as a row of
its own, and what answers read of it is handed to every slice: the keys and values of each layer, and the last hidden
state, which predicts the first token.

    open      forward of the prompt; keys, values and last state are cut off from it as leaves
    slice     forward of some answers, which look at the leaves (`row_layout.Past`); the slice's backward frees it, and
              its gradients collect in the leaves, in at least fp32
    close     after the last slice: one backward from all that was cut off, with the collected gradients

Where answers have more in common, a piece of theirs that several slices read is a *limb*: it is opened like a prompt,
behind the prompt and the limbs before it, and closed before these, whose leaves collect its gradients as well.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmrl.model.answer_media import advance, piece_of
from mmrl.model.answer_trees import Name, named
from mmrl.model.gradients import collect_in_fp32
from mmrl.model.packing import Group, PackedRow, pack, pack_limb, split
from mmrl.model.recurrent_row import LINEAR
from mmrl.model.row_draft import Limb, Outside
from mmrl.model.row_layout import Layers
from mmrl.model.tree_row import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmrl.model.encoded import Encoded
    from mmrl.model.patches import Patches
    from mmrl.model.vision_cache import VisionCache
    from mmrl.types import Batch, Prompt, Rollout

Place = tuple[int, Name]
"""Object of an encoded prompt, and a piece of its answers; () for the prompt itself."""
Key = tuple[Place, tuple[str, ...], bool, bool]
"""(what, how it is asked and contents of the pixels on the way to it, read by the reference, with gradient)."""


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt, or a limb, that was run, and what its answers read of it."""

    read: Tensor
    """[n, D], a leaf: the hidden states that predict answer tokens: of a prompt its last, of a limb all."""
    layers: Layers
    """Keys and values [1, Hk, P, d] by layer, or what linear attention leaves behind; leaves."""
    made: tuple[Tensor, ...]
    """The same tensors as the language model made them, with their graph: states, then keys and values."""
    states: Tensor
    """[P, D]: hidden states of all its tokens, without a graph; the memory is that of `made`."""
    limbs: Mapping[Name, OpenPrompt] = field(default_factory=dict)
    """Of a prompt, the limbs that the group at hand reads, each behind those that it goes on from."""

    @property
    def outside(self) -> Outside:
        """What a packed row is told of it."""
        found = {name: Limb(limb.layers, len(limb.read)) for name, limb in self.limbs.items()}
        return Outside(self.layers, found)

    @property
    def behind(self) -> list[Tensor]:
        """The states that stand behind a packed row, in the order of `Outside.states`."""
        return [self.read, *(limb.read for limb in self.limbs.values())]

    def close(self) -> None:
        """Send the collected gradients back through the prompt and free its graph."""
        given = (self.read, *(x for pair in self.layers.values() for x in pair))
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
        self._slices: Counter[Place] = Counter()
        """Slices that are still to come, of each prompt and limb."""
        self._encoded: list[Encoded] = []
        """Keeps these objects alive, so that no other can take their name."""
        self._open: dict[Key, OpenPrompt] = {}
        self._in_part: set[Place] = set()

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
            for number, slices in _cut(batch, parts, limbs=self._takes_limbs).items():
                encoded = self._policy.encode(prompts[number])
                self._encoded.append(encoded)
                for name, count in slices.items():
                    self._slices[id(encoded), name] += count
        return parts

    def of(self, group: Group, grad: bool) -> OpenPrompt | None:
        """The open prompt of a group; None if the group is scored with its prompt in one row."""
        whole: Place = (id(group.encoded.original), ())
        # Pixels that only one answer sees are read once, so there is nothing to share.
        if not self._slices[whole] or not group.shared:
            return None
        how = group.encoded.variant
        run_whole = partial(self._opened, group, grad)
        prompt = self._get(whole, how, group.visual, grad, run_whole)
        limbs: dict[Name, OpenPrompt] = {}
        each = zip(group.answers, group.paths, group.within, strict=False)
        for answer, path, inside in each:
            chain = [prompt]
            for name, start, end in named(path):
                place = (whole[0], name)
                # One that only this slice reads lies in its row, and so does all behind it.
                if end > start and not self._slices[place]:
                    break
                if end > start:
                    base = group.encoded.next_position + advance(inside, 0, start)
                    node, shown = piece_of(answer, inside, start, end, base)
                    run = partial(self._run_limb, node, shown, list(chain), grad)
                    # What is seen on the way tells its views apart.
                    _, seen = piece_of(answer, inside, 0, end, 0)
                    limbs[name] = self._get(place, how, group.visual + seen, grad, run)
                    chain.append(limbs[name])
        return replace(prompt, limbs=limbs)

    def _get(
        self,
        place: Place,
        variant: str,
        seen: Sequence[Patches],
        grad: bool,
        run: Callable[[], OpenPrompt],
    ) -> OpenPrompt:
        """What is open for this view; it is run if nothing is."""
        self._in_part.add(place)
        look = (variant, *(medium.key for medium in seen))
        key = (place, look, self._policy.in_reference, grad)
        if key not in self._open:
            self._open[key] = run()
        return self._open[key]

    def end_part(self) -> None:
        """Call after the backward of one part: prompts and limbs without further slices are closed."""
        self._slices.subtract(self._in_part)
        over = [key for key in self._open if self._slices[key[0]] <= 0]
        # A limb sends gradients into what it goes on from, so the longest names come first.
        for key in sorted(over, key=lambda key: -len(key[0][1])):
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
        alone = not self._policy.sharded
        return self._policy.shared and alone and self._kinds <= {"full_attention", LINEAR}

    @property
    def _takes_limbs(self) -> bool:
        """Left out: layers with linear attention, whose state behind a limb has been through the prompt as well."""
        return LINEAR not in self._kinds

    @property
    def _kinds(self) -> set[str]:
        config = self._policy.base.config.get_text_config()
        return set(getattr(config, "layer_types", None) or ["full_attention"])

    def _opened(self, group: Group, grad: bool) -> OpenPrompt:
        row = pack([Group(group.encoded, group.visual)], self._policy.device)
        return self._run(row, grad, whole=False)

    def _run_limb(
        self,
        node: Node,
        shown: tuple[Patches, ...],
        chain: Sequence[OpenPrompt],
        grad: bool,
    ) -> OpenPrompt:
        """Run a piece of answers, with what is shown in it, behind what is open."""
        row = pack_limb(node, shown, [one.layers for one in chain], self._policy.device)
        return self._run(row, grad, whole=True)

    def _run(self, row: PackedRow, grad: bool, *, whole: bool) -> OpenPrompt:
        """Run a row and cut off what others read of it; `whole`: all its states, else the last."""
        policy = self._policy
        features = policy.vision.features(row.shown, grad)
        noted: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.set_grad_enabled(grad):
            states = policy.language(
                row.ids, row.positions, row.layout.noting(noted), row.visual, features
            )
        policy.counters["tokens/update" if grad else "tokens/score"] += len(row.ids)
        pairs = [noted[layer] for layer in sorted(noted)]
        made = (states if whole else states[-1:], *(x for pair in pairs for x in pair))
        # In a half-frozen model the keys of lower layers may depend on nothing that learns.
        read, *given = (x.detach().requires_grad_(x.requires_grad) for x in made)
        collect_in_fp32((read, *given))
        layers = dict(
            zip(sorted(noted), zip(given[::2], given[1::2], strict=True), strict=True)
        )
        return OpenPrompt(read, layers, made, states.detach())


def _cut(batch: Batch, parts: Sequence[Tensor], *, limbs: bool) -> dict[int, dict[Name, int]]:
    """Of each group in several parts: in how many its prompt () is read, and with `limbs` each piece in several."""
    found: dict[int, Counter[Name]] = {}
    for part in parts:
        rows: dict[int, list[Rollout]] = {}
        for row in part.tolist():
            rows.setdefault(batch.rollouts[row].group, []).append(batch.rollouts[row])
        for number, answers in rows.items():
            names = {name for answer in answers for name, *_ in named(answer.path) if limbs}
            found.setdefault(number, Counter()).update({(), *names})
    return {
        number: {name: count for name, count in names.items() if count > 1}
        for number, names in found.items()
        if names[()] > 1
    }
