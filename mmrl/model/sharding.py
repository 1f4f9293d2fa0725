"""The weights of a policy on several devices: the language model in shards, everything else a copy on each.

Built on torch's `fully_shard`. Each layer is a unit whose weights are gathered for its forward and its backward only;
what is left of the language model (its last norm) is one more. The embedding and the head are units of their own, for
they are not called like layers: `Lent` gathers its weight and lends it to a function. A tied weight is one unit.

The vision tower is a copy on each device, because it runs on demand and a different number of times on each; its
gradients are added up once per update (`add_up`). So is everything if nothing is sharded.

Gradients are sums over the devices and never means, for the loss divides by the counts of all of them.

Collectives are matched by their order alone. So every device must call the same units in the same order: the learner
runs as many parts everywhere, and who has fewer scores a `filler` under the same views. Sampling is different on every
device; `Shards.whole` gathers the weights for it once, and nothing inside communicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from mmrl.model.encoded import Encoded
from mmrl.model.gradients import gradient_dtype
from mmrl.model.packing import Group
from mmrl.model.placement import copies, is_sharded, own_part
from mmrl.model.ranks import Ranks

Result = TypeVar("Result")
Shard = Literal["auto", "full", "hybrid", "off"]
STATES = 16
"""Bytes of a trained weight, its gradient and its two moments, all in fp32."""
ROOM = 0.25
"""Share of a machine's devices that a copy of its own may take."""
BUCKET = 2**26
"""Numbers that are added up over the devices in one call."""


class Lent(nn.Module):
    """A weight that functions borrow: gathered while they run, also in their backward.

    Tensors that need a gradient go in as inputs and not in a closure, for that is how the unit knows when its part of
    the backward is over.
    """

    def __init__(self, *owners: nn.Module) -> None:
        super().__init__()
        # The modules themselves, so that their parameter is exchanged where the model looks for it.
        self.owners = nn.ModuleList(owners)

    @property
    def weight(self) -> nn.Parameter:
        """[V, D]; a shard of it between calls."""
        return self.owners[0].weight  # type: ignore[return-value]

    def forward(self, function: Callable[..., Result], *inputs: Any) -> Result:
        """function(weight, *inputs)."""
        return function(self.weight, *inputs)


def lend(model: Any) -> tuple[Lent, Lent]:
    """Embedding and head of a transformers model; one and the same unit if they are tied."""
    table, head = model.get_input_embeddings(), model.lm_head
    if table.weight is head.weight:
        both = Lent(table, head)
        return both, both
    return Lent(table), Lent(head)


class Shards:
    """The sharded modules of a policy, its frozen reference included."""

    def __init__(self, mesh: DeviceMesh, compute: torch.dtype) -> None:
        self.mesh = mesh
        self.compute = compute
        """The number format of gathered weights."""
        self.precision = MixedPrecisionPolicy(
            param_dtype=compute,
            reduce_dtype=gradient_dtype(compute),
            cast_forward_inputs=False,  # hidden states have their format already, positions must keep theirs
        )
        self._own: list[Any] = []
        """Roots of the policy itself."""
        self._is_whole = False

    def add(self, language: Any, lent: Sequence[Lent], *, frozen: bool, on_cpu: bool) -> None:
        """Cut a language model and its lent weights; those of a `frozen` one may lie on the CPU between their turns."""
        offload = CPUOffloadPolicy(pin_memory=self.mesh.device_type == "cuda")
        how: dict[str, Any] = {
            "mesh": self.mesh,
            "mp_policy": self.precision,
            # Said for roots too: torch would leave those gathered, and the optimizer would be given the wrong tensors.
            "reshard_after_forward": True,
            "offload_policy": offload if on_cpu else OffloadPolicy(),
        }
        elsewhere = {unit.weight for unit in lent}
        for layer in language.layers:
            fully_shard(_widened(layer), **how)
        fully_shard(_widened(language, elsewhere), ignored_params=elsewhere, **how)
        roots = [language, *dict.fromkeys(lent)]
        for unit in roots[1:]:
            fully_shard(_widened(unit), **how)
        for unit in _units(roots):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
        if not frozen:
            self._own = roots

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every device holds all weights of the policy, and nothing that reads them communicates.

        All devices enter and leave it together. Inside another one it changes nothing.
        """
        if self._is_whole:
            yield
            return
        self._set_whole(True)
        try:
            for unit in _units(self._own):
                unit.unshard()
            yield
        finally:
            self._set_whole(False)
            # Also forgets which units ran: the next backward would fetch ahead what this device happened to use last.
            self.forget_calls()

    def forget_calls(self) -> None:
        """Start afresh, after sampling or after a pass that broke off."""
        for root in self._own:
            root.reset_iter_state()

    def _set_whole(self, is_whole: bool) -> None:
        self._is_whole = is_whole
        for root in self._own:
            root.set_reshard_after_forward(not is_whole)


def mesh_of(ranks: Ranks, how: Shard, device: str, held: int = 0) -> DeviceMesh | None:
    """The devices over which weights are cut; None to keep a copy of all on each. Raises ValueError.

    "full" cuts over all devices, "hybrid" over those of one machine, with a copy on every machine; "auto" is hybrid
    where several machines have several devices each with room for it (`fits_a_machine`), else full. `held`: bytes of
    all that is cut.
    """
    if how not in get_args(Shard):
        raise ValueError(
            f"--load.shard is {how!r}; it must be 'auto', 'full', 'hybrid' or 'off'."
        )
    if how == "off" or not ranks.several:
        return None
    machines, left_over = divmod(ranks.world, ranks.local_world)
    even = machines > 1 and ranks.local_world > 1 and not left_over
    if how == "hybrid" and not even:
        raise ValueError(
            f"--load.shard is 'hybrid', which keeps a copy on every machine and cuts it over the devices there; here "
            f"are {ranks.world} processes, {ranks.local_world} of them on this machine. Start the same number, at "
            "least 2, on each of several machines, or use 'full'."
        )
    if how == "auto" and even:
        memory = torch.cuda.mem_get_info()[1] if device == "cuda" else None
        # One decision for all, who may not be alike.
        even = ranks.broadcast(fits_a_machine(held, ranks.local_world, memory))
    if how == "full" or not even:
        return init_device_mesh(device, (ranks.world,), mesh_dim_names=("shard",))
    shape = (machines, ranks.local_world)
    return init_device_mesh(device, shape, mesh_dim_names=("copy", "shard"))


def fits_a_machine(held: int, devices: int, memory: int | None) -> bool:
    """Is there room for all that is cut on one machine's devices, of so many bytes each (None: who knows)?"""
    return memory is None or held <= ROOM * memory * devices


