"""How weights come into vLLM: a transport for its weight-transfer interface that hands tensors over within a process.

The transports that vLLM ships need CUDA or NCCL; this one takes any tensors (`handed`), and each layer is put together
by vLLM's own layerwise reload. It is registered under `BACKEND` (`registered`), once per process.

Departure, on CPU only: a head that is tied to the embedding keeps a packed copy of the weights it was loaded with,
which a reload leaves alone; it is packed anew at the end of each update.
"""

# vLLM lives in environments of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

BACKEND = "mmrl"
_waiting: dict[str, list[tuple[str, Tensor]]] = {}
"""Ticket -> weights that somebody is handing over."""


@contextmanager
def handed(weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
    """A ticket under which the transport finds these weights, inside the context."""
    ticket = secrets.token_hex(8)
    _waiting[ticket] = list(weights)
    try:
        yield ticket
    finally:
        del _waiting[ticket]


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
        """Which weights."""

        ticket: str

    class Transport(WeightTransferEngine[Init, Update]):
        """Loads weights that were handed over in this process."""

        init_info_cls = Init
        update_info_cls = Update
        supports_draft_weight_update = False

        def init_transfer_engine(self, init_info: Init) -> None:
            """No connection is needed."""

        def start_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)

        def update_weights(self, update_info: dict[str, Any]) -> None:
            # Without the base's synchronisation, which needs an accelerator; loading is in the order of its stream.
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Update) -> None:
            self.model.load_weights(iter(_waiting[update_info.ticket]))

        def finish_weight_update(self) -> None:
            from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

            finalize_layerwise_reload(self.model, self.model_config)
            if self.device.type == "cpu":
                _pack_head(self.model)

        def shutdown(self) -> None:
            """Nothing is held."""

    return Transport


def _pack_head(model: Any) -> None:
    """Pack the weights of the head anew, of which a tied one has a copy of the old ones."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    language = model.get_language_model() if hasattr(model, "get_language_model") else model
    head = getattr(language, "lm_head", None)
    if head is not None and hasattr(head, "weight"):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)
