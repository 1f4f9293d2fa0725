"""What vLLM's workers need of us, in whatever process each of them lives; vLLM imports this there, by its name.

Each worker holds weights, or its share of them (tensor parallelism). A set of weights counts only when all workers say
the same of it: nothing went wrong, as many tensors came, and it is called by the same name.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mmrl.rollouts.vllm_transfer import registered

EXTENSION = "mmrl.rollouts.vllm_worker.Held"
"""What vLLM is told (`worker_extension_cls`)."""

if find_spec("vllm") is not None:
    # A worker looks for the transport by its name, right after this was imported.
    registered()

PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: which signal comes when the parent ends."""


class BrokenWeights(RuntimeError):
    """Workers could not take a set of weights, or do not hold the same one."""


@dataclass(frozen=True)
class State:
    """What one worker says of its weights."""

    version: str
    problem: str
    """What went wrong; empty: nothing."""
    taken: int
    """Tensors of the last set that came."""


class Held:
    """Methods that each worker gets beside its own."""

    weight_transfer_engine: Any
    mmrl_version = ""

    def mmrl_state(self) -> tuple[str, str, int]:
        """The fields of `State`, as data: not every way to a worker carries classes."""
        transport = self.weight_transfer_engine
        return self.mmrl_version, transport.problem, transport.taken

    def mmrl_call(self, version: str) -> tuple[str, str, int]:
        """Name the weights that are held now; the state."""
        self.mmrl_version = version
        return self.mmrl_state()

    def mmrl_end_with(self, parent: int) -> None:
        """End when the process that started this one ends. One that was killed leaves vLLM's workers waiting for ever,
        and their devices full."""
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL)):
            raise OSError(ctypes.get_errno(), "a worker cannot be bound to its server")
        if os.getppid() != parent:  # it ended a moment ago
            os.kill(os.getpid(), signal.SIGKILL)


def agreed(states: Sequence[Sequence[Any]]) -> State:
    """What all workers say. Raises BrokenWeights, with the workers named."""
    found = [State(*state) for state in states]
    for number, state in enumerate(found):
        if state.problem:
            raise BrokenWeights(
                f"worker {number} of {len(found)} could not take the weights: {state.problem}"
            )
    if len(set(found)) > 1:
        said = "; ".join(
            f"worker {number}: {state.version or 'no'!r} of {state.taken} tensors"
            for number, state in enumerate(found)
        )
        raise BrokenWeights(f"the workers of this vLLM hold different weights ({said})")
    return found[0]