def cut_bytes(learning: int, resting: int, itemsize: int) -> int:
    """Bytes of weights, gradients and moments that are cut; numbers of weights that learn and that do not."""
    return learning * STATES + resting * itemsize


@torch.no_grad()
def bring(model: nn.Module, device: torch.device) -> None:
    """Move a model, but for shards and for what is offloaded: those have their own way between the devices."""
    for parameter in model.parameters():
        if not is_sharded(parameter) and not parameter.is_meta:
            parameter.data = parameter.data.to(device)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


@torch.no_grad()
def add_up(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Sum the gradients of unsharded parameters over all devices; those of sharded ones are sums already.

    A parameter that has a gradient anywhere gets one everywhere.
    """
    if not ranks.several:
        return
    plain = [p for p in parameters if not is_sharded(p)]
    seen = ranks.total([int(p.grad is not None) for p in plain])
    learning = [p for p, count in zip(plain, seen, strict=True) if count]
    for bucket in _buckets(learning):
        flat = torch.cat([_gradient(p).flatten() for p in bucket])
        dist.all_reduce(flat)
        sizes = [p.numel() for p in bucket]
        for parameter, total in zip(bucket, flat.split(sizes), strict=True):
            parameter.grad = total.view_as(parameter).clone()


@torch.no_grad()
def norm_of(parameters: Iterable[nn.Parameter], ranks: Ranks) -> float:
    """Norm of all gradients together, the same number on all devices; 0 if there is none, NaN if any is not finite."""
    norms: list[Tensor] = []
    shares: list[int] = []
    for parameter in parameters:
        if parameter.grad is not None:
            # In float32 even for half precision, whose squares overflow.
            norms.append(own_part(parameter.grad).float().norm())
            shares.append(copies(parameter, ranks.world))
    if not ranks.several:
        return torch.stack(norms).norm().item() if norms else 0.0
    squares = torch.stack(norms).double().cpu() ** 2 if norms else torch.zeros(0)
    (total,) = ranks.total([float((squares / torch.tensor(shares)).sum())])
    return math.sqrt(total)


def filler() -> Group:
    """A text of two tokens with an answer of one, for a device that has nothing to score while others have."""
    ids = torch.zeros(2, dtype=torch.long)
    positions = torch.arange(2).expand(3, 2)
    encoded = Encoded(ids, positions, 2, (), (), torch.zeros_like(ids), "")
    one = torch.zeros(1, dtype=torch.long)
    # A suffix and a word, for what a row may be asked besides.
    return Group(encoded, (), (one,), (0,), (1.0,), suffixes=(one,), words=one + 1)


def _widened(module: nn.Module, besides: Iterable[Tensor] = ()) -> nn.Module:
    """The same module with its trained half-precision weights in fp32: a device's shard is the optimizer's master."""
    spared = {id(weight) for weight in besides}
    for parameter in module.parameters():
        if (
            parameter.requires_grad
            and not is_sharded(parameter)
            and id(parameter) not in spared
        ):
            parameter.data = parameter.data.to(gradient_dtype(parameter.dtype))
    return module


def _units(roots: Iterable[nn.Module]) -> list[Any]:
    """All sharded modules below the roots, in a fixed order."""
    return [m for root in roots for m in root.modules() if isinstance(m, FSDPModule)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter, dtype=gradient_dtype(parameter.dtype))
    return parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one format whose gradients fit into one call."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        full = size + parameter.numel() > BUCKET
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
