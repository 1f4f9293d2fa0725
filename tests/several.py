"""Runs a function in several processes that are ranks of one run, as torchrun would start them.

`several(world, function, …)` forks the test's process, which has imported torch already. In each fork the environment
is that of a rank, its messages go to a file, and a hard limit ends it where it hangs.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch


@dataclass(frozen=True)
class Outcome:
    """How one rank ended."""

    code: int | None
    """Exit code, minus the number of a signal, None if it had to be killed."""
    value: Any
    """What the function returned; None if it did not."""
    said: str
    """Its stderr and stdout."""
    seconds: float


def several(
    world: int,
    function: Callable[..., Any],
    *arguments: Any,
    limit: float = 60.0,
    environment: Mapping[str, str] | None = None,
) -> list[Outcome]:
    """`function(*arguments)` in `world` processes; what each returned, in the order of ranks."""
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        shared = {
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            **(environment or {}),
        }
        began = time.monotonic()
        children = {}
        for rank in range(world):
            child = os.fork()
            if not child:
                numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ.update(shared | numbers)
                _live(place, rank, limit, function, arguments)
            children[child] = rank
        ends = _ends(children, began, limit + 10)
        return [_outcome(place, rank, *ends[rank]) for rank in range(world)]


def values(outcomes: list[Outcome]) -> list[Any]:
    """What the ranks returned; an assertion with what they said if one failed."""
    for rank, outcome in enumerate(outcomes):
        assert outcome.code == 0, f"rank {rank} ended with {outcome.code}:\n{outcome.said}"
    return [outcome.value for outcome in outcomes]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _live(
    place: Path,
    rank: int,
    limit: float,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """The life of a fork; never returns."""
    code = 1
    try:
        said = os.open(place / f"said-{rank}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.stderr)
        torch.set_num_threads(1)
        value = function(*arguments)
        (place / f"value-{rank}").write_bytes(pickle.dumps(value))
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ends(
    children: dict[int, int], began: float, limit: float
) -> dict[int, tuple[int | None, float]]:
    """Rank -> exit code and seconds; None for those that had to be killed."""
    ends: dict[int, tuple[int | None, float]] = {}
    while len(ends) < len(children):
        late = time.monotonic() - began > limit
        for child, rank in children.items():
            if rank in ends:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ends[rank] = os.waitstatus_to_exitcode(status), time.monotonic() - began
            elif late or _only_stopped(children, ends):
                os.kill(child, 9)
                os.waitpid(child, 0)
                ends[rank] = None, time.monotonic() - began
        time.sleep(0.02)
    return ends


def _only_stopped(children: dict[int, int], ends: Mapping[int, Any]) -> bool:
    """Are all that have not ended stopped by a signal? They would never end."""
    left = [child for child, rank in children.items() if rank not in ends]
    states = [
        Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] for child in left
    ]
    return bool(ends) and all(state == "T" for state in states)


def _outcome(place: Path, rank: int, code: int | None, seconds: float) -> Outcome:
    value = place / f"value-{rank}"
    said = place / f"said-{rank}"
    return Outcome(
        code,
        pickle.loads(value.read_bytes()) if value.is_file() else None,
        said.read_text(errors="replace") if said.is_file() else "",
        seconds,
    )
