"""The vision tower runs once per distinct picture, branch and weights version.

Features are keyed by the content of the pixels and the version of the tower's weights. An entry can keep its graph:
then everyone gets one detached leaf, gradients collect in it over all micro-batches, and `backward` sends them through
the tower once. While the weights are unchanged, the same forward serves rollout, scoring and update.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmrl.model.processing import Patches


@dataclass(frozen=True)
class VisualFeatures:
    """What the language model sees of one medium."""

    merged: Tensor
    """[n, D]: one row per visual token."""
    deepstack: tuple[Tensor, ...] = ()
    """[n, D] each: added to the first language layers (Qwen3-VL)."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All rows, merged first."""
        return (self.merged, *self.deepstack)


@dataclass
class _Entry:
    leaf: VisualFeatures
    graph: VisualFeatures | None


Tower = Callable[[Sequence["Patches"]], list[VisualFeatures]]


class FeatureStore:
    """Remembers features; forgets those of old weights and, beyond `limit` bytes, the least recently used."""

    def __init__(self, limit: int = 512 * 2**20) -> None:
        self.limit = limit
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()

    def get(
        self, tower: Tower, patches: Sequence[Patches], version: str, grad: bool
    ) -> list[VisualFeatures]:
        """Features of each medium; `tower` is called once for those not known yet.

        With `grad` the returned tensors are leaves whose gradients `backward` passes on to the tower.
        """
        missing: dict[str, Patches] = {}
        for item in patches:
            entry = self._entries.get((version, item.key))
            if entry is None or (grad and entry.graph is None):
                missing.setdefault(item.key, item)
        if missing:
            with torch.set_grad_enabled(grad):
                found = tower(list(missing.values()))
            for key, features in zip(missing, found, strict=True):
                self._entries[version, key] = _entry(features, grad)
        out = []
        for item in patches:
            entry = self._entries[version, item.key]
            self._entries.move_to_end((version, item.key))
            leaf = entry.leaf
            out.append(
                leaf
                if grad
                else VisualFeatures(
                    leaf.merged.detach(), tuple(x.detach() for x in leaf.deepstack)
                )
            )
        self._forget()
        return out

    def backward(self) -> None:
        """Send the collected gradients through the tower and drop its graphs."""
        outputs: list[Tensor] = []
        grads: list[Tensor] = []
        for entry in self._entries.values():
            if entry.graph is None:
                continue
            for out, leaf in zip(entry.graph.tensors(), entry.leaf.tensors(), strict=True):
                if leaf.grad is not None:
                    outputs.append(out)
                    grads.append(leaf.grad)
        if outputs:
            torch.autograd.backward(outputs, grads)
        self.drop_graphs()

    def rows_in_graphs(self, besides: Container[str] = ()) -> int:
        """Visual tokens whose graph is held, not counting media with the keys `besides`."""
        entries = self._entries.items()
        return sum(
            len(e.leaf.merged)
            for (_, key), e in entries
            if e.graph is not None and key not in besides
        )

    def drop_graphs(self) -> None:
        """Free what the tower keeps for a backward; the features stay."""
        for entry in self._entries.values():
            entry.graph = None
            for x in entry.leaf.tensors():
                x.grad = None

    def clear(self, keep: str | None = None) -> None:
        """Forget everything but the features of one version."""
        self._entries = OrderedDict((k, e) for k, e in self._entries.items() if k[0] == keep)

    def _forget(self) -> None:
        size = sum(
            x.numel() * x.element_size()
            for e in self._entries.values()
            for x in e.leaf.tensors()
        )
        for key in list(self._entries):
            if size <= self.limit:
                return
            if self._entries[key].graph is None:
                size -= sum(
                    x.numel() * x.element_size() for x in self._entries.pop(key).leaf.tensors()
                )


def _entry(features: VisualFeatures, grad: bool) -> _Entry:
    needs = grad and features.merged.requires_grad
    cut = lambda x: x.detach().requires_grad_(needs)  # noqa: E731
    leaf = VisualFeatures(cut(features.merged), tuple(cut(x) for x in features.deepstack))
    return _Entry(leaf, features if needs else None)
