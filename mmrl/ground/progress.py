"""What a person sees while a run goes on: a bar with rate and time left, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

SHOWN = (
    "reward/total",
    "reward/accuracy",
    "eval/accuracy",
    "loss/total",
    "branch/masked/kl",
    "optim/grad_norm",
)


class Progress:
    """Progress of one run over `steps`, `done` of which lie behind."""

    def __init__(self, steps: int, done: int = 0, seconds: float = 10.0) -> None:
        self.steps, self.first, self.seconds = steps, done, seconds
        self._began = self._spoke = time.monotonic()
        self._bar = None
        self._task = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
            )
            self._bar = Bar(
                *columns,
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=Console(stderr=True),
            )
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
        numbers = "  ".join(f"{name} {metrics[name]:.3f}" for name in SHOWN if name in metrics)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=numbers)
            return
        now = time.monotonic()
        if (
            step in (self.first + 1, self.steps)
            or now - self._spoke >= self.seconds
            or "eval/accuracy" in metrics
        ):
            self._spoke = now
            rate = (step - self.first) / max(now - self._began, 1e-9)
            left = (self.steps - step) / rate
            print(
                f"step {step}/{self.steps}  {rate:.2f} steps/s  {left:.0f} s left  {numbers}",
                file=sys.stderr,
                flush=True,
            )

    @staticmethod
    def say(text: str) -> None:
        """One message."""
        print(text, file=sys.stderr, flush=True)
