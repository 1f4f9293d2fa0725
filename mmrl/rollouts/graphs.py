"""Replaying a step: on CUDA its kernels are recorded once and then started with one call, as a CUDA graph.

Starting the thousand kernels of a step one by one takes longer than a small batch computes. A recording is bound to its
tensors: same addresses, same shapes. Before it is used, its results are compared with those of the plain call; if they
differ, or the step cannot be recorded, the plain call is used from then on and that is said.

The recording of CUDA has not been run by us on a device yet; the comparison and what follows from it run in the tests
with another recorder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmrl.ground.printable import tell

Run = Callable[[], None]
Recorder = Callable[[Run], Run]
"""Makes a call that repeats what a function does to its tensors."""


def recorded_on_cuda(run: Run) -> Run:
    """The function as a CUDA graph. It must have run before, so that nothing is set up while it is recorded."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Replayed:
    """A function on fixed tensors, recorded anew whenever `version` says that they are others.

    `tensors` returns all that it changes. Until `uses` calls with the same tensors it is called plainly: a recording
    costs about as much as some calls.
    """

    def __init__(
        self,
        run: Run,
        tensors: Callable[[], Sequence[Tensor]],
        recorder: Recorder | None,
        uses: int = 2,
    ) -> None:
        self._run, self._tensors, self._recorder, self._uses = run, tensors, recorder, uses
        self._version: object = None
        self._calls = 0
        self._replay: Run | None = None

    def __call__(self, version: object) -> None:
        if self._recorder is None:
            self._run()
            return
        if version != self._version:
            self._version, self._calls, self._replay = version, 0, None
        self._calls += 1
        if self._replay is not None:
            self._replay()
        elif self._calls <= self._uses:
            self._run()
        else:
            self._record(self._recorder)

    def _record(self, recorder: Recorder) -> None:
        """Record, and do this call twice from the same state: once plainly, once replayed."""
        before = [tensor.clone() for tensor in self._tensors()]
        self._run()
        plain = [tensor.clone() for tensor in self._tensors()]
        self._back_to(before)
        try:
            replay = recorder(self._run)
            self._back_to(before)  # a recorder may have run it
            replay()
            replayed = list(self._tensors())
        except RuntimeError as problem:
            self._give_up(plain, f"it cannot be recorded: {problem}")
            return
        for mine, right in zip(replayed, plain, strict=True):
            if not _alike(mine, right):
                self._give_up(plain, "the recording gives other numbers")
                return
        self._replay = replay

    def _give_up(self, plain: Sequence[Tensor], why: str) -> None:
        self._recorder = None
        self._back_to(plain)
        tell(f"Steps of sampling are not replayed, which is slower: {why}.")

    def _back_to(self, saved: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), saved, strict=True):
            tensor.copy_(value)


def _alike(mine: Tensor, right: Tensor) -> bool:
    """Equal whole numbers, and floating ones that differ by rounding at most."""
    if not mine.is_floating_point():
        return torch.equal(mine, right)
    tolerance = 4 * torch.finfo(mine.dtype).eps ** 0.5
    return torch.allclose(mine, right, rtol=tolerance, atol=tolerance, equal_nan=True)
