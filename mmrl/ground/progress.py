"""What a person sees while something slow goes on: a bar with the time left, or plain lines where there is no terminal.

`Progress` is for a training run, `with_progress` for a loop over items. Both write to stderr, so that the output of a
command can be piped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from mmrl.ground.printable import printable, tell

if TYPE_CHECKING:
    import rich.progress as bars

Item = TypeVar("Item")

SHOWN = (
    "reward/total",
    "reward/accuracy",
    "eval/accuracy",
    "loss/total",
    "branch/masked/kl",
    "optim/grad_norm",
)
"""Metrics beside the bar, in this order; those that a step does not have are left out."""


class Progress:
    """Progress of one run over `steps`, `done` of which lie behind; `seconds` between two lines."""

    def __init__(self, steps: int, done: int = 0, seconds: float = 10.0) -> None:
        self.steps, self.first, self.seconds = steps, done, seconds
        self._began = self._spoke = time.monotonic()
        self._bar: bars.Progress | None = None
        self._task: bars.TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            self._bar = _run_bar()
            self._task = self._bar.add_task("", total=self.steps, completed=self.first)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show where the run is."""
        present = [name for name in SHOWN if name in metrics]
        numbers = "  ".join(f"{name} {metrics[name]:.3f}" for name in present)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=numbers)
            return
        now = time.monotonic()
        # The first line says early that a run works at all and how long it will take.
        at_an_end = step in (self.first + 1, self.steps)
        if at_an_end or now - self._spoke >= self.seconds or "eval/accuracy" in metrics:
            self._spoke = now
            # Steps of an earlier process, which a resumed run does not repeat, say nothing about this one's speed.
            rate = (step - self.first) / max(now - self._began, 1e-9)
            left = (self.steps - step) / rate
            self.say(
                f"step {step}/{self.steps}  {rate:.2f} steps/s  {left:.0f} s left  {numbers}"
            )

    @staticmethod
    def say(text: str) -> None:
        """One message."""
        tell(text)


def with_progress(
    items: Iterable[Item], total: int, what: str, seconds: float = 10.0
) -> Iterator[Item]:
    """The same items, counted as they pass under the name `what`; `seconds` between two lines."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, printable(what), total, console=Console(stderr=True))
        return
    began = spoke = time.monotonic()
    for done, item in enumerate(items, 1):
        # Counted after the item came back from the caller: its work on it is part of the time.
        yield item
        now = time.monotonic()
        if now - spoke >= seconds:
            spoke = now
            rate = done / (now - began)
            left = (total - done) / rate
            Progress.say(f"{what} {done}/{total}  {rate:.1f}/s  {left:.0f} s left")


def _run_bar() -> bars.Progress:
    """The bar of a run, not yet started."""
    import rich.progress as bars  # here: slow to import, and most processes have no terminal
    from rich.console import Console

    return bars.Progress(
        bars.TextColumn("step"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
