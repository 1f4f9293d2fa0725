"""What a person sees while something slow goes on: a bar with the time left, or plain lines where there is no terminal.

`Progress` is for a training run, `with_progress` for a loop over items, `busy` for one long call. All write to stderr,
so that the output of a command can be piped. A line of the bar is never wider than the terminal: metrics are shown as
long as there is room, the reward first, with an arrow that says where its mean of the last ten steps went.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from mmrl.ground.printable import hushed, printable, tell

if TYPE_CHECKING:
    import rich.progress as bars

Item = TypeVar("Item")

FIRST = ("reward/total",)
"""Shown before what a recipe watches."""
SHOWN = (
    "reward/accuracy",
    "eval/accuracy",
    "loss/total",
    "branch/masked/kl",
    "optim/grad_norm",
)
"""Metrics behind it, in this order; those that a step does not have are left out."""
TREND = 10
"""Steps whose mean reward is compared with as many before."""
FLAT = 0.01
"""Differences of two such means below this are no trend."""
BAR, FIXED = 12, 48
"""Characters of the bar, and of everything beside the metrics."""
QUIET = 2.0
"""Seconds that anything may take without a word."""


class Progress:
    """Progress of one run over `steps`, `done` of which lie behind; `seconds` between two lines.

    `watch` are the metrics that this run is about; they stand before the usual ones.
    """

    def __init__(
        self, steps: int, done: int = 0, seconds: float = 10.0, *, watch: Sequence[str] = ()
    ) -> None:
        self.steps, self.first, self.seconds = steps, done, seconds
        self.shown = tuple(dict.fromkeys((*FIRST, *watch, *SHOWN)))
        self._rewards: deque[float] = deque(maxlen=2 * TREND)
        self._began = self._spoke = time.monotonic()
        self._bar: bars.Progress | None = None
        self._task: bars.TaskID | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not hushed():
            self._bar = _run_bar()
            self._task = self._bar.add_task("", total=self.steps, completed=self.first, rate="")
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
        if FIRST[0] in metrics:
            self._rewards.append(metrics[FIRST[0]])
        numbers = self._numbers(metrics)
        now = time.monotonic()
        # Steps of an earlier process, which a resumed run does not repeat, say nothing about this one's speed.
        rate = (step - self.first) / max(now - self._began, 1e-9)
        if self._bar is not None and self._task is not None:
            room = shutil.get_terminal_size().columns - FIXED - BAR
            told = "  ".join(fitting(numbers, room))
            self._bar.update(
                self._task, completed=step, description=told, rate=f"{in_steps(rate):>12}"
            )
            return
        # The first line says early that a run works at all and how long it will take.
        at_an_end = step in (self.first + 1, self.steps)
        if at_an_end or now - self._spoke >= self.seconds or "eval/accuracy" in metrics:
            self._spoke = now
            left = (self.steps - step) / rate
            told = "  ".join([in_steps(rate), f"{in_time(left)} left", *numbers])
            self.say(f"step {step}/{self.steps}  {told}")

    def _numbers(self, metrics: Mapping[str, float]) -> list[str]:
        """Name, value and, for the reward, trend."""
        numbers: list[str] = []
        for name in self.shown:
            if name in metrics:
                trend = self.trend if name in FIRST else ""
                numbers.append(f"{name} {metrics[name]:.3f}{trend}")
        return numbers

    @property
    def trend(self) -> str:
        """Where the mean reward went in the last ten steps against the ten before: ↑, ↓ or →; empty before that."""
        if len(self._rewards) < 2 * TREND:
            return ""
        values = list(self._rewards)
        gain = (sum(values[TREND:]) - sum(values[:TREND])) / TREND
        if abs(gain) < FLAT:
            return " →"
        return " ↑" if gain > 0 else " ↓"

    @staticmethod
    def say(text: str) -> None:
        """One message."""
        tell(text)


def fitting(parts: Sequence[str], room: int) -> list[str]:
    """The first parts that fit beside each other into `room` characters."""
    chosen: list[str] = []
    used = 0
    for part in parts:
        used += len(part) + 2
        if used > room + 2:  # the last one has no gap behind it
            break
        chosen.append(part)
    return chosen


def in_steps(rate: float) -> str:
    """A rate as one reads it: 0.25 steps/s, or the seconds of a step where it is slower."""
    return f"{rate:.2f} steps/s" if rate >= 0.1 or rate <= 0 else f"{1 / rate:.0f} s/step"


def in_time(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


@contextmanager
def busy(what: str, seconds: float = 10.0) -> Iterator[None]:
    """Say `what` if the block takes more than two seconds, then each `seconds` for how long it has been going on."""
    over = threading.Event()
    began = time.monotonic()

    def look_on() -> None:
        wait = QUIET
        while not over.wait(wait):
            tell(f"{what} … {in_time(time.monotonic() - began)}")
            wait = seconds

    # A daemon: whatever ends the process need not wait for it.
    watch = threading.Thread(target=look_on, name="busy", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def with_progress(
    items: Iterable[Item], total: int, what: str, seconds: float = 10.0
) -> Iterator[Item]:
    """The same items, counted as they pass under the name `what`; `seconds` between two lines."""
    if sys.stderr.isatty() and not hushed():
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
            left = in_time((total - done) / rate)
            Progress.say(f"{what} {done}/{total}  {rate:.1f}/s  {left} left")


def _run_bar() -> bars.Progress:
    """The bar of a run, not yet started."""
    import rich.progress as bars  # here: slow to import, and most processes have no terminal
    from rich.console import Console

    return bars.Progress(
        bars.TextColumn("step"),
        bars.BarColumn(BAR),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(compact=True),
        bars.TextColumn("left"),
        bars.TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
    )
