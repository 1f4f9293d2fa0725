"""Progress of slow commands on stderr: a bar with the time left, or a line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def shown(
    items: Iterable[Item], total: int, what: str, seconds: float = 10.0
) -> Iterator[Item]:
    """The same items, told as they pass; `seconds` between two lines."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, total, console=Console(stderr=True))
        return
    began = spoke = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - spoke >= seconds:
            spoke, rate = now, done / (now - began)
            print(
                f"{what} {done}/{total}  {rate:.1f}/s  {(total - done) / rate:.0f} s left",
                file=sys.stderr,
            )
