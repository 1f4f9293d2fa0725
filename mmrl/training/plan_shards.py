"""What one of several devices holds of a model, as `--load.shard` divides it (`model/sharding.py`): the plan's part."""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.model.sharding import Shard, cut_bytes, fits_a_machine
from mmrl.model.sizes import Sizes

PER_MACHINE = 8
"""Devices of a machine, where there are more."""


@dataclass(frozen=True)
class Division:
    """A model on `count` devices of so many bytes each (None on CPUs). Numbers of weights and bytes are per device."""

    sizes: Sizes
    count: int
    memory: int | None
    how: Shard

    @property
    def parts(self) -> int:
        """Over how many devices the language model is cut; the tower never is."""
        if self.how == "off":
            return 1
        sizes, learning = self.sizes, self._learning
        held = cut_bytes(learning, self._cut - learning, sizes.itemsize)
        machines, left_over = divmod(self.count, PER_MACHINE)
        roomy = self.how == "auto" and fits_a_machine(held, PER_MACHINE, self.memory)
        copies = machines > 1 and not left_over and (roomy or self.how == "hybrid")
        return PER_MACHINE if copies else self.count

    @property
    def stepped(self) -> int:
        """Weights that the optimizer steps."""
        return self.sizes.tower_trainable + self._learning // self.parts

    @property
    def mastered(self) -> int:
        """Half-precision weights with an fp32 master beside them; shards are masters themselves."""
        return self.stepped if self.parts == 1 else self.sizes.tower_trainable

    @property
    def gradients(self) -> int:
        """Numbers of gradients: also those of the largest unit before they are divided, and once more on their way."""
        on_the_way = 2 * min(self.sizes.largest, self.sizes.trainable)
        return self.stepped + (on_the_way if self.parts > 1 else 0)

    def weights(self, trained: bool) -> int:
        """Bytes of the model; shards of weights that learn are as wide as the optimizer wants them."""
        sizes = self.sizes
        if self.parts == 1:
            return sizes.parameters * sizes.itemsize
        learning = self._learning if trained else 0
        shards = learning * max(4, sizes.itemsize) + (self._cut - learning) * sizes.itemsize
        return sizes.tower * sizes.itemsize + shards // self.parts

    def gathered(self) -> dict[str, int]:
        """The unit that computes, and the one that is fetched meanwhile."""
        if self.parts == 1:
            return {}
        return {"gathered": 2 * self.sizes.largest * self.sizes.itemsize}

    def whole(self) -> dict[str, int]:
        """What is gathered instead while answers are sampled."""
        return {} if self.parts == 1 else {"gathered": self._cut * self.sizes.itemsize}

    def reference(self, *, away: bool) -> int:
        """Bytes of a frozen copy; `away`: what is cut lies in the CPU's memory."""
        cut = 0 if away else self._cut // self.parts
        return (self.sizes.tower + cut) * self.sizes.itemsize

    @property
    def _cut(self) -> int:
        return self.sizes.parameters - self.sizes.tower

    @property
    def _learning(self) -> int:
        return self.sizes.trainable - self.sizes.tower_trainable
