"""The report of a run that is under way: written again and again, cheap, and never a reason to stop.

It is written with the first numbers, then at most every `EVERY` seconds, and so seldom that writing takes at most
`SHARE` of the time; and at the end. Whatever goes wrong is told once and counted (`report/failures`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmrl.ground.progress import Progress

EVERY = 30.0
"""Seconds between two reports, at least."""
SHARE = 0.02
"""Most of a run's time that goes into its reports."""


class Refresh:
    """Keeps the report of one run's folder up to date."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._next = 0.0
        self._failed = 0
        self._said = False

    def if_due(self) -> None:
        """Write it, if the last one is old enough."""
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write it now."""
        began = time.monotonic()
        with self.forgiven("The report"):
            # Only here: the page's templates are read with the first report.
            from mmrl.report.build import write_run_report

            write_run_report(self.folder)
        now = time.monotonic()
        self._next = now + max(EVERY, (now - began) / SHARE)

    @contextmanager
    def forgiven(self, what: str) -> Iterator[None]:
        """Errors inside are told once and counted; a run is worth more than its picture."""
        try:
            yield
        except Exception as error:
            self._failed += 1
            if not self._said:
                self._said = True
                Progress.say(
                    f"{what} could not be written ({type(error).__name__}: {error}); training goes on, further "
                    f"failures are counted as report/failures; `mmrl report {self.folder}` makes the report later."
                )

    def failures(self) -> dict[str, float]:
        """`report/failures` since the last call; nothing for none."""
        count, self._failed = self._failed, 0
        return {"report/failures": float(count)} if count else {}
