"""Several processes of one recipe, as torchrun starts them: connected at the start, parted from at the end.

    torchrun --nproc-per-node 8 -m recipes.papo 7b

However a process ends, the others learn of it: at the end of the work all part together; one that fails alone tells
the others, who would wait for it, and they end as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmrl.ground.faults import first_line
from mmrl.model.load import resolve_device
from mmrl.model.ranks import Ranks, lost
from mmrl.model.watch import end_with, farewell


@contextmanager
def ranks_of(arguments: Mapping[str, Any]) -> Iterator[Ranks]:
    """The processes that run a recipe with these arguments, for the time of a `with`. Raises ValueError."""
    device = getattr(arguments.get("load"), "device", "auto")
    if device not in ("auto", "cpu", "cuda") and _several():
        raise ValueError(
            f"--load.device is {device!r}, but several processes take the cards of their machine in turn; leave it out."
        )
    ranks = Ranks.start(str(resolve_device(device)) if _several() else "cpu")
    try:
        yield ranks
    except BaseException as error:
        # What all know of, all end with; they wait for each other, so that every message is written.
        common = ranks.shares(error) or ranks.agreed_to_end
        if not common and lost(error):
            reason = f"another process ended or hangs ({first_line(error)})"
            end_with(farewell(reason, ranks.rank, ranks.place))
        ranks.end("" if common else f"{type(error).__name__}: {first_line(error)}")
        raise
    ranks.end()


def _several() -> bool:
    return Ranks.asked() > 1
