"""How weights come into vLLM: a transport for its weight-transfer interface that hands tensors over on one machine.

The transports that vLLM ships need CUDA or NCCL; this one takes any tensors (`handed`), and each layer is put together
by vLLM's own layerwise reload, which cuts out the share of a worker that has one. A worker in this process finds the
tensors themselves; workers in processes of their own (`tensor_parallel`) read a file in the memory that they share,
each tensor when it is its turn. It is registered under `BACKEND` (`registered`), once per process.

Nothing raises inside a worker: vLLM would read one worker's error and take what the others said for answers to its
next call. What went wrong is kept, and asked of all workers (`vllm_worker.py`).

Departure, on CPU only: a head that is tied to the embedding keeps a packed copy of the weights it was loaded with,
which a reload leaves alone; it is packed anew at the end of each update.
"""

# vLLM lives in environments of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from mmrl.ground.faults import first_line
from mmrl.ground.printable import logger

log = logger(__name__)

BACKEND = "mmrl"
SHARED = Path("/dev/shm")
"""Memory that processes share, where there is such a folder; containers often have little of it."""
_waiting: dict[str, list[tuple[str, Tensor]]] = {}
"""Ticket -> weights that somebody is handing over."""


@contextmanager
def handed(
    weights: Iterable[tuple[str, Tensor]], beyond: bool = False
) -> Iterator[dict[str, str]]:
    """What the transport must be told to find these weights, inside the context; `beyond`: in other processes."""
    if beyond:
        with _written(dict(weights)) as file:
            yield {"file": str(file)}
        return
    ticket = secrets.token_hex(8)
    _waiting[ticket] = list(weights)
    try:
        yield {"ticket": ticket}
    finally:
        del _waiting[ticket]


@contextmanager
def _written(weights: dict[str, Tensor]) -> Iterator[Path]:
    size = sum(weight.nbytes for weight in weights.values())
    roomy = SHARED.is_dir() and shutil.disk_usage(SHARED).free > 2 * size
    with tempfile.TemporaryDirectory(
        prefix="mmrl-weights-", dir=SHARED if roomy else None
    ) as place:
        file = Path(place) / "part.safetensors"
        there = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
        safetensors.torch.save_file(there, str(file))
        yield file


def _found(ticket: str, file: str) -> Iterator[tuple[str, Tensor]]:
    """The weights that were handed over."""
    if ticket:
        yield from _waiting[ticket]
        return
    with safetensors.safe_open(file, framework="pt", device="cpu") as part:
        for name in part.keys():  # noqa: SIM118 (it is no mapping)
            yield name, part.get_tensor(name)


def registered() -> None:
    """Make the transport known to vLLM."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, _transport())


def _transport() -> Any:
    """The class; made here, since its base is vLLM's."""
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class Init(WeightTransferInitInfo):
        """Nothing to say."""

    @dataclass
    class Update(WeightTransferUpdateInfo):
        """Which weights: what `handed` gave."""

        ticket: str = ""
        file: str = ""

    class Transport(WeightTransferEngine[Init, Update]):
        """Loads weights that were handed over on this machine."""

        init_info_cls = Init
        update_info_cls = Update
        supports_draft_weight_update = False
        problem = ""
        """What went wrong first in this set of weights."""
        taken = 0
        """Tensors of this set that came."""

        def init_transfer_engine(self, init_info: Init) -> None:
            """No connection is needed."""

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            self.problem, self.taken = "", 0
            self._keep(lambda: initialize_layerwise_reload(self.model))

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # Without the base's synchronisation, which needs an accelerator; loading is in the order of its stream.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Update) -> None:
            self._keep(lambda: self.model.load_weights(self._counted(update_info)))

        def finish_weight_update(self) -> None:
            self._keep(self._finish)

        def shutdown(self) -> None:
            """Nothing is held."""

        def _finish(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                _pack_head(self.model)

        def _counted(self, where: Update) -> Iterator[tuple[str, Tensor]]:
            for name, weight in _found(where.ticket, where.file):
                self.taken += 1
                yield name, weight

        def _keep(self, work: Callable[[], object]) -> None:
            """Do it, and keep what goes wrong."""
            try:
                work()
            except Exception as error:
                log.exception("vLLM could not take the weights")
                self.problem = self.problem or f"{type(error).__name__}: {first_line(error)}"

    return Transport


def _pack_head(model: Any) -> None:
    """Pack the weights of the head anew, of which a tied one has a copy of the old ones."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    language = model.get_language_model() if hasattr(model, "get_language_model") else model
    head = getattr(language, "lm_head", None)
    if head is not None and hasattr(head, "weight"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
